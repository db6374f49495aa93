"""Measures of quality: of log-densities on a grid, of modes, and of samples (NumPy, float64).

On a grid of two dimensions, ``grid_kl`` compares a model with the exact density. ``mode_shares``
and ``mode_coverage`` count the samples of each mode. The other functions compare two sets of
samples: as wholes (``frechet_distance``, ``kernel_distance``, ``sliced_wasserstein``) or by their
nearest neighbours (``precision``, ``density``, ``coverage``, ``nearest_distances``). To compare
images, pass the features of a classifier.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from tfdde.utils.checks import check_integer, check_positive
from tfdde.utils.statistics import Measured

__all__ = [
    "Measured",
    "coverage",
    "density",
    "frechet_distance",
    "grid",
    "grid_kl",
    "grid_log_partition",
    "kernel_distance",
    "mode_coverage",
    "mode_shares",
    "nearest_distances",
    "precision",
    "sliced_wasserstein",
]

CHUNK = 1_000  # rows of a matrix of distances, which bounds the memory


# Log-densities on a grid


def grid(low: float, high: float, n: int) -> tuple[np.ndarray, float]:
    """Divide the square [low, high]**2 into n x n equal cells.

    Returns:
        The midpoints of the cells, float64 (n * n, 2), of which the first coordinate changes
        fastest; and the area of a cell.

    Raises:
        ValueError: ``low`` is not below ``high``, or ``n`` is below 1.

    Example:
        >>> from tfdde import metrics
        >>> points, cell_area = metrics.grid(0.0, 4.0, 2)
        >>> points.tolist(), cell_area
        ([[1.0, 1.0], [3.0, 1.0], [1.0, 3.0], [3.0, 3.0]], 4.0)
    """
    if not high > low or n < 1:
        raise ValueError(f"`grid` needs low < high and n >= 1, got {low!r}, {high!r}, {n!r}.")
    step = (high - low) / n
    axis = low + step * (np.arange(n) + 0.5)
    x, y = np.meshgrid(axis, axis)
    return np.stack([x.ravel(), y.ravel()], axis=1), step**2


def grid_log_partition(log_density: Any, cell_area: float) -> float:
    """Return log Z: the log of the integral of exp(log_density) by the midpoint rule, in nats.

    Args:
        log_density: values at the midpoints of a grid, shape (points,).
        cell_area: area of a cell.

    Example:
        >>> from tfdde import metrics
        >>> points, cell_area = metrics.grid(-8.0, 8.0, 200)
        >>> log_z = metrics.grid_log_partition(-0.5 * (points**2).sum(axis=1), cell_area)
        >>> round(log_z, 4), round(float(np.log(2 * np.pi)), 4)
        (1.8379, 1.8379)
    """
    return float(logsumexp(_check_values(log_density, "log_density")) + math.log(cell_area))


def grid_kl(log_p: Any, log_q: Any, cell_area: float) -> float:
    """Return KL(p || e^s / Z) on a grid, in nats.

    Args:
        log_p: exact log-density at the points, shape (points,).
        log_q: log-density s of the model at the same points; it need not be normalised.
        cell_area: area of a cell.

    Returns:
        The divergence, after both were normalised on the grid.

    Raises:
        ValueError: the shapes differ, or the mass of p on the grid is not within 0.1 % of 1: the
            grid is too small or too coarse.
    """
    log_p, log_q = _check_values(log_p, "log_p"), _check_values(log_q, "log_q")
    if log_p.shape != log_q.shape:
        raise ValueError(
            f"`log_p` and `log_q` must have one shape, got {log_p.shape} and {log_q.shape}."
        )
    mass = np.exp(grid_log_partition(log_p, cell_area))
    if not 0.999 <= mass <= 1.001:
        raise ValueError(
            f"The grid holds a mass of {mass:.4f} of `log_p`, expected 1 +- 0.001: "
            "widen or refine it."
        )
    log_p = log_p - np.log(mass)
    log_q = log_q - grid_log_partition(log_q, cell_area)
    inside = log_p > -np.inf  # where p is 0 the integrand is 0
    log_p, log_q = log_p[inside], log_q[inside]
    return float(np.sum(np.exp(log_p) * (log_p - log_q)) * cell_area)


def _check_values(value: Any, name: str) -> np.ndarray:
    """Return log-densities as float64 (points,), or raise ValueError."""
    array = np.asarray(value, np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"`{name}` must have shape (points,), got {array.shape}.")
    if np.isnan(array).any() or np.isposinf(array).any():
        raise ValueError(f"`{name}` must hold log-densities, got NaN or +inf among them.")
    return array


# Modes


def mode_shares(x: Any, modes: Any, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of the samples that belongs to each mode.

    A sample belongs to the nearest mode if it is within ``radius`` of its centre.

    Args:
        x: samples, shape (n, d).
        modes: centres, shape (k, d).
        radius: in the units of x. Samples farther from all centres belong to no mode.

    Returns:
        The shares, float64 (k,), which sum to 1 minus the share of samples that belong to no
        mode; and their binomial standard errors (k,).
    """
    x, modes = np.asarray(x, np.float64), np.asarray(modes, np.float64)
    if x.ndim != 2 or modes.ndim != 2 or x.shape[1] != modes.shape[1] or not len(x):
        raise ValueError(
            f"`x` and `modes` must have shapes (n, d) and (k, d), got {x.shape} and {modes.shape}."
        )
    if not radius > 0:
        raise ValueError(f"`radius` must be > 0, got {radius!r}.")
    distance = np.linalg.norm(x[:, None, :] - modes, axis=-1)
    near = distance.min(axis=1) <= radius
    shares = np.bincount(distance.argmin(axis=1)[near], minlength=len(modes)) / len(x)
    return shares, np.sqrt(shares * (1 - shares) / len(x))


def mode_coverage(labels: Any, modes: int) -> tuple[int, Measured]:
    """Count the modes that samples reach, and measure how evenly.

    All modes should be equally likely.

    Args:
        labels: the mode of each sample, integers in [0, modes), shape (n,).
        modes: the number of modes.

    Returns:
        The number of modes with at least one sample; and KL(shares || uniform), the sum of
        share log(share modes), in nats, with its standard error (delta method). With n samples the
        divergence is about (modes - 1) / (2 n) too large.

    Raises:
        ValueError: there are no labels, or not all are integers in [0, modes).
    """
    modes = check_integer(modes, "modes")
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`labels` must be integers of shape (n,), n > 0, got {labels.dtype} {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= modes:
        raise ValueError(f"`labels` must be in [0, {modes}), got {labels.min()} to {labels.max()}.")
    counts = np.bincount(labels, minlength=modes)
    surprise = np.log(counts[labels] * (modes / len(labels)))
    return int((counts > 0).sum()), Measured(
        float(surprise.mean()), float(surprise.std() / math.sqrt(len(labels)))
    )


# Two samples as wholes


def frechet_distance(x: Any, y: Any, repeats: int = 50, seed: int = 0) -> Measured:
    """Return the Fréchet distance between Gaussians with the samples' means and covariances.

    It is ||m - m'||**2 + tr(C + C' - 2 (C C')**0.5), called "FID" if the rows are Inception
    features (Heusel et al. 2017). With few rows it is too large: compare equal numbers of rows.

    Args:
        x, y: samples, shape (rows, features), with at least 2 rows.
        repeats: bootstrap samples for the standard error.
        seed: fixes the bootstrap samples.

    Example:
        >>> from tfdde import metrics
        >>> samples = np.random.default_rng(0).normal(size=(500, 2))
        >>> round(metrics.frechet_distance(samples, samples + [3.0, 4.0]).value, 3)
        25.0
    """
    return _bootstrap(_frechet, *_check(x, y), repeats, seed)


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Fréchet distance; see ``frechet_distance``."""
    shift = x.mean(axis=0) - y.mean(axis=0)
    c, d = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    # tr (C D)**0.5 is computed from the symmetric C**0.5 D C**0.5, which has the same eigenvalues.
    variances, axes = np.linalg.eigh(c)
    root = (axes * np.sqrt(np.maximum(variances, 0.0))) @ axes.T
    both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ d @ root), 0.0)).sum()
    return shift @ shift + np.trace(c) + np.trace(d) - 2.0 * both


def kernel_distance(
    x: Any, y: Any, bandwidth: float | None = None, block: int = 1_000, seed: int = 0
) -> Measured:
    """Return the squared maximum mean discrepancy, an unbiased mean over disjoint blocks of rows.

    The kernel is (x . y / features + 1)**3, which gives "KID" (Bińkowski et al. 2018); with a
    bandwidth it is exp(-||x - y||**2 / (2 bandwidth**2)). The standard error is that of the mean
    over the blocks.

    Args:
        x, y: samples, shape (rows, features).
        bandwidth: that of a Gaussian kernel, in the units of the samples; None for KID.
        block: rows of a block. It is reduced if the rows do not fill two blocks.
        seed: fixes the order of the rows.
    """
    x, y = _check(x, y)
    if bandwidth is not None:
        bandwidth = check_positive(bandwidth, "bandwidth")
    rows = min(len(x), len(y))
    block = min(check_integer(block, "block", 2), rows // 2)
    if block < 2:
        raise ValueError(f"`x` and `y` must have at least 4 rows, got {len(x)} and {len(y)}.")
    rng = np.random.default_rng(seed)
    x, y = x[rng.permutation(len(x))], y[rng.permutation(len(y))]

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if bandwidth is None:
            return (a @ b.T / a.shape[1] + 1.0) ** 3
        return np.exp(-0.5 * cdist(a, b, "sqeuclidean") / bandwidth**2)

    values = []
    for i in range(0, rows - block + 1, block):
        a, b = x[i : i + block], y[i : i + block]
        aa, bb, ab = kernel(a, a), kernel(b, b), kernel(a, b)
        within = aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)
        values.append(within / (block * (block - 1)) - 2.0 * ab.mean())
    return _mean(np.array(values))


def sliced_wasserstein(
    x: Any, y: Any, directions: int = 100, repeats: int = 50, seed: int = 0
) -> Measured:
    """Return the sliced 1-Wasserstein distance: its mean over random one-dimensional projections.

    Args:
        x, y: samples with equal numbers of rows, shape (rows, features).
        directions: the number of projections. The standard error does not cover their choice.
        repeats: bootstrap samples for the standard error.
        seed: fixes the directions and the bootstrap samples.
    """
    x, y = _check(x, y)
    if len(x) != len(y):
        raise ValueError(f"`x` and `y` must have equal numbers of rows, got {len(x)} and {len(y)}.")
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((x.shape[1], check_integer(directions, "directions")))
    u /= np.linalg.norm(u, axis=0)

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return np.abs(np.sort(x, axis=0) - np.sort(y, axis=0)).mean()

    return _bootstrap(distance, x @ u, y @ u, repeats, seed)


def _bootstrap(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    repeats: int,
    seed: int,
) -> Measured:
    """Return a statistic of two samples with its bootstrap standard error."""
    repeats = check_integer(repeats, "repeats", 2)
    rng = np.random.default_rng(seed)
    resampled = [
        statistic(x[rng.integers(len(x), size=len(x))], y[rng.integers(len(y), size=len(y))])
        for _ in range(repeats)
    ]
    return Measured(float(statistic(x, y)), float(np.std(resampled, ddof=1)))


# Nearest neighbours of two samples


def precision(real: Any, made: Any, k: int = 3) -> Measured:
    """Return the share of the generated rows that lie among the real ones.

    A generated row lies among the real ones if it is closer to some real row than that row's
    ``k``-th real neighbour (Kynkäänniemi et al. 2019). ``precision(made, real)`` is the recall.
    The standard error is that of the mean over ``made``; it does not cover the choice of ``real``.

    Args:
        real, made: real and generated samples, shape (rows, features).
        k: the neighbour whose distance is the radius of a neighbourhood.
    """
    return _mean(_neighbourhoods(*_check(real, made, "real", "made"), k)[0] > 0)


def density(real: Any, made: Any, k: int = 5) -> Measured:
    """Return the mean number of real neighbourhoods that hold a generated row, divided by ``k``.

    Its expectation is 1 if both samples have the same distribution (Naeem et al. 2020). Arguments
    and standard error are those of ``precision``.
    """
    return _mean(_neighbourhoods(*_check(real, made, "real", "made"), k)[0] / k)


def coverage(real: Any, made: Any, k: int = 5) -> Measured:
    """Return the share of the real rows whose neighbourhood holds a generated row.

    See Naeem et al. (2020). Arguments are those of ``precision``. The standard error is that of the
    mean over ``real``.
    """
    return _mean(_neighbourhoods(*_check(real, made, "real", "made"), k)[1])


def nearest_distances(x: Any, train: Any) -> np.ndarray:
    """Return the distance of each row to the nearest training row: float64 (rows,).

    If a generator has memorised its training rows, its samples are closer to them than fresh data.
    """
    x, train = _check(x, train, "x", "train", least=1)
    chunks = [cdist(x[i : i + CHUNK], train).min(axis=1) for i in range(0, len(x), CHUNK)]
    return np.concatenate(chunks)


def _neighbourhoods(real: np.ndarray, made: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Count memberships in the neighbourhoods of the real rows.

    The neighbourhood of a real row reaches to its ``k``-th real neighbour.

    Returns:
        For each generated row, the number of neighbourhoods that hold it; for each real row,
        whether its neighbourhood holds a generated row.
    """
    if check_integer(k, "k") >= len(real):
        raise ValueError(f"`k` must be below the number of real rows, {len(real)}, got {k}.")
    memberships, covered = np.zeros(len(made), int), np.zeros(len(real), bool)
    for i in range(0, len(real), CHUNK):
        centres = real[i : i + CHUNK]
        # Position 0 holds the distance 0 of a row to itself.
        radius = np.partition(cdist(centres, real), k, axis=1)[:, k]
        within = cdist(centres, made) <= radius[:, None]
        memberships += within.sum(axis=0)
        covered[i : i + CHUNK] = within.any(axis=1)
    return memberships, covered


# What the measures of samples share


def _check(
    x: Any, y: Any, first: str = "x", second: str = "y", least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Return two samples as float64 (rows, features), or raise ValueError."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for array, name in ((x, first), (y, second)):
        if array.ndim != 2 or len(array) < least:
            raise ValueError(
                f"`{name}` must have shape (rows, features) with at least {least} rows, "
                f"got {array.shape}."
            )
        if not np.isfinite(array).all():
            raise ValueError(f"`{name}` must be finite, got NaN or infinity among its entries.")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"`{first}` and `{second}` must have equal numbers of features, got {x.shape[1]} and "
            f"{y.shape[1]}."
        )
    return x, y


def _mean(values: np.ndarray) -> Measured:
    """Return the mean with its standard error."""
    values = values.astype(np.float64)
    return Measured(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))
