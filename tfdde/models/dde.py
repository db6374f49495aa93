"""The denoising density estimator (DDE), section 3 of the paper."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde import optimizers
from tfdde.losses import dde_loss, joint_loss, score_of
from tfdde.models.correction_cap import MANY_ENTRIES, cap_at, capped, caps_of, doubted
from tfdde.models.known_log_z import KnownLogZ
from tfdde.models.trainer import (
    Trainer,
    add_penalty,
    global_count,
    local_count,
    unscaled,
    update_mean,
    warn_of_underflow,
)
from tfdde.networks import initial_weights
from tfdde.networks.check_network import check_scalar
from tfdde.networks.fixed_condition import fix
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
from tfdde.noise import Constant, Decay, LogUniform, Noise, check_level
from tfdde.partition.estimate import estimate, estimate_by_condition, too_low
from tfdde.partition.evaluator import CHUNK, Evaluator, LogDensity
from tfdde.partition.result import LogPartition, LogPartitions
from tfdde.partition.rows import RowDraws
from tfdde.tables.schema import Schema
from tfdde.utils import random
from tfdde.utils.checks import (
    check_conditions,
    check_integer,
    check_pixels,
    check_rows,
    check_weights,
    to_conditions,
    to_rows,
)
from tfdde.utils.fingerprint import Fingerprint
from tfdde.utils.random import Purpose

COMPONENT_ROWS = 50_000  # the most rows that independent components are computed from


class UnnormalizedWarning(UserWarning):
    """``log_density`` returned values that are known only up to a constant."""


@keras.saving.register_keras_serializable(package="tfdde")
class DDE(Trainer):
    """Denoising density estimator: a scalar network s(x) = log(p * N(0, sigma**2 I))(x) + C.

    Training minimises ``|| grad s(x + eta) + eta / sigma**2 ||**2`` (eq. 10). The reported loss
    is this times sigma**2 / n: it is 1 for a constant s, whatever sigma and n are.

    One noise level, as in the paper; the Gaussian ``base`` makes e^s integrable:

    >>> network = tfdde.networks.residual_mlp(2, width=16, depth=2)
    >>> dde = tfdde.DDE(network, tfdde.Constant(0.3), base=tfdde.GaussianBase(2), seed=0)
    >>> dde.adapt(x)
    >>> dde.compile("adam")
    >>> history = dde.fit(x, batch_size=128, epochs=5, verbose=0)
    >>> dde.log_partition(x, samples=2_000).trusted
    True
    >>> dde.log_density(x).shape
    TensorShape([512])
    >>> dde.score(x).shape
    TensorShape([512, 2])

    All noise levels at once, s(x, sigma): the network has a second input ``level``, and sees x
    centred and scaled by the base at that level:

    >>> network = tfdde.networks.residual_mlp(
    ...     2, width=16, depth=2, activation="silu", levels=True, experts=4
    ... )
    >>> dde = tfdde.DDE(network, tfdde.LogUniform(0.1, 8.0), antithetic=True, seed=0)
    >>> dde.adapt(x)
    >>> dde.start_at_independent_components(x)
    >>> dde.score(x, sigma=2.0).shape
    TensorShape([512, 2])

    A network with an input ``condition`` makes the density conditional, s(x, condition) =
    log p(x | condition) + C(condition). Labels become one-hot conditions; continuous conditions
    are taken as they are. Noise and gradient concern x alone:

    >>> conditions = keras.utils.to_categorical(labels, 10)
    >>> network = tfdde.networks.residual_mlp(2, width=16, depth=2, conditions=10)
    >>> dde = tfdde.DDE(network, tfdde.Constant(0.3), seed=0)
    >>> dde.compile("adam")
    >>> history = dde.fit(x, conditions, batch_size=128, verbose=0)
    >>> dde.score(x, conditions=conditions).shape
    TensorShape([512, 2])
    >>> seven = dde.given(conditions[labels == 7][0])
    >>> seven.condition_dim
    0

    Args:
        network: Keras model (batch, *shape) -> (batch, 1), twice differentiable almost
            everywhere (no ReLU: its score is a step function). With ``LogUniform`` noise its
            inputs are x and ``level``, shape (batch, 1), which runs from -1 at the lowest to 1
            at the highest sigma. A last input named ``condition``, shape (batch, k), takes the
            condition.
        noise: where training takes sigma from: ``Constant``, ``Decay`` or ``LogUniform``;
            ``Constant(0.2)`` by default.
        base: Gaussian whose log-density is added to the network's output. By default there is
            none, as in the paper, and then e^s need not be integrable; with ``LogUniform`` noise
            it is the standard normal by default. ``adapt`` fits it to data.
        normalization: layer that standardises the data, or the ``tfdde.tables.Schema`` of a
            table. Sigma is then in standardised units, of which those of a column with heavy tails
            are its asinh's; log-density and score are in the data's own units, Jacobian included.
        antithetic: train on each row twice, at x + eta and at x - eta. The largest random term
            of the two losses cancels, so this beats twice the rows at the same cost.
        time_weight: with ``LogUniform`` noise, the weight of time-score matching
            (``tfdde.losses.joint_loss``) relative to one of the n entries of x in eq. 10. The
            loss is the weighted mean of both.
        seed: integer in [0, 2**31) that fixes the noise and the order of the rows. By default
            it is drawn, reproducibly after ``keras.utils.set_random_seed``.

    Attributes:
        condition_dim: entries of a condition, 0 for a density without conditions.
        caps: of what the network adds to the base, at levels from the lowest to the highest, in
            nats; None without ``cap_correction``.

    Raises:
        ValueError: the network is not scalar or not built, or another argument is of the wrong
            type, shape or range.
    """

    weighted = True

    def __init__(
        self,
        network: keras.Model,
        noise: Noise | None = None,
        base: GaussianBase | None = None,
        normalization: keras.layers.Normalization | Schema | None = None,
        antithetic: bool = False,
        time_weight: float = 0.5,
        seed: int | None = None,
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
        if not (np.isfinite(time_weight) and time_weight >= 0):
            raise ValueError(f"`time_weight` must be a finite number >= 0, got {time_weight!r}.")
        self.network = network
        self.base = base
        self.normalization = normalization
        self.noise = noise
        self.antithetic = bool(antithetic)
        self.time_weight = float(time_weight)
        self.seed = random.check_seed(seed)
        hash_of = Fingerprint()
        self._known_log_z = KnownLogZ(lambda: hash_of(self._all_weights()))
        self._level_reached: float | None = None
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.caps: tuple[float, ...] | None = None
        self._traced_with = self._parts_in_traces()
        self._rows_evaluated = tf.Variable(
            0,
            dtype=tf.int64,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
        self.autocast = self.row_dtype == "float32"  # Keras would round the rows
        self.built = True

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

    def check_resolution(self, rows: np.ndarray, name: str) -> None:
        """Refuse rows, with a ValueError, if their dtype can't hold noise of the lowest level."""
        check_resolution(self.normalization, rows, self.noise.levels[0], name)

    @property
    def row_dtype(self) -> str:
        """The dtype of rows: "float64" if the ``normalization`` is a schema that needs it."""
        return row_dtype(self.normalization)

    def compile(
        self,
        optimizer: Any = "adam",
        *,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: Any = "auto",
    ) -> None:
        """Choose the optimizer; the loss is the DDE's own.

        Args:
            optimizer: a Keras optimizer or its name.
            run_eagerly, steps_per_execution: as in ``keras.Model.compile``.
            jit_compile: whether XLA compiles loss and gradients ("auto": on a GPU).
        """
        if isinstance(self.noise, Decay):
            self.level_reached = self.level_reached  # of the former optimizer
        super().compile(
            optimizer=optimizers.get(optimizer),
            run_eagerly=run_eagerly,
            steps_per_execution=check_integer(steps_per_execution, "steps_per_execution"),
            jit_compile=jit_compile,
        )
        self._compile_config = {
            "optimizer": keras.optimizers.serialize(self.optimizer),
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "jit_compile": jit_compile,
        }
        warn_of_underflow(self)
        self.optimizer.build(self.network.trainable_variables)
        self._loss_and_gradients = self.maybe_jit(self.loss_and_gradients)

    # The function s that the network, the base and the normalization make together.

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

    def correction(self, x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        """The network's part of ``at``, without the base's. Args and returns as of ``at``."""
        if len(condition) != bool(self.condition_dim):
            expected = f"of shape (batch, {self.condition_dim})" if self.condition_dim else "none"
            raise ValueError(f"`condition` must be {expected}, got {condition or None}.")
        if isinstance(self.noise, LogUniform):
            assert self.base is not None  # the constructor's default
            level = self.noise.place(sigma)
            one_level = sigma.shape.rank == 0
            column = tf.fill((tf.shape(x)[0], 1), level) if one_level else level[:, None]
            s = self.network([self.base.scaled(x, sigma), column, *condition])
        else:
            if self.base is not None and self.base.heavy_tailed:
                x = self.base.scaled(x, sigma)
            s = self.network([x, *condition] if condition else x)
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
            s = capped(s, cap_at(self.caps, self.noise.place(sigma)))
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

    # Training.

    def row_losses(
        self,
        x: tf.Tensor,
        epsilon: tf.Tensor,
        sigma: tf.Tensor,
        *condition: tf.Tensor,
        reference: LogDensity | None = None,
    ) -> tf.Tensor:
        """The loss of each standardised row: eq. 10 times sigma**2 / n, shape (batch,).

        With ``LogUniform`` noise and a ``time_weight`` it is the weighted mean of this and of
        time-score matching.

        Args:
            x: rows, shape (batch, *data_shape).
            epsilon: standard normal noise of the same shape.
            sigma: noise level, shape () or (batch,).
            condition: of the rows, for a conditional density.
            reference: log-density of (x, sigma, *condition) that the network learns to correct,
                instead of the base.
        """

        def log_density(y: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
            if reference is None:
                return self.at(y, level, *condition)
            return self.correction(y, level, *condition) + reference(y, level, *condition)

        if isinstance(self.noise, LogUniform) and self.time_weight:
            space, time = joint_loss(log_density, x, epsilon, sigma)
            n = float(np.prod(self.data_shape))
            return (n * space + self.time_weight * time) / (n + self.time_weight)
        return dde_loss(lambda y: log_density(y, sigma), x, epsilon, sigma)

    def loss_and_gradients(
        self,
        x: tf.Tensor,
        epsilon: tf.Tensor,
        sigma: tf.Tensor,
        total: tf.Tensor,
        *condition: tf.Tensor,
        weights: tf.Tensor | None = None,
        reference: LogDensity | None = None,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The sum of ``row_losses``, and the gradient of sum / ``total`` in the weights.

        The network's regularizers are added to the loss of each row.

        Args:
            x, epsilon, sigma, condition, reference: as for ``row_losses``.
            total: number of rows in all replicas, or the sum of their weights.
            weights: of the rows, shape (batch,).
        """
        variables = self.network.trainable_variables
        count = local_count(x, weights)
        if self.antithetic:
            x = tf.concat([x, x], axis=0)
            epsilon = tf.concat([epsilon, -epsilon], axis=0)
            sigma = tf.concat([sigma, sigma], axis=0) if sigma.shape.rank else sigma
            condition = tuple(tf.concat([c, c], axis=0) for c in condition)
        with tf.GradientTape() as tape:
            losses = self.row_losses(x, epsilon, sigma, *condition, reference=reference)
            if weights is not None:
                losses *= tf.concat([weights, weights], axis=0) if self.antithetic else weights
            loss = tf.reduce_sum(losses)
            if self.antithetic:
                loss /= 2.0
            loss = add_penalty(loss, self.network, count)
            scaled = loss / total
        return loss, tape.gradient(scaled, variables)

    def minimize(
        self,
        loss_and_gradients: Callable,
        x: tf.Tensor,
        optimizer: Any,
        sigma: tf.Tensor,
        *condition: tf.Tensor,
        weights: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One step of ``optimizer`` at noise level ``sigma``, in replica context.

        Args:
            loss_and_gradients: the method of that name, as compiled by the model that trains
                this one.
            x, sigma, condition, weights: as for ``loss_and_gradients``.
            optimizer: of the network's weights.

        Returns:
            The sum of the losses of this replica's rows, and their number or sum of weights.
        """
        local, total = global_count(x, weights)
        total = unscaled(total, optimizer)
        epsilon = random.normal(tf.shape(x), self.seed, optimizer.iterations, Purpose.DENSITY_NOISE)
        weighted = {} if weights is None else {"weights": weights}
        loss, gradients = loss_and_gradients(x, epsilon, sigma, total, *condition, **weighted)
        optimizer.apply_gradients(zip(gradients, self.network.trainable_variables, strict=True))
        return loss, local

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, condition, weights = self.training_data.batch(data)
        x = self.inside(x)
        iteration = tf.convert_to_tensor(self.optimizer.iterations)
        sigma = self.noise.draw(tf.shape(x)[0], self.seed, iteration, Purpose.DENSITY_LEVEL)
        weighted = {} if weights is None else {"weights": weights}
        loss, count = self.minimize(
            self._loss_and_gradients, x, self.optimizer, sigma, *condition, **weighted
        )
        update_mean(self.loss_tracker, loss, count)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, condition, weights = self.training_data.batch(data)
        x = self.inside(x)
        # The number of rows evaluated so far numbers the batch; each evaluation starts at 0.
        rows_done = self._rows_evaluated.read_value()
        epsilon = random.normal(tf.shape(x), self.seed, rows_done, Purpose.EVALUATION_NOISE)
        if isinstance(self.noise, LogUniform):
            sigma = self.noise.draw(tf.shape(x)[0], self.seed, rows_done, Purpose.EVALUATION_LEVEL)
        else:
            sigma = tf.constant(self.noise.sigma, tf.float32)
        losses = self.row_losses(x, epsilon, sigma, *condition)
        count = local_count(x, weights)
        loss = tf.reduce_sum(losses if weights is None else losses * weights)
        update_mean(self.loss_tracker, add_penalty(loss, self.network, count), count)
        self._rows_evaluated.assign_add(tf.cast(tf.shape(x)[0], tf.int64))
        return {"loss": self.loss_tracker.result()}

    def reset_metrics(self) -> None:
        super().reset_metrics()
        self._rows_evaluated.assign(0)

    def trained_parts(self) -> list[tuple[Any, keras.Model, str]]:
        return [(self.optimizer, self.network, "network")]

    def make_train_function(self, force: bool = False) -> Callable:
        self._level_reached = None  # from now on that of the optimizer
        self._uncap()
        self._follow_parts()
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Callable:
        self._follow_parts()
        return super().make_test_function(force)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        self._level_reached = None
        super().load_weights(filepath, *args, **kwargs)

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

    @property
    def metrics(self) -> list:
        return [self.loss_tracker]

    # Reading the density.

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

    def log_density(
        self,
        x: Any,
        sigma: float | None = None,
        *,
        conditions: Any = None,
        normalized: bool | None = None,
    ) -> tf.Tensor:
        """log(p * N(0, sigma**2 I))(x), in the data's own units.

        Until ``log_partition`` has found a trusted log Z for this sigma, the values are
        unnormalised: they contain one unknown constant of this model. Differences between points
        then mean something; a single value, or the difference to another model's, does not. With
        conditions it is log p(x | condition), and each condition has its own unknown constant:
        only differences between points at the same condition mean something.

        Args:
            x: array, evaluated some thousand rows at a time, or tensor; (rows, *data_shape).
            sigma: noise level. By default, and always without ``LogUniform`` noise, it is the
                noise's own ``sigma``.
            conditions: of a conditional density, shape (rows, condition_dim), or
                (1, condition_dim) for all rows alike.
            normalized: True: raise an error without a trusted log Z (of each condition). False:
                return s itself. By default normalised if possible, otherwise s with an
                ``UnnormalizedWarning``.

        Returns:
            float32 tensor, shape (rows,), in nats. Inside a ``tf.function``, where conditions
            can't be looked up beforehand, it is NaN at conditions without a trusted log Z.

        Raises:
            ValueError: wrong rank or width, NaN or infinity, unscaled pixels, a sigma that was
                not trained, or no trusted log Z where one was asked for; conditions for a
                density that takes none, or none for one that does.
        """
        level = self._level(sigma)
        columns = self._columns(x, conditions, level)
        log_z, place = None, ""
        if normalized is not False:
            log_z, place = self._trusted_log_z(level, *columns[1:])
        if log_z is None and normalized is not False:
            arguments = "data, conditions=conditions" if self.condition_dim else "data"
            message = (
                f"This log-density is unnormalised: no trusted log Z at {place}. Call "
                f"`log_partition({arguments})` first, or pass `normalized=False` to get s itself."
            )
            if normalized:
                raise ValueError(message)
            warnings.warn(message, UnnormalizedWarning, stacklevel=2)
        level_tensor = tf.constant(level, tf.float32)
        s = in_chunks(lambda x, *c: self._log_density(x, level_tensor, *c), columns)
        return s if log_z is None else s - tf.cast(log_z, tf.float32)

    def score(self, x: Any, sigma: float | None = None, *, conditions: Any = None) -> tf.Tensor:
        """Gradient of the log-density at each row, in nats per unit of x.

        Args and errors are those of ``log_density``.

        Returns:
            float32 tensor, shape of ``x``.
        """
        level = self._level(sigma)
        columns, tensor = self._columns(x, conditions, level), tf.constant(level, tf.float32)
        return in_chunks(lambda x, *c: self._score(x, tensor, *c), columns)

    def anomaly_score(self, x: Any, *, conditions: Any = None) -> tf.Tensor:
        """Minus the log-density: the higher, the more anomalous the row.

        Without a trusted log Z it is known up to a constant. In a conditional density that
        constant would differ from condition to condition, so there each condition must have a
        trusted log Z.

        Args and errors are those of ``log_density``.

        Returns:
            float32 tensor, shape (rows,), in nats.
        """
        normalized = True if self.condition_dim else self.normalized
        return -self.log_density(x, conditions=conditions, normalized=normalized)

    def anomaly_threshold(
        self, x: Any, contamination: float = 0.1, *, conditions: Any = None
    ) -> float:
        """The anomaly score that a share ``contamination`` of the rows ``x`` exceeds.

        Args:
            x: array of normal and abnormal rows in their natural mix, (rows, *data_shape).
            contamination: share of abnormal rows, in (0, 0.5], as in scikit-learn.
            conditions: as for ``log_density``.

        Raises:
            ValueError: as ``log_density``, or a share outside (0, 0.5].
        """
        if not 0 < contamination <= 0.5:
            raise ValueError(f"`contamination` must be in (0, 0.5], got {contamination!r}.")
        scores = self.anomaly_score(x, conditions=conditions).numpy()
        return float(np.quantile(scores, 1.0 - contamination))

    def _columns(self, x: Any, conditions: Any, level: float) -> list[Any]:
        """The rows and, if there are any, their conditions: checked arrays, or tensors.

        Pixels may have the noise of ``level``.
        """
        self._follow_parts()
        rows = to_rows(x, "x", self.data_shape, self.row_dtype)
        values_known = not tf.is_tensor(x) or tf.executing_eagerly()
        if values_known and len(self.data_shape) == 3:
            margin = 10 * max(level, self.noise.sigma)
            check_pixels(np.asarray(rows), "x", margin=margin)
        return [rows, *to_conditions(conditions, self.condition_dim, rows)]

    @cached_property
    def _log_density(self) -> Callable[..., tf.Tensor]:
        return self._traced(self.in_data_units)

    @cached_property
    def _score(self) -> Callable[..., tf.Tensor]:
        def score(x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
            score = score_of(lambda y: self.in_data_units(y, sigma, *condition), x)
            return tf.cast(score, tf.float32)

        return self._traced(score)

    def _traced(self, function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
        """A function of rows, a noise level and perhaps conditions, traced once for all rows.

        It is a concrete function: TensorFlow takes the traces of several models for retracing of
        one, and would warn.
        """
        specs = [
            tf.TensorSpec((None, *self.data_shape), self.row_dtype),
            tf.TensorSpec((), tf.float32),
            *[tf.TensorSpec((None, self.condition_dim), tf.float32)] * bool(self.condition_dim),
        ]
        graph = tf.function(function, specs, autograph=False)

        def call(*inputs: tf.Tensor) -> tf.Tensor:
            # Within another graph it becomes part of that graph, whose shapes may be known.
            if not tf.executing_eagerly() or tf.config.functions_run_eagerly():
                return function(*inputs)
            return graph.get_concrete_function()(*inputs)

        return call

    def _parts_in_traces(self) -> tuple[Any, ...]:
        """What changes the functions themselves, not only the numbers in their variables."""
        return self.base and (self.base.heavy_tailed, self.base.components), self.caps

    def _follow_parts(self) -> None:
        """Trace all functions anew if the kind of base, or the caps, have changed since."""
        parts = self._parts_in_traces()
        if parts == self._traced_with:
            return
        self._traced_with = parts
        for name in ("evaluator", "_log_density", "_score"):
            self.__dict__.pop(name, None)
        self.train_function = self.test_function = None
        if self.compiled:
            self._loss_and_gradients = self.maybe_jit(self.loss_and_gradients)

    # log Z.

    def cap_correction(self, x: Any, seed: int = 0) -> None:
        """Cap what the network adds to the base slightly above what it adds at noisy rows.

        Elsewhere than at noisy rows a network may add thousands of nats, and then e^s has its mass
        where no row is. s of rows like these stays the same, except for a few that exceed the
        cap. The caps are saved with the density and exported. Training on, or setting weights,
        removes them. ``log_partition`` calls this method on its own for rows of more than 100
        entries, where the checks of log Z would not be enough.

        >>> network = tfdde.networks.residual_mlp(2, width=16, depth=2, levels=True)
        >>> dde = tfdde.DDE(network, tfdde.LogUniform(0.1, 8.0), seed=0)
        >>> dde.adapt(x)
        >>> dde.cap_correction(x)
        >>> len(dde.caps)
        17

        Args:
            x: training rows, shape (rows, *data_shape), of which 2,000 are taken.
            seed: of their order and noise.

        Raises:
            ValueError: wrong shape, NaN, infinity, no rows, a conditional density, or one
                without ``LogUniform`` noise.
        """
        if not self._can_be_capped:
            kind = "a conditional density" if self.condition_dim else repr(self.noise)
            raise ValueError(
                f"`cap_correction` needs LogUniform noise and no conditions, got {kind}."
            )
        rows = check_pixels(check_rows(x, "x", self.data_shape, dtype=self.row_dtype), "x")
        self._cap(self.inside(tf.constant(rows)).numpy(), seed)

    def cap_if_many_entries(self, inside: np.ndarray, seed: int) -> None:
        """``cap_correction`` if log Z of rows with so many entries can't be trusted without it.

        Args:
            inside: rows as ``inside`` returns them.
            seed: as of ``cap_correction``.
        """
        if self.caps is None and self._can_be_capped and inside[0].size > MANY_ENTRIES:
            self._cap(inside, seed)

    @property
    def _can_be_capped(self) -> bool:
        return isinstance(self.noise, LogUniform) and not self.condition_dim

    def _cap(self, inside: np.ndarray, seed: int) -> None:
        assert isinstance(self.noise, LogUniform)
        evaluate = Evaluator(self.correction, self.data_shape)
        self.caps = caps_of(evaluate, inside, self.noise, seed)
        self._known_log_z.forget()
        self._follow_parts()

    def _uncap(self) -> None:
        if self.caps is not None:
            self.caps = None
            self._known_log_z.forget()
            self._follow_parts()

    @property
    def partition(self) -> LogPartition | None:
        """The estimate of log Z that ``log_partition`` found at the noise's own ``sigma``.

        Without one at this level it is the latest one, or None. It is saved with the model. All
        estimates are discarded when the weights of network, base or normalization have changed.
        """
        return self._known_log_z.latest(self.noise.sigma)

    @partition.setter
    def partition(self, estimate: LogPartition | None) -> None:
        self._known_log_z.discard(conditional=False)
        if estimate is not None:
            self._known_log_z.add(None, estimate)

    @property
    def partitions(self) -> LogPartitions | None:
        """The same for a conditional density: the estimates at all conditions, or None."""
        at_sigma = self._known_log_z.by_condition(self.noise.sigma)
        return at_sigma or self._known_log_z.by_condition()

    @partitions.setter
    def partitions(self, estimates: LogPartitions | None) -> None:
        self._known_log_z.discard(conditional=True)
        if estimates is not None:
            for condition, found in zip(estimates.conditions, estimates.estimates, strict=True):
                self._known_log_z.add(condition, found)

    @property
    def normalized(self) -> bool:
        """Whether ``log_density`` at its default sigma has a trusted log Z to subtract.

        For a conditional density: at each condition that ``log_partition`` was asked for.
        """
        if not self.condition_dim:
            return self._trusted_log_z(self.noise.sigma)[0] is not None
        known = self._known_log_z.by_condition(self.noise.sigma)
        return known is not None and known.trusted

    def _all_weights(self) -> list[keras.Variable]:
        """The variables that s depends on."""
        parts = (self.network, self.base, self.normalization)
        return [variable for part in parts if part is not None for variable in part.weights]

    def before_weights_change(self) -> None:
        self._known_log_z.adopt_weights()
        self._uncap()

    def _trusted_log_z(self, sigma: float, conditions: Any = None) -> tuple[Any, str]:
        """A trusted log Z, or None if there is none, and where it was looked for, in words.

        Without conditions it is a number, otherwise a tensor of one number a row.
        """
        place = f"sigma = {sigma:g}"
        if conditions is None:
            estimate = self._known_log_z.at(sigma)
            return (estimate.value if estimate and estimate.trusted else None), place
        known = self._known_log_z.by_condition(sigma)
        if known is None:
            return None, f"{place} and any condition"
        log_z = in_chunks(lambda c: known.values(c, sigma), [conditions])
        if tf.executing_eagerly():  # in a graph the rows without a log Z stay NaN
            unknown = np.flatnonzero(np.isnan(log_z))
            if len(unknown):
                return None, f"{place} and condition {np.asarray(conditions)[unknown[0]].tolist()}"
        return log_z, place

    @cached_property
    def evaluator(self) -> Evaluator:
        """s(x, sigma) of rows as ``inside`` makes them, traced once for all estimates of log Z."""
        return Evaluator(self.at, self.data_shape, by_row=True)

    def log_partition(
        self,
        data: Any,
        method: str | None = None,
        *,
        conditions: Any = None,
        sample_weight: Any = None,
        sigma: float | None = None,
        samples: int | None = None,
        moves: int = 5,
        seed: int = 0,
        precision: float | None = None,
        verbose: int = 0,
    ) -> LogPartition | LogPartitions:
        """Estimate log Z, keep it and so normalise ``log_density``.

        Estimates at other noise levels and conditions are kept, too, until the weights change.

        In a conditional density each condition has its own log Z. This method finds them one by
        one for the distinct rows of ``conditions``, such as labels, each from the data of that
        condition. Continuous conditions hardly ever repeat: ``given`` returns a density at one of
        them, which can be normalised.

        Args:
            data: array of shape (rows, *data_shape), preferably not the training data.
            method: "ladder" (needs ``LogUniform`` noise, and is then the default), "importance"
                (the default otherwise) or "annealed"; see ``tfdde.partition``.
            conditions: of the rows, for a conditional density: array of shape
                (rows, condition_dim), or (1, condition_dim) for all rows alike; at most 100
                distinct ones, with at least 100 rows of each.
            sample_weight: of the rows, shape (rows,), as for ``fit``; rows of weight 0 are left
                out.
            sigma: noise level, by default the noise's own ``sigma``.
            samples: at each level; by default 10,000 for the ladder, 50,000 for importance
                sampling, 5,000 in each direction for annealing. With ``precision`` at most so
                many, by default 50,000.
            moves: Hamiltonian moves at each level of "ladder" and "annealed".
            seed: of the samples.
            precision: half-width in nats of the 95 % interval; the ladder then takes as many
                samples as that needs (``tfdde.partition.to_precision``), at least 500 at each
                level.
            verbose: 0 is silent; 1 says what the ladder costs and shows a progress bar, 2 shows a
                line instead of the bar. The other methods are silent.

        Returns:
            The estimate with its error, or those of all conditions. A ``UserWarning`` is issued
            if one of them is not trusted, or not as precise as asked.

        Raises:
            ValueError: wrong data, an unknown method, noise that does not suit the method, too
                many conditions, too few rows of one, or a ``precision`` for another method than
                the ladder.
        """
        rows = check_rows(data, "data", self.data_shape, dtype=self.row_dtype)
        rows = check_pixels(rows, "data")
        self.check_resolution(rows, "data")
        self._level(sigma)
        c = check_conditions(conditions, self.condition_dim, len(rows), single=True)
        weights = check_weights(sample_weight, len(rows))
        if c is not None:
            c = np.broadcast_to(c, (len(rows), self.condition_dim))
        if weights is not None:
            some = weights > 0
            rows, weights = rows[some], weights[some].astype(np.float64)
            c = None if c is None else c[some]
        rows = self.inside(tf.constant(rows)).numpy()
        self.cap_if_many_entries(rows, seed)
        self._follow_parts()
        settings = self.noise, method, sigma, samples, moves, seed
        self._warn_of_low_noise(rows)
        result: LogPartition | LogPartitions
        if c is None:
            result = estimate(self.evaluator, rows, *settings, weights, precision, verbose)
            result = doubted(result, self.caps, rows[0].size)
            self._known_log_z.add(None, result)
        else:
            result = estimate_by_condition(self.at, rows, c, *settings, weights, precision, verbose)
            estimates = tuple(doubted(z, self.caps, rows[0].size) for z in result.estimates)
            result = LogPartitions(result.conditions, estimates)
            for condition, found in zip(result.conditions, estimates, strict=True):
                self._known_log_z.add(condition, found)
        if not result.trusted:
            advice = "train with tfdde.LogUniform noise and use the ladder"
            if isinstance(self.noise, LogUniform):
                advice = "train longer, or give the network more units"
            warnings.warn(
                f"This estimate can't be trusted, so `log_density` stays unnormalised: {result}. "
                f'Try method="annealed", or {advice}.',
                UserWarning,
                stacklevel=2,
            )
        return result

    def given(self, condition: Any) -> DDE:
        """The density at one condition: a ``DDE`` without conditions, with copies of all parts.

        It has everything that a density without conditions has: ``log_partition``,
        ``tfdde.tuning.select_sigma``, saving, export. It keeps the log Z of exactly this
        condition, if there is one. Otherwise ``log_partition`` finds it, also at a
        continuous condition: give it rows of this condition or of conditions nearby, which the
        ladder moves to the density at this one. That says nothing about whether the density is
        right there: between and beyond the conditions of the training data it depends on how the
        network interpolates.

        Args:
            condition: one condition, shape (condition_dim,).

        Raises:
            ValueError: the density takes no conditions, or a wrong shape, NaN or infinity.
        """
        dde = DDE(
            fix(self.network, condition, self.condition_dim),
            self.noise,
            self.base and copy_of(self.base),
            self.normalization and copy_of(self.normalization),
            self.antithetic,
            self.time_weight,
            self.seed,
        )
        for estimate_there in self._known_log_z.of_condition(condition):
            dde._known_log_z.add(None, estimate_there)
        dde.level_reached = self.level_reached
        return dde

    # Saving and loading.

    def get_config(self) -> dict[str, Any]:
        return {
            "network": keras.saving.serialize_keras_object(self.network),
            "noise": keras.saving.serialize_keras_object(self.noise),
            "base": keras.saving.serialize_keras_object(self.base),
            "normalization": keras.saving.serialize_keras_object(self.normalization),
            "antithetic": self.antithetic,
            "time_weight": self.time_weight,
            "caps": self.caps,
            "log_z": self._known_log_z.get_config(),
            "level_reached": self.level_reached if self.decaying else None,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DDE:
        config = dict(config)
        log_z = config.pop("log_z", None) or _log_z_of_earlier_versions(config)
        level_reached = config.pop("level_reached", None)
        caps = config.pop("caps", None)
        for name in ("network", "noise", "base", "normalization"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        dde = cls(**config)
        dde._level_reached = level_reached
        dde.caps = caps and tuple(caps)
        dde._known_log_z.restore(log_z)
        return dde

    def get_compile_config(self) -> dict[str, Any] | None:
        return self._compile_config if self.compiled else None

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = dict(config)
        config["optimizer"] = keras.optimizers.deserialize(config["optimizer"])
        self.compile(**config)


def copy_of(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A layer with the same numbers in variables of its own."""
    copy = type(layer).from_config(layer.get_config())
    if not copy.built:
        copy.build(layer.get_build_config()["input_shape"])
    copy.set_weights(layer.get_weights())
    if isinstance(copy, keras.layers.Normalization):
        copy.finalize_state()
    return copy


def _log_z_of_earlier_versions(config: dict[str, Any]) -> dict[str, Any]:
    """What ``KnownLogZ.restore`` takes, from the config of a file that has no fingerprint."""
    partition, partitions = (config.pop(name, None) for name in ("partition", "partitions"))
    estimates = [[None, partition]] if partition else []
    if partitions:
        found = keras.saving.deserialize_keras_object(partitions)
        serialized = map(keras.saving.serialize_keras_object, found.estimates)
        estimates += [list(pair) for pair in zip(found.conditions, serialized, strict=True)]
    return {"weights": None, "estimates": estimates}


def in_chunks(function: Callable[..., tf.Tensor], columns: list[Any]) -> tf.Tensor:
    """``function`` of ``columns``: arrays some thousand rows at a time, tensors in one call."""
    if any(tf.is_tensor(column) for column in columns):
        return function(*(tf.convert_to_tensor(column) for column in columns))
    starts = range(0, max(len(columns[0]), 1), CHUNK)
    chunks = [function(*(tf.constant(c[i : i + CHUNK]) for c in columns)) for i in starts]
    return chunks[0] if len(chunks) == 1 else tf.concat(chunks, axis=0)
