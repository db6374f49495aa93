"""Measures of densities on a grid and of samples (NumPy, float64).

Distances between two samples are ``tfdde.fidelity``'s, found here as well.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfdde.checks import check_integer
from tfdde.fidelity import (
    Measured,
    coverage,
    density,
    frechet_distance,
    kernel_distance,
    nearest_distances,
    precision,
    sliced_wasserstein,
)

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
