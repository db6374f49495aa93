"""What is learned of a single column: its centre and scale, and what is odd about it."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfdde.tables.tails import find_tails
from tfdde.tables.ties import grid_step, most_common

SIZES = (1e-100, 1e100)  # that scales must have, so that no square leaves float64
FAR = 3.0  # a standard deviation so many times the inner scale is that of a few far values


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table, as ``Schema.learn`` found it.

    Attributes:
        name: of the column.
        location: what is subtracted from its values: their mean, or their median if a few values
            lie far outside.
        scale: what they are divided by then: their standard deviation, or that of the inner values.
        median: of the values, which stands for missing ones in rows to score.
        step: of the grid that the values lie on, as 1 for integers; None if they lie on none.
        tail_mean, tail_deviation: of a column with heavy tails: mean and standard deviation of
            asinh((x - location) / scale), by which that is standardised again. None for others.
        least, largest: of the values, if they lie on a grid; else None.
    """

    name: str
    location: float
    scale: float
    median: float
    step: float | None = None
    tail_mean: float | None = None
    tail_deviation: float | None = None
    least: float | None = None
    largest: float | None = None


def learn_column(
    name: str, values: np.ndarray, weights: np.ndarray | None = None
) -> tuple[Column, list[str], list[str]]:
    """Find centre and scale of a column, and whether its values repeat.

    They are mean and standard deviation. If the latter is more than three times the distance of
    the 10 % and 90 % quantiles, in units of a normal distribution's, then a few far values make
    it. Centre and scale are then the median and that distance, which far values do not move.

    Values on a grid, such as integers, are found with the step of the grid. A value that many rows
    have in a column without a grid, as zeros among amounts of money, is warned about.

    >>> rng = np.random.default_rng(0)
    >>> values = np.append(rng.normal(size=500), 1e9)
    >>> column, notices, warnings = tfdde.tables.columns.learn_column("a", values)
    >>> abs(column.location) < 0.1, 0.9 < column.scale < 1.1
    (True, True)
    >>> notices
    ["Column 'a' has far values: it is standardised by its median and inner quantiles."]

    Args:
        name: of the column.
        values: float64 (rows,), finite.
        weights: of the rows, (rows,), not negative.

    Returns:
        The column, and sentences on what is done to it and on what is still wrong with it.

    Raises:
        ValueError: the column is constant, or its spread is lost in float64.
    """
    if not len(values):
        raise ValueError(f"Column {name!r} has no values: leave it out.")
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise ValueError(f"Column {name!r} is constant ({low:g}): it has no density. Leave it out.")
    # Sums of the values themselves could overflow, or lose digits.
    size = max(abs(low), abs(high))
    scaled = values / size
    mean = float(np.average(scaled, weights=weights))
    deviation = float(np.sqrt(np.average(np.square(scaled - mean), weights=weights)))
    first, median, last = quantiles(scaled, (0.1, 0.5, 0.9), weights)
    inner = (last - first) / 2.563  # the same quantiles of N(0, 1) are so far apart
    notices, warnings = [], []
    if deviation > FAR * inner > 0:
        mean, deviation = median, inner
        notices.append(far_notice(name))
    step = grid_step(values, deviation * size)
    ends = {} if step is None else {"least": low, "largest": high}
    column = Column(name, mean * size, deviation * size, median * size, step, **ends)
    if not SIZES[0] < column.scale < SIZES[1] or not rounding(column, np.float64) < 1e-3:
        raise ValueError(
            f"Column {name!r} is nearly constant, or too small or large for float64: its values "
            f"are in [{low!r}, {high!r}]. Centre and rescale it, or leave it out."
        )
    if step is not None:
        what = "integers" if step == 1 and low == round(low) else "multiples of a step"
        notices.append(
            f"Column {name!r} holds {what}, {step:g} apart: uniform noise between -{step / 2:g} "
            f"and {step / 2:g} is added in training, and its density is that of the sum."
        )
    elif tie := most_common(values):
        warnings.append(
            f"Column {name!r} has the value {tie[0]:g} in {100 * tie[1]:.0f} % of the rows: there "
            "the log-density rises without bound as sigma falls. Learn these rows apart, or "
            "compare densities at one sigma only."
        )
    return column, notices, warnings


def far_notice(name: str) -> str:
    """The sentence on a column whose far values do not count for its centre and scale."""
    return f"Column {name!r} has far values: it is standardised by its median and inner quantiles."


def with_tails(
    column: Column, values: np.ndarray, weights: np.ndarray | None = None
) -> tuple[Column, str] | None:
    """Even out heavy tails of a column, if that makes held-out values likelier.

    Values on a grid are compared with the noise that training adds to them. A value that many rows
    have is left out of the comparison: its density has no bound.

    Args:
        column: as ``learn_column`` returned it.
        values, weights: as it was given.

    Returns:
        The column with the asinh, and a sentence on it; None if the column should stay as it is.
    """
    shares, compared = weights, values
    if column.step is not None:
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, len(values))
        compared = values + column.step * noise
    elif tie := most_common(values):
        others = values != tie[0]
        compared, shares = values[others], None if weights is None else weights[others]
    found = find_tails(compared, shares)
    if found is None:
        return None
    y = np.arcsinh((values - found.centre) / found.width)
    mean = float(np.average(y, weights=weights))
    deviation = float(np.sqrt(np.average(np.square(y - mean), weights=weights)))
    result = dataclasses.replace(
        column,
        location=found.centre,
        scale=found.width,
        tail_mean=mean,
        tail_deviation=deviation,
    )
    if not SIZES[0] < found.width < SIZES[1] or not rounding(result, np.float64) < 1e-3:
        return None
    return result, (
        f"Column {column.name!r} has heavy tails: asinh((x - {found.centre:.4g}) / "
        f"{found.width:.4g}) stands for it, since held-out values are then likelier, by "
        f"{found.gain:.2f} ± {found.error:.2f} nats each."
    )


def quantiles(
    values: np.ndarray, shares: tuple[float, ...], weights: np.ndarray | None = None
) -> tuple[float, ...]:
    """Quantiles of values whose weights say how often each of them counts."""
    if weights is None:
        return tuple(np.quantile(values, shares).tolist())
    order = np.argsort(values)
    below = np.cumsum(weights[order], dtype=np.float64)
    return tuple(values[order[np.searchsorted(below, np.multiply(shares, below[-1]))]].tolist())


def rounding(column: Column, dtype: type) -> float:
    """Four times the rounding error of a column's typical value, in units of its scale.

    Noise must be larger, or it is lost. With heavy tails the error is largest near the location.
    """
    ratio = (abs(column.location) + column.scale) / column.scale
    return float(4 * np.finfo(dtype).eps * ratio / (column.tail_deviation or 1.0))
