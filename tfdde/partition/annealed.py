"""Annealed importance sampling, upwards and downwards, to log Z."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import tensorflow as tf
from scipy.special import logsumexp

from tfdde.partition.evaluator import Evaluator, Gaussian, LogDensity
from tfdde.partition.hmc import Moves
from tfdde.partition.result import LogPartition
from tfdde.utils.random import Stream
from tfdde.utils.statistics import QUANTILE


def anneal(
    increments: Sequence[Callable[[np.ndarray], np.ndarray]],
    moves: Sequence[Callable[[np.ndarray, int], np.ndarray]],
    rows: np.ndarray,
    populations: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Annealed importance sampling with resampling (Neal 2001; Del Moral et al. 2006).

    Step k weighs the rows by exp(increments[k]), resamples each population that has lost half
    of its effective size, and moves the rows under the density reached by ``moves[k]``.

    Args:
        increments: log-ratios of the next density to the present one, (n, d) -> (n,).
        moves: of rows and a seed, for each step.
        rows: samples of the first density, shape (populations * size, d).
        populations: independent estimates.
        rng: of resampling and moves.

    Returns:
        For each population the log of an unbiased estimate of the last density's Z over the
        first's; the least effective sample size of all rows on the way; the rows at the end.
    """
    size = len(rows) // populations
    log_z = np.zeros(populations)
    log_w = np.zeros((populations, size))
    least = float(len(rows))
    for increment, move in zip(increments, moves, strict=True):
        log_w += increment(rows).reshape(populations, size)
        w = np.exp(log_w - logsumexp(log_w, axis=1, keepdims=True))
        effective = 1 / np.square(w).sum(axis=1)
        least = min(least, float(effective.sum()))
        poor = np.flatnonzero(~(effective >= size / 2))
        picked = np.arange(populations * size).reshape(populations, size)
        for k in poor:  # systematic resampling
            steps = (rng.random() + np.arange(size)) / size
            at = np.searchsorted(np.cumsum(w[k]), steps)
            picked[k] = k * size + np.minimum(at, size - 1)
        log_z[poor] += logsumexp(log_w[poor], axis=1) - np.log(size)
        log_w[poor] = 0.0
        rows = move(rows[picked.ravel()], int(rng.integers(2**31)))
    return log_z + logsumexp(log_w, axis=1) - np.log(size), least, rows


def annealed(
    log_density: LogDensity | Evaluator,
    data: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    samples: int = 5_000,
    moves: int = 2,
    seed: int = 0,
    populations: int = 10,
) -> LogPartition:
    """log Z at the lowest of the noise levels, from above and below, by annealing.

    Downwards from the Gaussian of the data at the last level, whose log Z is known, through
    the levels, by Hamiltonian moves and weights: the mean over ``populations`` of log(estimate)
    is a stochastic lower bound of log Z (Jensen), and ``lower`` is 1.96 standard errors below
    it.  Upwards from the data blurred by the lowest level and moved under s there: a stochastic
    upper bound (Grosse, Ghahramani & Adams 2015) to the extent that these are samples of
    e^s / Z; ``upper`` is 1.96 standard errors above it.  With one level only, the way is the
    geometric one between the Gaussian and e^s.

    Args and returns as of ``ladder``, for the lowest level; ``samples`` counts the rows of each
    direction.
    """
    sigmas = np.asarray(sigmas, float)
    rng = np.random.default_rng([seed, Stream.PARTITION])
    rows = data.reshape(len(data), -1)
    evaluate = Evaluator.of(log_density, data.shape[1:])
    sigma = float(sigmas[0])
    gaussian = Gaussian(rows, sigmas[-1])
    reference = tf.constant(gaussian.mean, tf.float32), tf.constant(gaussian.precision, tf.float32)

    def tempered(y: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
        centred = y - reference[0]
        square = tf.reduce_sum(centred * tf.matmul(centred, reference[1]), axis=1)
        return share * evaluate.flat(y, tf.constant(sigma, tf.float32)) - (1 - share) * 0.5 * square

    # The densities on the way down, from the Gaussian on: levels of one path.
    if len(sigmas) > 1:
        chains, levels, scales = evaluate.moves, sigmas[::-1], sigmas[::-1]

        def log_ratio(k: int, y: np.ndarray) -> np.ndarray:
            """Of density k on the way to density k - 1; -1 is the Gaussian."""
            before = gaussian.log_density(y) if k == 0 else evaluate(y, levels[k - 1])
            return evaluate(y, levels[k]) - before
    else:
        steps = max(30, math.ceil(10 * math.sqrt(rows.shape[1])))
        chains, levels = Moves(tempered), np.linspace(0.0, 1.0, steps + 1)[1:] ** 2
        scales = np.full(steps, sigma)

        def log_ratio(k: int, y: np.ndarray) -> np.ndarray:
            share = levels[k] - (levels[k - 1] if k else 0.0)
            return share * (evaluate(y, sigma) - gaussian.log_density(y))

    def inverse(k: int, y: np.ndarray) -> np.ndarray:
        return -log_ratio(k, y)

    def move(k: int, count: int) -> Callable[[np.ndarray, int], np.ndarray]:
        return lambda y, seed: chains(y, levels[k], scales[k], count, seed)

    last = len(levels) - 1
    size = samples - samples % populations
    down, least_down, _ = anneal(
        [partial(log_ratio, k) for k in range(last + 1)],
        [move(k, moves) for k in range(last + 1)],
        gaussian.sample(size, rng),
        populations,
        rng,
    )
    index = np.resize(rng.permutation(len(rows)), size)
    noise = rng.standard_normal((size, rows.shape[1])).astype(np.float32)
    start = move(last, 10 * moves)(
        rows[index] + np.float32(sigma) * noise, int(rng.integers(2**31))
    )
    up, least_up, _ = anneal(
        [partial(inverse, k) for k in range(last, -1, -1)],
        [move(k - 1, moves) for k in range(last, 0, -1)] + [lambda y, seed: y],
        start,
        populations,
        rng,
    )
    errors = [v.std(ddof=1) / math.sqrt(populations) for v in (down, up)]
    low, high = down.mean() - QUANTILE * errors[0], -up.mean() + QUANTILE * errors[1]
    low, high = min(low, high), max(low, high)
    return LogPartition(
        float(low + high) / 2,
        float(high - low) / (2 * QUANTILE),
        float(low),
        float(high),
        min(least_down, least_up),
        "annealed",
        sigma,
    )
