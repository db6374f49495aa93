"""log Z, the constant that makes e^s a density, with its error.

Three ways, all for any log-density s(x, sigma) that is known up to a constant at each
sigma, of data x ~ p blurred by N(0, sigma**2 I):

``ladder``      bridge sampling between neighbouring noise levels, up to one where the blurred
                data are nearly Gaussian, and from there to a Gaussian whose log Z is known.
``importance``  importance sampling from one Gaussian, as in the paper.
``annealed``    annealed importance sampling, upwards and downwards (``tfdde.annealing``).

``ladder`` is in ``tfdde.ladder``, the others here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import tensorflow as tf
from scipy.special import logsumexp

from tfdde.annealing import Moves, anneal
from tfdde.checks import check_integer
from tfdde.estimate import QUANTILE, Evaluator, Gaussian, LogDensity, LogPartition
from tfdde.ladder import ladder, ladder_levels
from tfdde.noise import LogUniform, Noise, check_level
from tfdde.random import Stream


def importance(
    log_density: LogDensity | Evaluator,
    data: np.ndarray,
    sigma: float,
    samples: int = 50_000,
    seed: int = 0,
) -> LogPartition:
    """log Z by importance sampling from the Gaussian of the blurred data (the paper's way).

    The full covariance counts: a diagonal one fails on mere correlation.  ``lower`` is a
    stochastic lower bound: the estimate's mean is below log Z, and what the Gaussian never
    visits is missing.  To see that too, the effective sample size is the smaller of that of the
    weights drawn and that of the weights at noisy data, N / E_p[w / Z].

    Args and returns as of ``ladder``, for one noise level.
    """
    rng = np.random.default_rng([seed, Stream.PARTITION])
    rows = data.reshape(len(data), -1)
    evaluate = Evaluator.of(log_density, data.shape[1:])
    gaussian = Gaussian(rows, sigma)
    y = gaussian.sample(samples, rng)
    log_w = evaluate(y, sigma) - gaussian.log_density(y)
    value = logsumexp(log_w) - math.log(samples)
    w = np.exp(log_w - value)
    noise = rng.standard_normal(rows.shape).astype(np.float32)
    noisy = rows + np.float32(sigma) * noise
    log_w_data = evaluate(noisy, sigma) - gaussian.log_density(noisy)
    log_second = logsumexp(log_w_data) - math.log(len(rows)) - value
    size = min(samples**2 / np.square(w).sum(), samples * math.exp(-max(log_second, 0.0)))
    error = w.std() / math.sqrt(samples)
    return LogPartition.around(value, error, size, "importance", sigma)


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


def estimate(
    log_density: LogDensity | Evaluator,
    data: np.ndarray,
    noise: Noise,
    method: str | None,
    sigma: float | None,
    samples: int | None,
    moves: int,
    seed: int,
) -> LogPartition:
    """log Z by the method that suits the noise, or the one asked for; see ``DDE.log_partition``."""
    if len(data) < 2:
        raise ValueError(f"`data` must have at least 2 rows, got {len(data)}.")
    many = isinstance(noise, LogUniform)
    method = method or ("ladder" if many else "importance")
    if method not in ("ladder", "importance", "annealed"):
        raise ValueError(f'`method` must be "ladder", "importance" or "annealed", got {method!r}.')
    if method == "ladder" and not many:
        raise ValueError(
            '`method` "ladder" needs a density of all noise levels, trained with '
            f"noise=tfdde.LogUniform(minimum, maximum), got {noise!r}."
        )
    level = check_level(noise, sigma)
    default = {"ladder": 10_000, "importance": 50_000, "annealed": 5_000}[method]
    samples = default if samples is None else check_integer(samples, "samples", 100)
    moves = check_integer(moves, "moves", 0)
    if method == "importance":
        return importance(log_density, data, level, samples, seed)
    levels = np.array([level])
    if isinstance(noise, LogUniform) and level < noise.maximum:
        levels = ladder_levels(level, noise.maximum, data[0].size)
    if method == "annealed":
        return annealed(log_density, data, levels, samples, max(moves, 1), seed)
    return ladder(log_density, data, levels, samples, moves, seed)[0]
