"""A Gaussian base for the log-density, which the network then only has to correct."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.losses import per_row
from tfdde.utils.checks import check_rows, check_weights
from tfdde.utils.statistics import mean_and_covariance


@keras.saving.register_keras_serializable(package="tfdde")
class GaussianBase(keras.layers.Layer):
    """log N(x; mean, covariance + sigma**2 I) with the data's mean and covariance.

    When it is added to a network, the network only has to learn what is not Gaussian, and e^s is
    integrable, which the linear tails of a Softplus network alone are not. Until ``adapt`` is
    called, mean and covariance are those of the standard normal.

    >>> base = tfdde.GaussianBase(2)
    >>> base.adapt([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
    >>> base.mean.numpy().tolist(), sorted(base.variances.numpy().tolist())
    ([1.0, 2.0], [1.0, 4.0])
    >>> at_the_mean = base(tf.constant([[1.0, 2.0]]), tf.constant(0.0))
    >>> round(float(at_the_mean[0]), 4)  # -log(2 pi sqrt(1 * 4))
    -2.531

    Args:
        input_shape: shape of one row, an int for flat vectors; n entries in all, of which
            the covariance takes n**2 numbers.
    """

    def __init__(self, input_shape: int | tuple[int, ...], **kwargs: Any):
        super().__init__(trainable=False, dtype="float32", **kwargs)  # whatever the policy
        self.row_shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
        n = math.prod(self.row_shape)
        add = self.add_weight
        self.mean = add(shape=(n,), initializer="zeros", trainable=False, name="mean")
        self.axes = add(shape=(n, n), initializer="identity", trainable=False, name="axes")
        self.variances = add(shape=(n,), initializer="ones", trainable=False, name="variances")
        self.built = True

    def adapt(self, x: Any, sample_weight: Any = None) -> None:
        """Take mean and covariance from data.

        Args:
            x: array of shape (rows, *input_shape).
            sample_weight: of the rows, shape (rows,); None: all alike.

        Raises:
            ValueError: wrong shape, NaN or infinity, fewer than two rows, or bad weights.
        """
        x = check_rows(x, "x", self.row_shape)
        weights = check_weights(sample_weight, len(x))
        if len(x) < 2:
            raise ValueError(f"`x` must have at least 2 rows for a covariance, got {len(x)}.")
        mean, covariance = mean_and_covariance(x.reshape(len(x), -1), weights)
        variances, axes = np.linalg.eigh(covariance)
        self.mean.assign(mean)
        self.axes.assign(axes)
        self.variances.assign(np.maximum(variances, 0.0))

    def call(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """The log-density: x (batch, *input_shape), sigma () or (batch,) -> (batch,), in nats.

        With one sigma for all rows it is matrix products all the way, which convert to TFLite
        with their gradients.
        """
        n = int(self.mean.shape[0])
        x = tf.reshape(x, (-1, n))
        one_level = sigma.shape.rank == 0
        widths = self.variances + tf.square(sigma if one_level else sigma[:, None])
        logs = tf.math.log(2.0 * math.pi * widths)
        # With one level it keeps its axis: OpenVINO misreads a bias that is given one later.
        log_scale = -0.5 * tf.reduce_sum(logs, axis=-1, keepdims=one_level)
        if not one_level:
            u = tf.matmul(x - self.mean, self.axes)
            return log_scale - 0.5 * tf.reduce_sum(tf.square(u) / widths, axis=-1)
        scaled = self.axes / tf.sqrt(widths)
        shift = -tf.linalg.matvec(scaled, self.mean, transpose_a=True)
        u = tf.nn.bias_add(tf.matmul(x, scaled), shift)
        half = tf.matmul(tf.square(u), tf.fill((n, 1), -0.5))
        return tf.squeeze(tf.nn.bias_add(half, log_scale), axis=-1)

    def scaled(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """Centre x and divide it by the root mean square deviation of the data with noise."""
        mean = tf.reshape(self.mean, self.row_shape)
        scale = tf.sqrt(tf.reduce_mean(self.variances) + tf.square(sigma))
        return (x - mean) / per_row(scale, x)

    def get_config(self) -> dict[str, Any]:
        return {"input_shape": self.row_shape, "name": self.name}
