"""Standardise rows by a ``tfdde.tables.Schema`` or a ``keras.layers.Normalization``.

The statistics of a ``Normalization`` are read as variables.

Keras copies them into constants, ``mean`` and ``variance``, when ``adapt`` is called or a file is
loaded. A traced function would keep the constants of its first call, and ``set_weights`` does not
change them at all.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.tables.schema import Schema
from tfdde.utils.checks import LARGEST_DEVIATION, check_spread
from tfdde.utils.statistics import mean_and_variance


def statistics(layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of a built ``Normalization``: float32, broadcast to its rows."""
    if layer.input_mean is not None:  # given to the constructor, so there are no variables
        mean, variance = layer.mean, layer.variance
    else:
        shape = layer.mean.shape
        mean = tf.reshape(layer.adapt_mean, shape)
        variance = tf.reshape(layer.adapt_variance, shape)
    return tf.cast(mean, tf.float32), tf.cast(variance, tf.float32)


def check_normalization(layer: Any, shape: tuple[int, ...]) -> None:
    """Build a layer for rows of ``shape``, or raise ValueError if it does not standardise."""
    if isinstance(layer, Schema):
        if shape != (len(layer.columns),):
            raise ValueError(
                f"`normalization` must have as many columns as the network's input, {shape}, got "
                f"a Schema of {len(layer.columns)}."
            )
        return
    if not isinstance(layer, keras.layers.Normalization):
        raise ValueError(
            "`normalization` must be a tfdde.tables.Schema or a keras.layers.Normalization, got "
            f"{layer!r}."
        )
    if layer.invert:
        raise ValueError("`normalization` must standardise the rows, got one with invert=True.")
    if layer.input_mean is not None:
        deviations = np.sqrt(np.asarray(layer.input_variance, np.float64))
        if not ((deviations > keras.config.epsilon()) & (deviations < LARGEST_DEVIATION)).all():
            raise ValueError(
                "`normalization` must have variances of standard deviations between "
                f"{keras.config.epsilon():g} and {LARGEST_DEVIATION:g}, got variances in "
                f"[{np.min(layer.input_variance):g}, {np.max(layer.input_variance):g}]."
            )
    if not layer.built:
        layer.build((None, *shape))


def adapt(
    layer: keras.layers.Normalization,
    rows: np.ndarray,
    sigma: float,
    weights: np.ndarray | None = None,
) -> None:
    """Set the variables of a built layer to the rows' mean and variance.

    Unlike ``layer.adapt`` it sums in float64, takes weights, and refuses columns that can't be
    standardised.

    Args:
        layer: a layer whose statistics were not given to its constructor.
        rows: shape (rows, *shape).
        sigma: the lowest noise level, in standardised units.
        weights: of the rows, (rows,), or None.

    Raises:
        ValueError: as ``tfdde.utils.checks.check_spread``.
    """
    shape = layer.mean.shape
    axes = tuple(i for i, n in enumerate(shape) if i == 0 or n != rows.shape[i])
    mean, variance = mean_and_variance(rows, axes, weights)
    check_spread(rows, np.sqrt(variance).reshape(shape[1:]), sigma, "x")
    layer.adapt_mean.assign(mean.reshape(layer.adapt_mean.shape))
    layer.adapt_variance.assign(variance.reshape(layer.adapt_variance.shape))
    layer.finalize_state()


def scale(variance: tf.Tensor) -> tf.Tensor:
    """What rows are divided by: the standard deviation, but at least Keras's epsilon."""
    return tf.maximum(tf.sqrt(variance), keras.config.epsilon())


def location_and_scale(layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """What a built layer subtracts from rows and divides them by, before any asinh.

    Both broadcast to rows. They are float64 for a schema, otherwise float32.
    """
    if isinstance(layer, Schema):
        return tf.constant(layer.location[None]), tf.constant(layer.scale[None])
    mean, variance = statistics(layer)
    return mean, scale(variance)


def adaptable(layer: Any) -> bool:
    """Whether ``adapt`` finds the statistics of a layer, which were not given to it."""
    return isinstance(layer, keras.layers.Normalization) and layer.input_mean is None


def row_dtype(layer: Any) -> str:
    """The dtype that rows must have before they are standardised."""
    return layer.row_dtype if isinstance(layer, Schema) else "float32"


def check_resolution(layer: Any, rows: np.ndarray, sigma: float, name: str) -> None:
    """Raise ValueError if the dtype of the rows can't hold noise of ``sigma`` inside of the layer.

    Args:
        layer: a built layer, or None.
        rows: shape (rows, *shape).
        sigma: noise level, in standardised units.
        name: of the argument.
    """
    if isinstance(layer, Schema):
        layer.check_resolution(sigma, name)
    else:
        deviation = 1.0 if layer is None else np.sqrt(statistics(layer)[1].numpy()[0])
        check_spread(rows, deviation, sigma, name)


def standardize(layer: Any, x: tf.Tensor) -> tf.Tensor:
    """(x - mean) / scale, as the layer itself computes it from up-to-date constants."""
    if isinstance(layer, Schema):
        return layer.inside(x)
    location, divisor = (tf.cast(v, x.dtype) for v in location_and_scale(layer))
    return (x - location) / divisor


def log_scale(layer: Any, shape: tuple[int, ...]) -> tf.Tensor:
    """Log of the Jacobian determinant of ``standardize`` for rows of ``shape``: a scalar.

    It is without the part that depends on the row, see ``log_jacobian``.
    """
    if isinstance(layer, Schema):
        return tf.constant(layer.log_scale(), tf.float32)
    _, variance = statistics(layer)
    return -tf.reduce_sum(tf.math.log(scale(tf.broadcast_to(variance, (1, *shape)))))


def has_tails(layer: Any) -> bool:
    """Whether a layer takes the asinh of columns, so that its Jacobian depends on the row."""
    return isinstance(layer, Schema) and bool(layer.tailed.any())


def log_jacobian(layer: Any, inside: tf.Tensor) -> tf.Tensor:
    """Log of the Jacobian determinant of ``standardize`` at the rows that it returned.

    Returns:
        float32 (rows,), or a scalar if it is the same at all rows.
    """
    constant = log_scale(layer, tuple(inside.shape[1:]))
    return constant + layer.log_slopes(inside) if has_tails(layer) else constant


def outside(layer: Any, inside: np.ndarray) -> np.ndarray:
    """The inverse of ``standardize``, float64."""
    if isinstance(layer, Schema):
        return layer.outside(inside)
    location, divisor = (np.asarray(v, np.float64) for v in location_and_scale(layer))
    return location + divisor * inside
