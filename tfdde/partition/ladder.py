"""log Z by bridge sampling from noise level to noise level: the ladder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from tfdde.partition.evaluator import Evaluator, Gaussian, LogDensity, reference
from tfdde.partition.result import LogPartition
from tfdde.partition.rows import RowDraws
from tfdde.utils.random import Purpose


def bridge(
    forward: np.ndarray, backward: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Estimate log(Z0 / Z1) of unnormalised densities q0 and q1, with the optimal bridge.

    Bennett's acceptance ratio (1976); Meng & Wong, Statistica Sinica 6 (1996).

    >>> rng = np.random.default_rng(0)
    >>> x0, x1 = rng.normal(0, 1, 10_000), rng.normal(0, 2, 10_000)
    >>> log_ratio = lambda x: -(x**2) / 2 + x**2 / 8  # exp(-x**2 / 2) over exp(-x**2 / 8)
    >>> round(tfdde.partition.ladder.bridge(log_ratio(x0), log_ratio(x1))[0], 1)  # log(1 / 2)
    -0.7

    Args:
        forward: log(q0 / q1) at samples of q0, shape (n0,).
        backward: log(q0 / q1) at samples of q1, shape (n1,).

    Returns:
        log(Z0 / Z1); the influence of each sample of q0 and of q1 on it, whose squares sum to
        its variance if the samples are independent; the effective sample size.
    """
    n0, n1 = len(forward), len(backward)
    share0, share1 = n0 / (n0 + n1), n1 / (n0 + n1)
    odds = math.log(share0 / share1)

    def terms(r: float) -> tuple[np.ndarray, np.ndarray]:
        # p1 / (share0 p0 + share1 p1) at samples of p0, and p0 / (the same) at those of p1.
        at0 = expit(-(forward - r) - odds) / share1
        at1 = expit(backward - r + odds) / share0
        return at0, at1

    def imbalance(r: float) -> float:
        at0, at1 = terms(r)
        return at1.mean() - at0.mean()

    both = np.concatenate([forward, backward])
    if not np.isfinite(both).all():
        return math.nan, np.full(n0, np.nan), np.full(n1, np.nan), 0.0
    r = brentq(imbalance, both.min() - 50, both.max() + 50, xtol=1e-10)
    at0, at1 = terms(r)
    mean0, mean1 = at0.mean(), at1.mean()
    if not (mean0 > 0 and mean1 > 0):  # no overlap at all
        return r, np.full(n0, np.nan), np.full(n1, np.nan), 0.0
    # Samples that hardly overlap give few large terms, and a small mean.
    size = min(
        at0.sum() ** 2 / np.square(at0).sum(),
        at1.sum() ** 2 / np.square(at1).sum(),
        min(n0, n1) * mean1,
    )
    return r, -(at0 / mean0 - 1) / n0, (at1 / mean1 - 1) / n1, float(size)


def ladder_levels(minimum: float, maximum: float, dimensions: int) -> np.ndarray:
    """Return noise levels in geometric progression, so close that neighbours overlap.

    Two Gaussians in n dimensions whose widths have the ratio e^d differ by n d**2 nats. Here this
    is at most 1, and there are at least 8 steps.

    >>> tfdde.partition.ladder.ladder_levels(0.5, 8.0, dimensions=2).round(2)
    array([0.5 , 0.71, 1.  , 1.41, 2.  , 2.83, 4.  , 5.66, 8.  ])
    """
    steps = max(8, math.ceil(math.log(maximum / minimum) * math.sqrt(dimensions)))
    return np.geomspace(minimum, maximum, steps + 1)


class Draw(NamedTuple):
    """Samples at one noise level.

    Attributes:
        row: index of the data row that each sample started at, (samples,).
        y: the samples, float32 (samples, n).
        s: log-density there at this level, (samples,).
        controls: control variates, (samples, 3).
    """

    row: np.ndarray
    y: np.ndarray
    s: np.ndarray
    controls: np.ndarray


def noise_controls(
    centred: np.ndarray, noise: np.ndarray, gaussian: Gaussian, sigma: float
) -> np.ndarray:
    """Functions of the noise whose mean is known to be 0, shape (rows, 3).

    For a Gaussian, the log-ratio of two levels is quadratic in the noise. For any density a part
    of it is, and the regression on these functions removes the fluctuation of that part.
    """
    inverse = gaussian.precision * sigma**2
    pulled = noise @ inverse
    controls = [
        np.square(noise).sum(axis=1) - noise.shape[1],
        (pulled * noise).sum(axis=1) - np.trace(inverse),
        (pulled * centred).sum(axis=1) / sigma,
    ]
    return np.stack(controls, axis=1)


def without_controls(influence: np.ndarray, controls: np.ndarray) -> tuple[float, np.ndarray]:
    """Regress on the control variates: the correction to subtract, and the influence left."""
    slopes = np.linalg.lstsq(controls, influence, rcond=None)[0]
    explained = controls @ slopes
    return float(explained.sum()), influence - explained


def ladder(
    log_density: LogDensity | Evaluator,
    data: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    samples: int = 10_000,
    moves: int = 0,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> list[LogPartition]:
    """Estimate log Z at every noise level, by bridge sampling from level to level.

    x_i + sigma_k epsilon are samples of the data with noise, so of e^s(., sigma_k) / Z_k if s is
    right. The top level is bridged to a normalised density that resembles the data there. A
    trained s is not quite right, so ``moves`` steps of Hamiltonian Monte Carlo move the samples
    towards its own density. The interval covers the sampling error (delta method, with the rows as
    clusters). It does not cover the error of samples that have not reached the density of the
    model, such as mass where no rows are: ``far_field.doubt`` looks for that. Neither ``lower``
    nor ``upper`` is a bound.

    For a normal density and log Z = 3 at every sigma:

    >>> log_p = lambda x, v: -x[:, 0] ** 2 / (2 * v) - 0.5 * tf.math.log(2 * np.pi * v)
    >>> s = lambda x, sigma: 3.0 + log_p(x, 1 + sigma**2)
    >>> x = np.random.default_rng(0).normal(size=(5_000, 1)).astype("float32")
    >>> levels = tfdde.partition.ladder.ladder_levels(0.2, 4.0, 1)
    >>> estimates = tfdde.partition.ladder.ladder(s, x, levels)
    >>> len(estimates), abs(estimates[0].value - 3.0) < 0.05
    (9, True)

    Args:
        log_density: s(x, sigma) for rows of the shape of ``data``'s, or its ``Evaluator``.
        data: float32 rows, shape (rows, *shape), preferably not those that s was trained on.
        sigmas: increasing noise levels, the last well above the data's own scale.
        samples: at each level.
        moves: Monte Carlo steps at each level.
        seed: of the noise.
        weights: of the rows, positive float64 (rows,), by default equal: samples start at rows
            in proportion to them.

    Returns:
        An estimate for each of ``sigmas``.
    """
    sigmas = np.asarray(sigmas, float)
    rng = np.random.default_rng([seed, Purpose.PARTITION])
    rows = data.reshape(len(data), -1)
    evaluate = Evaluator.of(log_density, data.shape[1:])
    dimensions = rows.shape[1]
    at_top = reference(rows, sigmas[-1], weights)
    top = at_top.sample(samples, rng)
    draws = RowDraws(len(rows), weights)

    def draw(level: int) -> Draw:
        sigma = sigmas[level]
        index = draws.take(samples, rng)
        noise = rng.standard_normal((samples, dimensions)).astype(np.float32)
        blurred = Gaussian(rows, sigma, weights)
        controls = noise_controls(rows[index] - blurred.mean, noise, blurred, sigma)
        y = rows[index] + np.float32(sigma) * noise
        if not moves:
            return Draw(index, y, evaluate(y, sigma), controls)
        y, s = evaluate.moves.with_values(y, sigma, sigma, moves, int(rng.integers(2**31)))
        return Draw(index, y, s, controls)

    # From the top downwards: log Z_k, and how each row of the data and each independent sample
    # influenced it.
    value, independent = 0.0, 0.0
    influence = np.zeros(len(rows))

    def account(samples_there: Draw, its_influence: np.ndarray) -> None:
        nonlocal value
        correction, rest = without_controls(its_influence, samples_there.controls)
        value -= correction
        np.add.at(influence, samples_there.row, rest)

    upper = draw(len(sigmas) - 1)
    r, of_upper, of_top, size = bridge(
        upper.s - at_top.log_density(upper.y), evaluate(top, sigmas[-1]) - at_top.log_density(top)
    )
    value += r
    account(upper, of_upper)
    independent += np.square(of_top).sum()
    estimates = []
    for k in range(len(sigmas) - 1, -1, -1):
        error = math.sqrt(np.square(influence).sum() + independent)
        size_here = size * draws.effective_share
        estimates.append(LogPartition.around(value, error, size_here, "ladder", sigmas[k]))
        if k == 0:
            break
        lower = draw(k - 1)
        r, of_lower, of_upper, effective = bridge(
            lower.s - evaluate(lower.y, sigmas[k]), evaluate(upper.y, sigmas[k - 1]) - upper.s
        )
        value += r
        size = min(size, effective)
        account(lower, of_lower)
        account(upper, of_upper)
        upper = lower
    return estimates[::-1]
