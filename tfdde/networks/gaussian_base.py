"""A Gaussian base for the log-density, which the network then only has to correct."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.losses import per_row
from tfdde.networks.blurred_rows import BlurredRows, blur
from tfdde.networks.full_mixture import FullMixture, fit_if_it_suffices
from tfdde.networks.heavy_tails import COMPONENTS, fit_if_heavy_tailed
from tfdde.networks.layers import log_squash, log_sum_exp
from tfdde.utils.checks import check_integer, check_positive, check_rows, check_weights
from tfdde.utils.statistics import mean_and_covariance

FOR_TAILS = 10  # variables in a file of a base for heavy tails; of the other mixture there are 8


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

    Rows that lie in clusters are nearer to a mixture of Gaussians with a covariance each, whose
    blurred density is known exactly, too. With ``most_components`` above 1, ``adapt`` tries one by
    ``tfdde.networks.full_mixture``. It takes it if held-out rows are likelier than by one Gaussian,
    and no longer likelier with twice as many, or if they are far likelier.

    >>> base = tfdde.GaussianBase(2, most_components=8)
    >>> clusters = np.repeat([[0.0], [6.0]], 2_000, axis=0)
    >>> base.adapt(clusters + np.random.default_rng(0).normal(size=(4_000, 2)))
    >>> base.components
    2

    Args:
        input_shape: shape of one row, an int for flat vectors; n entries in all, of which
            the covariance takes n**2 numbers.
        heavy_tailed: create the variables of the mixture for heavy tails, for loading from files;
            ``adapt`` decides on its own.
        most_components: to try in a mixture with a covariance each; each takes n**2 numbers.
        components: create the variables of that mixture, for loading from files; ``adapt``
            decides on its own.
        shared_axes: the same for a mixture whose components have independent columns.

    Attributes:
        heavy_tailed: whether the base is the mixture for heavy tails.
        components: Gaussians of the mixture in use, 1 if there is none.
        one_gaussian: whether there is no mixture in use.
        shared_axes: whether its components have the same axes.

    Raises:
        ValueError: a number of components is not a positive integer.
    """

    def __init__(
        self,
        input_shape: int | tuple[int, ...],
        heavy_tailed: bool = False,
        most_components: int = 1,
        components: int = 1,
        shared_axes: bool = False,
        **kwargs: Any,
    ):
        super().__init__(trainable=False, dtype="float32", **kwargs)  # whatever the policy
        self.row_shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
        n = math.prod(self.row_shape)
        add = self.add_weight
        self.mean = add(shape=(n,), initializer="zeros", trainable=False, name="mean")
        self.axes = add(shape=(n, n), initializer="identity", trainable=False, name="axes")
        self.variances = add(shape=(n,), initializer="ones", trainable=False, name="variances")
        self.most_components = check_integer(most_components, "most_components")
        self._mixture: dict[str, keras.Variable] = {}
        if heavy_tailed:
            self._add_mixture(COMPONENTS, heavy_tailed=True)
        elif check_integer(components, "components") > 1:
            self._add_mixture(components, shared_axes=shared_axes)
        self.built = True

    @property
    def heavy_tailed(self) -> bool:
        return "reach" in self._mixture

    @property
    def components(self) -> int:
        return int(self._mixture["weights"].shape[0]) if self._mixture else 1

    @property
    def one_gaussian(self) -> bool:
        return not self._mixture

    @property
    def shared_axes(self) -> bool:
        return bool(self._mixture) and len(self._mixture["mixture_axes"].shape) == 2

    @property
    def kind(self) -> tuple[int | bool, ...]:
        """What its functions depend on, apart from numbers in variables."""
        return self.components, self.heavy_tailed, self.shared_axes

    def _add_mixture(
        self, components: int, heavy_tailed: bool = False, shared_axes: bool = False
    ) -> None:
        """Create the variables of a mixture, unless they are there."""
        shared_axes = shared_axes or heavy_tailed
        if (components, heavy_tailed, shared_axes) == self.kind[:3]:
            return
        self._drop_mixture()
        n, k = math.prod(self.row_shape), components
        # Of heavy-tailed rows the components share their axes. The order is that of the files.
        for_tails = {"core": (n,), "reach": (2, n)} if heavy_tailed else {}
        shapes = {
            "centre": (n,),
            **for_tails,
            "mixture_axes": (n, n) if shared_axes else (k, n, n),
            "weights": (k,),
            "component_means": (k, n),
            "component_variances": (k, n),
        }
        self._mixture = {
            name: self.add_weight(shape=shape, initializer="ones", trainable=False, name=name)
            for name, shape in shapes.items()
        }

    def _drop_mixture(self) -> None:
        for variable in self._mixture.values():
            self._untrack_variable(variable)
        self._mixture = {}

    def adapt(self, x: Any, sample_weight: Any = None, sigma: float = 0.0) -> None:
        """Take mean and covariance, and perhaps a mixture, from data.

        Args:
            x: array of shape (rows, *input_shape).
            sample_weight: of the rows, shape (rows,); None: all alike.
            sigma: the lowest noise level that the density is read at, which a mixture with a
                covariance each is fitted for.

        Raises:
            ValueError: wrong shape, NaN or infinity, fewer than two rows, bad weights, or a
                ``sigma`` that is neither 0 nor positive.
        """
        sigma = check_positive(sigma, "sigma") if sigma != 0 else 0.0
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
        mixture: Any = fit_if_heavy_tailed(rows, weights)
        if mixture is None and self.most_components > 1:
            mixture = self._fit(blur(rows, sigma, weights))
        self._use(mixture)

    def _fit(self, blurred: BlurredRows) -> Any:
        """The mixture for rows without heavy tails; None: one Gaussian."""
        return fit_if_it_suffices(blurred, self.most_components)[0]

    def _use(self, mixture: Any) -> None:
        """Take a mixture for heavy tails or with a covariance each, or one Gaussian (None)."""
        if mixture is None:
            self._drop_mixture()
            return
        if isinstance(mixture, FullMixture):
            self._add_mixture(len(mixture.weights), shared_axes=mixture.axes.ndim == 2)
        else:
            self._add_mixture(COMPONENTS, heavy_tailed=True)
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
        if self._mixture:
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
        """``call`` of a mixture: noise adds sigma**2 to the variances of each component."""
        centre, axes, weights, means, variances = (
            tf.convert_to_tensor(self._mixture[name])
            for name in (
                "centre",
                "mixture_axes",
                "weights",
                "component_means",
                "component_variances",
            )
        )
        k, n = means.shape
        # The axes of all components side by side, (n, k * n), or the (n, n) that they share.
        if not self.shared_axes:
            axes = tf.reshape(tf.transpose(axes, (1, 0, 2)), (n, k * n))
        x = tf.nn.bias_add(x, -centre)
        if sigma.shape.rank:
            u = tf.reshape(tf.matmul(x, axes), (-1, axes.shape[1] // n, n))
            widths = variances + tf.square(sigma)[:, None, None]
            square = tf.reduce_sum(tf.square(u - means) / widths, axis=-1)
            logs = tf.reduce_sum(tf.math.log(2.0 * math.pi * widths), axis=-1)
            return log_sum_exp(tf.math.log(weights) - 0.5 * (square + logs))[:, 0]
        if self.shared_axes:
            axes = tf.tile(axes, (1, k))
        widths = variances + tf.square(sigma)  # (k, n)
        # (u - means) / widths**0.5 of all components as one product and a bias.
        precise = tf.reshape(1.0 / tf.sqrt(widths), (k * n,))
        scaled = tf.matmul(x, axes * precise)
        scaled = tf.nn.bias_add(scaled, tf.reshape(means, (k * n,)) * -precise)
        each = tf.reshape(tf.square(scaled), (-1, n))
        logits = tf.reshape(tf.matmul(each, tf.fill((n, 1), -0.5)), (-1, k))
        logs = tf.reduce_sum(tf.math.log(2.0 * math.pi * widths), axis=-1)
        logits = tf.nn.bias_add(logits, tf.math.log(weights) - 0.5 * logs)
        return tf.squeeze(log_sum_exp(logits), axis=-1)

    def sample(self, count: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
        """Draw flat rows with noise of level ``sigma``, float32 (count, n).

        >>> base = tfdde.GaussianBase(3)
        >>> base.sample(1_000, 1.0, np.random.default_rng(0)).var().round(1)
        np.float32(2.0)
        """
        if not self._mixture:
            centre, axes = self.mean.numpy(), self.axes.numpy()
            means, variances = np.zeros_like(centre), self.variances.numpy()
        else:
            names = ("centre", "mixture_axes", "component_means", "component_variances")
            centre, axes, means, variances = (self._mixture[name].numpy() for name in names)
            weights = self._mixture["weights"].numpy().astype(np.float64)
            picked = rng.choice(len(weights), count, p=weights / weights.sum())
            means, variances = means[picked], variances[picked]
        u = means + np.sqrt(variances + sigma**2) * rng.standard_normal((count, len(centre)))
        if axes.ndim == 2:
            return (centre + u @ axes.T).astype(np.float32)
        rows = np.empty((count, len(centre)), np.float32)
        for k, own_axes in enumerate(axes):
            own = picked == k
            rows[own] = centre + u[own] @ own_axes.T
        return rows

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
        centre, core, reach = (self._mixture[name] for name in ("centre", "core", "reach"))
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
        count = len(store.keys())
        if count > len(values):
            components = len(store[str(count - 1)])  # rows of the last, the variances
            shared = len(store[str(count - 4)].shape) == 2
            self._add_mixture(components, heavy_tailed=count == FOR_TAILS, shared_axes=shared)
            values += list(self._mixture.values())
        else:
            self._drop_mixture()
        for i, variable in enumerate(values):
            variable.assign(store[str(i)])

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"input_shape": self.row_shape, "name": self.name}
        if self.heavy_tailed:
            config["heavy_tailed"] = True
        if self.most_components > 1:
            config["most_components"] = self.most_components
        if self._mixture and not self.heavy_tailed:
            config["components"] = self.components
            if self.shared_axes:
                config["shared_axes"] = True
        return config
