"""log Z by annealed importance sampling, downwards and upwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.special import logsumexp

from tfdde.partition.evaluator import Evaluator, Gaussian, LogDensity, reference
from tfdde.partition.result import LogPartition
from tfdde.partition.rows import RowDraws, at_shares
from tfdde.utils.random import Purpose
from tfdde.utils.statistics import QUANTILE


def anneal(
    increments: Sequence[Callable[[np.ndarray], np.ndarray]],
    moves: Sequence[Callable[[np.ndarray, int], np.ndarray]],
    rows: np.ndarray,
    populations: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Annealed importance sampling with resampling (Neal 2001; Del Moral et al. 2006).

    Step k weights the samples by exp(increments[k]), resamples each population whose effective
    size has fallen to half, and moves the samples under the density reached by ``moves[k]``.

    Args:
        increments: of each step, the log-ratio of the next density to the present one at rows
            (k, n): (k,).
        moves: of each step, a function of rows and a seed.
        rows: samples of the first density, shape (populations * size, n).
        populations: independent estimates.
        rng: of resampling and moves.

    Returns:
        For each population the log of an unbiased estimate of Z of the last density divided by Z
        of the first; the smallest effective sample size of all samples on the way; the samples
        at the end.
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
            picked[k] = k * size + at_shares(w[k], steps)
        log_z[poor] += logsumexp(log_w[poor], axis=1) - np.log(size)
        log_w[poor] = 0.0
        rows = move(rows[picked.ravel()], int(rng.integers(2**31)))
    return log_z + logsumexp(log_w, axis=1) - np.log(size), least, rows


def from_gaussian(evaluate: Evaluator, y: tf.Tensor, level: tuple[tf.Tensor, ...]) -> tf.Tensor:
    """Log-density on the geometric path from a Gaussian to e^s, up to a constant.

    Args:
        evaluate: s.
        y: (rows, n).
        level: share of s, sigma, and mean and precision of the Gaussian.
    """
    share, sigma, mean, precision = level
    centred = y - mean
    square = tf.reduce_sum(centred * tf.matmul(centred, precision), axis=1)
    return share * evaluate.flat(y, sigma) - (1 - share) * 0.5 * square


def annealed(
    log_density: LogDensity | Evaluator,
    data: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    samples: int = 5_000,
    moves: int = 2,
    seed: int = 0,
    populations: int = 10,
    weights: np.ndarray | None = None,
) -> LogPartition:
    """Estimate log Z at the lowest of the noise levels, from below and from above.

    Downwards: from a normalised density that resembles the data at the highest level, through the
    levels, by Hamiltonian moves and weights. The mean over ``populations`` of the log of an
    unbiased estimate is a stochastic lower bound of log Z (Jensen), and ``lower`` is 1.96 standard
    errors below it. Upwards: from the data with noise of the lowest level, moved under s there.
    This is a stochastic upper bound (Grosse, Ghahramani & Adams 2015), to the extent that these
    are samples of e^s / Z, and ``upper`` is 1.96 standard errors above it. With one level only,
    the path is the geometric one between the Gaussian of the data and e^s.

    >>> s = lambda x, sigma: 3.0 - x[:, 0] ** 2 / 2 - 0.5 * np.log(2 * np.pi)  # log Z is 3
    >>> x = np.random.default_rng(0).normal(size=(1_000, 1)).astype("float32")
    >>> estimate = tfdde.partition.annealed.annealed(s, x, [0.1], samples=500)
    >>> estimate.lower < 3.0 < estimate.upper
    True

    Args and returns: as of ``ladder``, for the lowest level; ``samples`` is the number of each
    direction.
    """
    sigmas = np.asarray(sigmas, float)
    rng = np.random.default_rng([seed, Purpose.PARTITION])
    rows = data.reshape(len(data), -1)
    evaluate = Evaluator.of(log_density, data.shape[1:])
    sigma = float(sigmas[0])
    gaussian = Gaussian(rows, sigmas[-1], weights)
    # The densities on the way down, after the first: levels of one path.
    if len(sigmas) > 1:
        first = reference(rows, sigmas[-1], weights)
        chains, scales = evaluate.moves_along(Evaluator.flat), sigmas[::-1]
        levels: Sequence[Any] = list(scales)

        def log_ratio(k: int, y: np.ndarray) -> np.ndarray:
            """Log-ratio of density k on the way to density k - 1; density -1 is the first."""
            before = first.log_density(y) if k == 0 else evaluate(y, levels[k - 1])
            return evaluate(y, levels[k]) - before
    else:
        first = gaussian
        steps = max(30, math.ceil(10 * math.sqrt(rows.shape[1])))
        shares = np.linspace(0.0, 1.0, steps + 1) ** 2
        chains, scales = evaluate.moves_along(from_gaussian), np.full(steps, sigma)
        levels = [(share, sigma, gaussian.mean, gaussian.precision) for share in shares[1:]]

        def log_ratio(k: int, y: np.ndarray) -> np.ndarray:
            share = shares[k + 1] - shares[k]
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
        first.sample(size, rng),
        populations,
        rng,
    )
    draws = RowDraws(len(rows), weights)
    index = draws.take(size, rng)
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
        min(least_down, least_up * draws.effective_share),
        "annealed",
        sigma,
    )
