"""Growth of the cost of training with rows N, columns n, depth and replicas.

    python benchmarks/scaling.py rows columns depth replicas

Each curve varies one size and leaves the others at 20,000 rows, 8 columns, 4 residual layers of 128
units (as tfdde.recipes builds them), batches of 512 and one device.  It times `fit`, compiled and
warm: an epoch for the curve of rows, a step for the other curves.  The exponent is the slope of log
seconds over log size, by least squares over the sizes from `fitted_from` on, with its standard
error.  Replicas share batches of 2,048 rows and the cores of this machine, so their curve is the
cost of sharing.
"""

import argparse
import multiprocessing
import time

import keras
import numpy as np
import record
import tensorflow as tf

import tfdde
from tfdde import datasets, recipes

SIZES = {
    "rows": [10_000, 30_000, 100_000, 300_000, 1_000_000],
    "columns": [2, 8, 32, 128, 512],
    "depth": [1, 2, 4, 8, 16, 32],
    "replicas": [1, 2, 4],
}
FITTED_FROM = {"rows": 30_000, "columns": 32, "depth": 4, "replicas": 1}
REPEATS = 5


def seconds_of(what, size):
    """Return seconds of an epoch (rows) or a step, repeatedly.  Call it once in a process."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * max(SIZES["replicas"]),
    )
    sizes = {"rows": 20_000, "columns": 8, "depth": 4, "replicas": 1, what: size}
    rows, batch = sizes["rows"], 2_048 if what == "replicas" else 512
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).standard_normal((rows, sizes["columns"])).astype("f4")
    strategy = tf.distribute.get_strategy()
    if sizes["replicas"] > 1:
        strategy = tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(sizes["replicas"])])
    with strategy.scope():
        density = recipes.table_density(x, tfdde.LogUniform(0.1, 4.0), depth=sizes["depth"], seed=0)
        density.compile(tfdde.optimizers.FusedAdam(1e-3))
    steps = -(-rows // batch) if what == "rows" else max(10, 80 // sizes["depth"])
    batches = datasets.stream(x, batch, 0)
    density.fit(batches, steps_per_epoch=5, verbose=0)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        density.fit(batches, steps_per_epoch=steps, verbose=0)
        times.append(time.perf_counter() - start)
    return np.array(times) / (1 if what == "rows" else steps)


def exponent(sizes, seconds):
    """Return the slope of log seconds over log size, and its standard error."""
    x, y = np.log(sizes), np.log(seconds)
    slope, offset = np.polyfit(x, y, 1)
    left = y - slope * x - offset
    error = np.sqrt((left**2).sum() / max(1, len(x) - 2) / ((x - x.mean()) ** 2).sum())
    return float(slope), float(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="+", choices=SIZES)
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for what in args.what:
        curve = []
        for size in SIZES[what]:
            with spawn.Pool(1) as process:
                times = process.apply(seconds_of, (what, size))
            curve.append([size, float(np.median(times)), float(times.min()), float(times.max())])
        fitted = [row for row in curve if row[0] >= FITTED_FROM[what]]
        slope, error = exponent(*np.array(fitted)[:, :2].T)
        row = {"name": what, "unit": "seconds an epoch" if what == "rows" else "seconds a step"}
        row |= {"curve": curve, "curve_columns": ["size", "median", "least", "most"]}
        row |= {"fitted_from": FITTED_FROM[what], "exponent": slope, "standard_error": error}
        record.add("scaling", row)


if __name__ == "__main__":
    main()
