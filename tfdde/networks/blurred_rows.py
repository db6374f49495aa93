"""Rows with noise, of which some are held out, to choose a base by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROWS, ALL = 20_000, 60_000  # of which a fifth is held out, and that are taken at all

Weighted = tuple[np.ndarray, np.ndarray]  # rows and their weights


class BlurredRows(NamedTuple):
    """Rows in random order, with noise, float32.

    Attributes:
        noisy: the rows, (rows, n).
        weights: of the rows, positive, 1 on average, (rows,).
        sigma: level of the noise.
        first: so many are held out.
        rng: for what else is drawn.
    """

    noisy: np.ndarray
    weights: np.ndarray
    sigma: float
    first: int
    rng: np.random.Generator

    @property
    def held_out(self) -> Weighted:
        return self.noisy[: self.first], self.weights[: self.first]

    @property
    def training(self) -> Weighted:
        return self.noisy[self.first :], self.weights[self.first :]


def blur(rows: np.ndarray, sigma: float, weights: np.ndarray | None = None) -> BlurredRows:
    """Add noise to at most 60,000 rows, and hold out a fifth, at most 4,000.

    Args:
        rows: (rows, n).
        sigma: noise level, 0 for the rows as they are.
        weights: of the rows, (rows,), not negative; None: all alike.
    """
    rng = np.random.default_rng(0)
    weights = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    order = rng.permutation(np.flatnonzero(weights > 0))[:ALL]
    rows, weights = rows[order].astype(np.float32), weights[order] / weights[order].mean()
    rows = rows + np.float32(sigma) * rng.standard_normal(rows.shape, np.float32)
    return BlurredRows(rows, weights, sigma, min(len(rows), ROWS) // 5, rng)
