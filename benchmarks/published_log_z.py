"""The published evaluation procedure applied to a density that is normalised exactly.

    python benchmarks/published_log_z.py

The procedure that comes with the paper estimates log Z by importance sampling from a
Gaussian with the mean and standard deviation of each column of the data.  It differs from the
textbook in two places.  In the proposal's log-density the squares (y - mean)**2 / (2 std**2) are
averaged over the n dimensions where they belong summed; the constant is that of n dimensions.
And the sum of the weights, relative to the largest, has 1 added to it: a phantom sample.  (Added
to the bare sum, 1 would keep the result above -log 51,200 = -10.8.)

On N(0, I), whose true log Z is 0, the data's standard deviation is 1, and so is the proposal's.
The mean weight is then the integral of

    N(y; 0, I) exp(|y|**2 / (2 n) - |y|**2 / 2),

n Gaussian integrals of precision 1 + 1 - 1/n each: log Z = -(n/2) log(2 - 1/n).  For a proposal
of standard deviation t it is -(n/2) log(1 + (1 - 1/n) / t**2).  A log-likelihood computed with
such a log Z is too high by as much.

The rows also have tfdde's estimates for the same density, read as N(0, (1 - 0.1**2) I) blurred by
sigma = 0.1.  For an AR(1) Gaussian with rho = 0.8 they have correct importance sampling from a
diagonal Gaussian, which fails because of the correlation alone; thirty seeds, since a few of them
draw a huge weight and most draw none.  Rows go to results/published_log_z.json.
"""

import math

import numpy as np
import record
import tensorflow as tf
from scipy.special import logsumexp

from tfdde.partition.annealed import annealed
from tfdde.partition.importance import importance
from tfdde.partition.ladder import ladder, ladder_levels

SAMPLES = 51_200
SEEDS = range(5)
SEEDS_DIAGONAL = range(30)
ROWS = 5_000  # of data, for tfdde's estimates
SIGMA, HIGHEST = 0.1, 8.0
RHO = 0.8


def log_weights(log_density, n, rng, averaged):
    """log(e^s / proposal) of samples of N(0, I): the published one, or the correct one.

    Args:
        log_density: maps float64 rows (m, n) to (m,).
        averaged: whether the squares are averaged over dimensions, as published.
    """
    y = rng.standard_normal((SAMPLES, n))
    squares = 0.5 * np.square(y).sum(axis=1) / (n if averaged else 1)
    return log_density(y) + squares + 0.5 * n * math.log(2 * math.pi)


def correct(log_w):
    return logsumexp(log_w) - math.log(len(log_w))


def published(log_w):
    """Return log Z with the phantom sample, which weighs as much as the heaviest sample."""
    top = log_w.max()
    return top + math.log1p(np.exp(log_w - top).sum()) - math.log(len(log_w))


def gaussian(covariance):
    """Exact s(x, sigma) of N(0, covariance) at SIGMA, and data whose blurred density it is.

    Returns:
        s of float64 rows at SIGMA; s for TensorFlow at every sigma >= SIGMA; float32 rows of a
        seed.
    """
    n = len(covariance)
    values, axes = np.linalg.eigh(covariance)
    constant = -0.5 * n * math.log(2 * math.pi)

    def log_density(x):
        u = np.square(x @ axes) / values
        return constant - 0.5 * (u + np.log(values)).sum(axis=1)

    def at(x, sigma):
        wide = tf.constant(values - SIGMA**2, tf.float32) + sigma**2
        u = tf.square(tf.matmul(x, tf.constant(axes, tf.float32))) / wide
        return constant - 0.5 * tf.reduce_sum(u + tf.math.log(wide), axis=-1)

    def data(seed):
        z = np.random.default_rng([seed, 1]).standard_normal((ROWS, n))
        return (z * np.sqrt(values - SIGMA**2) @ axes.T).astype(np.float32)

    return log_density, at, data


def of_seeds(estimates):
    """Return mean, median and standard deviation of log Z over the seeds."""
    values = np.array(estimates)
    return {
        "log_z": float(values.mean()),
        "median": float(np.median(values)),
        "spread": float(values.std(ddof=1)),
        "seeds": len(values),
    }


def of_tfdde(at, data, n):
    """Return the estimates of tfdde's methods, and how many of their intervals cover 0."""
    levels = ladder_levels(SIGMA, HIGHEST, n)
    methods = {
        "importance": lambda x, seed: importance(at, x, SIGMA, SAMPLES, seed),
        "ladder": lambda x, seed: ladder(at, x, levels, seed=seed)[0],
        "annealed": lambda x, seed: annealed(at, x, levels, seed=seed),
    }
    out = {}
    for name, method in methods.items():
        estimates = [method(data(seed), seed) for seed in SEEDS]
        out[name] = of_seeds([z.value for z in estimates])
        intervals = [[z.lower, z.upper] for z in estimates]
        out[name]["mean_interval"] = np.mean(intervals, axis=0).tolist()
        out[name]["intervals_that_cover"] = sum(low <= 0 <= high for low, high in intervals)
        out[name]["trusted"] = sum(z.trusted for z in estimates)
    return out


def main():
    for n in (6, 8, 21, 43):
        log_density, at, data = gaussian(np.eye(n))
        weights = [log_weights(log_density, n, np.random.default_rng(s), True) for s in SEEDS]
        row = {
            "name": f"standard normal, n = {n}",
            "n": n,
            "samples": SAMPLES,
            "true_log_z": 0.0,
            "published": of_seeds([published(w) for w in weights]),
            "published_without_phantom": of_seeds([correct(w) for w in weights]),
            "closed_form": -n / 2 * math.log(2 - 1 / n),
        }
        record.add("published_log_z", row | of_tfdde(at, data, n))
    for n in (21, 43):
        place = np.arange(n)
        log_density, at, data = gaussian(RHO ** np.abs(place[:, None] - place))
        seeds = SEEDS_DIAGONAL
        weights = [log_weights(log_density, n, np.random.default_rng(s), False) for s in seeds]
        row = {
            "name": f"AR(1), rho = {RHO}, n = {n}",
            "n": n,
            "samples": SAMPLES,
            "true_log_z": 0.0,
            "diagonal_importance": of_seeds([correct(w) for w in weights]),
        }
        record.add("published_log_z", row | of_tfdde(at, data, n))


if __name__ == "__main__":
    main()
