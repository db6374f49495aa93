"""Detect heavy-tailed rows, and fit them by a mixture of Gaussians with shared axes, in NumPy.

One far row in a thousand is enough to make the covariance useless: it is then that of the far rows,
while nearly all rows lie in a small part of it.

>>> x = np.random.default_rng(0).standard_t(2, size=(5_000, 1))
>>> round(x.std()), round(np.abs(x).max()), round(np.median(np.abs(x)), 1)
(4, 166, np.float64(0.8))
>>> mixture = tfdde.networks.heavy_tails.fit_if_heavy_tailed(x)
>>> float(mixture.log_density(x).mean().round(1))  # that of one Gaussian is -2.4
-2.0
>>> tfdde.networks.heavy_tails.fit_if_heavy_tailed(np.random.default_rng(0).normal(size=(5_000, 1)))
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

COMPONENTS = 8
KURTOSIS = 15.0  # mean of r**4 over the squared mean of r**2; Gaussian: 3, exponential: 9
GAIN = 0.1  # nats per held-out row by which the mixture must beat one Gaussian
LEAST_ROWS = 50  # that heavy tails are looked for in
ROWS, FARTHEST = 10_000, 1_000  # rows that the mixture is fitted to; of these the farthest of all
STEPS = 60  # of the EM algorithm
LEAST_WEIGHT = 1e-12
BEYOND = 10  # rows at either end of a column that ``reach`` leaves out
# A component is at least this wide, in units of the distance of its mean to the centre: a few far
# rows get a broad component, not a spike.
LEAST_WIDTH = 0.3


class Mixture(NamedTuple):
    """Gaussians with diagonal covariances in shared axes, float64.

    Attributes:
        centre: median of the rows, (n,).
        core: variance of the inner half of the rows, for each column, (n,).
        reach: distance from the centre to the tenth-lowest and to the tenth-highest row of each
            column, (2, n): beyond it are too few rows to learn from.
        axes: orthonormal columns, (n, n).
        weights: (components,).
        means: of the components in the axes, relative to the centre, (components, n).
        variances: of the components along the axes, (components, n).
    """

    centre: np.ndarray
    core: np.ndarray
    reach: np.ndarray
    axes: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def log_density(self, rows: np.ndarray) -> np.ndarray:
        """Log-density of rows (k, n): (k,), in nats."""
        y = (rows - self.centre) @ self.axes
        return logsumexp(log_parts(y, self.weights, self.means, self.variances), axis=1)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw rows: (count, n)."""
        picked = rng.choice(len(self.weights), count, p=self.weights)
        z = rng.standard_normal((count, len(self.centre)))
        y = self.means[picked] + np.sqrt(self.variances[picked]) * z
        return self.centre + y @ self.axes.T

    def with_noise(self, sigma: float) -> Mixture:
        """The mixture of the rows plus noise of N(0, sigma**2 I)."""
        return self._replace(variances=self.variances + sigma**2)


def log_parts(
    y: np.ndarray, weights: np.ndarray, means: np.ndarray, variances: np.ndarray
) -> np.ndarray:
    """Log of each component's share of the density: rows (k, n) -> (k, components)."""
    squares = [(np.square(y - m) / v).sum(axis=1) for m, v in zip(means, variances, strict=True)]
    logs = np.log(2 * math.pi * variances).sum(axis=1)
    return np.log(weights) - 0.5 * (np.stack(squares, axis=1) + logs)


def extent(rows: np.ndarray) -> float:
    """The largest standard deviation of a column, estimated without the outer tenths of the rows.

    >>> x = np.random.default_rng(0).normal(size=(4_000, 2)) * [1.0, 30.0]
    >>> round(tfdde.networks.heavy_tails.extent(x))
    30

    Args:
        rows: (rows, n), of which 2,000 are looked at.
    """
    few = rows[:: max(1, len(rows) // 2_000)]
    low, high = np.quantile(few, [0.1, 0.9], axis=0)
    return float((high - low).max()) / 2.563


def radius_kurtosis(rows: np.ndarray) -> float:
    """Mean of r**4 over the squared mean of r**2, with r the distance to the mean."""
    square = np.square(rows - rows.mean(axis=0, dtype=np.float64)).sum(axis=1)
    mean = square.mean()
    return float(np.square(square / mean).mean()) if mean > 0 else 0.0


def robust_axes(centred: np.ndarray) -> np.ndarray:
    """Principal axes that a few far rows do not turn, (n, n): Tyler's shape (1987)."""
    n = centred.shape[1]
    shape = np.eye(n)
    for _ in range(20 if n > 1 else 0):
        square = (centred @ np.linalg.inv(shape) * centred).sum(axis=1)
        scaled = centred / np.sqrt(np.maximum(square, 1e-12 * square.mean()))[:, None]
        shape = scaled.T @ scaled
        shape = shape * (n / np.trace(shape)) + 1e-6 * np.eye(n)
    return np.linalg.eigh(shape)[1]


def fit(rows: np.ndarray, counts: np.ndarray) -> Mixture:
    """Fit the mixture by the EM algorithm.

    The components start at shells of the rows: the inner half, and then each time about two thirds
    of those that are left.

    Args:
        rows: float64 (rows, n).
        counts: how many rows each of them stands for, (rows,).
    """
    n = rows.shape[1]
    centre = np.median(rows, axis=0)
    centred = rows - centre
    axes = robust_axes(centred)
    y = centred @ axes
    deviation = np.median(np.abs(y), axis=0)
    size = np.square(y / np.where(deviation > 0, deviation, 1.0)).mean(axis=1)
    order = np.argsort(size)
    share = np.cumsum(counts[order]) / counts.sum()
    inner = centred[order[: max(np.searchsorted(share, 0.5), 2)]]

    def or_of_all(variances: np.ndarray, values: np.ndarray) -> np.ndarray:
        # A column may be constant in the inner half.
        return np.maximum(np.where(variances > 0, variances, values.var(axis=0)), 1e-30)

    core, floor = (
        or_of_all(inner.var(axis=0), centred),
        1e-2 * or_of_all((inner @ axes).var(axis=0), y),
    )
    edges = np.searchsorted(share, 1 - 0.5 ** np.array([0, 1, 2.5, 4, 5.5, 7, 9, 11]))
    pairs = zip(edges, [*edges[1:], len(rows)], strict=True)
    shells = [order[first:last] for first, last in pairs if last - first >= 2]
    weights = np.array([counts[shell].sum() for shell in shells]) / counts.sum()
    means = np.array([y[shell].mean(axis=0) for shell in shells])
    variances = np.array([np.maximum(y[shell].var(axis=0), floor) for shell in shells])
    for _ in range(STEPS):
        parts = log_parts(y, weights, means, variances)
        shares = np.exp(parts - logsumexp(parts, axis=1, keepdims=True)) * counts[:, None]
        sums = shares.sum(axis=0) + 1e-9
        weights = np.maximum(sums / sums.sum(), LEAST_WEIGHT)
        means = shares.T @ y / sums[:, None]
        spread = shares.T @ np.square(y) / sums[:, None] - np.square(means)
        variances = np.maximum(spread, np.maximum(floor, np.square(LEAST_WIDTH * means)))
    missing = COMPONENTS - len(weights)
    weights = np.append(weights, np.full(missing, LEAST_WEIGHT))
    means = np.concatenate([means, np.zeros((missing, n))])
    variances = np.concatenate([variances, np.tile(100 * floor, (missing, 1))])
    beyond = min(BEYOND, len(rows) // 10)
    ends = np.sort(centred, axis=0)[[beyond, -1 - beyond]]
    reach = np.maximum(np.abs(ends), 2 * np.sqrt(core))
    return Mixture(centre, core, reach, axes, weights / weights.sum(), means, variances)


def thinned(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most 10,000 rows, with all of the farthest, and how many each of them stands for."""
    if len(rows) <= ROWS:
        return rows, np.ones(len(rows))
    distance = np.square(rows - np.median(rows, axis=0)).sum(axis=1)
    order = np.argpartition(distance, -FARTHEST)
    near, far = order[:-FARTHEST], order[-FARTHEST:]
    near = np.random.default_rng(0).choice(near, ROWS - FARTHEST, replace=False)
    each = (len(rows) - FARTHEST) / len(near)
    counts = np.append(np.full(len(near), each), np.ones(FARTHEST))
    return rows[np.append(near, far)], counts


def fit_if_heavy_tailed(rows: np.ndarray, weights: np.ndarray | None = None) -> Mixture | None:
    """Fit the mixture, if the rows have heavy tails and it is clearly better than one Gaussian.

    Rows have heavy tails if the kurtosis of their distance to the mean is above 15. The mixture
    must gain a tenth of a nat and two standard errors on a held-out fifth of the rows, compared
    with the Gaussian of all rows; a row counts for 10 nats at most.

    Args:
        rows: (rows, n).
        weights: of the rows, (rows,), by default equal: as many rows are drawn in proportion.

    Returns:
        The mixture of 10,000 rows or fewer, or None.
    """
    if weights is not None:
        shares = np.asarray(weights, np.float64)
        rng = np.random.default_rng(0)
        rows = rows[rng.choice(len(rows), len(rows), p=shares / shares.sum())]
    if len(rows) < LEAST_ROWS or radius_kurtosis(rows) < KURTOSIS:
        return None
    rows, counts = thinned(rows.astype(np.float64))
    covariance = np.atleast_2d(np.cov(rows, rowvar=False, aweights=counts))
    covariance += 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    gaussian = multivariate_normal(np.average(rows, axis=0, weights=counts), covariance)
    order = np.random.default_rng(0).permutation(len(rows))
    held_out, training = order[: len(rows) // 5], order[len(rows) // 5 :]
    gain = fit(rows[training], counts[training]).log_density(rows[held_out])
    gain = np.clip(gain - gaussian.logpdf(rows[held_out]), -10.0, 10.0)
    mean = np.average(gain, weights=counts[held_out])
    if not mean > max(GAIN, 2 * gain.std() / math.sqrt(len(gain))):
        return None
    return fit(rows, counts)
