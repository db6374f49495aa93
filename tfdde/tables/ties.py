"""Find columns whose values lie on a grid or repeat: a density of them would have no bound."""

from __future__ import annotations

import numpy as np

FINE = 0.01  # a step, in units of a column's scale, that noise of usual levels hides
TIED = 0.05  # share of the rows with one value that is worth a word, and
TIMES = 5  # how often the value comes at least


def grid_step(values: np.ndarray, scale: float) -> float | None:
    """Return the step of the grid that the values of a column lie on.

    >>> tfdde.tables.ties.grid_step(np.array([0.1, 0.7, 0.4, 0.1]), scale=0.3)
    0.3
    >>> tfdde.tables.ties.grid_step(np.random.default_rng(0).normal(size=500), scale=1.0)

    Args:
        values: float64 (rows,), finite.
        scale: the column's.

    Returns:
        The largest number that all differences of values are multiples of. None if it is below a
        hundredth of the scale, or if no value comes twice and not all are integers.
    """
    distinct = np.unique(values)
    tied = len(distinct) < len(values)
    if len(distinct) < 2 or not (tied or (distinct == np.rint(distinct)).all()):
        return None
    # How exact the values are: numbers that float32 holds may have been rounded to it.
    single = (distinct == distinct.astype(np.float32)).all()
    exact = np.finfo(np.float32 if single else np.float64).eps * np.abs(distinct).max()
    gaps = np.diff(distinct)
    step = float(gaps.min())
    while step > max(FINE * scale, 100 * exact):
        rest = np.abs(gaps - step * np.rint(gaps / step))
        off = rest > 4 * exact * (1 + gaps / step)  # an error of the step counts so many times
        if not off.any():
            span = float(distinct[-1] - distinct[0])
            return float(f"{span / round(span / step):.6g}")
        step = float(rest[off].min())  # Euclid's algorithm, with all gaps at once
    return None


def most_common(values: np.ndarray) -> tuple[float, float] | None:
    """Return a value that many rows have, and their share; None if there is no such value."""
    distinct, counts = np.unique(values, return_counts=True)
    most = int(counts.argmax())
    if counts[most] < max(TIMES, TIED * len(values)):
        return None
    return float(distinct[most]), float(counts[most] / len(values))
