"""The least time of the training steps of `step_time.py` on this machine, and what they take.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --cases tabular --rounds 3
    python benchmarks/roofline.py table

For one thread. TensorFlow's executor runs the operations of a step one by one, so a step takes at
least the sum of three times (`step_graph.py` has the counts):

- its matrix products, measured alone, in their shapes and number, by NumPy's OpenBLAS. A
  convolution counts as the product of its patches, without the time to gather them;
- the bytes that its other operations move, at the rate of an elementwise maximum of two arrays.
  The rate is measured for arrays of each size that the step has, within a factor of four, since
  small ones stay in a cache. Nothing is added for exponentials;
- the kernels it starts, at the time of the maximum of two numbers in a chain of a thousand.

A compiler that merges operations saves the second and the third, not the first: so `products_ms` is
its bound, and `least_ms` that of an executor. The step and its parts take turns within each round,
and shares are taken within rounds. Times are CPU times of the process.
"""

import argparse
import json
import math
import os
import statistics
import time

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}  # before the imports

import record
import step_cases
import step_graph
import step_time
import tensorflow as tf

CHAIN = 1_000
MAXIMA = 50
SMALL = 4**6  # bytes of an operation, below which its time is that of its start
TURN = 0.3  # seconds that each part is measured for in a round


def chain(length, size=4):
    """Return a function that takes ``length`` times the maximum of two arrays of ``size`` bytes."""
    arrays = [tf.random.normal((size // 4,)) for _ in range(4)]

    @tf.function(autograph=False)
    def run(x, *others):
        for k in range(length):  # of others in turn, or TensorFlow would merge them
            x = tf.maximum(x, others[k % 3])
        return x

    return lambda: run(*arrays)


def bucket(size):
    """Return the power of four next to ``size``."""
    return 4 ** round(math.log(size, 4))


def moved_by_bucket(operations):
    """Return the bytes that operations move, by the size of an operation; none of small ones."""
    moved = {}
    for operation in step_graph.moving(operations):
        if (size := operation.bytes) >= SMALL:
            moved[bucket(size)] = moved.get(bucket(size), 0) + operation.times * size
    return moved


def seconds_of(run):
    """Return the CPU seconds of one call, over a turn."""
    count, start = 0, time.process_time()
    while (spent := time.process_time() - start) < TURN:
        run()
        count += 1
    return spent / count


def bounds(times, moved, launched):
    """Return the seconds of one round that the step's parts take at least, by name."""
    empty = max(0.0, times["chain"] - times["call"]) / (CHAIN - 1)
    moving = 0.0
    for size, total in moved.items():
        one = (times[f"move {size}"] - times["call"]) / MAXIMA - empty
        moving += total / size * max(0.0, one)
    starting = launched * empty
    products = times["products"]
    return {
        "products": products,
        "moving": moving,
        "starting": starting,
        "least": products + moving + starting,
        "empty": empty,
    }


def measure(case, rounds):
    """Return the counts of a case's step, its times and its bounds."""
    rows = step_cases.rows_of(case)
    shape = case["batch"], *rows.shape[1:]
    operations = step_graph.executed(step_cases.tfdde_model(case), shape)
    sizes = step_graph.products(operations)
    moved, launched = moved_by_bucket(operations), step_graph.launched(operations)
    step = step_time.tfdde_steps(case, rows, False, 1)
    products = step_time.gemm_steps(case | {"products": sizes}, "numpy")
    parts = {
        "step": lambda: step(1),
        "products": lambda: products(1),
        **{f"move {size}": chain(MAXIMA, size // 3) for size in moved},
        "chain": chain(CHAIN),
        "call": chain(1),
    }
    for run in parts.values():
        run()
    steps, least = [], []
    for _ in range(rounds):
        times = {name: seconds_of(run) for name, run in parts.items()}
        steps.append(times["step"])
        least.append(bounds(times, moved, launched))

    def ms(values):
        return [round(1e3 * v, 3) for v in step_time.interval(values)]

    def share(name):
        ratios = [b[name] / s for b, s in zip(least, steps, strict=True)]
        return [round(r, 3) for r in step_time.interval(ratios)]

    def median(name):
        return statistics.median(b[name] for b in least)

    flops = step_cases.flops(sizes)
    total = sum(moved.values())
    return {
        "rounds": rounds,
        "clock": "CPU",
        "load_average": round(os.getloadavg()[1], 1),  # of the last five minutes
        "gflop": round(flops / 1e9, 3),
        "products": len(sizes),
        "moved_mb": round(step_graph.moved_bytes(operations) / 1e6, 1),
        "moved_mb_by_size_of_operation": {s: round(b / 1e6, 1) for s, b in sorted(moved.items())},
        "launched": launched,
        "gflops_per_second": round(flops / median("products") / 1e9, 1),
        "gb_per_second": round(total / median("moving") / 1e9, 1),
        "empty_operation_us": round(1e6 * median("empty"), 3),
        "step_ms": ms(steps),
        **{f"{n}_ms": ms([b[n] for b in least]) for n in least[0] if n != "empty"},
        "least_over_step": share("least"),
        "products_over_step": share("products"),
    }


def table(rows):
    """Return the rows as Markdown."""
    lines = [
        "| 1 thread, ms a step | products | bytes | starts | their sum | step | share |",
        "| --- " * 7 + "|",
    ]
    for row in rows:
        parts = [row[f"{n}_ms"][0] for n in ("products", "moving", "starting", "least", "step")]
        middle, low, high = row["least_over_step"]
        cells = [f"{value:.3g}" for value in parts]
        cells.append(f"{100 * middle:.0f} % ({100 * low:.0f} – {100 * high:.0f})")
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cases", nargs="+", default=[""], help="beginnings of their names")
    args = parser.parse_args()
    if args.what == "table":
        print(table(json.loads((record.RESULTS / "roofline.json").read_text())))
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    tf.config.threading.set_intra_op_parallelism_threads(1)
    for name, case in step_cases.CASES.items():
        if name.startswith(tuple(args.cases)):
            record.add("roofline", {"name": name, **measure(case, args.rounds)})


if __name__ == "__main__":
    main()
