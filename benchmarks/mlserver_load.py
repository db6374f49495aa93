"""Many clients of the example for MLServer, while bad requests come and the model is exchanged.

    python benchmarks/mlserver_load.py
    python benchmarks/mlserver_load.py --seconds 30 --clients 8 --reload-every 5 --trial

Two densities of 8 columns (``recipes.table_density``, width 64, depth 4) are exported, and
examples/mlserver serves them as docs/serving.md says.  Their weights are the initial ones, since
the speed does not depend on them.  Each client sends its next request when it has the answer to its
last; one request in ten is bad.  Every so often the next version, which is the other density, is
put into the folder, and the server loads it.

A good request fails if its status is not 200, or if a value differs from Keras for a density that
the server may have had meanwhile.  A bad one must be refused by status 4xx and one line.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
N, WIDTH, DEPTH = 8, 64, 4
COLUMNS = [f"column_{i}" for i in range(N)]
ROWS = {"log_density": [1, 64], "score": [16], "by column": [1, 16]}  # of the good requests
EACH = 20  # good requests of each kind and number of rows; they are sent again and again
BAD_SHARE = 0.1
TOLERANCE = 1e-5  # as a share of the largest value
SETTLED = 0.25  # of the time, after which memory should not grow


def make_models(folder):
    """Export two densities; return their artifacts and the densities."""
    import keras

    import tfdde
    from tfdde import serving
    from tfdde.utils.files import write_json

    write_json(folder / "result.json", {"columns": COLUMNS})
    paths, densities = [], []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        x = np.random.default_rng(seed).normal(3.0, 2.0, (2_000, N)).astype(np.float32)
        noise, layer = tfdde.LogUniform(0.1, 8.0), keras.layers.Normalization()
        density = tfdde.recipes.table_density(x, noise, WIDTH, DEPTH, layer, seed=seed)
        density.partition = tfdde.LogPartition(float(seed), 0.01, 0.9, 2.1, 900.0, "ladder", 0.1)
        base = folder / f"density_{seed}"
        paths.append(serving.export_savedmodel(base, density, run=folder)[0])
        densities.append(density)
    return paths, densities


def tensor(name, values, datatype="FP32"):
    shape, data = list(values.shape), values.ravel().tolist()
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def good_requests(densities, seed=0):
    """Return bodies, each with the values that every density must answer."""
    rng = np.random.default_rng(seed)
    requests = []
    for kind, rows in itertools.chain(*([(k, n) for n in ROWS[k]] * EACH for k in ROWS)):
        x = rng.normal(3.0, 2.0, (rows, N)).astype(np.float32)
        body = {"inputs": [tensor("x", x)], "parameters": {"signature": "log_density"}}
        if kind == "score":
            body["parameters"]["signature"] = "score"
            values = [density.score(x).numpy() for density in densities]
        else:
            values = [density.log_density(x, normalized=True).numpy() for density in densities]
        if kind == "by column":
            order = rng.permutation(N)
            body["inputs"] = [tensor(COLUMNS[i], x[:, i], "FP64") for i in order]
        requests.append((json.dumps(body), values))
    return requests


def bad_requests():
    """Return bodies of all kinds that the server must refuse."""
    row = np.zeros((1, N))
    bodies = [
        {"inputs": [tensor("x", row)], "parameters": {"signature": "no"}},
        {"inputs": [tensor("x", row, "FP64")]},
        {"inputs": [tensor("y", row)]},
        {"inputs": [tensor("x", row[:, :3])]},
        {"inputs": [tensor("x", row[0])]},
        {"inputs": [tensor("x", row) | {"data": [1e300] * N}]},
        {"inputs": [tensor("x", row) | {"data": ["a"] * N}]},
        {"inputs": [tensor("x", row) | {"data": [0.0] * (N - 1)}]},
        {"inputs": [tensor(name, row[:, 0], "FP64") for name in COLUMNS[1:]]},
        {"inputs": []},
        {},
    ]
    return [*map(json.dumps, bodies), "{", "[1, 2]"]


class Served:
    """Which densities the server may have: a request's are those at its start and at its end."""

    def __init__(self):
        self.now = {0}

    def agree(self, output, values, before):
        """Return which of the densities gave the output, or None if none did that may have."""
        got = np.reshape(output["data"], output["shape"])
        for k in before | self.now:
            bound = TOLERANCE * np.abs(values[k]).max()
            if got.shape == values[k].shape and np.abs(got - values[k]).max() <= bound:
                return k
        return None


class Client(threading.Thread):
    """Sends requests until the time is up; keeps what came of them."""

    def __init__(self, seed, port, good, bad, served, end):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.port, self.good, self.bad, self.served, self.end = port, good, bad, served, end
        self.times, self.counts, self.problems = [], Counter(), []

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while time.monotonic() < self.end:
            is_bad = self.rng.random() < BAD_SHARE
            requests = self.bad if is_bad else self.good
            request = requests[self.rng.integers(len(requests))]
            before, start = set(self.served.now), time.monotonic()
            try:
                body = request if is_bad else request[0]
                header = {"Content-Type": "application/json"}
                connection.request("POST", "/v2/models/density/infer", body, header)
                response = connection.getresponse()
                status, text = response.status, response.read().decode()
            except OSError as error:
                status, text = 0, str(error)
                connection.close()
            seconds = time.monotonic() - start
            if is_bad:
                self.check_bad(status, text)
            else:
                self.times.append((start, seconds))
                self.check_good(status, text, request[1], before)
        connection.close()

    def check_bad(self, status, text):
        refused = 400 <= status < 500 and "\n" not in text and "Traceback" not in text
        self.count("bad, refused" if refused else "bad, not refused", refused, status, text)

    def check_good(self, status, text, values, before):
        if status != 200:
            return self.count("good, failed", False, status, text)
        which = self.served.agree(json.loads(text)["outputs"][0], values, before)
        right = which is not None
        name = f"good, of density {which + 1}" if right else "good, wrong"
        return self.count(name, right, status, text)

    def count(self, name, fine, status, text):
        self.counts[name] += 1
        if not fine:
            self.problems.append(f"{name}: {status} {text[:200]}")


@contextlib.contextmanager
def server(folder, artifact):
    """An MLServer of a copy of the example, with an artifact as version 1: process and port."""
    shutil.copytree(ROOT / "examples/mlserver", folder)
    shutil.copytree(artifact, folder / "savedmodel/1")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    names = ("http_port", "grpc_port", "metrics_port")
    ports = {name: s.getsockname()[1] for name, s in zip(names, sockets, strict=True)}
    for each in sockets:
        each.close()
    settings = json.loads((folder / "settings.json").read_text()) | {"host": "127.0.0.1"} | ports
    (folder / "settings.json").write_text(json.dumps(settings))
    program = Path(sys.executable).with_name("mlserver")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "start", folder], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 240
        while post(ports["http_port"], "/v2/models/density/ready", "GET") != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"MLServer did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield process, ports["http_port"]
    finally:
        process.kill()
        process.wait()


def post(port, path, method="POST"):
    """Return the status of the answer; 0 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def memory(pid):
    """Return the resident memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmRSS"))
    return int(kib) / 1024


def exchange(folder, port, paths, served, version):
    """Put the next version beside the last one and have it loaded; return start and end."""
    (old,) = served.now
    new = (version + 1) % 2
    hidden = folder / ".next"  # renamed when it is whole
    shutil.copytree(paths[new], hidden)
    hidden.rename(folder / "savedmodel" / str(version))
    served.now = {old, new}
    start = time.monotonic()
    status = post(port, "/v2/repository/models/density/load")
    end = time.monotonic()
    served.now = {new}
    if status != 200:
        sys.exit(f"The server could not load version {version}: status {status}.")
    shutil.rmtree(folder / "savedmodel" / str(version - 1))
    return start, end


def milliseconds(seconds):
    p50, p99 = 1e3 * np.percentile(seconds, [50, 99])
    return {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "max_ms": round(1e3 * max(seconds))}


def measure(seconds, clients, reload_every):
    """Run the test; return its row and sentences about what went wrong."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths, densities = make_models(folder)
        good, bad, served = good_requests(densities), bad_requests(), Served()
        with server(folder / "server", paths[0]) as (process, port):
            start = time.monotonic()
            threads = [Client(i, port, good, bad, served, start + seconds) for i in range(clients)]
            for thread in threads:
                thread.start()
            sizes, averages, loads, version, over = [], [], [], 1, threading.Event()

            def watch():
                while not over.wait(0.5):
                    sizes.append((time.monotonic() - start, memory(process.pid)))
                    averages.append(os.getloadavg()[0])

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            while any(thread.is_alive() for thread in threads):
                due = (len(loads) + 1) * reload_every
                if due <= time.monotonic() - start < seconds - 1:
                    version += 1
                    loads.append(exchange(folder / "server", port, paths, served, version))
                time.sleep(min(1.0, reload_every / 4))
            over.set()
            watcher.join()
    times = np.array([pair for thread in threads for pair in thread.times])
    begun, taken = times.T
    during = np.zeros(len(times), bool)
    for low, high in loads:
        during |= (begun < high) & (begun + taken > low)
    row = {
        "name": "mlserver",
        "clients": clients,
        "seconds": seconds,
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": round(load_before, 1),  # of the whole machine, this test included
        "load_average": round(float(np.mean(averages)), 1),
        "requests": dict(sorted(sum((t.counts for t in threads), Counter()).items())),
        "requests_per_second": round(sum(t.counts.total() for t in threads) / seconds),
        "good": milliseconds(taken),
        "good_during_loads": milliseconds(taken[during]) if during.any() else None,
        "loads": len(loads),
        "load_seconds": [round(max(b - a for a, b in loads), 1)] if loads else [],
        "memory_mib": by_minute(sizes),
        "memory_mib_per_minute": round(slope(sizes, seconds), 2),
    }
    return row, [problem for thread in threads for problem in thread.problems]


def by_minute(sizes):
    """Return the largest memory of each minute."""
    minutes = itertools.groupby(sizes, key=lambda size: int(size[0] // 60))
    return [round(max(mib for _, mib in group)) for _, group in minutes]


def slope(sizes, seconds):
    """Return the growth of the memory in MiB a minute, after it has settled."""
    t, mib = np.array([size for size in sizes if size[0] >= SETTLED * seconds]).T
    return np.polyfit(t / 60, mib, 1)[0]


def main(arguments=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--reload-every", type=float, default=30.0, help="seconds")
    parser.add_argument("--trial", action="store_true", help="print the row, but don't keep it")
    args = parser.parse_args(arguments)
    row, problems = measure(args.seconds, args.clients, args.reload_every)
    for problem in problems[:10]:
        print(problem, file=sys.stderr)
    if args.trial:
        print(json.dumps(row, indent=1))
    else:
        import record

        record.add("mlserver", row)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
