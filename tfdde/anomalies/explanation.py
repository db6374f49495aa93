"""What makes a row strange: each column's share of its anomaly, and the usual value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Range(NamedTuple):
    """Where the usual value of a column is searched: all that ``explain`` takes from normal rows.

    Attributes:
        low, high: the column's least and greatest value.
        values: its values in ascending order if there are at most 33, else None.
    """

    low: float
    high: float
    values: tuple[float, ...] | None = None


def ranges(reference: Any) -> list[Range]:
    """Return the range of each column of normal rows.

    >>> tfdde.anomalies.ranges([[0.0, 7.0], [1.0, 7.0]])
    [Range(low=0.0, high=1.0, values=(0.0, 1.0)), Range(low=7.0, high=7.0, values=(7.0,))]

    Args:
        reference: rows (m, n).

    Raises:
        ValueError: wrong shape, NaN or infinity.
    """
    rows = check_rows(reference, "reference", np.shape(reference)[1:2] or (1,), dtype="float64")
    found = []
    for column in rows.T:
        known = np.unique(column)
        few = tuple(known.tolist()) if len(known) <= FEW else None
        found.append(Range(float(known[0]), float(known[-1]), few))
    return found


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
        reference: normal rows, shape (rows, n), which give each column's range; or these ranges,
            as ``ranges`` returns them.
        points: points of a grid, at least 5.

    Raises:
        ValueError: wrong shapes, NaN or infinity, or too few ``points``.
    """
    columns = reference if _are_ranges(reference) else ranges(reference)
    x = check_rows(x, "x", (len(columns),), dtype="float64")
    points = check_integer(points, "points", 5)
    now = np.asarray(log_density(x), np.float64)
    shares, usual = np.zeros_like(x), x.copy()
    for column, (low, high, few) in enumerate(columns):
        if few is not None:
            grid = np.broadcast_to(few, (len(x), len(few)))
            best, values = _best(log_density, x, column, grid)
        else:
            best, values = _search(log_density, x, column, low, high, points)
        gain = values - now
        shares[:, column] = np.maximum(gain, 0.0)
        usual[:, column] = np.where(gain > 0, best, x[:, column])
    return Explanation(shares, usual)


def _are_ranges(reference: Any) -> bool:
    """Whether a reference is what ``ranges`` returns, not rows."""
    if not isinstance(reference, Sequence) or not reference:
        return False
    return all(isinstance(r, Range) for r in reference)


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
