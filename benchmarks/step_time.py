"""Times of training steps, of the same steps in PyTorch and JAX, and of their matrix products.

    python benchmarks/step_time.py --threads 2
    python benchmarks/step_time.py --threads 1 --busy --cases tabular
    python benchmarks/step_time.py --start --data-dir DIR

Each method has its own process. They take turns of a fraction of a second, so that other work on
the machine slows all of them alike. Times are medians over the rounds, with the interval from the
second lowest to the second highest; with nine rounds it covers the median 96 times in 100. Ratios
are taken within rounds. --busy measures the CPU time of the process instead, which other work on
the processor changes little; it is for one thread.

`gemm` rows are the step's matrix products alone, in their shapes and number, by NumPy, PyTorch
and TensorFlow, where a convolution counts as the product of its patches; `square` is a product of
2048 x 2048 matrices. A share is the time of the products at the rate of the fastest of these
libraries, divided by the time of the step. `tfdde x 8` has steps_per_execution = 8. `tfdde onednn`
has TF_ENABLE_ONEDNN_OPTS=1, which is not TensorFlow's default on processors without AVX512-VNNI.
With torch.compile the score is found by torch.func.grad, since it can't differentiate again what
torch.autograd.grad with create_graph returns, as `torch compile autograd` shows.

--start measures what `import tfdde` adds to `import tensorflow`, and train/mnist.py from its start
to the end of its first step.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import step_cases
import step_images
import step_peers
from step_cases import CASES, flops, products

SQUARE = 2048
ROUND = 0.4  # seconds of a method's turn
METHODS = [
    *("tfdde", "tfdde jit", "tfdde x 8", "tfdde jit x 8", "tfdde onednn"),
    *("torch eager", "torch compile", "torch compile autograd", "jax jit"),
    *(
        f"gemm {name}{shape}"
        for name in ("numpy", "torch", "tensorflow")
        for shape in ("", " square")
    ),
]


def tfdde_steps(case, x, jit, repeats):
    """Return a function that makes a number of steps, a multiple of ``repeats``, as `fit` does."""
    import tensorflow as tf

    import tfdde

    model = step_cases.tfdde_model(case, jit, repeats)
    batches = iter(tfdde.datasets.stream(x, case["batch"], seed=0))
    function = model.make_train_function()

    def run(count):
        for _ in range(count // repeats):
            logs = function(batches)
            float(tf.nest.flatten(logs)[0])  # as callbacks do

    return run


def gemm_steps(case, library):
    import numpy as np

    shapes = [(SQUARE,) * 3] if case is None else case["products"]
    rng = np.random.default_rng(0)
    pairs = {
        (a, b, c): (
            rng.standard_normal((a, b)).astype(np.float32),
            rng.standard_normal((b, c)).astype(np.float32),
        )
        for a, b, c in shapes
    }
    if library == "numpy":
        multiply = np.dot
    elif library == "torch":
        import torch

        pairs = {k: [torch.from_numpy(part) for part in pair] for k, pair in pairs.items()}
        multiply = torch.mm
    else:
        import tensorflow as tf

        pairs = {k: [tf.constant(part) for part in pair] for k, pair in pairs.items()}
        multiply = tf.matmul

    def run(count):
        for _ in range(count):
            for shape in shapes:
                multiply(*pairs[shape])

    return run


def make(case, method, threads):
    """Return a function that makes a number of steps."""
    if method.startswith("gemm"):
        _, library, *square = method.split()
        if library == "tensorflow":
            import tensorflow as tf

            tf.config.threading.set_intra_op_parallelism_threads(threads)
        return gemm_steps(None if square else case, library)
    x = step_cases.rows_of(case)
    if method.startswith("tfdde"):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        words = method.split()
        return tfdde_steps(case, x, "jit" in words, int(words[-1]) if "x" in words else 1)
    if method.startswith("torch"):
        import torch

        torch.set_num_threads(threads)
        peers = step_images if "images" in case else step_peers
        step = peers.torch_step(case, x, "compile" in method, method != "torch compile")
    elif "images" in case:
        raise ValueError("the steps of images have no peer in JAX")
    else:
        step = step_peers.jax_step(case, x)

    def run(count):
        for _ in range(count):
            step()

    return run


def work(connection, case, method, threads, busy):
    """Make steps on request, in a process of its own."""
    clock = time.process_time if busy else time.perf_counter
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if "onednn" in method:
        os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    try:
        start = clock()
        run = make(case, method, threads)
        unit = int(method.split()[-1]) if " x " in method else 1
        run(unit)
        first = clock() - start
        count = unit
        while True:  # how many fill a turn
            start = clock()
            run(count)
            seconds = clock() - start
            if seconds > ROUND / 2:
                break
            count *= 2
        count = max(unit, int(count * ROUND / seconds) // unit * unit)
        connection.send(first)
        while connection.recv():
            start = clock()
            run(count)
            connection.send((clock() - start) / count)
    except Exception as error:  # e.g. a peer that can't be compiled: its row says so
        connection.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}")


def interval(values):
    """Return the median, the second lowest and the second highest."""
    values = sorted(values)
    cut = 1 if len(values) > 4 else 0
    return [statistics.median(values), values[cut], values[-1 - cut]]


def measure(case, methods, threads, rounds, busy):
    """Return, by method, seconds to the first step and a step in each round, or an error."""
    context = multiprocessing.get_context("spawn")
    first, times, errors, workers = {}, {}, {}, {}
    for method in methods:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work, args=(theirs, case, method, threads, busy), daemon=True
        )
        process.start()
        theirs.close()
        answer = ours.recv()
        if isinstance(answer, str):
            errors[method] = answer
            continue
        workers[method], first[method], times[method] = (process, ours), answer, []
    for _ in range(rounds):
        for method, (_, connection) in workers.items():
            connection.send(True)
            times[method].append(connection.recv())
    for process, connection in workers.values():
        connection.send(False)
        process.join()
    return first, times, errors


def compare(name, case, methods, threads, rounds, busy):
    """Measure a case and add its row, of this name."""
    import record  # which imports TensorFlow: not in the other processes

    case = case | {"products": products(case)}
    first, times, errors = measure(case, methods, threads, rounds, busy)
    work = {"products": flops(case["products"]), "square": 2 * SQUARE**3}
    rows = {}
    for method, seconds in times.items():
        rows[method] = {"ms": [round(1e3 * s, 3) for s in interval(seconds)]}
        if method.startswith("gemm"):
            kind = "square" if method.endswith("square") else "products"
            rate = work[kind] / statistics.median(seconds)
            rows[method]["gflops_per_second"] = round(rate / 1e9, 1)
        else:
            rows[method]["first_step_seconds"] = round(first[method], 2)

    def fastest(start, square=False):
        matching = [m for m in times if m.startswith(start) and m.endswith("square") == square]
        return min(matching, key=lambda m: rows[m]["ms"][0], default=None)

    def ratio(method, scale=1.0):
        if ours and method:
            pairs = zip(times[method], times[ours], strict=True)
            return [round(scale * r, 3) for r in interval([a / b for a, b in pairs])]
        return None

    ours = fastest("tfdde")
    row = {
        "peers": {name: metadata.version(name) for name in ("torch", "jax") if find_spec(name)},
        "rounds": rounds,
        "clock": "CPU" if busy else "wall",
        "load_average": round(os.getloadavg()[1], 1),  # of the last five minutes
        "gflop": round(work["products"] / 1e9, 3),
        "methods": rows | {method: {"error": error} for method, error in errors.items()},
        "fastest": ours,
        "torch_over_fastest": ratio(fastest("torch")),
        "jax_over_fastest": ratio(fastest("jax")),
        "share_of_gemm_in_these_shapes": ratio(fastest("gemm")),
        "share_of_gemm_square": ratio(
            fastest("gemm", square=True), work["products"] / work["square"]
        ),
    }
    record.add("step_time", {"name": name, **row})


IMPORT = """
import time, tensorflow
start = time.perf_counter()
import tfdde
print(time.perf_counter() - start)
"""


def start_up(data_dir, rounds):
    """Measure the time before the first step, and add its row."""
    import record

    root = Path(__file__).parent.parent
    imports, starts = [], []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", IMPORT], stdout=subprocess.PIPE, check=True, cwd=root
        )
        imports.append(float(done.stdout))
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "train/mnist.py", "--steps", "1", "--output", folder]
            command += ["--data-dir", data_dir] if data_dir else []
            start = time.time()
            script = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=root)
            log = Path(folder, "density.csv")
            while not log.exists():
                if script.poll():
                    sys.exit("train/mnist.py failed")
                time.sleep(0.01)
            starts.append(log.stat().st_mtime - start)
            script.kill()
            script.wait()
    row = {
        "rounds": rounds,
        "import_tfdde_seconds": [round(s, 3) for s in interval(imports)],
        "train_mnist_seconds_to_first_step": [round(s, 2) for s in interval(starts)],
    }
    record.add("step_time", {"name": "start", **row})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cases", nargs="+", default=[""], help="beginnings of their names")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--label", default="", help="added to the names of the rows")
    parser.add_argument("--busy", action="store_true", help="take CPU time")
    parser.add_argument("--start", action="store_true", help="measure the start instead")
    parser.add_argument("--data-dir", help="of train/mnist.py, for --start")
    args = parser.parse_args()
    if args.start:
        start_up(args.data_dir, args.rounds)
        return
    if args.busy and args.threads > 1:
        parser.error("--busy is for --threads 1")
    if args.threads > len(os.sched_getaffinity(0)):
        parser.error(f"--threads {args.threads}: this process may use fewer processors")
    for name, case in CASES.items():
        if name.startswith(tuple(args.cases)):
            name = f"{name}, threads = {args.threads}{args.label}"
            compare(name, case, args.methods, args.threads, args.rounds, args.busy)


if __name__ == "__main__":
    main()
