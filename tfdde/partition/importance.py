"""log Z by importance sampling from one normalised density, as in the paper."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

from tfdde.partition.evaluator import Evaluator, LogDensity, Normalized, reference
from tfdde.partition.result import LogPartition
from tfdde.utils.random import Purpose


def importance(
    log_density: LogDensity | Evaluator,
    data: np.ndarray,
    sigma: float,
    samples: int = 50_000,
    seed: int = 0,
    weights: np.ndarray | None = None,
    proposal: Normalized | None = None,
) -> LogPartition:
    """Estimate log Z by importance sampling from a normalised density like the data with noise.

    By default the density is the Gaussian of the data's mean and full covariance, as in the paper
    (a diagonal covariance fails when columns are merely correlated), or for heavy-tailed data a
    mixture (``evaluator.reference``). ``lower`` is a stochastic lower bound: the expected estimate
    is below log Z, and mass that the samples never reach is missing. To detect missing mass near
    the rows, the effective sample size is the smaller of two: that of the weights w of the
    samples, and that of the weights at the data with noise, samples / E_data[w / Z].

    >>> s = lambda x, sigma: 3.0 - x[:, 0] ** 2 / 2 - 0.5 * np.log(2 * np.pi)  # log Z is 3
    >>> x = np.random.default_rng(0).normal(size=(5_000, 1)).astype("float32")
    >>> estimate = tfdde.partition.importance.importance(s, x, sigma=0.1)
    >>> estimate.trusted, abs(estimate.value - 3.0) < 0.01
    (True, True)

    Args and returns: as of ``ladder``, for one noise level.
        proposal: the normalised density.
    """
    rng = np.random.default_rng([seed, Purpose.PARTITION])
    rows = data.reshape(len(data), -1)
    evaluate = Evaluator.of(log_density, data.shape[1:])
    proposal = proposal or reference(rows, sigma, weights)
    y = proposal.sample(samples, rng)
    log_w = evaluate(y, sigma) - proposal.log_density(y)
    value = logsumexp(log_w) - math.log(samples)
    w = np.exp(log_w - value)
    noise = rng.standard_normal(rows.shape).astype(np.float32)
    noisy = rows + np.float32(sigma) * noise
    log_w_data = evaluate(noisy, sigma) - proposal.log_density(noisy)
    share = 1 / len(rows) if weights is None else weights / weights.sum()
    log_second = logsumexp(log_w_data, b=share) - value
    size = min(samples**2 / np.square(w).sum(), samples * math.exp(-max(log_second, 0.0)))
    error = w.std() / math.sqrt(samples)
    return LogPartition.around(value, error, size, "importance", sigma)
