"""Fit a tree of Gaussian mixtures to blurred rows, in NumPy.

Along the right axes a coordinate often depends on few others. A Chow-Liu tree (Chow & Liu 1968)
keeps for each coordinate the one that tells most about it. Here the density of a coordinate given
its parent is that of a mixture of Gaussians of the two, over the mixture's own marginal. So the
tree is normalised whatever the mixtures are, and at each noise level.

>>> rng = np.random.default_rng(0)
>>> first = rng.normal(size=(5_000, 1))
>>> x = np.hstack([first, first**2 + 0.5 * rng.normal(size=(5_000, 1))])  # a parabola
>>> blurred = tfdde.networks.blurred_rows.blur(x, sigma=0.1)
>>> grown = tfdde.networks.mixture_tree.grow(blurred, np.eye(2), most=8)
>>> tree = tfdde.networks.mixture_tree.finish(blurred, grown)
>>> tree.parents.tolist()  # the parent of the second coordinate is the first
[[0.0, 1.0], [0.0, 0.0]]
>>> on_and_off = tree.log_density(np.array([[1.0, 1.0], [1.0, -1.0]]), sigma=0.1)
>>> bool(on_and_off[0] > on_and_off[1] + 5.0)  # nats
True
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.special import gammainccinv, logsumexp

from tfdde.networks.blurred_rows import ROWS, BlurredRows
from tfdde.networks.independent_components import ROWS_PER_COLUMN, independent_components

MOST = 64  # components of a coordinate
BINS, ROWS_PER_CELL = 16, 8  # of each coordinate, for mutual information; fewer with few rows
CHANCE = 0.01  # that any pair of independent coordinates seems to be dependent
STEPS, LAST = 10, 20  # of the EM algorithm, and of it with all rows
ENOUGH = 1e-4  # it ends before if a step gains less, in nats per row
ROWS_EACH = 16  # at least, of a component
# More components are better if held-out rows gain so many nats each, and so many standard errors.
# They are doubled until that fails so often.
GAIN, ERRORS, PATIENCE = 1e-3, 1.0, 2
# A tree is better than another base if they gain so many.
OF_A_TREE = 0.02, 2.0
LEAST_HELD_OUT = 20
LEAST_VARIANCE = 1e-6  # of a component, in units of the mean variance of a coordinate
LOG_2_PI = math.log(2 * math.pi)


class MixtureTree(NamedTuple):
    """A density of coordinates u = (x - centre) @ axes, each given its parent, float64.

    Attributes:
        centre: mean of the rows, (n,).
        axes: orthonormal columns, (n, n), so that noise is as independent along them.
        parents: 1 where the coordinate of the row is the parent of that of the column, (n, n). The
            column of a coordinate without a parent is 0.
        sizes: components of each coordinate's mixture, rising, int64 (n,); k in all.
        weights: of the components, those of a coordinate beside each other, (k,).
        means: of the coordinate and of its parent, (2, k).
        covariances: of both: the coordinate's variance, the parent's, their covariance and the
            determinant, (4, k). From the others, a thin component's determinant would be lost in
            float32. A parent that does not exist has mean 0, variance 1 and no covariance.
    """

    centre: np.ndarray
    axes: np.ndarray
    parents: np.ndarray
    sizes: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def conditionals(self, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """With noise: the parent's variance, and slope and variance given the parent, (k,)."""
        variance, of_parent, covariance, determinant = self.covariances
        noise = sigma**2
        of_parents_noise = noise * np.repeat(self.parents.sum(axis=0), self.sizes)
        determinant = determinant + of_parents_noise * (variance + noise) + noise * of_parent
        of_parent = of_parent + of_parents_noise
        return of_parent, covariance / of_parent, determinant / of_parent

    def log_density(self, rows: np.ndarray, sigma: float = 0.0) -> np.ndarray:
        """Log-density of rows (m, n) with noise: float64 (m,), in nats."""
        of_parent, slope, variance = self.conditionals(sigma)
        u, out = (rows - self.centre) @ self.axes, np.zeros(len(rows))
        for k, these in enumerate(self._components()):
            far = (u @ self.parents[:, k])[:, None] - self.means[1, these]
            marginal = np.log(self.weights[these]) + _log_normal(far, of_parent[these])
            far = u[:, k, None] - self.means[0, these] - slope[these] * far
            joint = marginal + _log_normal(far, variance[these])
            out += logsumexp(joint, axis=1) - logsumexp(marginal, axis=1)
        return out

    def sample(self, count: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
        """Draw rows with noise of level ``sigma``, parents before children: float64 (count, n)."""
        of_parent, slope, variance = self.conditionals(sigma)
        u, rows, components = (
            np.zeros((count, len(self.axes))),
            np.arange(count),
            self._components(),
        )
        for k in self._parents_first():
            these = components[k]
            far = (u @ self.parents[:, k])[:, None] - self.means[1, these]
            shares = np.log(self.weights[these]) + _log_normal(far, of_parent[these])
            shares = np.exp(shares - shares.max(axis=1, keepdims=True)).cumsum(axis=1)
            picked = (rng.random((count, 1)) * shares[:, -1:] > shares).sum(axis=1)
            middle = self.means[0, these][picked] + slope[these][picked] * far[rows, picked]
            u[:, k] = middle + np.sqrt(variance[these][picked]) * rng.standard_normal(count)
        return self.centre + u @ self.axes.T

    def _components(self) -> list[slice]:
        """Those of each coordinate."""
        ends = np.cumsum(self.sizes)
        return [slice(end - size, end) for size, end in zip(self.sizes, ends, strict=True)]

    def _parents_first(self) -> list[int]:
        """The coordinates, each after its parent."""
        waiting, done = list(range(len(self.axes))), list[int]()
        while waiting:
            done += [k for k in waiting if not self.parents[waiting, k].any()]
            waiting = [k for k in waiting if k not in done]
        return done


def _log_normal(far: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return -0.5 * (far**2 / variance + np.log(variance) + LOG_2_PI)


def fit_likeliest(blurred: BlurredRows, most: int, held_out: np.ndarray) -> MixtureTree | None:
    """Fit trees along the columns and along independent components, and take the likelier one.

    Args:
        blurred: the rows.
        most: components of a mixture.
        held_out: log-densities of the held-out rows by another density, (first,).

    Returns:
        The tree without the noise, or None if held-out rows are not clearly likelier by it.
    """
    first, n = blurred.first, blurred.noisy.shape[1]
    if first < LEAST_HELD_OUT:
        return None
    all_axes = [np.eye(n)]
    if blurred.sigma > 0 and len(blurred.noisy) >= ROWS_PER_COLUMN * n:
        rows, weights = blurred.noisy[first:ROWS], blurred.weights[first:ROWS]
        if (weights != weights[0]).any():
            rng = np.random.default_rng(0)
            rows = rows[rng.choice(len(rows), len(rows), p=weights / weights.sum())]
        all_axes.append(nearest_rotation(independent_components(rows, seed=0)))
    weights, trees = blurred.held_out[1], [grow(blurred, a, min(most, MOST)) for a in all_axes]
    likeliest = max(trees, key=lambda grown: np.average(grown.held_out, weights=weights))
    clear = _clearly(likeliest.held_out - held_out, weights, *OF_A_TREE)
    return finish(blurred, likeliest) if clear else None


def _clearly(
    gains: np.ndarray, weights: np.ndarray, least: float = GAIN, errors: float = ERRORS
) -> bool:
    """Whether rows gain so many nats on average, and so many standard errors of that."""
    error = float(gains.std()) / math.sqrt(len(gains))
    return float(np.average(gains, weights=weights)) > max(least, errors * error)


def nearest_rotation(components: np.ndarray) -> np.ndarray:
    """Orthonormal columns (n, n) near to the directions of independent components (n, n)."""
    directions = np.linalg.pinv(components)
    left, _, right = np.linalg.svd(directions / np.linalg.norm(directions, axis=0))
    return left @ right


Mixture = tuple[np.ndarray, np.ndarray, np.ndarray]  # weights, means and covariances, with noise


class Grown(NamedTuple):
    """A tree that has not seen the held-out rows.

    Attributes:
        axes: orthonormal columns, (n, n).
        parents: of each coordinate, -1 for none, (n,).
        mixtures: of each coordinate.
        held_out: log-densities of the held-out rows, (first,).
    """

    axes: np.ndarray
    parents: np.ndarray
    mixtures: list[Mixture]
    held_out: np.ndarray

    def columns(self, k: int) -> list[int]:
        """A coordinate and its parent, if it has one."""
        return [k] if self.parents[k] < 0 else [k, int(self.parents[k])]


def _coordinates(blurred: BlurredRows, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The centre, the coordinates (rows, n), and the least variance of a component with noise."""
    centre = np.average(blurred.noisy, axis=0, weights=blurred.weights)
    u = blurred.noisy - centre.astype(np.float32)
    least = max(blurred.sigma**2, LEAST_VARIANCE * float(np.square(u).mean()))
    return centre, u @ axes.astype(np.float32), least


def grow(blurred: BlurredRows, axes: np.ndarray, most: int) -> Grown:
    """Find a tree along given axes; held-out rows choose the numbers of components.

    Args:
        blurred: the rows, some of them held out.
        axes: orthonormal columns, (n, n).
        most: components of a mixture.
    """
    weights, first = blurred.weights, blurred.first
    _, u, least = _coordinates(blurred, axes)
    grown = Grown(axes, parents_of(u[first:ROWS], weights[first:ROWS]), [], np.zeros(first))
    for k in range(len(axes)):
        mixture, given = _chosen(u[:, grown.columns(k)], weights, first, least, most)
        grown.mixtures.append(mixture)
        grown.held_out[:] += given
    return grown


def finish(blurred: BlurredRows, grown: Grown) -> MixtureTree:
    """Let a tree see all rows, and take the noise away."""
    centre, u, least = _coordinates(blurred, grown.axes)
    mixtures = []
    for k, mixture in enumerate(grown.mixtures):
        own = u[:, grown.columns(k)]
        mixture = _fit(own, blurred.weights, _shares(own, mixture)[0], least, LAST)
        mixtures.append(_without_noise(mixture, blurred.sigma**2))
    sizes = np.array([len(parts[0]) for parts in mixtures])
    order = sizes.argsort(kind="stable")
    parents = (np.arange(len(sizes))[:, None] == grown.parents)[np.ix_(order, order)].astype(float)
    parts = (np.concatenate(p, axis=-1) for p in zip(*(mixtures[k] for k in order), strict=True))
    return MixtureTree(centre, grown.axes[:, order], parents, sizes[order], *parts)


def parents_of(u: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The parent of each coordinate in the Chow-Liu tree, -1 where it depends on none, (n,).

    Mutual information is that of ranks in equal bins. Without dependence, twice the rows times it
    has a chi-squared distribution (Wilks 1938).

    Args:
        u: coordinates of the rows, (rows, n).
        weights: of the rows, (rows,).
    """
    rows, n = u.shape
    bins = int(np.clip(math.sqrt(rows / ROWS_PER_CELL), 2, BINS))
    ranks = u.argsort(axis=0).argsort(axis=0) * bins // rows
    cells = np.zeros((rows, n * bins), np.float32)
    cells[np.arange(rows)[:, None], ranks + bins * np.arange(n)] = 1.0
    joint = (cells.T * weights.astype(np.float32)) @ cells / weights.sum()
    joint = joint.reshape(n, bins, n, bins).astype(np.float64)
    own = np.einsum("iaia->ia", joint)
    ratios = joint / np.maximum(own[:, :, None, None] * own, 1e-12)
    information = np.einsum("iajb,iajb->ij", joint, np.log(np.maximum(ratios, 1e-12)))
    effective = weights.sum() ** 2 / np.square(weights).sum()
    least = gammainccinv((bins - 1) ** 2 / 2, CHANCE / max(1, n * (n - 1) / 2)) / effective
    information = np.where(information > least, information, 0.0)
    np.fill_diagonal(information, 0.0)
    tree = minimum_spanning_tree(-information)
    parents, seen = np.full(n, -1), np.zeros(n, bool)
    for root in information.max(axis=0).argsort()[::-1]:
        if not seen[root]:
            reached, before = breadth_first_order(tree, root, directed=False)
            seen[reached] = True
            parents[reached[1:]] = before[reached[1:]]
    return parents


def _chosen(
    u: np.ndarray, weights: np.ndarray, first: int, least: float, most: int
) -> tuple[Mixture, np.ndarray]:
    """The mixture of the likeliest held-out rows, among 1, 2, 4, ... components.

    Args:
        u: a coordinate and perhaps its parent, with noise, (rows, 1 or 2).
        weights: of the rows, (rows,).
        first: so many are held out.
        least: variance that a component has at least, with the noise.
        most: components.

    Returns:
        The mixture, and log-densities of the coordinate given its parent of the held-out rows,
        which it has not seen, (first,).
    """
    some = u[first:ROWS], weights[first:ROWS]
    best = mixture = _fit(*some, np.ones((len(some[0]), 1), np.float32), least, STEPS)
    values, failed = _given_parent(u[:first], best), 0
    while 2 * len(mixture[0]) <= min(most, len(some[0]) // ROWS_EACH) and failed < PATIENCE:
        mixture = _fit(*some, _halves(some[0], mixture), least, STEPS)
        given = _given_parent(u[:first], mixture)
        failed += 1
        if _clearly(given - values, weights[:first]):
            best, values, failed = mixture, given, 0
    return best, values


def _fit(
    u: np.ndarray, weights: np.ndarray, shares: np.ndarray, least: float, steps: int
) -> Mixture:
    """The EM algorithm, from the components' shares of each row, (rows, k)."""
    d, last = u.shape[1], -math.inf
    pairs = [(i, j) for i in range(d) for j in range(i, d)]
    moments = np.stack([u[:, 0] ** 0, *u.T, *(u[:, i] * u[:, j] for i, j in pairs)], axis=1)
    moments = moments.astype(np.float64) * weights[:, None]
    for _ in range(steps):
        sums = shares.T.astype(np.float64) @ moments
        total = sums[:, :1] + 1e-9
        means, seconds = np.split(sums[:, 1:] / total, [d], axis=1)
        covariances = np.empty((len(means), d, d))
        for k, (i, j) in enumerate(pairs):
            covariances[:, i, j] = covariances[:, j, i] = seconds[:, k] - means[:, i] * means[:, j]
        covariances = _at_least(covariances, least)
        mixture = total[:, 0] / total.sum(), means, covariances
        shares, logs = _shares(u, mixture)
        value = float(np.average(logs, weights=weights))
        if value < last + ENOUGH:
            break
        last = value
    return mixture


def _at_least(covariances: np.ndarray, least: float) -> np.ndarray:
    """Covariances (k, d, d) with no variance below ``least`` along any axis."""
    widths, axes = np.linalg.eigh(covariances)
    return (axes * np.maximum(widths, least)[:, None]) @ np.moveaxis(axes, -1, -2)


def _log_parts(u: np.ndarray, mixture: Mixture) -> np.ndarray:
    """Log of each component's part of the density of u: float32 (rows, k)."""
    weights, means, covariances = mixture
    inverse = np.linalg.inv(np.linalg.cholesky(covariances))
    logs = np.zeros((len(u), len(weights)), np.float32)
    for axis in np.moveaxis(inverse, 1, 0):
        z = u @ axis.T.astype(np.float32) - (axis * means).sum(axis=1).astype(np.float32)
        z *= z
        logs += z
    logs *= -0.5
    scales = np.log(np.einsum("kii->ki", inverse)).sum(axis=1)
    logs += (np.log(weights) + scales - 0.5 * u.shape[1] * LOG_2_PI).astype(np.float32)
    return logs


def _shares(u: np.ndarray, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """The components' shares of each row, (rows, k), and the log of its density, (rows,)."""
    shares = _log_parts(u, mixture)
    top = shares.max(axis=1, keepdims=True)
    shares -= top
    np.exp(shares, out=shares)
    total = shares.sum(axis=1, keepdims=True)
    shares /= total
    return shares, (np.log(total) + top)[:, 0].astype(np.float64)


def _given_parent(u: np.ndarray, mixture: Mixture) -> np.ndarray:
    """Log-density of the first coordinate given the second, if there is one: float64 (rows,)."""
    joint = _shares(u, mixture)[1]
    if u.shape[1] == 1:
        return joint
    weights, means, covariances = mixture
    return joint - _shares(u[:, 1:], (weights, means[:, 1:], covariances[:, 1:, 1:]))[1]


def _halves(u: np.ndarray, mixture: Mixture) -> np.ndarray:
    """Shares of the rows in twice the components, each cut across its widest axis."""
    means, covariances = mixture[1:]
    own = _log_parts(u, mixture).argmax(axis=1)
    widest = np.linalg.eigh(covariances)[1][:, :, -1]
    upper = ((u - means[own]) * widest[own]).sum(axis=1) > 0
    return np.eye(2 * len(means), dtype=np.float32)[own + len(means) * upper]


def _without_noise(mixture: Mixture, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (k,), means (2, k) and covariances (4, k) as ``MixtureTree`` has them."""
    weights, means, covariances = mixture
    clean = _at_least(covariances - noise * np.eye(means.shape[1]), 0.0)
    own, none = clean[:, 0, 0], np.zeros(len(weights))
    if means.shape[1] == 1:
        return weights, np.stack([means[:, 0], none]), np.stack([own, none + 1.0, none, own])
    determinant = np.maximum(np.linalg.eigvalsh(covariances) - noise, 0.0).prod(axis=1)
    return weights, means.T, np.stack([own, clean[:, 1, 1], clean[:, 0, 1], determinant])
