"""Checks of user input: each error names the argument, the value and what was expected."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

USUAL_SIGMA = 0.01  # a low noise level, in standard deviations
LARGEST_DEVIATION = 1e18  # of a column: its square is still a float32


def check_integer(value: Any, name: str, minimum: int = 1) -> int:
    """Return ``value`` as an int >= ``minimum`` or raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"`{name}` must be an integer >= {minimum}, got {value!r}.")
    return int(value)


def check_positive(value: Any, name: str) -> float:
    """Return ``value`` as a float, or raise ValueError unless it is finite and > 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"`{name}` must be a positive number, got {value!r}.")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"`{name}` must be a finite number > 0, got {value!r}.")
    return float(value)


def describe(shape: tuple[int, ...]) -> str:
    """The shape of rows of ``shape``, in words."""
    return f"(rows, {', '.join(map(str, shape))})" if shape else "(rows,)"


def check_rows(
    x: Any,
    name: str,
    shape: tuple[int, ...],
    allow_empty: bool = False,
    dtype: str = "float32",
) -> np.ndarray:
    """Return ``x`` as a finite array of shape (rows, *shape), in float32 or another ``dtype``.

    Raises:
        ValueError: not numeric, wrong rank or width, no rows, NaN or infinity.
    """
    try:
        array = np.asarray(x)
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise TypeError(f"dtype {array.dtype}")
        array = np.asarray(array, dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be an array of numbers of shape {describe(shape)}: {error}."
        ) from None
    if array.ndim != len(shape) + 1:
        raise ValueError(
            f"`{name}` must have rank {len(shape) + 1}, shape {describe(shape)}, "
            f"got rank {array.ndim}, shape {array.shape}."
        )
    if array.shape[1:] != tuple(shape):
        raise ValueError(f"`{name}` must have shape {describe(shape)}, got {array.shape}.")
    if len(array) == 0 and not allow_empty:
        raise ValueError(f"`{name}` is empty: expected at least one row, got shape {array.shape}.")
    finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if not finite.all():
        rows = np.flatnonzero(~finite)
        raise ValueError(
            f"`{name}` must be finite, got NaN or infinity in {len(rows)} of {len(array)} rows, "
            f"the first at row {rows[0]}."
        )
    return array


def check_pixels(x: np.ndarray, name: str, margin: float = 0.0) -> np.ndarray:
    """Return ``x``, or raise ValueError if it holds images with pixels outside of [0, 1].

    Args:
        x: rows; those of rank 4 are images.
        name: of the argument.
        margin: how far outside of [0, 1] pixels may be, since noise may have been added.
    """
    if x.ndim == 4 and x.size:
        low, high = float(x.min()), float(x.max())
        if low < -margin or high > 1 + margin:
            raise ValueError(
                f"`{name}` must hold pixels scaled to [0, 1], got values in [{low:g}, {high:g}]; "
                "divide 8-bit pixels by 255."
            )
    return x


def check_weights(weights: Any, rows: int | None, name: str = "sample_weight") -> np.ndarray | None:
    """Return the weights of the rows as a float32 array (rows,), or None if there are none.

    Raises:
        ValueError: not numeric, wrong rank or number, NaN, infinity, a negative weight, or
            weights that are all 0.
    """
    if weights is None:
        return None
    array = check_rows(weights, name, (), allow_empty=True)
    if rows is not None and len(array) != rows:
        raise ValueError(f"`{name}` must have {rows} weights, one for each row, got {len(array)}.")
    if len(array) and (array.min() < 0 or array.max() == 0):
        raise ValueError(
            f"`{name}` must be >= 0 and not all zero, got values in [{array.min():g}, "
            f"{array.max():g}]."
        )
    return array


def check_spread(
    x: np.ndarray, deviation: Any, sigma: float, name: str, columns: Sequence[str] = ()
) -> None:
    """Raise ValueError unless float32 can hold the rows, standardised, with noise of ``sigma``.

    The noise, ``sigma`` times ``deviation`` in the units of the rows, must be at least four times
    the rounding error of the typical value of a column in float32. A deviation must exceed the
    epsilon that ``keras.layers.Normalization`` divides by at least, and its square must not
    overflow.

    Args:
        x: rows, shape (rows, *shape).
        deviation: by which each entry is divided, broadcastable to ``shape``; 1.0 for rows that
            are not standardised.
        sigma: noise level, in units of ``deviation``.
        name: of the argument.
        columns: names of the entries for the message; by default their numbers are shown.

    The message blames ``sigma`` if the columns could hold noise of ``USUAL_SIGMA``.
    """
    rounding = np.finfo(np.float32).eps * np.abs(x).mean(axis=0, dtype=np.float64)
    deviation = np.broadcast_to(deviation, x.shape[1:])
    low = np.maximum(4 * rounding / sigma, keras.config.epsilon())
    bad = np.flatnonzero(~((deviation > low) & (deviation < LARGEST_DEVIATION)))
    if len(bad):
        shown = [columns[i] for i in bad[:10]] if columns else bad[:10].tolist()
        which = f"{shown}" + " ..." * (len(bad) > 10)
        lost = (4 * rounding / np.maximum(deviation, keras.config.epsilon())).ravel()[bad].max()
        if (deviation < LARGEST_DEVIATION).ravel()[bad].all() and sigma < lost <= USUAL_SIGMA:
            raise ValueError(
                f"`sigma` must be at least {1.5 * lost:.1g}, got {sigma:g}: noise below that is "
                f"lost in the rounding of columns {which} of `{name}` to float32."
            )
        raise ValueError(
            f"Columns {which} of `{name}` are constant, or their spread is lost in float32 with "
            f"noise of sigma = {sigma:g}. A constant has no density: drop it (VarianceThreshold). "
            "Others: centre and rescale them, e.g. by StandardScaler."
        )


def check_conditions(
    conditions: Any, width: int, rows: int | None, name: str = "conditions", single: bool = False
) -> np.ndarray | None:
    """Return ``conditions`` as a finite float32 array (rows, width), or None if ``width`` is 0.

    Args:
        conditions: the user's argument, None for no conditions.
        width: entries of a condition, 0 for a model that takes none.
        rows: number of rows that there must be, None if it is not known.
        name: of the argument.
        single: whether one row may stand for all rows.

    Raises:
        ValueError: conditions for a model that takes none, or none for one that does; not
            numeric, wrong rank, width or number of rows, NaN or infinity.
    """
    if conditions is None and not width:
        return None
    if not width:
        raise ValueError(
            f"`{name}` must be None, since the network has no input `condition` (networks made "
            f"by tfdde.networks with conditions=k have one), got shape {np.shape(conditions)}."
        )
    if conditions is None:
        raise ValueError(
            f"`{name}` must have shape (rows, {width}), as the network's input `condition` has, "
            "got None."
        )
    if getattr(conditions, "ndim", width) == 1:
        raise ValueError(
            f"`{name}` must have rank 2, shape (rows, {width}), got shape {conditions.shape}; "
            "for labels use keras.utils.to_categorical."
        )
    array = check_rows(conditions, name, (width,), allow_empty=True)
    if rows is not None and len(array) != rows and not (single and len(array) == 1):
        expected = f"{rows} rows, one for each of the data" + (", or one for all" * single)
        raise ValueError(f"`{name}` must have {expected}, got {len(array)}.")
    return array


def to_rows(x: Any, name: str, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """Return rows of ``dtype`` to evaluate a model at: a checked array, or the tensor given.

    Of a tensor, which may be symbolic, only the shape is checked.
    """
    if tf.is_tensor(x):
        if not x.shape.is_compatible_with((None, *shape)):
            raise ValueError(
                f"`{name}` must have shape (rows, {', '.join(map(str, shape))}), got {x.shape}."
            )
        return tf.cast(x, dtype)
    return check_rows(x, name, shape, allow_empty=True, dtype=dtype)


def to_conditions(conditions: Any, width: int, x: Any) -> list[Any]:
    """Return the conditions of the rows ``x`` in a list, which is empty if there are none.

    Args:
        conditions: array, which is checked, or tensor, of which only the shape is; one row is
            repeated for all rows of ``x``.
        width: entries of a condition, 0 for a model that takes none.
        x: the rows.

    Raises:
        ValueError: as ``check_conditions``.
    """
    rows = x.shape[0]
    if width and tf.is_tensor(conditions):
        if not any(conditions.shape.is_compatible_with((n, width)) for n in (rows, 1)):
            raise ValueError(
                f"`conditions` must have shape ({rows or 'rows'}, {width}), or (1, {width}) for "
                f"all rows alike, got {conditions.shape}."
            )
        conditions = tf.cast(conditions, tf.float32)
    else:
        conditions = check_conditions(conditions, width, rows, single=True)
    if conditions is None:
        return []
    if conditions.shape[0] != 1:
        return [conditions]
    if rows is None or tf.is_tensor(conditions):
        return [tf.broadcast_to(conditions, (tf.shape(x)[0], width))]
    return [np.repeat(conditions, rows, axis=0)]
