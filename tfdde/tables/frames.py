"""The numbers of a table in any of the usual forms, in float64, with the names of its columns."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np


def as_frame(data: Any) -> Any:
    """Return an Arrow table or a structured array as a DataFrame; anything else as it is."""
    if hasattr(data, "to_pandas") and hasattr(data, "schema"):
        return data.to_pandas()
    if isinstance(data, np.ndarray) and data.dtype.names:
        import pandas as pd

        return pd.DataFrame({name: data[name] for name in data.dtype.names})
    return data


def is_frame(data: Any) -> bool:
    """Whether ``data`` is a pandas DataFrame, without an import of pandas."""
    return hasattr(data, "iloc") and hasattr(data, "columns")


def numbers_of(data: Any, names: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Return the values of a table, and the names of its columns.

    >>> records = np.array([(1, 2.5), (3, 4.5)], [("a", int), ("b", float)])
    >>> values, names = tfdde.tables.frames.numbers_of(records)
    >>> values.tolist(), names
    ([[1.0, 2.5], [3.0, 4.5]], ['a', 'b'])

    Args:
        data: a DataFrame, an Arrow table, a structured array, or an array (rows, columns).
        names: of the columns, in this order; of a table with names those to take, by default all;
            of an array those of all its columns, by default "0", "1" and so on.

    Returns:
        float64 (rows, columns), NaN where a value is missing, and the names.

    Raises:
        ValueError: a column is missing, named twice, or does not hold numbers.
    """
    frame = as_frame(data)
    if is_frame(frame):
        return _numbers_of_frame(frame, names)
    x = np.asarray(frame)
    if x.ndim != 2 or x.dtype.kind not in "fiub":
        raise ValueError(
            f"`data` must be a table, or numbers of shape (rows, columns), got shape {x.shape} and "
            f"dtype {x.dtype}."
        )
    known = [str(i) for i in range(x.shape[1])] if names is None else list(names)
    if len(known) != x.shape[1]:
        raise ValueError(
            f"`data` must have {len(known)} columns, {_some(known)}, got shape {x.shape}."
        )
    return x.astype(np.float64), known


def _numbers_of_frame(frame: Any, names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    there = [str(name) for name in frame.columns]
    twice = sorted({name for name in there if there.count(name) > 1})
    if twice:
        raise ValueError(f"`data` must name each column once, got {_some(twice)} twice.")
    chosen = there if names is None else list(names)
    missing = [name for name in chosen if name not in there]
    if missing:
        raise ValueError(f"`data` must have the columns {_some(missing)}, got {_some(there)}.")
    series = [frame.iloc[:, there.index(name)] for name in chosen]
    x = np.empty((len(frame), len(chosen)))
    for i, (name, column) in enumerate(zip(chosen, series, strict=True)):
        check_kind(name, column)
        x[:, i] = column.to_numpy(np.float64, na_value=np.nan)
    return x, chosen


def check_kind(name: str, column: Any) -> None:
    """Raise ValueError, with what to do, unless a column of a DataFrame holds numbers.

    Booleans are numbers, 0 and 1.
    """
    kind = column.dtype
    if getattr(kind, "kind", "O") in "fiub" and str(kind) != "category":
        return
    known = column[column.notna()]
    if str(kind) == "object" and all(isinstance(value, numbers.Real) for value in known):
        return
    if str(kind) == "category":
        what, advice = "categories", "pandas.get_dummies(drop_first=True) makes numbers of them"
    elif str(kind).startswith(("datetime", "date", "timestamp", "period")):
        what, advice = "dates", "(column - pandas.Timestamp(0)).dt.total_seconds() are numbers"
    elif str(kind).startswith("timedelta"):
        what, advice = "durations", "column.dt.total_seconds() are numbers"
    elif getattr(kind, "kind", "O") == "c":
        what, advice = "complex numbers", "give their real and imaginary parts"
    else:
        known = known[[not isinstance(value, numbers.Real) for value in known]]
        what = "text or other objects"
        advice = "pandas.to_numeric reads numbers, pandas.get_dummies(drop_first=True) makes them"
    such = f" such as {str(known.iloc[0])!r}" if len(known) else ""
    raise ValueError(
        f"Column {name!r} must hold numbers, got {what}{such} (dtype {kind}): {advice}; or leave "
        "the column out."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + ", ..." * (len(names) > 10)
