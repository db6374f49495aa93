"""Standardise rows by a ``keras.layers.Normalization``, whose statistics are read as variables.

Keras copies them into constants, ``mean`` and ``variance``, when ``adapt`` is called or a file is
loaded. A traced function would keep the constants of its first call, and ``set_weights`` does not
change them at all.
"""

from __future__ import annotations

import keras
import tensorflow as tf


def statistics(layer: keras.layers.Normalization) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of a built layer, as float32 tensors that broadcast to its rows."""
    if layer.input_mean is not None:  # given to the constructor, so there are no variables
        mean, variance = layer.mean, layer.variance
    else:
        shape = layer.mean.shape
        mean = tf.reshape(layer.adapt_mean, shape)
        variance = tf.reshape(layer.adapt_variance, shape)
    return tf.cast(mean, tf.float32), tf.cast(variance, tf.float32)


def scale(variance: tf.Tensor) -> tf.Tensor:
    """What rows are divided by: the standard deviation, but at least Keras's epsilon."""
    return tf.maximum(tf.sqrt(variance), keras.config.epsilon())


def standardize(layer: keras.layers.Normalization, x: tf.Tensor) -> tf.Tensor:
    """(x - mean) / scale, as the layer itself computes it from up-to-date constants."""
    mean, variance = statistics(layer)
    return (x - mean) / scale(variance)


def log_scale(layer: keras.layers.Normalization, shape: tuple[int, ...]) -> tf.Tensor:
    """Log of the Jacobian determinant of ``standardize`` for rows of ``shape``: a scalar."""
    _, variance = statistics(layer)
    return -tf.reduce_sum(tf.math.log(scale(tf.broadcast_to(variance, (1, *shape)))))
