"""A Gaussian base for the log-density, which the network then only has to correct."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.losses import per_row
from tfdde.networks.heavy_tails import COMPONENTS, fit_if_heavy_tailed
from tfdde.networks.layers import log_squash, log_sum_exp
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

    Heavy-tailed rows lie tens of standard deviations out. There one Gaussian is wrong by hundreds
    of nats, and a network that corrects it can put mass where there are no rows. ``adapt`` detects
    such rows, and then the base is a mixture of Gaussians, fitted by
    ``tfdde.networks.heavy_tails``, of which the widest reach as far as the rows do. Its blurred
    density is known exactly, too. The network then sees log distances, which are constant beyond
    the farthest rows. So its correction is bounded there, and e^s falls like the base.

    >>> base.adapt(np.random.default_rng(0).standard_t(2, size=(1000, 2)))
    >>> base.heavy_tailed
    True

    Args:
        input_shape: shape of one row, an int for flat vectors; n entries in all, of which
            the covariance takes n**2 numbers.
        heavy_tailed: create the variables of the mixture, for loading from files; ``adapt``
            decides on its own.

    Attributes:
        heavy_tailed: whether the base is a mixture.
    """

    def __init__(
        self, input_shape: int | tuple[int, ...], heavy_tailed: bool = False, **kwargs: Any
    ):
        super().__init__(trainable=False, dtype="float32", **kwargs)  # whatever the policy
        self.row_shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
        n = math.prod(self.row_shape)
        add = self.add_weight
        self.mean = add(shape=(n,), initializer="zeros", trainable=False, name="mean")
        self.axes = add(shape=(n, n), initializer="identity", trainable=False, name="axes")
        self.variances = add(shape=(n,), initializer="ones", trainable=False, name="variances")
        self.heavy_tailed = False
        self._mixture: dict[str, keras.Variable] = {}
        if heavy_tailed:
            self._add_mixture()
        self.built = True

    def _add_mixture(self) -> None:
        """Create the variables of the mixture, unless they are there."""
        self.heavy_tailed = True
        if self._mixture:
            return
        n, k = math.prod(self.row_shape), COMPONENTS
        shapes = {
            "centre": (n,),
            "core": (n,),
            "reach": (2, n),
            "mixture_axes": (n, n),
            "weights": (k,),
            "component_means": (k, n),
            "component_variances": (k, n),
        }
        self._mixture = {
            name: self.add_weight(shape=shape, initializer="ones", trainable=False, name=name)
            for name, shape in shapes.items()
        }

    def _drop_mixture(self) -> None:
        self.heavy_tailed = False
        for variable in self._mixture.values():
            self._untrack_variable(variable)
        self._mixture = {}

    def adapt(self, x: Any, sample_weight: Any = None) -> None:
        """Take mean and covariance, and for heavy tails a mixture, from data.

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
        rows = x.reshape(len(x), -1)
        mean, covariance = mean_and_covariance(rows, weights)
        variances, axes = np.linalg.eigh(covariance)
        self.mean.assign(mean)
        self.axes.assign(axes)
        self.variances.assign(np.maximum(variances, 0.0))
        mixture = fit_if_heavy_tailed(rows, weights)
        if mixture is None:
            self._drop_mixture()
            return
        self._add_mixture()
        for variable, value in zip(self._mixture.values(), mixture, strict=True):
            variable.assign(value)

    def call(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """The log-density: x (batch, *input_shape), sigma () or (batch,) -> (batch,), in nats.

        With one sigma for all rows it is matrix products all the way, which convert to TFLite
        with their gradients.
        """
        n = int(self.mean.shape[0])
        x = tf.reshape(x, (-1, n))
        one_level = sigma.shape.rank == 0
        if self.heavy_tailed:
            return self._log_mixture(x, sigma)
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

    def _log_mixture(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """``call`` for heavy tails: noise adds sigma**2 to the variances of each component."""
        centre, _, _, axes, weights, means, variances = self._mixture.values()
        k, n = means.shape
        u = tf.matmul(tf.nn.bias_add(x, -tf.convert_to_tensor(centre)), axes)
        if sigma.shape.rank:
            widths = variances + tf.square(sigma)[:, None, None]
            square = tf.reduce_sum(tf.square(u[:, None] - means) / widths, axis=-1)
            logs = tf.reduce_sum(tf.math.log(2.0 * math.pi * widths), axis=-1)
            return log_sum_exp(tf.math.log(weights) - 0.5 * (square + logs))[:, 0]
        widths = variances + tf.square(sigma)  # (k, n)
        # All components side by side: (u - means) / widths**0.5 as one product and a bias.
        precise = tf.reshape(tf.linalg.matrix_transpose(1.0 / tf.sqrt(widths)), (n * k,))
        shift = tf.reshape(tf.linalg.matrix_transpose(means), (n * k,)) * -precise
        spread = np.repeat(np.eye(n, dtype=np.float32), k, axis=1)  # (n, n * k)
        scaled = tf.nn.bias_add(tf.matmul(u, spread * precise), shift)
        gather = np.tile(np.eye(k, dtype=np.float32), (n, 1)) * np.float32(-0.5)  # (n * k, k)
        logs = tf.reduce_sum(tf.math.log(2.0 * math.pi * widths), axis=-1)
        logits = tf.matmul(tf.square(scaled), gather)
        logits = tf.nn.bias_add(logits, tf.math.log(weights) - 0.5 * logs)
        return tf.squeeze(log_sum_exp(logits), axis=-1)

    def scaled(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """Centre x and divide it by the root mean square deviation of the data with noise.

        For heavy tails: centre each column at its median, divide it by the deviation of its inner
        half with noise, and take the sign times log distance (arsinh), constant beyond the
        farthest rows.
        """
        if not self.heavy_tailed:
            mean = tf.reshape(self.mean, self.row_shape)
            scale = tf.sqrt(tf.reduce_mean(self.variances) + tf.square(sigma))
            return (x - mean) / per_row(scale, x)
        centre, core, reach, *_ = self._mixture.values()
        n = int(self.mean.shape[0])
        flat = tf.nn.bias_add(tf.reshape(x, (-1, n)), -tf.convert_to_tensor(centre))
        one_level = sigma.shape.rank == 0
        scale = tf.sqrt(core + tf.square(sigma if one_level else sigma[:, None]))
        z = tf.matmul(flat, tf.linalg.diag(1.0 / scale)) if one_level else flat / scale
        low, high = tf.math.asinh(reach[0] / scale), tf.math.asinh(reach[1] / scale)
        top = 0.5 * (low + high) + 0.5 * tf.sign(tf.stop_gradient(z)) * (high - low)
        u = log_squash(z, tf.stop_gradient(top) if one_level else top)
        return tf.reshape(u, (-1, *self.row_shape))

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Write the Gaussian, and the mixture only if it is in use."""
        values = [self.mean, self.axes, self.variances]
        values += list(self._mixture.values())
        for i, variable in enumerate(values):
            store[str(i)] = variable.numpy()

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Read what ``save_own_variables``, or an earlier version, wrote."""
        values = [self.mean, self.axes, self.variances]
        if len(store.keys()) > len(values):
            self._add_mixture()
            values += list(self._mixture.values())
        else:
            self._drop_mixture()
        for i, variable in enumerate(values):
            variable.assign(store[str(i)])

    def get_config(self) -> dict[str, Any]:
        config = {"input_shape": self.row_shape, "name": self.name}
        return config | ({"heavy_tailed": True} if self.heavy_tailed else {})
