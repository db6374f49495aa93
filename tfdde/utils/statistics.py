"""Moments of rows, and means with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

BLOCK = 4_096  # rows whose products are summed in float32; sums of blocks are float64
QUANTILE = 1.96  # of the standard normal, for 95 % intervals


def _blocks(rows: np.ndarray, weights: np.ndarray | None) -> Iterator[tuple[np.ndarray, Any]]:
    """Blocks of rows, with the share of the total weight that each row has: (rows, 1, ...)."""
    shares = np.full(len(rows), 1.0) if weights is None else np.asarray(weights, np.float64)
    shares = (shares / shares.sum()).reshape(-1, *[1] * (rows.ndim - 1))
    for i in range(0, len(rows), BLOCK):
        yield rows[i : i + BLOCK], shares[i : i + BLOCK]


def mean_and_variance(
    rows: np.ndarray, axes: tuple[int, ...] = (0,), weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over some axes, in float64 sums of blocks.

    A float32 sum of millions of rows loses the digits that its mean has: the mean of 2,000,000
    rows of N(1000, 1) becomes 1016.

    Args:
        rows: shape (rows, *shape).
        axes: those to average over, the first of which is 0.
        weights: of the rows, (rows,), not negative and not all 0; None: all alike.

    Returns:
        float64 arrays of the shape of ``rows`` without ``axes``.
    """
    inner = tuple(axis - 1 for axis in axes[1:])
    sums = [
        (block.astype(np.float64) * share).sum(axis=0) for block, share in _blocks(rows, weights)
    ]
    mean = np.mean(np.sum(sums, axis=0), axis=inner, keepdims=True)
    squares = [
        (np.square(block.astype(np.float64) - mean) * share).sum(axis=0)
        for block, share in _blocks(rows, weights)
    ]
    variance = np.mean(np.sum(squares, axis=0), axis=inner)
    return np.squeeze(mean, axis=inner), variance


def mean_and_covariance(
    rows: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of flat rows (rows, n), in float64 sums of blocks.

    Args:
        rows: shape (rows, n).
        weights: as for ``mean_and_variance``.

    Returns:
        float64 arrays (n,) and (n, n).
    """
    mean, _ = mean_and_variance(rows, weights=weights)
    covariance = np.zeros((rows.shape[1],) * 2)
    for block, share in _blocks(rows, weights):
        centred = ((block.astype(np.float64) - mean) * np.sqrt(share)).astype(np.float32)
        covariance += centred.T @ centred
    return mean, covariance


def mean_and_error(values: np.ndarray, log_z_error: float = 0.0) -> tuple[float, float]:
    """Mean over rows and its standard error, which includes that of log Z.

    >>> mean, error = tfdde.utils.statistics.mean_and_error(np.array([1.0, 2.0, 3.0]))
    >>> mean, round(error, 3)
    (2.0, 0.577)

    Args:
        values: one for each row, (rows,), at least 2.
        log_z_error: standard error of the log Z that all values share; the two errors are added
            in quadrature.
    """
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), math.hypot(error, log_z_error)


class Measured(NamedTuple):
    """A measured value with its standard error and 95 % interval."""

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
