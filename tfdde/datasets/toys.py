"""Two-dimensional toy data with the exact log-density after noise was added.

Eight Gaussians, checkerboard, two spirals and rings are defined as for FFJORD and BNAF. A grid of
25 narrow Gaussians and a wide ring of eight test whether a generator loses modes.

For data x ~ p and a noise level sigma >= 0, ``toy_log_density`` is that of p * N(0, sigma**2 I).
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import numpy as np
from scipy.special import i0e, log_ndtr, logsumexp, ndtr

TOYS = (
    "eight_gaussians",
    "checkerboard",
    "two_spirals",
    "rings",
    "gaussian_grid",
    "distant_gaussians",
)
_ALIASES = {"8gaussians": "eight_gaussians", "2spirals": "two_spirals"}
_RADII = np.array([3.0, 2.25, 1.5, 0.75])
_RING_STD = 0.08
_SPIRAL_STD = 0.1
_SPIRAL_TURN = 3 * math.pi  # 540 degrees
_SPIRAL_BOX = 0.5 / 3
# Lower left corners of the eight occupied squares of side 2.
_SQUARES = np.array(
    [(a, b) for a in (-4, -2, 0, 2) for b in (-4, -2, 0, 2) if (a + b) % 4 == 0], float
)


def _ring(radius: float) -> np.ndarray:
    angle = np.arange(8) * math.pi / 4
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


# Centres and standard deviation of toys that are equal mixtures of Gaussians.
_GAUSSIANS = {
    "eight_gaussians": (_ring(4 / math.sqrt(2)), math.sqrt(0.125)),
    "gaussian_grid": (np.array([(a, b) for a in range(-4, 5, 2) for b in range(-4, 5, 2)]), 0.05),
    "distant_gaussians": (_ring(10.0), 0.1),
}


def check_toy(name: Any) -> str:
    """Return the usual name of a toy, or raise ValueError with the choices."""
    canonical = _ALIASES.get(name, name)
    if canonical not in TOYS:
        near = difflib.get_close_matches(str(name), [*TOYS, *_ALIASES], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"`name` must be one of {', '.join(TOYS)}, got {name!r}.{hint}")
    return canonical


def toy_modes(name: str) -> np.ndarray:
    """Return the centres of the modes, Gaussians or squares: float64 (modes, 2).

    Raises:
        ValueError: the toy consists of curves.
    """
    name = check_toy(name)
    if name in _GAUSSIANS:
        return np.array(_GAUSSIANS[name][0], float)
    if name == "checkerboard":
        return _SQUARES + 1.0
    raise ValueError(f"`name` must be a toy with modes, got {name!r}, which consists of curves.")


def toy_scale(name: str) -> float:
    """Return half the side of a square around the origin that holds almost all of the toy."""
    return 10.5 if check_toy(name) == "distant_gaussians" else 4.5


def toy_std(name: str) -> float:
    """Return the standard deviation of the modes of a toy that consists of Gaussians.

    Raises:
        ValueError: the toy does not consist of Gaussians.
    """
    if check_toy(name) not in _GAUSSIANS:
        raise ValueError(f"`name` must be a toy of Gaussians, got {name!r}.")
    return _GAUSSIANS[check_toy(name)][1]


def sample_toy(name: str, n: int, seed: int) -> np.ndarray:
    """Draw samples of a toy.

    Args:
        name: one of ``TOYS``; ``8gaussians`` and ``2spirals`` are other names of two of them.
        n: number of samples.
        seed: seed of ``np.random.default_rng``.

    Returns:
        The samples, float32 (n, 2).

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> from tfdde import datasets
        >>> samples = datasets.sample_toy("checkerboard", 1000, seed=0)
        >>> samples.shape, bool(datasets.inside_checkerboard(samples).all())
        ((1000, 2), True)
    """
    name = check_toy(name)
    rng = np.random.default_rng(seed)
    if name in _GAUSSIANS:
        centres, std = _GAUSSIANS[name]
        x = centres[rng.integers(0, len(centres), n)] + std * rng.standard_normal((n, 2))
    elif name == "checkerboard":
        x1 = rng.random(n) * 4 - 2
        x2 = rng.random(n) - rng.integers(0, 2, n) * 2 + np.floor(x1) % 2
        x = np.stack([x1, x2], axis=1) * 2
    elif name == "two_spirals":
        angle = np.sqrt(rng.random(n)) * _SPIRAL_TURN
        arm = np.where(np.arange(n) % 2, 1.0, -1.0)[:, None]
        curve = np.stack([-np.cos(angle), np.sin(angle)], axis=1) * angle[:, None]
        x = arm * (curve + 0.5 * rng.random((n, 2))) / 3
        x += _SPIRAL_STD * rng.standard_normal((n, 2))
    else:
        radius = _RADII[rng.integers(0, 4, n)]
        angle = 2 * math.pi * rng.random(n)
        x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        x += _RING_STD * rng.standard_normal((n, 2))
    return x.astype(np.float32)


def inside_checkerboard(x: np.ndarray) -> np.ndarray:
    """Return for each point whether it lies in one of the eight squares: bool (n,)."""
    square = np.floor(np.asarray(x, float) / 2).astype(int)
    in_board = (np.abs(x) <= 4).all(axis=-1)
    return in_board & (square.sum(axis=-1) % 2 == 0)


def _log_box(x: np.ndarray, low: Any, high: Any, std: float) -> np.ndarray:
    """Return the log-density of U(low, high) + N(0, std**2), accurate far into the tails."""
    upper, lower = (high - x) / std, (low - x) / std
    flip = lower > 0  # a difference of two CDFs near 1 loses its digits: mirror it to the left tail
    upper, lower = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
    a, b = log_ndtr(upper), log_ndtr(lower)
    return a + np.log1p(-np.exp(b - a)) - np.log(high - low)


def _log_density_squares(x: np.ndarray, sigma: float) -> np.ndarray:
    if sigma == 0:
        return np.where(inside_checkerboard(x), -math.log(32), -np.inf)
    parts = _log_box(x[:, None, :], _SQUARES, _SQUARES + 2.0, sigma).sum(axis=-1)
    return logsumexp(parts, axis=1) - math.log(len(_SQUARES))


def _log_density_rings(x: np.ndarray, sigma: float) -> np.ndarray:
    variance = _RING_STD**2 + sigma**2
    r = np.linalg.norm(x, axis=1)[:, None]
    # A Gaussian averaged over a circle: the angular integral is a Bessel function.
    log_bessel = np.log(i0e(r * _RADII / variance))
    parts = log_bessel - (r - _RADII) ** 2 / (2 * variance)
    return logsumexp(parts, axis=1) - math.log(4 * 2 * math.pi * variance)


def _log_density_spirals(x: np.ndarray, sigma: float) -> np.ndarray:
    std = math.sqrt(_SPIRAL_STD**2 + sigma**2)
    # (angle / turn)**2 is uniform in [0, 1]. The integral over it is taken over the angle, by
    # Gauss-Legendre quadrature with the weight 2 angle / turn**2. At the outer end the integrand is
    # a bump of width std / 3.1 in the angle, which so many nodes resolve to 1e-6 or better.
    nodes, weights = np.polynomial.legendre.leggauss(max(64, math.ceil(40 / std)))
    angle = (nodes + 1) / 2 * _SPIRAL_TURN
    weights = weights * angle / _SPIRAL_TURN
    curve = np.stack([-np.cos(angle), np.sin(angle)], axis=1) * angle[:, None] / 3

    def integral(y: np.ndarray) -> np.ndarray:
        lower, upper = (y[:, None] - curve - _SPIRAL_BOX) / std, (y[:, None] - curve) / std
        flip = lower > 0
        lower, upper = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
        box = ndtr(upper) - ndtr(lower)
        return box[..., 0] * box[..., 1] @ weights / _SPIRAL_BOX**2

    def log_integral(y: np.ndarray) -> np.ndarray:
        parts = _log_box(y[:, None], curve, curve + _SPIRAL_BOX, std).sum(axis=-1)
        return logsumexp(parts + np.log(weights), axis=1)

    out = np.empty(len(x))
    for i in range(0, len(x), 4096):
        y = x[i : i + 4096]
        density = (integral(y) + integral(-y)) / 2  # the second arm is the first, turned by pi
        tiny = density < 1e-250  # near underflow the slower integral of logarithms is used
        density[tiny] = 1.0
        out[i : i + 4096] = np.log(density)
        tails = np.logaddexp(log_integral(y[tiny]), log_integral(-y[tiny])) - math.log(2)
        out[i : i + 4096][tiny] = tails
    return out


def toy_log_density(name: str, x: Any, sigma: float) -> np.ndarray:
    """Return the exact log-density of a toy plus noise N(0, sigma**2 I).

    It is in closed form for the Gaussians (mixtures with a larger variance), the checkerboard
    (differences of error functions) and the rings (Bessel functions). For the spirals it is an
    integral along the curve, by quadrature.

    Args:
        name: as in ``sample_toy``.
        x: points, shape (n, 2).
        sigma: noise level >= 0; 0 for the density of the data.

    Returns:
        Log-densities in nats, float64 (n,); -inf outside the checkerboard if sigma is 0.

    Raises:
        ValueError: the name is unknown, the shape is wrong, or ``sigma`` is negative.

    Example:
        >>> from tfdde import datasets
        >>> points = np.array([[1.0, 1.0], [1.0, 3.0]])  # inside a square, and outside
        >>> datasets.toy_log_density("checkerboard", points, sigma=0.2).round(3).tolist()
        [-3.466, -17.432]
    """
    name = check_toy(name)
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"`x` must have shape (rows, 2), got {x.shape}.")
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"`sigma` must be a finite number >= 0, got {sigma!r}.")
    if name in _GAUSSIANS:
        centres, std = _GAUSSIANS[name]
        variance = std**2 + sigma**2
        square = ((x[:, None] - centres) ** 2).sum(axis=-1)
        parts = logsumexp(-square / (2 * variance), axis=1)
        return parts - math.log(len(centres) * 2 * math.pi * variance)
    if name == "checkerboard":
        return _log_density_squares(x, sigma)
    if name == "rings":
        return _log_density_rings(x, sigma)
    return _log_density_spirals(x, sigma)
