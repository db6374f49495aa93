"""The asinh of columns with heavy tails in TensorFlow, and the logarithm of its derivative.

The gradients are written out: TensorFlow's need operations that TFLite lacks.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

LARGE = 1e9  # beyond it, 1 is lost beside the square, which may overflow


def even_out(x: tf.Tensor, tailed: Any, mean: tf.Tensor, deviation: tf.Tensor) -> tf.Tensor:
    """Return (asinh(x) - mean) / deviation of some columns, and the others as they are.

    >>> x = tf.constant([[-3.0, 7.0]])
    >>> tfdde.tables.evening.even_out(x, [[True, False]], 0.0, 1.0).numpy().round(4)
    array([[-1.8184,  7.    ]], dtype=float32)

    Args:
        x: (rows, columns).
        tailed: whether it is to be done to a column, (1, columns).
        mean, deviation: of the dtype of ``x``, (1, columns).
    """

    @tf.custom_gradient
    def function(x: tf.Tensor) -> Any:
        size = tf.abs(x)
        root = tf.where(size > LARGE, size, tf.sqrt(tf.square(x) + 1.0))
        y = tf.sign(x) * tf.math.log(size + root)  # its absolute error is that of rounding
        slope = tf.where(tailed, 1.0 / (deviation * root), tf.ones_like(x))
        return tf.where(tailed, (y - mean) / deviation, x), lambda dy: dy * slope

    return function(x)


def log_slopes(z: tf.Tensor, tailed: Any, mean: tf.Tensor, deviation: tf.Tensor) -> tf.Tensor:
    """Return the sum of the logs of the derivatives of asinh, without the deviations: (rows,).

    It is minus log cosh of asinh.

    >>> z = tf.constant([[-1.8184, 7.0]])
    >>> value = tfdde.tables.evening.log_slopes(z, [[True, False]], 0.0, 1.0)
    >>> bool(abs(value - tf.math.log(1 / 10**0.5)) < 1e-4)
    True

    Args:
        z: what ``even_out`` returned, (rows, columns).
        tailed, mean, deviation: as ``even_out`` took them.
    """

    @tf.custom_gradient
    def function(z: tf.Tensor) -> Any:
        # In the other columns log cosh of 0, which is 0.
        y = tf.where(tailed, z * deviation + mean, tf.zeros_like(z))
        size = tf.abs(y)
        value = -tf.reduce_sum(size + tf.math.log(0.5 + 0.5 * tf.exp(-2.0 * size)), axis=1)
        return value, lambda dy: -tf.expand_dims(dy, 1) * tf.tanh(y) * deviation

    return function(z)
