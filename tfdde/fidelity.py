"""Distances between two samples, each with its error (NumPy, float64).

For points of the plane as they are; for images on features of a classifier.  All take arrays of
shape (rows, features) and return a ``Measured``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from tfdde.checks import check_integer, check_positive
from tfdde.estimate import QUANTILE

CHUNK = 1_000  # rows of one matrix of distances


class Measured(NamedTuple):
    """A measure with its standard error and an interval of 95 %."""

    value: float
    standard_error: float

    @property
    def lower(self) -> float:
        return self.value - QUANTILE * self.standard_error

    @property
    def upper(self) -> float:
        return self.value + QUANTILE * self.standard_error

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"


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
