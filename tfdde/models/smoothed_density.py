"""s(x, sigma): what a network, a Gaussian base, a normalization and caps make together."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from tfdde.models.correction_cap import capped
from tfdde.models.trainer import Trainer
from tfdde.networks import initial_weights
from tfdde.networks.check_network import check_scalar
from tfdde.networks.gaussian_base import GaussianBase
from tfdde.networks.normalization import (
    adapt,
    adaptable,
    check_normalization,
    check_resolution,
    has_tails,
    log_jacobian,
    row_dtype,
    standardize,
)
from tfdde.noise import Constant, Decay, LogUniform, Noise, between_levels, check_level
from tfdde.partition.estimate import too_low
from tfdde.partition.rows import RowDraws
from tfdde.tables.schema import Schema
from tfdde.utils import random
from tfdde.utils.checks import check_pixels, check_rows, check_weights

COMPONENT_ROWS = 50_000  # the most rows that independent components are computed from


class SmoothedDensity(Trainer):
    """The function s of ``DDE``: what it is made of, and how its parts start from data.

    The arguments are those of ``DDE``.
    """

    def __init__(
        self,
        network: keras.Model,
        noise: Noise | None,
        base: GaussianBase | None,
        normalization: keras.layers.Normalization | Schema | None,
        seed: int | None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        noise = Constant(0.2) if noise is None else noise
        if not isinstance(noise, Noise):
            raise ValueError(
                "`noise` must be tfdde.Constant, tfdde.Decay or tfdde.LogUniform, got "
                f"{noise!r}; for one level write tfdde.Constant(sigma)."
            )
        self.data_shape, self.condition_dim = check_scalar(network, isinstance(noise, LogUniform))
        if base is None and isinstance(noise, LogUniform):
            base = GaussianBase(self.data_shape)
        if base is not None and (
            not isinstance(base, GaussianBase) or base.row_shape != self.data_shape
        ):
            raise ValueError(
                f"`base` must be a tfdde.GaussianBase({self.data_shape}), like the network's "
                f"input, got {getattr(base, 'row_shape', base)!r}."
            )
        if normalization is not None:
            check_normalization(normalization, self.data_shape)
        self.network = network
        self.base = base
        self.normalization = normalization
        self.noise = noise
        self.seed = random.check_seed(seed)
        self.caps: tuple[float, ...] | None = None
        self._level_reached: float | None = None
        self.autocast = self.row_dtype == "float32"  # Keras would round the rows

    # Before training.

    def adapt(self, x: Any, sample_weight: Any = None) -> None:
        """Take the means and scales of ``normalization`` and the Gaussian ``base`` from data.

        Call it before ``fit``. A normalization whose ``mean`` and ``variance`` were given to its
        constructor keeps them, and so does a ``Schema``.

        Args:
            x: array of shape (rows, *data_shape).
            sample_weight: of the rows, shape (rows,), as for ``fit``.

        Raises:
            ValueError: wrong shape, NaN or infinity, fewer than two rows, nothing to adapt, bad
                weights, or columns whose spread is 0 or lost in float32.
        """
        self.before_weights_change()
        found_here = adaptable(self.normalization)
        if not found_here and self.base is None:
            raise ValueError("There is neither a `normalization` nor a `base` to adapt.")
        rows = check_pixels(check_rows(x, "x", self.data_shape, dtype=self.row_dtype), "x")
        weights = check_weights(sample_weight, len(rows))
        if len(rows) < 2:
            raise ValueError(f"`x` must have at least 2 rows to adapt to, got {len(rows)}.")
        if found_here:
            adapt(self.normalization, rows, self.noise.levels[0], weights)
        inside = self.inside(tf.constant(rows)).numpy()
        if self.base is not None:
            self.base.adapt(inside, weights, self.noise.levels[0])
        self._warn_of_low_noise(inside)

    def _warn_of_low_noise(self, inside: np.ndarray) -> None:
        """Warn if the highest noise level does not reach across the data."""
        if isinstance(self.noise, LogUniform) and (message := too_low(self.noise, inside)):
            warnings.warn(message, UserWarning, stacklevel=3)

    def start_at_independent_components(self, x: Any, sample_weight: Any = None) -> None:
        """Start the network's first layer at the independent components of the blurred data.

        It takes about a second and helps the more, the more columns a table has. Call it between
        ``adapt`` and ``fit``; see ``tfdde.networks.initial_weights``.

        Args:
            x: array of shape (rows, n).
            sample_weight: of the rows, shape (rows,), as for ``fit``: the components are those of
                rows drawn in proportion to it.

        Raises:
            ValueError: wrong shape, NaN or infinity, bad weights, or the network is not a
                ``residual_mlp`` of flat rows with at least n units.
            ImportError: scikit-learn is not installed.
        """
        self.before_weights_change()
        rng = np.random.default_rng(self.seed)
        rows = check_rows(x, "x", self.data_shape, dtype=self.row_dtype)
        weights = check_weights(sample_weight, len(rows))
        draws = RowDraws(len(rows), None if weights is None else weights.astype(np.float64))
        rows = rows[draws.take(min(len(rows), COMPONENT_ROWS), rng)]
        sigma = self.noise.sigma
        noise = (sigma * rng.standard_normal(rows.shape)).astype(np.float32)
        blurred = self.inside(tf.constant(rows)) + noise
        if self.base and (isinstance(self.noise, LogUniform) or self.base.heavy_tailed):
            blurred = self.base.scaled(blurred, tf.constant(sigma, tf.float32))
        initial_weights.at_independent_components(self.network, blurred.numpy(), self.seed)

    def drop_correction(self) -> None:
        """Let the network add nothing to the base: s is then the base, and log Z is 0.

        Use it where log Z of a trained density can't be trusted, and the base, a mixture or a tree
        of mixtures, is nearly as good. The weights of the network's last layer become 0.

        Raises:
            ValueError: there is no base, or the network is not 0 without its last layer's weights.
        """
        if self.base is None:
            raise ValueError("There is no `base` that would be left without the network.")
        self.before_weights_change()
        last = next(layer for layer in self.network.layers[::-1] if layer.weights)
        weights = last.get_weights()
        last.set_weights([np.zeros_like(w) for w in weights])
        rows = self.base.sample(2, self.noise.sigma, np.random.default_rng(0))
        x = tf.reshape(tf.constant(rows), (-1, *self.data_shape))
        conditions = [tf.zeros((2, self.condition_dim))] if self.condition_dim else []
        if np.any(self.correction(x, tf.constant(self.noise.sigma, tf.float32), *conditions)):
            last.set_weights(weights)
            raise ValueError(
                "The network must be 0 if the weights of its last layer are, got "
                f"{self.network.name!r}, whose last layer with weights is {last.name!r}."
            )

    def check_resolution(self, rows: np.ndarray, name: str) -> None:
        """Refuse rows, with a ValueError, if their dtype can't hold noise of the lowest level."""
        check_resolution(self.normalization, rows, self.noise.levels[0], name)

    @property
    def row_dtype(self) -> str:
        """The dtype of rows: "float64" if the ``normalization`` is a schema that needs it."""
        return row_dtype(self.normalization)

    # The function s.

    def inside(self, x: tf.Tensor) -> tf.Tensor:
        """Standardise rows, if there is a ``normalization``: the units that sigma is in."""
        return x if self.normalization is None else standardize(self.normalization, x)

    def log_jacobian(self, inside: tf.Tensor) -> tf.Tensor:
        """Log of the Jacobian determinant of ``inside``, at rows that it returned.

        With it the log-density of standardised rows is that of rows in the data's own units.

        Args:
            inside: standardised rows, shape (batch, *data_shape).

        Returns:
            float32, shape (batch,) if the ``normalization`` is a schema of columns with heavy
            tails; otherwise it is the same at all rows, a scalar.
        """
        if self.normalization is None:
            return tf.constant(0.0)
        return log_jacobian(self.normalization, inside)

    def correction(
        self,
        x: tf.Tensor,
        sigma: tf.Tensor,
        *condition: tf.Tensor,
        network: keras.Model | None = None,
    ) -> tf.Tensor:
        """The network's part of ``at``, without the base's.

        Args:
            x, sigma, condition: as of ``at``.
            network: instead of the density's own.

        Returns:
            As ``at``.
        """
        network = network or self.network
        if len(condition) != bool(self.condition_dim):
            expected = f"of shape (batch, {self.condition_dim})" if self.condition_dim else "none"
            raise ValueError(f"`condition` must be {expected}, got {condition or None}.")
        if isinstance(self.noise, LogUniform):
            assert self.base is not None  # the constructor's default
            level = self.noise.place(sigma)
            one_level = sigma.shape.rank == 0
            column = tf.fill((tf.shape(x)[0], 1), level) if one_level else level[:, None]
            s = network([self.base.scaled(x, sigma), column, *condition])
        else:
            if self.base is not None and self.base.heavy_tailed:
                x = self.base.scaled(x, sigma)
            s = network([x, *condition] if condition else x)
        return tf.squeeze(tf.cast(s, tf.float32), axis=-1)  # the network may compute in bfloat16

    def at(self, x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        """s of standardised rows at noise level ``sigma``.

        Args:
            x: rows as ``inside`` returns them, shape (batch, *data_shape).
            sigma: noise level in the same units, shape () or (batch,).
            condition: of a conditional density, the rows' conditions, (batch, condition_dim).

        Returns:
            float32 tensor, shape (batch,), in nats up to a constant.
        """
        s = self.correction(x, sigma, *condition)
        if self.caps is not None:
            assert isinstance(self.noise, LogUniform)
            s = capped(s, between_levels(self.caps, self.noise.place(sigma)))
        # Not "+": TFLite can't convert its gradient when the batch size is dynamic.
        return s if self.base is None else tf.add_n([s, self.base(x, sigma)])

    def call(self, x: Any, condition: tf.Tensor | None = None) -> tf.Tensor:
        """s(x) or s(x, condition) at the noise's ``sigma``, in the data's own units: (batch,).

        ``x`` may be the list [x, condition], as in ``predict([x, condition])``.
        """
        if isinstance(x, list | tuple):
            x, condition = x
        if x.dtype != self.row_dtype and self.row_dtype == "float64":
            raise ValueError(
                f"`x` must be of float64, since float32 can't hold the rows, got {x.dtype}: "
                "`predict` rounds rows, `log_density` does not."
            )
        conditions = [] if condition is None else [condition]
        return self.in_data_units(x, tf.constant(self.noise.sigma, tf.float32), *conditions)

    def in_data_units(self, x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        """``at`` of rows that are not standardised, plus the log of the Jacobian.

        Args:
            x: rows in the data's own units, float32 or float64, shape (batch, *data_shape).
            sigma, condition: as for ``at``.
        """
        inside = tf.cast(self.inside(x), tf.float32)
        s = self.at(inside, sigma, *condition)
        if self.normalization is None:
            return s
        # Not "+": TFLite can't convert its gradient when the batch size is dynamic.
        log_jacobian = self.log_jacobian(inside)
        if has_tails(self.normalization):
            return tf.add_n([s, log_jacobian])
        s = tf.nn.bias_add(tf.reshape(s, (-1, 1)), tf.reshape(log_jacobian, (1,)))
        return tf.squeeze(s, axis=-1)

    # The noise level.

    @property
    def level_reached(self) -> float:
        """Sigma of the last training step; without training the noise's own ``sigma``.

        With ``Decay`` noise it is higher than the level that the density is read at until the
        decay has ended.
        """
        if self._level_reached is not None:
            return self._level_reached
        if not self.compiled or not isinstance(self.noise, Decay):
            return self.noise.sigma
        with tf.init_scope():
            steps = int(self.optimizer.iterations.numpy())
            return float(self.noise.at(tf.constant(steps - 1))) if steps else self.noise.sigma

    @level_reached.setter
    def level_reached(self, sigma: float) -> None:
        self._level_reached = float(sigma)

    @property
    def decaying(self) -> bool:
        """Whether ``Decay`` noise has not come down to its final level yet."""
        # By a factor, since the schedule is computed in float32.
        return isinstance(self.noise, Decay) and self.level_reached > 1.001 * self.noise.sigma

    def _level(self, sigma: float | None) -> float:
        """The noise level to read the density at; warns if training has not come down to it."""
        level = check_level(self.noise, sigma)
        if self.decaying:
            warnings.warn(
                f"This density is read at sigma = {level:g}, but training has only come down to "
                f"{self.level_reached:.3g}: it has never seen noise of {level:g}, so its values "
                f"can be far off. Train on until the decay has ended ({self.noise!r}).",
                UserWarning,
                stacklevel=3,
            )
        return level

    def make_train_function(self, force: bool = False) -> Callable:
        self._level_reached = None  # from now on that of the optimizer
        return super().make_train_function(force)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        self._level_reached = None
        super().load_weights(filepath, *args, **kwargs)

    # Saving and loading.

    def get_config(self) -> dict[str, Any]:
        parts = ("network", "noise", "base", "normalization")
        return {
            **{p: keras.saving.serialize_keras_object(getattr(self, p)) for p in parts},
            "level_reached": self.level_reached if self.decaying else None,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config = dict(config)
        level_reached = config.pop("level_reached", None)
        for name in ("network", "noise", "base", "normalization"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        density = cls(**config)
        density._level_reached = level_reached
        return density
