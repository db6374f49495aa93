"""Measures of densities on a grid and of samples (NumPy, float64)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

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


def grid(low: float, high: float, n: int) -> tuple[np.ndarray, float]:
    """Midpoints of n x n equal cells of the square [low, high]**2, and a cell's area.

    Returns:
        Points, float64 (n * n, 2), the first coordinate running fastest, and the area.
    """
    if not high > low or n < 1:
        raise ValueError(f"`grid` needs low < high and n >= 1, got {low!r}, {high!r}, {n!r}.")
    step = (high - low) / n
    axis = low + step * (np.arange(n) + 0.5)
    x, y = np.meshgrid(axis, axis)
    return np.stack([x.ravel(), y.ravel()], axis=1), step**2


def _check_values(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"`{name}` must have shape (points,), got {array.shape}.")
    if np.isnan(array).any() or np.isposinf(array).any():
        raise ValueError(f"`{name}` must hold log-densities, got NaN or +inf among them.")
    return array


def grid_log_partition(log_density: Any, cell_area: float) -> float:
    """log of the integral of exp(log_density) over the grid (midpoint rule), in nats."""
    values = _check_values(log_density, "log_density")
    top = values.max()
    return float(top + np.log(np.exp(values - top).sum()) + np.log(cell_area))


def grid_kl(log_p: Any, log_q: Any, cell_area: float) -> float:
    """KL(p || e^s / Z) on a grid, in nats.

    Args:
        log_p: exact log-density at the points, shape (points,).
        log_q: log-density s of the model there, normalised or not.
        cell_area: area of a cell.

    Returns:
        The divergence, with both normalised on the grid.

    Raises:
        ValueError: the grid covers less than 99.9 % of p's mass, or is too coarse for it.
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
    some = log_p > -np.inf
    return float(np.sum(np.exp(log_p[some]) * (log_p[some] - log_q[some])) * cell_area)


def mode_shares(x: Any, modes: Any, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Share of the samples that is nearest to each mode and within ``radius`` of it.

    Args:
        x: samples, shape (n, d).
        modes: centres, shape (k, d).
        radius: in the units of x; samples farther from all centres count for none.

    Returns:
        Shares, float64 (k,), whose sum falls short of 1 by the share of strays, and their
        binomial standard errors (k,).
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
    """How many of equally likely modes samples reach, and their shares' KL to uniform.

    Args:
        labels: the mode of each sample, integers in [0, modes), shape (n,).
        modes: how many there are.

    Returns:
        The number of modes with at least one sample, and the sum of share log(share modes) in
        nats with its standard error (delta method). Of finitely many samples it exceeds 0 even if
        all modes are equally likely, by about (modes - 1) / (2 n).

    Raises:
        ValueError: no labels, or some that are no integers in [0, modes).
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


CHUNK = 1_000  # rows of one matrix of distances


def frechet_distance(x: Any, y: Any, repeats: int = 50, seed: int = 0) -> Measured:
    """Fréchet distance of the Gaussians that have the samples' means and covariances.

    ||m - m'||**2 + tr(C + C' - 2 (C C')**0.5), "FID" on Inception's features (Heusel et al.
    2017).  Its value is biased upwards for few rows: compare equal numbers of them.

    Args:
        x, y: samples, shape (rows, features), with at least 2 rows.
        repeats: bootstrap samples for the error.
        seed: of these.
    """
    return _bootstrap(_frechet, *_check(x, y), repeats, seed)


def kernel_distance(
    x: Any, y: Any, bandwidth: float | None = None, block: int = 1_000, seed: int = 0
) -> Measured:
    """Squared maximum mean discrepancy, without bias: mean over disjoint blocks of rows.

    With the kernel (x . y / features + 1)**3 it is "KID" (Bińkowski et al. 2018), with a
    bandwidth the kernel is exp(-||x - y||**2 / (2 bandwidth**2)).  The error is that of the mean
    over the blocks.

    Args:
        x, y: samples, shape (rows, features).
        bandwidth: of the Gaussian kernel, in the units of the samples.
        block: rows of a block; less if there are not two blocks.
        seed: of the order of the rows.
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
    """Mean over random directions of the 1-Wasserstein distance of the projections.

    Args:
        x, y: samples of equally many rows, shape (rows, features).
        directions: how many; their choice is not in the error.
        repeats: bootstrap samples for the error.
        seed: of directions and bootstrap.
    """
    x, y = _check(x, y)
    if len(x) != len(y):
        raise ValueError(f"`x` and `y` must have equally many rows, got {len(x)} and {len(y)}.")
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((x.shape[1], check_integer(directions, "directions")))
    u /= np.linalg.norm(u, axis=0)

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return np.abs(np.sort(x, axis=0) - np.sort(y, axis=0)).mean()

    return _bootstrap(distance, x @ u, y @ u, repeats, seed)


def precision(real: Any, made: Any, k: int = 3) -> Measured:
    """Share of what was made that lies among the real rows (Kynkäänniemi et al. 2019).

    Within the distance of a real row to its ``k``-th neighbour.  ``precision(made, real)`` is the
    recall.  The error is that of the mean over ``made``, as for ``density``; the neighbourhoods'
    own is not in it.

    Args:
        real, made: samples, shape (rows, features).
        k: neighbours that make a neighbourhood.
    """
    return _mean(_counts(*_check(real, made, "real", "made"), k)[0] > 0)


def density(real: Any, made: Any, k: int = 5) -> Measured:
    """Mean number of real neighbourhoods that a made row is in, by ``k`` (Naeem et al. 2020).

    1 in the mean if both are of one distribution.  Args as of ``precision``.
    """
    return _mean(_counts(*_check(real, made, "real", "made"), k)[0] / k)


def coverage(real: Any, made: Any, k: int = 5) -> Measured:
    """Share of the real rows whose neighbourhood something made is in (Naeem et al. 2020).

    The error is that of the mean over ``real``.  Args as of ``precision``.
    """
    return _mean(_counts(*_check(real, made, "real", "made"), k)[1])


def nearest_distances(x: Any, train: Any) -> np.ndarray:
    """Distance of each row to the nearest training row: float64 (rows,).

    Of a generator that has learned its training rows by heart they are shorter than those of
    fresh data.
    """
    x, train = _check(x, train, "x", "train", least=1)
    chunks = [cdist(x[i : i + CHUNK], train).min(axis=1) for i in range(0, len(x), CHUNK)]
    return np.concatenate(chunks)


def _check(
    x: Any, y: Any, first: str = "x", second: str = "y", least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
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
            f"`{first}` and `{second}` must have equally many features, got {x.shape[1]} and "
            f"{y.shape[1]}."
        )
    return x, y


def _mean(values: np.ndarray) -> Measured:
    values = values.astype(np.float64)
    return Measured(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


def _bootstrap(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    repeats: int,
    seed: int,
) -> Measured:
    repeats = check_integer(repeats, "repeats", 2)
    rng = np.random.default_rng(seed)
    again = [
        statistic(x[rng.integers(len(x), size=len(x))], y[rng.integers(len(y), size=len(y))])
        for _ in range(repeats)
    ]
    return Measured(float(statistic(x, y)), float(np.std(again, ddof=1)))


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    shift = x.mean(axis=0) - y.mean(axis=0)
    c, d = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    # tr (C D)**0.5 from the symmetric C**0.5 D C**0.5, which has the same eigenvalues.
    variances, axes = np.linalg.eigh(c)
    root = (axes * np.sqrt(np.maximum(variances, 0.0))) @ axes.T
    both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ d @ root), 0.0)).sum()
    return shift @ shift + np.trace(c) + np.trace(d) - 2.0 * both


def _counts(real: np.ndarray, made: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """How many real neighbourhoods each made row is in; whether something is in each of them."""
    if check_integer(k, "k") >= len(real):
        raise ValueError(f"`k` must be below the number of real rows, {len(real)}, got {k}.")
    inside, covered = np.zeros(len(made), int), np.zeros(len(real), bool)
    for i in range(0, len(real), CHUNK):
        some = real[i : i + CHUNK]
        # The nearest real row of a real row is itself.
        radius = np.partition(cdist(some, real), k, axis=1)[:, k]
        within = cdist(some, made) <= radius[:, None]
        inside += within.sum(axis=0)
        covered[i : i + CHUNK] = within.any(axis=1)
    return inside, covered
