"""A Gaussian base for the log-density: what blurred data look like from afar."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.checks import check_rows


@keras.saving.register_keras_serializable(package="tfdde")
class GaussianBase(keras.layers.Layer):
    """log N(x; mean, covariance + sigma**2 I) + C of data's mean and covariance.

    Added to a network it leaves the network only what is not Gaussian, and makes e^s
    integrable, which a Softplus network's linear tails are not.  Until ``adapt`` is
    called it is the standard normal's.

    >>> base = tfdde.GaussianBase(2)
    >>> base.adapt(x)
    >>> dde = tfdde.DDE(network, noise=tfdde.Constant(0.2), base=base)

    Args:
        input_shape: shape of one row, an int for flat vectors; n entries in all, of which
            the covariance takes n**2 numbers.
    """

    def __init__(self, input_shape: int | tuple[int, ...], **kwargs: Any):
        super().__init__(trainable=False, **kwargs)
        self.row_shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
        n = math.prod(self.row_shape)
        add = self.add_weight
        self.mean = add(shape=(n,), initializer="zeros", trainable=False, name="mean")
        self.axes = add(shape=(n, n), initializer="identity", trainable=False, name="axes")
        self.variances = add(shape=(n,), initializer="ones", trainable=False, name="variances")
        self.built = True

    def adapt(self, x: Any) -> None:
        """Take mean and covariance from data of shape (rows, *input_shape).

        Raises:
            ValueError: wrong shape, NaN or infinity, fewer than two rows.
        """
        x = check_rows(x, "x", self.row_shape)
        if len(x) < 2:
            raise ValueError(f"`x` must have at least 2 rows for a covariance, got {len(x)}.")
        rows = x.reshape(len(x), -1)
        mean = rows.mean(axis=0, dtype=np.float64)
        centred = rows - mean.astype(np.float32)
        variances, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(x))
        self.mean.assign(mean)
        self.axes.assign(axes)
        self.variances.assign(np.maximum(variances, 0.0))

    def call(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """The log-density up to a constant: x (batch, *input_shape), sigma scalar -> (batch,).

        Matrix products all the way: they convert to TFLite with their gradients.
        """
        scaled = self.axes / tf.sqrt(self.variances + tf.square(sigma))
        x = tf.reshape(x, (-1, int(self.mean.shape[0])))
        shift = -tf.linalg.matvec(scaled, self.mean, transpose_a=True)
        u = tf.nn.bias_add(tf.matmul(x, scaled), shift)
        weights = tf.fill((int(self.mean.shape[0]), 1), -0.5)
        return tf.squeeze(tf.matmul(tf.square(u), weights), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"input_shape": self.row_shape, "name": self.name}
