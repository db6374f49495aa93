"""What makes a row strange: each column's share of its anomaly, and the usual value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tfdde.utils.checks import check_integer, check_rows

FEW = 33  # a column with at most so many values in the reference takes these values alone
ROUNDS = 4  # of the search for the best value; each halves the grid's step several times
MARGIN = 0.1  # of a column's range, by which the grid goes beyond it
BATCH = 100_000  # rows that the density is asked for in one call


class Explanation(NamedTuple):
    """Shares and usual values of some rows.

    Attributes:
        shares: float64 (rows, columns) >= 0: how much the log-density would rise, in nats, if this
            entry alone took its likeliest value. They do not add up to the anomaly score.
        usual: float64 (rows, columns): that value, given the row's other entries.
    """

    shares: np.ndarray
    usual: np.ndarray

    def ranking(self) -> np.ndarray:
        """Columns of each row, that with the largest share first: int (rows, columns)."""
        return np.argsort(-self.shares, axis=1, kind="stable")


def explain(
    log_density: Callable[[np.ndarray], Any], x: Any, reference: Any, points: int = 33
) -> Explanation:
    """Return each column's share of how strange rows are, and the value that would be usual.

    For each entry of a row the other entries are held, and the log-density is searched along its
    column: on a grid over the range of the reference rows, then on finer grids around the best
    value. A column with few values in the reference, such as a count or a flag, takes one of them.

    >>> dde = tfdde.recipes.table_density(x, tfdde.LogUniform(0.1, 8.0), width=16, depth=1)
    >>> def log_density(rows):
    ...     return dde.log_density(rows, normalized=False)
    >>> tfdde.anomalies.explain(log_density, x[:2], x).shares.shape
    (2, 2)

    Args:
        log_density: maps float64 rows (m, n) to log-densities (m,), known up to a constant at
            least.
        x: rows (m, n) to explain.
        reference: normal rows, shape (rows, n), which give each column's range.
        points: points of a grid, at least 5.

    Raises:
        ValueError: wrong shapes, NaN or infinity, or too few ``points``.
    """
    reference = check_rows(
        reference, "reference", np.shape(reference)[1:2] or (1,), dtype="float64"
    )
    x = check_rows(x, "x", reference.shape[1:], dtype="float64")
    points = check_integer(points, "points", 5)
    now = np.asarray(log_density(x), np.float64)
    shares, usual = np.zeros_like(x), x.copy()
    for column in range(x.shape[1]):
        known = np.unique(reference[:, column])
        if len(known) <= FEW:
            best, values = _best(
                log_density, x, column, np.broadcast_to(known, (len(x), len(known)))
            )
        else:
            best, values = _search(log_density, x, column, known[0], known[-1], points)
        gain = values - now
        shares[:, column] = np.maximum(gain, 0.0)
        usual[:, column] = np.where(gain > 0, best, x[:, column])
    return Explanation(shares, usual)


def _search(
    log_density: Callable, x: np.ndarray, column: int, low: float, high: float, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest values between two bounds, by finer and finer grids: values, log-densities."""
    step = (1 + 2 * MARGIN) * (high - low) / (points - 1)
    middle = np.full(len(x), (low + high) / 2)
    for _ in range(ROUNDS):
        offsets = np.linspace(-0.5, 0.5, points) * step * (points - 1)
        middle, values = _best(log_density, x, column, middle[:, None] + offsets)
        step *= 2.0 / (points - 1)  # the next grid reaches one step to both sides
    return middle, values


def _best(
    log_density: Callable, x: np.ndarray, column: int, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest of each row's values (rows, points) of a column, and its log-density."""
    values = np.empty(grid.shape)
    rows_at_once = max(1, BATCH // grid.shape[1])
    for i in range(0, len(x), rows_at_once):
        part = grid[i : i + rows_at_once]
        moved = np.repeat(x[i : i + rows_at_once], part.shape[1], axis=0)
        moved[:, column] = part.ravel()
        values[i : i + rows_at_once] = np.asarray(log_density(moved)).reshape(part.shape)
    best = values.argmax(axis=1)
    rows = np.arange(len(x))
    return grid[rows, best], values[rows, best]
