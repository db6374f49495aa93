"""Errors of log Z, and coverage of its intervals, on exact mixtures.

    python benchmarks/log_partition.py exact
    python benchmarks/log_partition.py trained
    python benchmarks/log_partition.py table --runs runs/breast_cancer

``exact`` gives the estimators a sample of the data and the true log-density of blurred mixtures
plus a constant, which is the log Z to be estimated. ``trained`` trains a density of many levels
and compares the ladder with annealing. ``table`` reads densities of train/tabular.py at their
lowest level, where an over-fitted network has mass where no rows are: ``log_partition`` by its
defaults, without and with annealing from above, which with more samples and moves is also the
reference. Adds rows to results/log_partition.json.
"""

import argparse
import json
import math
import time
import warnings
from pathlib import Path

import keras
import numpy as np
import record
import tensorflow as tf

import tfdde
from tfdde import datasets, recipes, tuning
from tfdde.partition.annealed import annealed
from tfdde.partition.estimate import estimate
from tfdde.partition.far_field import checked
from tfdde.partition.from_above import annealing_from_above, confirmed
from tfdde.partition.importance import importance
from tfdde.partition.ladder import ladder, ladder_levels

SIGMA, TOP = 0.1, 8.0
CONSTANT = 3.0  # the log Z to be estimated
DIMENSIONS = (2, 6, 8, 21, 43, 63)
# Components, their standard deviations, and whether their weights are equal.
KINDS = {
    "wide": (10, (0.5, 1.0), True),
    "wide, unbalanced": (10, (0.5, 1.0), False),
    "narrow": (40, (0.05, 0.2), True),
    "narrow, unbalanced": (40, (0.05, 0.2), False),
}


class ExactMixture:
    """A random mixture of diagonal Gaussians and its blurred log-density in TensorFlow."""

    def __init__(self, kind, n, seed):
        k, spread, balanced = KINDS[kind]
        rng = np.random.default_rng([seed, n, k, balanced])
        self.means = rng.standard_normal((k, n))
        self.std = rng.uniform(*spread, (k, n))
        self.weights = np.full(k, 1 / k) if balanced else rng.dirichlet(np.ones(k))

    def sample(self, rows, seed):
        """Float32 (rows, n)."""
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), rows, p=self.weights)
        noise = rng.standard_normal((rows, self.means.shape[1]))
        return (self.means[k] + self.std[k] * noise).astype(np.float32)

    def __call__(self, x, sigma):
        """Log-density + CONSTANT of float32 rows (n, d) at sigma (): float32 (n,)."""
        # The squares, multiplied out, are matrix products. Large terms cancel: float64.
        x, sigma = tf.cast(x, tf.float64), tf.cast(sigma, tf.float64)
        precision = 1.0 / (self.std**2 + sigma**2)
        pulled = self.means * precision
        square = tf.matmul(x**2, precision, transpose_b=True)
        square -= 2.0 * tf.matmul(x, pulled, transpose_b=True)
        square += tf.reduce_sum(self.means * pulled, axis=1)
        log_scale = tf.reduce_sum(tf.math.log(2 * math.pi / precision), axis=1)
        parts = np.log(self.weights) - 0.5 * (square + log_scale)
        return tf.cast(CONSTANT + tf.reduce_logsumexp(parts, axis=1), tf.float32)


def summary(estimates):
    """Return errors and coverage of the estimates of several seeds."""
    errors = np.array([z.value - CONSTANT for z in estimates])
    covered = [z.lower <= CONSTANT <= z.upper for z in estimates]

    def mean(name):
        return float(np.mean([getattr(z, name) for z in estimates]))

    return {
        "seeds": len(estimates),
        "mean_error": round(float(errors.mean()), 4),
        "rms_error": round(float(np.sqrt((errors**2).mean())), 4),
        "largest_error": round(float(np.abs(errors).max()), 4),
        "mean_reported_standard_error": round(mean("standard_error"), 4),
        "covered_percent": round(100 * float(np.mean(covered)), 1),
        "mean_effective_samples": round(mean("effective_sample_size")),
        "trusted_percent": round(100 * mean("trusted"), 1),
    }


def exact(args):
    for kind in args.kinds:
        for n in args.n:
            levels = ladder_levels(SIGMA, TOP, n)
            methods = {
                "ladder": lambda s, x, seed, levels=levels: ladder(
                    s, x, levels, args.samples, seed=seed
                )[0],
                # As DDE.log_partition: with the check from far outside of the rows.
                "checked ladder": lambda s, x, seed: estimate(
                    s, x, tfdde.LogUniform(SIGMA, TOP), "ladder", SIGMA, args.samples, 0, seed
                ),
                "checked ladder, 2 moves": lambda s, x, seed: estimate(
                    s, x, tfdde.LogUniform(SIGMA, TOP), "ladder", SIGMA, args.samples, 2, seed
                ),
                "importance": lambda s, x, seed: importance(s, x, SIGMA, seed=seed),
                "annealed": lambda s, x, seed, levels=levels: annealed(s, x, levels, seed=seed),
            }
            for name in args.methods:
                start, estimates = time.time(), []
                seeds = args.seeds if "ladder" in name else min(args.seeds, args.few)
                for seed in range(seeds):
                    mixture = ExactMixture(kind, n, seed)
                    x = mixture.sample(args.rows, [seed, 1])
                    estimates.append(methods[name](mixture, x, seed))
                row = {"name": f"exact, {kind}, n = {n}, {name}", "rows": args.rows}
                if "ladder" in name:
                    row["samples"] = args.samples
                seconds = round((time.time() - start) / seeds, 2)
                record.add("log_partition", {**row, **summary(estimates), "seconds_each": seconds})


def trained(args):
    for n in args.n:
        for seed in range(args.few):
            keras.utils.set_random_seed(seed)
            mixture = ExactMixture("wide, unbalanced", n, seed)
            x = mixture.sample(50_000, [seed, 1])
            dde = recipes.table_density(x, tfdde.LogUniform(SIGMA, TOP), seed=seed)
            schedule = keras.optimizers.schedules.CosineDecay(2e-3, args.steps)
            dde.compile(tfdde.optimizers.FusedAdam(schedule, use_ema=True), jit_compile=True)
            dde.fit(x, batch_size=512, epochs=1 + args.steps * 512 // len(x), verbose=0)
            fresh = mixture.sample(args.rows, [seed, 2])
            row = {"name": f"trained, n = {n}, seed {seed}", "rows": args.rows}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for name, method, moves in (
                    ("ladder", "ladder", 5),
                    ("ladder without moves", "ladder", 0),
                    ("annealed", "annealed", 5),
                    ("importance", "importance", 0),
                ):
                    start = time.time()
                    log_z = dde.log_partition(fresh, method, moves=moves, seed=seed)
                    config = {k: v for k, v in log_z.get_config().items() if k != "method"}
                    row[name] = {**config, "seconds": round(time.time() - start, 1)}
            low = max(row["ladder"]["lower"], row["annealed"]["lower"])
            high = min(row["ladder"]["upper"], row["annealed"]["upper"])
            row["intervals_overlap"] = low <= high
            record.add("log_partition", row)


def table(args):
    for folder in map(Path, args.runs):
        settings = json.loads((folder / "config.json").read_text())["arguments"]
        name, seed = settings["dataset"], settings["seed"]
        rows = datasets.load_table(name, None, None, seed)
        dde = keras.models.load_model(folder / "density.keras")
        x = dde.inside(tuning.ladder_starts(rows.x_train, rows.x_validation)).numpy()
        level = dde.noise.minimum
        levels = ladder_levels(level, dde.noise.maximum, x.shape[1])
        row = {"name": f"table, {name}, sigma = {level:g}, seed {seed}", "rows": len(x)}
        start = time.process_time()
        log_z = ladder(dde.evaluator, x, levels, args.samples, 5, seed)
        far = checked(log_z[:1], dde.evaluator, x, seed)[0]
        row["without_annealing_from_above"] = {**far.get_config(), "trusted": far.trusted}
        row["its_processor_seconds"] = round(time.process_time() - start, 1)
        start = time.process_time()
        above = confirmed(log_z, dde.evaluator, x, levels, seed)
        row["log_partition"] = {**above[0].get_config(), "trusted": above[0].trusted}
        row["further_processor_seconds"] = round(time.process_time() - start, 1)
        found = annealing_from_above(dde.evaluator, x, levels, seed + 100, 10_000, 3)[0]
        row["reference"] = {"samples": 10_000, "moves": 3, **found._asdict()}
        record.add("log_partition", row)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("exact", "trained", "table"))
    parser.add_argument(
        "--runs", nargs="+", default=(), help="folders of train/tabular.py, of table"
    )
    parser.add_argument("--n", type=int, nargs="+", default=DIMENSIONS)
    parser.add_argument("--rows", type=int, default=50_000, help="of data given to an estimator")
    parser.add_argument("--samples", type=int, default=10_000, help="of the ladder, a level")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=50, help="mixtures and samples, of ladder")
    parser.add_argument("--few", type=int, default=3, help="of the other methods, and trained")
    parser.add_argument("--steps", type=int, default=3_000, help="of training")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=("ladder", "checked ladder", "importance", "annealed"),
        help="of exact",
    )
    args = parser.parse_args()
    {"exact": exact, "trained": trained, "table": table}[args.what](args)


if __name__ == "__main__":
    main()
