"""Data rows that samples start at, in proportion to weights."""

from __future__ import annotations

import numpy as np


def at_shares(weights: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the index of the weight that each share in [0, 1) of their sum falls on.

    >>> tfdde.partition.rows.at_shares(np.array([1.0, 3.0]), np.array([0.2, 0.3, 0.9]))
    array([0, 1, 1])
    """
    sums = np.cumsum(weights)
    return np.minimum(np.searchsorted(sums, shares * sums[-1], side="right"), len(weights) - 1)


class RowDraws:
    """Indices of rows, drawn as evenly as their weights allow.

    >>> draws = tfdde.partition.rows.RowDraws(2, np.array([1.0, 3.0]))
    >>> np.bincount(draws.take(8, np.random.default_rng(0)))
    array([2, 6])

    Args:
        rows: number of rows.
        weights: positive float64 (rows,), or None for equal ones.

    Attributes:
        effective_share: how many equally weighted rows the rows are worth (Kish 1965), as a share
            of their number.
    """

    def __init__(self, rows: int, weights: np.ndarray | None):
        self._rows, self._weights = rows, weights
        self.effective_share = 1.0
        if weights is not None:
            self.effective_share = float(weights.sum() ** 2 / np.square(weights).sum() / rows)

    def take(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return ``count`` indices in random order."""
        order = rng.permutation(self._rows)
        if self._weights is None:
            return np.resize(order, count)
        shares = (rng.random() + np.arange(count)) / count  # systematic sampling
        return rng.permutation(order[at_shares(self._weights[order], shares)])
