"""Bridge sampling from noise level to noise level: the ladder to log Z."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from tfdde.partition.evaluator import Evaluator, Gaussian, LogDensity
from tfdde.partition.result import LogPartition
from tfdde.utils.random import Stream


def bridge(
    forward: np.ndarray, backward: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Bridge sampling between unnormalised densities q0 and q1, with the optimal bridge.

    Bennett's acceptance ratio (1976); Meng & Wong, Statistica Sinica 6 (1996).

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
    # What two samples that hardly overlap are worth: few large terms, and a small mean.
    size = min(
        at0.sum() ** 2 / np.square(at0).sum(),
        at1.sum() ** 2 / np.square(at1).sum(),
        min(n0, n1) * mean1,
    )
    return r, -(at0 / mean0 - 1) / n0, (at1 / mean1 - 1) / n1, float(size)


def ladder_levels(minimum: float, maximum: float, dimensions: int) -> np.ndarray:
    """Noise levels for ``ladder`` in geometric progression, so close that neighbours overlap.

    Two Gaussians in n dimensions whose widths have the ratio e^d differ by n d**2 nats; here
    that is at most 1.
    """
    steps = max(8, math.ceil(math.log(maximum / minimum) * math.sqrt(dimensions)))
    return np.geomspace(minimum, maximum, steps + 1)


class Draw(NamedTuple):
    """Noisy rows: which rows of the data, where to, and their control variates."""

    row: np.ndarray
    y: np.ndarray
    controls: np.ndarray


def noise_controls(centred: np.ndarray, noise: np.ndarray, gaussian: Gaussian, sigma: float):
    """Functions of the noise whose mean is known to be 0, shape (rows, 3).

    The log-ratio of two levels is for a Gaussian quadratic in the noise; of any density it is
    in part, and that part's fluctuation need not be borne.
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
    """Regress control variates out: the correction to subtract, and the influence left."""
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
) -> list[LogPartition]:
    """log Z at every noise level, by bridge sampling from level to level.

    x_i + sigma_k epsilon are samples of the blurred data, so of e^s(., sigma_k) / Z_k if s is
    right; the top level is bridged to the Gaussian of its mean and covariance.  An s that is
    learned is not quite right: ``moves`` steps of Hamiltonian Monte Carlo then bring the samples
    to its own density.  The interval covers the error of sampling (delta method, rows as
    clusters); that of samples which have not yet reached the model's density is not in it.
    Neither ``lower`` nor ``upper`` is a bound.

    Args:
        log_density: s(x, sigma) for rows of the shape of ``data``'s, or its ``Evaluator``.
        data: float32 rows, shape (rows, *shape): better not those that s was trained on.
        sigmas: increasing noise levels, the last well above the data's own scale.
        samples: at each level.
        moves: Monte Carlo steps at each level.
        seed: of the noise.

    Returns:
        An estimate for each of ``sigmas``.
    """
    sigmas = np.asarray(sigmas, float)
    rng = np.random.default_rng([seed, Stream.PARTITION])
    rows = data.reshape(len(data), -1)
    evaluate = Evaluator.of(log_density, data.shape[1:])
    dimensions = rows.shape[1]
    gaussian = Gaussian(rows, sigmas[-1])
    top = gaussian.sample(samples, rng)

    def draw(level: int) -> Draw:
        index = np.resize(rng.permutation(len(rows)), samples)
        noise = rng.standard_normal((samples, dimensions)).astype(np.float32)
        blurred = Gaussian(rows, sigmas[level])
        controls = noise_controls(rows[index] - blurred.mean, noise, blurred, sigmas[level])
        y = rows[index] + np.float32(sigmas[level]) * noise
        if moves:
            y = evaluate.moves(y, sigmas[level], sigmas[level], moves, int(rng.integers(2**31)))
        return Draw(index, y, controls)

    # From the top downwards: log Z_k, and how each row of the data and each independent draw
    # moved it.
    value, independent = 0.0, 0.0
    influence = np.zeros(len(rows))

    def account(level: Draw, moved: np.ndarray) -> None:
        nonlocal value
        correction, rest = without_controls(moved, level.controls)
        value -= correction
        np.add.at(influence, level.row, rest)

    upper = draw(len(sigmas) - 1)
    here = evaluate(upper.y, sigmas[-1])
    r, mine, others, size = bridge(
        here - gaussian.log_density(upper.y), evaluate(top, sigmas[-1]) - gaussian.log_density(top)
    )
    value += r
    account(upper, mine)
    independent += np.square(others).sum()
    out = []
    for k in range(len(sigmas) - 1, -1, -1):
        error = math.sqrt(np.square(influence).sum() + independent)
        out.append(LogPartition.around(value, error, size, "ladder", sigmas[k]))
        if k == 0:
            break
        lower = draw(k - 1)
        here_below = evaluate(lower.y, sigmas[k - 1])
        r, of_lower, of_upper, effective = bridge(
            here_below - evaluate(lower.y, sigmas[k]), evaluate(upper.y, sigmas[k - 1]) - here
        )
        value += r
        size = min(size, effective)
        account(lower, of_lower)
        account(upper, of_upper)
        upper, here = lower, here_below
    return out[::-1]
