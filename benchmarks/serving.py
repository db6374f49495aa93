"""Latency and speed of a density's artifacts, of flows, and of samplers, on one core.

    python benchmarks/serving.py
    python benchmarks/serving.py --only litert cnf --core 1
    python benchmarks/serving.py table

A density of 8 columns (``recipes.table_density``, width 64, depth 4, standardised, with log Z) is
trained for some seconds, exported, and read through each runtime; a neural spline flow and a
continuous flow of zuko are trained on the same rows.  The first run puts them in runs/serving,
later runs take them from there.  Generator and diffusion network have initial weights, since their
speed does not depend on the weights.  NumPy rows go in and come out, in batches of 1, 64 and 2048.
Each row is measured in a process of its own, held to one core, all libraries to one thread.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from scipy.stats import t

# Libraries are imported where they are needed, so that no row is measured beside the threads of
# another row's library.

MODELS = Path(__file__).parent.parent / "runs" / "serving"
N, WIDTH, DEPTH = 8, 64, 4
ROWS = 50_000  # to train on
BATCHES, SAMPLES = (1, 64, 2048), (1, 2048)
TRAINING, WARM_UP, MEASURED = 20.0, 0.5, 2.0  # seconds
CALLS = 20, 20_000  # at least, for however long, and at most
BLOCKS = 10
STEPS = 50  # of the diffusion sampler
ONE_THREAD = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def summary(seconds, batch):
    """Return rows a second and latencies of successive calls.

    The 95 % interval is that of the mean over blocks of calls, by Student's t.

    Args:
        seconds: of each call, at least 2.
        batch: rows of a call.
    """
    blocks = np.array([b.mean() for b in np.array_split(seconds, min(BLOCKS, len(seconds)))])
    half = t.ppf(0.975, len(blocks) - 1) * blocks.std(ddof=1) / np.sqrt(len(blocks))
    mean = seconds.mean()
    p50, p99 = 1e6 * np.percentile(seconds, [50, 99])
    low, high = batch / (mean + half), batch / max(mean - half, seconds.min())
    low, high, rate = (round(v) if v >= 100 else round(v, 1) for v in (low, high, batch / mean))
    return {
        "batch": batch,
        "rows_per_second": rate,
        "interval": [low, high],
        "p50_us": round(p50, 1),
        "p99_us": round(p99, 1),
        "calls": len(seconds),
    }


def timed(call):
    """Return the seconds of each of many calls."""
    clock, seconds = time.perf_counter, []
    start, warm = clock(), 0
    while warm < 3 or clock() - start < WARM_UP:
        call()
        warm += 1
    start = clock()
    while len(seconds) < CALLS[0] or (len(seconds) < CALLS[1] and clock() - start < MEASURED):
        before = clock()
        call()
        seconds.append(clock() - before)
    return np.array(seconds)


def data(m, seed):
    import families

    return families.Mixture(N).sample(m, seed)


def train_density():
    """Train the density; return its artifacts and its own log-density of some rows."""
    import keras
    import peers

    import tfdde
    from tfdde import serving

    x = data(ROWS, 1)
    keras.utils.set_random_seed(0)
    layer = keras.layers.Normalization()
    noise = tfdde.LogUniform(0.05, 8.0)
    density = tfdde.recipes.table_density(x, noise, WIDTH, DEPTH, layer, seed=0)
    peers.train_density(density, x, peers.Clock(TRAINING), seed=0)
    log_z = density.log_partition(data(2_000, 2), samples=2_000)
    if not log_z.trusted:
        sys.exit(f"log Z can't be trusted: {log_z}")
    density.save(MODELS / "density.keras")
    shutil.rmtree(MODELS / "savedmodel", ignore_errors=True)
    serving.export_savedmodel(MODELS / "savedmodel", density)
    serving.export_tflite(MODELS / "model.tflite", density)
    rows = data(max(BATCHES), 3)
    np.savez(MODELS / "rows.npz", x=rows, log_density=density.log_density(rows))


def make_flow(name):
    """At zuko's customary sizes; the continuous one with its own solver and the exact trace."""
    import torch
    import zuko

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    if name == "nsf":
        return zuko.flows.NSF(N, transforms=4, bins=8, hidden_features=(128, 128))
    return zuko.flows.CNF(N, hidden_features=(64, 64))


def train_flow(name):
    import peers
    import torch

    x = data(ROWS, 1)
    rows = torch.from_numpy(peers.Scaler(x)(x))
    flow = make_flow(name)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    clock = peers.Clock(TRAINING)
    while clock.share < 1:
        loss = -flow().log_prob(rows[torch.randint(len(rows), (256,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(flow.state_dict(), MODELS / f"{name}.pt")


# Below, each `of_` and `samples_of_` returns a function from a batch to seconds, and facts.


def rows():
    with np.load(MODELS / "rows.npz") as file:
        return file["x"], file["log_density"]


def each_batch(log_density):
    """Return times of a function of NumPy rows, after a check that it agrees with Keras."""
    x, expected = rows()
    for batch in BATCHES:
        check(log_density(x[:batch]), expected[:batch])

    def times(batch):
        part = x[:batch].copy()
        return timed(lambda: log_density(part))

    return times


def check(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def saved():
    return MODELS / "savedmodel" / "1"


def of_keras():
    from tfdde import serving

    density, _ = serving.load_run(MODELS)
    facts = {"parameters": density.network.count_params()}
    return each_batch(lambda x: density.log_density(x).numpy()), facts


def of_savedmodel():
    import tensorflow as tf

    loaded = tf.saved_model.load(str(saved()))
    signature = loaded.signatures["log_density"]
    return each_batch(lambda x, _=loaded: signature(x=tf.constant(x))["log_density"].numpy()), {}


def of_litert():
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(MODELS / "model.tflite"), num_threads=1)
    runner = interpreter.get_signature_runner("log_density")
    return each_batch(lambda x: runner(x=x)["log_density"]), {}


def of_openvino():
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    model = core.compile_model(core.read_model(saved()), "CPU", options)
    return each_batch(lambda x: model(x)["log_density"]), {}


def of_c():
    """Run examples/c/run.c, which times its own calls."""
    import tensorflow as tf

    wheel = Path(tf.__file__).parent
    source = Path(__file__).parent.parent / "examples/c/run.c"
    libraries = ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    place = [f"-I{wheel / 'include'}", f"-L{wheel}", *libraries, f"-Wl,-rpath,{wheel}"]
    subprocess.run(["gcc", "-O2", source, "-o", MODELS / "run", *place], check=True)
    x, expected = rows()

    def times(batch):
        text = " ".join(map(str, x[:batch].ravel().tolist()))

        def run(calls):
            command = [MODELS / "run", saved(), "log_density", str(calls)]
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
            check(np.array(done.stdout.split(), float), expected[:batch])
            # TensorFlow may log lines before the numbers.
            return np.array(done.stderr.split()[-calls:], float)

        pace = np.median(run(200))
        warm, calls = (int(np.clip(s / pace, *CALLS)) for s in (WARM_UP, MEASURED))
        return run(warm + calls)[warm:]

    return times, {}


def _flow(name):
    import torch

    flow = make_flow(name)
    flow.load_state_dict(torch.load(MODELS / f"{name}.pt"))
    return flow.eval(), {"parameters": sum(p.numel() for p in flow.parameters())}


def of_flow(name):
    import peers
    import torch

    flow, facts = _flow(name)
    x = peers.Scaler(data(ROWS, 1))(rows()[0])

    def times(batch):
        part = x[:batch].copy()

        def call():
            with torch.no_grad():
                return flow().log_prob(torch.from_numpy(part)).numpy()

        return timed(call)

    return times, facts


def samples_of_flow(name):
    import torch

    flow, facts = _flow(name)

    def times(batch):
        def call():
            with torch.no_grad():
                return flow().sample((batch,)).numpy()

        return timed(call)

    return times, facts


def samples_of_generator():
    import tfdde
    from tfdde import networks

    densities = [tfdde.DDE(networks.residual_mlp(N, width=4, depth=1)) for _ in range(2)]
    network = networks.residual_mlp(N, WIDTH, DEPTH, output_shape=N, activation="silu")
    generator = tfdde.Generator(network, *densities, latent_dim=N)
    facts = {"parameters": network.count_params()}
    return lambda batch: timed(lambda: generator.sample(batch, seed=1).numpy()), facts


def samples_of_ddim():
    """Song et al. 2021 with eta = 0 and a cosine schedule; the generator's network sees time, too.

    All its steps are one TensorFlow graph.
    """
    import tensorflow as tf

    from tfdde import networks

    network = networks.residual_mlp(N, WIDTH, DEPTH, output_shape=N, activation="silu", levels=True)
    time_ = np.linspace(0.99, 0.0, STEPS + 1)
    signal, noise = np.cos(0.5 * np.pi * time_), np.sin(0.5 * np.pi * time_)

    @tf.function(reduce_retracing=True)
    def sample(count):
        x = tf.random.normal((count, N))
        for k in range(STEPS):
            epsilon = network([x, tf.fill((count, 1), np.float32(time_[k]))])
            ratio = signal[k + 1] / signal[k]
            x = ratio * x + (noise[k + 1] - ratio * noise[k]) * epsilon
        return x

    def times(batch):
        count = tf.constant(batch)
        return timed(lambda: sample(count).numpy())

    return times, {"parameters": network.count_params(), "steps": STEPS}


DENSITIES = {
    "keras": ("tfdde, `DDE.log_density`", of_keras, ()),
    "savedmodel": ("tfdde, SavedModel", of_savedmodel, ()),
    "litert": ("tfdde, LiteRT", of_litert, ()),
    "openvino": ("tfdde, OpenVINO", of_openvino, ()),
    "c": ("tfdde, C", of_c, ()),
    "nsf": ("spline flow", of_flow, ("nsf",)),
    "cnf": ("continuous flow", of_flow, ("cnf",)),
}
SAMPLERS = {
    "generator": ("tfdde, `Generator.sample`", samples_of_generator, ()),
    "ddim": (f"diffusion, {STEPS} DDIM steps", samples_of_ddim, ()),
    "nsf-samples": ("spline flow", samples_of_flow, ("nsf",)),
    "cnf-samples": ("continuous flow", samples_of_flow, ("cnf",)),
}


def measure(name):
    """Return one row of the results."""
    _, make, arguments = (DENSITIES | SAMPLERS)[name]
    times, facts = make(*arguments)
    batches = BATCHES if name in DENSITIES else SAMPLES
    return facts | {"batches": [summary(times(batch), batch) for batch in batches]}


def alone(function, *arguments):
    """Call a function in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(function, *arguments).result()


def run(names, core):
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    os.sched_setaffinity(0, {core})
    import record

    MODELS.mkdir(parents=True, exist_ok=True)
    if not (MODELS / "rows.npz").exists():
        alone(train_density)
    for name in ("nsf", "cnf"):
        if not (MODELS / f"{name}.pt").exists():
            alone(train_flow, name)
    for name in names:
        row = {"name": name, "n": N, "cores": 1, "training_seconds": TRAINING}
        record.add("serving", row | alone(measure, name))


def short(number):
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def table(found):
    """Return the rows of results/serving.json as a Markdown table."""
    rows = {row["name"]: {b["batch"]: b for b in row["batches"]} for row in found}

    def cells(name, batches):
        for batch in batches:
            b = rows.get(name, {}).get(batch)
            yield short(b["rows_per_second"]) if b else ""
            yield " / ".join(short(b[f"p{p}_us"]) for p in (50, 99)) if b else ""

    lines, kinds = [], [("log-density", DENSITIES, BATCHES), ("samples", SAMPLERS, SAMPLES)]
    for title, labels, batches in kinds:
        heads = [f"{head}, {b}" for b in batches for head in ("rows/s", "µs")]
        lines += [f"| {title} | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
        for name, (label, *_) in labels.items():
            lines.append(f"| {' | '.join([label, *cells(name, batches)])} |")
        lines.append("")
    return "\n".join(lines)


def main():
    names = [*DENSITIES, *SAMPLERS]
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=["run", "table"], default="run")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    args = parser.parse_args()
    if args.what == "run":
        run(args.only, args.core)
    else:
        results = Path(__file__).parent / "results/serving.json"
        print(table(json.loads(results.read_text())))


if __name__ == "__main__":
    main()
