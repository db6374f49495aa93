"""Importance sampling from one Gaussian: the way of the paper to log Z."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

from tfdde.partition.evaluator import Evaluator, Gaussian, LogDensity
from tfdde.partition.result import LogPartition
from tfdde.utils.random import Stream


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
