"""The denoising density estimator (DDE), section 3 of the paper."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.losses import dde_loss, joint_loss, score_of
from tfdde.models.trainer import Trainer, global_count, update_mean
from tfdde.networks import initial_weights
from tfdde.networks.dense import check_scalar
from tfdde.networks.fixed_condition import fix, repeated
from tfdde.networks.gaussian_base import GaussianBase
from tfdde.noise import Constant, LogUniform, Noise, check_level
from tfdde.partition.estimate import estimate, rows_by_condition
from tfdde.partition.evaluator import CHUNK, Evaluator, LogDensity
from tfdde.partition.result import LogPartition, LogPartitions
from tfdde.utils import random
from tfdde.utils.checks import (
    as_batch,
    check_conditions,
    check_pixels,
    check_rows,
    to_conditions,
    to_rows,
)
from tfdde.utils.random import Stream

COMPONENT_ROWS = 50_000  # rows that independent components are taken from


class UnnormalizedWarning(UserWarning):
    """A log-density was returned that is known up to a constant only."""


@keras.saving.register_keras_serializable(package="tfdde")
class DDE(Trainer):
    """Denoising density estimator: a scalar network s(x) = log(p * N(0, sigma**2 I))(x) + C.

    Trained by ``|| grad s(x + eta) + eta / sigma**2 ||**2`` (eq. 10), reported
    multiplied by sigma**2 / n: 1 means "knows nothing", whatever sigma and n are.

    >>> dde = tfdde.DDE(tfdde.networks.residual_mlp(2), noise=tfdde.Constant(0.2))
    >>> dde.compile("adam")
    >>> dde.fit(x, batch_size=2048, epochs=10)
    >>> dde.log_partition(x)
    >>> dde.log_density(x), dde.score(x)

    With ``LogUniform`` noise it is s(x, sigma) of all levels in one: the network has a second
    input ``level`` and sees x centred and scaled by the base at that level.

    >>> network = tfdde.networks.residual_mlp(
    ...     8, 256, 3, activation="silu", levels=True, experts=4
    ... )
    >>> dde = tfdde.DDE(network, noise=tfdde.LogUniform(0.1, 8.0), antithetic=True)
    >>> dde.adapt(x)
    >>> dde.start_at_independent_components(x)

    A network with an input ``condition`` makes it conditional, s(x, condition) = log p(x |
    condition) + C(condition), for labels (one-hot rows, by ``keras.utils.to_categorical``) and
    for continuous conditions.  Noise and gradient are of x alone.

    >>> dde = tfdde.DDE(tfdde.networks.residual_mlp(2, conditions=10), noise=tfdde.Constant(0.2))
    >>> dde.compile("adam")
    >>> dde.fit(x, keras.utils.to_categorical(labels, 10), batch_size=2048, epochs=10)
    >>> dde.score(x, conditions=conditions)
    >>> seven = dde.given(keras.utils.to_categorical(7, 10))
    >>> seven.log_partition(x[labels == 7])

    Args:
        network: Keras model (batch, *shape) -> (batch, 1), twice differentiable almost
            everywhere (no ReLU: its score is a step function).  With ``LogUniform`` noise
            its inputs are x and ``level``, shape (batch, 1), sigma's place from -1 to 1.  A last
            input named ``condition``, shape (batch, k), takes the condition.
        noise: where training takes sigma from, ``Constant``, ``Decay`` or ``LogUniform``.
        base: Gaussian that is added to the network's output; by default none, as in the
            paper, and then e^s need not be integrable; with ``LogUniform`` noise the standard
            normal.  ``adapt`` fits it to data.
        normalization: layer that standardises the data; sigma is then in standardised units,
            and log-density and score are in the data's own, Jacobian included.
        antithetic: train on each row twice, at x + eta and x - eta.  The two losses' largest
            random term cancels, so this beats twice the rows at the same cost.
        time_weight: with ``LogUniform`` noise, the weight of time-score matching
            (``tfdde.losses.joint_loss``) beside that of eq. 10 for one of x's n entries; the loss
            is the weighted mean.
        seed: integer in [0, 2**31) that fixes noise and order of the rows; by default
            drawn, which ``keras.utils.set_random_seed`` makes reproducible.

    Attributes:
        partition: the ``LogPartition`` that ``log_partition`` found, saved with the model, or
            None; training discards it.
        partitions: of a conditional density the ``LogPartitions``, in the same way.
        condition_dim: entries of a condition, 0 for a density without.

    Raises:
        ValueError: the network is not scalar or not built, or ``noise`` is no noise.
    """

    def __init__(
        self,
        network: keras.Model,
        noise: Noise | None = None,
        base: GaussianBase | None = None,
        normalization: keras.layers.Normalization | None = None,
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
        if normalization is not None and not isinstance(normalization, keras.layers.Normalization):
            raise ValueError(
                f"`normalization` must be a keras.layers.Normalization, got {normalization!r}."
            )
        if not (np.isfinite(time_weight) and time_weight >= 0):
            raise ValueError(f"`time_weight` must be a finite number >= 0, got {time_weight!r}.")
        self.network = network
        self.base = base
        self.normalization = normalization
        self.noise = noise
        self.antithetic = bool(antithetic)
        self.time_weight = float(time_weight)
        self.seed = random.check_seed(seed)
        self.partition: LogPartition | None = None
        self.partitions: LogPartitions | None = None
        self.loss_tracker = keras.metrics.Mean(name="loss")
        if normalization is not None and not normalization.built:
            normalization.build((None, *self.data_shape))
        self.built = True

    def adapt(self, x: Any) -> None:
        """Take the means and scales of ``normalization`` and the Gaussian ``base`` from data.

        Call it before ``fit``.

        Args:
            x: array of shape (rows, *data_shape).

        Raises:
            ValueError: wrong shape, NaN or infinity, fewer than two rows, or nothing to adapt.
        """
        if self.normalization is None and self.base is None:
            raise ValueError("There is neither a `normalization` nor a `base` to adapt.")
        rows = check_pixels(check_rows(x, "x", self.data_shape), "x")
        if self.normalization is not None:
            self.normalization.adapt(rows)
        if self.base is not None:
            self.base.adapt(self.inside(tf.constant(rows)).numpy())

    def start_at_independent_components(self, x: Any) -> None:
        """Start the network's first layer at the independent components of the blurred data.

        Worth its second for tables, the more so the more columns.  Call it between ``adapt``
        and ``fit``; see ``tfdde.networks.initial_weights``.

        Args:
            x: array of shape (rows, n).

        Raises:
            ValueError: wrong shape, NaN or infinity, or the network is no ``residual_mlp`` of
                flat rows with at least n units.
            ImportError: scikit-learn is not installed.
        """
        rng = np.random.default_rng(self.seed)
        rows = check_rows(x, "x", self.data_shape)
        rows = rows[rng.permutation(len(rows))[:COMPONENT_ROWS]]
        sigma = self.noise.sigma
        noise = (sigma * rng.standard_normal(rows.shape)).astype(np.float32)
        blurred = self.inside(tf.constant(rows)) + noise
        if isinstance(self.noise, LogUniform):
            assert self.base is not None  # the constructor's default
            blurred = self.base.scaled(blurred, tf.constant(sigma, tf.float32))
        initial_weights.at_independent_components(self.network, blurred.numpy(), self.seed)

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
            jit_compile: compile loss and gradients by XLA ("auto": on a GPU).
        """
        super().compile(
            optimizer=optimizer,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
        )
        self._compile_config = {
            "optimizer": keras.optimizers.serialize(self.optimizer),
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "jit_compile": jit_compile,
        }
        self.optimizer.build(self.network.trainable_variables)
        self._loss_and_gradients = self.maybe_jit(self.loss_and_gradients)

    def call(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """s(x) at the final noise level, in the data's own units, shape (batch,)."""
        given = [] if condition is None else [condition]
        return self._outside(x, tf.constant(self.noise.sigma, tf.float32), *given)

    def inside(self, x: tf.Tensor) -> tf.Tensor:
        """Rows as the density sees them: standardised, if there is a ``normalization``."""
        return x if self.normalization is None else self.normalization(x)

    def correction(self, x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        """The network's part of ``at``, without the base's."""
        if len(condition) != bool(self.condition_dim):
            expected = f"of shape (batch, {self.condition_dim})" if self.condition_dim else "none"
            raise ValueError(f"`condition` must be {expected}, got {condition or None}.")
        if isinstance(self.noise, LogUniform):
            assert self.base is not None  # the constructor's default
            place = self.noise.place(sigma)
            one = sigma.shape.rank == 0
            column = tf.fill((tf.shape(x)[0], 1), place) if one else place[:, None]
            s = self.network([self.base.scaled(x, sigma), column, *condition])
        else:
            s = self.network([x, *condition] if condition else x)
        return tf.squeeze(tf.cast(s, tf.float32), axis=-1)  # it may compute in bfloat16

    def at(self, x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        """s of standardised rows at noise level ``sigma``, () or (batch,): shape (batch,).

        A conditional density takes their ``condition``, (batch, condition_dim), too.
        """
        s = self.correction(x, sigma, *condition)
        # add_n, since the gradient of "+" with a dynamic batch is beyond TFLite.
        return s if self.base is None else tf.add_n([s, self.base(x, sigma)])

    def _outside(self, x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        s = self.at(self.inside(x), sigma, *condition)
        if self.normalization is None:
            return s
        # Of shape (batch, 1), since TFLite lacks the gradient of "+" with a dynamic batch.
        scale = tf.reshape(self.log_scale(), (1,))
        return tf.squeeze(tf.nn.bias_add(tf.reshape(s, (-1, 1)), scale), axis=-1)

    def log_scale(self) -> tf.Tensor:
        """Log of the Jacobian determinant of ``inside``: a scalar."""
        if self.normalization is None:
            return tf.constant(0.0)
        variance = tf.convert_to_tensor(self.normalization.variance)
        each = tf.broadcast_to(variance, (1, *self.data_shape))
        return -tf.reduce_sum(tf.math.log(tf.maximum(tf.sqrt(each), keras.config.epsilon())))

    def row_losses(
        self,
        x: tf.Tensor,
        epsilon: tf.Tensor,
        sigma: tf.Tensor,
        *condition: tf.Tensor,
        under: LogDensity | None = None,
    ) -> tf.Tensor:
        """The loss of each standardised row: eq. 10 times sigma**2 / n, shape (batch,).

        With ``LogUniform`` noise and a ``time_weight``, its weighted mean with that of
        time-score matching.

        Args:
            x: rows, shape (batch, *data_shape).
            epsilon: standard normal noise of the same shape.
            sigma: noise level, shape () or (batch,).
            condition: of the rows, for a conditional density.
            under: log-density of (x, sigma, *condition) that the network is trained to correct,
                instead of the base.
        """

        def log_density(*given: tf.Tensor) -> tf.Tensor:
            return self.at(*given) if under is None else self.correction(*given) + under(*given)

        if isinstance(self.noise, LogUniform) and self.time_weight:
            space, time = joint_loss(
                lambda y, level: log_density(y, level, *condition), x, epsilon, sigma
            )
            n = float(np.prod(self.data_shape))
            return (n * space + self.time_weight * time) / (n + self.time_weight)
        return dde_loss(lambda y: log_density(y, sigma, *condition), x, epsilon, sigma)

    def minimize(
        self,
        loss_and_gradients: Callable,
        x: tf.Tensor,
        optimizer: Any,
        sigma: tf.Tensor,
        *condition: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One step of ``optimizer`` at noise level ``sigma``, in replica context.

        Args:
            loss_and_gradients: the method of that name, as the model that trains this one has
                compiled it.
            x, sigma, condition: as for ``row_losses``.
            optimizer: of the network's weights.

        Returns:
            The sum of the losses of this replica's rows and their number.
        """
        local, total = global_count(x)
        epsilon = random.normal(tf.shape(x), self.seed, optimizer.iterations, Stream.DENSITY_NOISE)
        loss, gradients = loss_and_gradients(x, epsilon, sigma, total, *condition)
        optimizer.apply_gradients(zip(gradients, self.network.trainable_variables, strict=True))
        return loss, local

    def loss_and_gradients(
        self,
        x: tf.Tensor,
        epsilon: tf.Tensor,
        sigma: tf.Tensor,
        total: tf.Tensor,
        *condition: tf.Tensor,
        under: LogDensity | None = None,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The sum of ``row_losses``, and the gradient in the network's weights of its share.

        Args:
            x, epsilon, sigma, condition, under: as for ``row_losses``.
            total: number of rows in all replicas, which the sum is divided by.
        """
        variables = self.network.trainable_variables
        if self.antithetic:
            x = tf.concat([x, x], axis=0)
            epsilon = tf.concat([epsilon, -epsilon], axis=0)
            sigma = tf.concat([sigma, sigma], axis=0) if sigma.shape.rank else sigma
            condition = tuple(tf.concat([c, c], axis=0) for c in condition)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.row_losses(x, epsilon, sigma, *condition, under=under))
            if self.antithetic:
                loss /= 2.0
            scaled = loss / total
        return loss, tape.gradient(scaled, variables)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, *condition = as_batch(data, self.data_shape, self.condition_dim)
        x = self.inside(x)
        iteration = tf.convert_to_tensor(self.optimizer.iterations)
        sigma = self.noise.draw(tf.shape(x)[0], self.seed, iteration, Stream.DENSITY_LEVEL)
        loss, count = self.minimize(self._loss_and_gradients, x, self.optimizer, sigma, *condition)
        update_mean(self.loss_tracker, loss, count)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, *condition = as_batch(data, self.data_shape, self.condition_dim)
        x = self.inside(x)
        # The rows counted so far number the batch, and are back at 0 for each evaluation.
        done = tf.cast(self.loss_tracker.count, tf.int64)
        epsilon = random.normal(tf.shape(x), self.seed, done, Stream.EVALUATION_NOISE)
        if isinstance(self.noise, LogUniform):
            sigma = self.noise.draw(tf.shape(x)[0], self.seed, done, Stream.EVALUATION_LEVEL)
        else:
            sigma = tf.constant(self.noise.sigma, tf.float32)
        loss = self.row_losses(x, epsilon, sigma, *condition)
        update_mean(self.loss_tracker, tf.reduce_sum(loss), tf.cast(tf.shape(x)[0], tf.float32))
        return {"loss": self.loss_tracker.result()}

    def fit(self, x: Any, conditions: Any = None, **kwargs: Any) -> keras.callbacks.History:
        self.partition = self.partitions = None
        return super().fit(x, conditions, **kwargs)

    fit.__doc__ = Trainer.fit.__doc__

    @property
    def metrics(self) -> list:
        return [self.loss_tracker]

    def log_density(
        self,
        x: Any,
        sigma: float | None = None,
        *,
        conditions: Any = None,
        normalized: bool | None = None,
    ) -> tf.Tensor:
        """log(p * N(0, sigma**2 I))(x), with a ``normalization`` in the data's own units.

        Until ``log_partition`` has found a trusted log Z for this sigma it is unnormalised, up
        to one unknown constant of this model: differences between points mean something, a
        single value or another model's does not.  Given conditions, it is log p(x | condition),
        and the unknown constant is another one at each condition: then only differences between
        points at the same condition mean something.

        Args:
            x: array, evaluated some thousand rows at a time, or tensor; (rows, *data_shape).
            sigma: noise level; by default, and without ``LogUniform`` noise always, the one
                that the density is read at.
            conditions: of a conditional density, shape (rows, condition_dim), or
                (1, condition_dim) for all rows alike.
            normalized: True: refuse without a trusted log Z, which conditions must have all.
                False: s itself.  By default normalised if that is possible, otherwise s with an
                ``UnnormalizedWarning``.

        Returns:
            float32 tensor, shape (rows,), in nats.  In a ``tf.function``, where conditions
            can't be looked up beforehand, it is NaN at those without a trusted log Z.

        Raises:
            ValueError: wrong rank or width, NaN or infinity, unscaled pixels, a sigma that was
                not trained, or no trusted log Z where one was asked for; conditions for a
                density that takes none, or none for one that does.
        """
        columns, level = self._columns(x, conditions), check_level(self.noise, sigma)
        log_z, where = None, ""
        if normalized is not False:
            log_z, where = self._normalizer(level, *columns[1:])
        if log_z is None and normalized is not False:
            arguments = "data, conditions=conditions" if self.condition_dim else "data"
            message = (
                f"This log-density is unnormalised: no trusted log Z at {where}. Call "
                f"`log_partition({arguments})` first, or ask for s itself by `normalized=False`."
            )
            if normalized:
                raise ValueError(message)
            warnings.warn(message, UnnormalizedWarning, stacklevel=2)
        sigma_ = tf.constant(level, tf.float32)
        s = in_chunks(lambda x, *c: self._log_density(x, sigma_, *c), columns)
        return s if log_z is None else s - tf.cast(log_z, tf.float32)

    def score(self, x: Any, sigma: float | None = None, *, conditions: Any = None) -> tf.Tensor:
        """Gradient of the log-density at each row, in nats per unit of x.

        Args and errors as for ``log_density``.

        Returns:
            float32 tensor, shape of ``x``.
        """
        level = tf.constant(check_level(self.noise, sigma), tf.float32)
        columns = self._columns(x, conditions)
        return in_chunks(lambda x, *c: self._score(x, level, *c), columns)

    def anomaly_score(self, x: Any, *, conditions: Any = None) -> tf.Tensor:
        """-log-density, the higher the stranger; up to a constant if there is no trusted log Z.

        Of a conditional density that constant would be another one at each condition, so there
        it must have a trusted log Z at each.

        Args and errors as for ``log_density``.

        Returns:
            float32 tensor, shape (rows,), in nats.
        """
        known = True if self.condition_dim else self.normalized
        return -self.log_density(x, conditions=conditions, normalized=known)

    def anomaly_threshold(
        self, x: Any, contamination: float = 0.1, *, conditions: Any = None
    ) -> float:
        """The anomaly score that a share ``contamination`` of the rows ``x`` exceeds.

        Args:
            x: array of normal and abnormal rows as they come, shape (rows, *data_shape).
            contamination: share of abnormal rows, in (0, 0.5], as in scikit-learn.
            conditions: as for ``log_density``.

        Raises:
            ValueError: as ``log_density``, or a share outside (0, 0.5].
        """
        if not 0 < contamination <= 0.5:
            raise ValueError(f"`contamination` must be in (0, 0.5], got {contamination!r}.")
        scores = self.anomaly_score(x, conditions=conditions).numpy()
        return float(np.quantile(scores, 1.0 - contamination))

    @property
    def normalized(self) -> bool:
        """Whether ``log_density`` at its default sigma has a trusted log Z to subtract.

        Of a conditional density: at each condition that ``log_partition`` was asked for.
        """
        if not self.condition_dim:
            return self._normalizer(self.noise.sigma)[0] is not None
        found = self.partitions
        if found is None or not found.trusted:
            return False
        return {each.sigma for each in found.estimates} == {self.noise.sigma}

    def _normalizer(self, sigma: float, conditions: Any = None) -> tuple[Any, str]:
        """A trusted log Z, or None, and what for: a number, or one for each row of conditions."""
        where = f"sigma = {sigma:g}"
        if conditions is None:
            found = self.partition
            return found.value if found and found.trusted and found.sigma == sigma else None, where
        known = self.partitions
        if known is None:
            return None, f"{where} and any condition"
        log_z = in_chunks(lambda c: known.values(c, sigma), [conditions])
        if tf.executing_eagerly():  # otherwise rows without a log Z become NaN
            unknown = np.flatnonzero(np.isnan(log_z))
            if len(unknown):
                return None, f"{where} and condition {np.asarray(conditions)[unknown[0]].tolist()}"
        return log_z, where

    def _columns(self, x: Any, conditions: Any) -> list[Any]:
        """The rows and, if there are any, their conditions: arrays, or tensors as they came."""
        rows = to_rows(x, "x", self.data_shape)
        if not tf.is_tensor(x):
            check_pixels(rows, "x", margin=10 * self.noise.sigma)
        return [rows, *to_conditions(conditions, self.condition_dim, rows)]

    @tf.function(reduce_retracing=True)
    def _log_density(self, x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        return self._outside(x, sigma, *condition)

    @tf.function(reduce_retracing=True)
    def _score(self, x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        return score_of(lambda y: self._outside(y, sigma, *condition), x)

    @cached_property
    def evaluator(self) -> Evaluator:
        """s(x, sigma) of rows as ``inside`` makes them, traced once for all estimates of log Z."""
        return Evaluator(self.at, self.data_shape)

    def log_partition(
        self,
        data: Any,
        method: str | None = None,
        *,
        conditions: Any = None,
        sigma: float | None = None,
        samples: int | None = None,
        moves: int = 5,
        seed: int = 0,
    ) -> LogPartition | LogPartitions:
        """Estimate log Z, store it in ``partition`` and so normalise ``log_density``.

        A conditional density has another log Z at each condition: here they are found one by
        one for the distinct rows of ``conditions``, say for labels, each from the data of that
        condition, and stored in ``partitions``.  Continuous conditions hardly ever come twice;
        ``given`` normalises at one of them.

        Args:
            data: array of shape (rows, *data_shape), better not the training data.
            method: "ladder" (needs ``LogUniform`` noise, and is then the default), "importance"
                (the default otherwise) or "annealed"; see ``tfdde.partition``.
            conditions: of the rows, for a conditional density: array of shape
                (rows, condition_dim), or (1, condition_dim) for all rows alike; at most 100
                distinct ones, with 100 rows or more of each.
            sigma: noise level, by default the one that the density is read at.
            samples: at each level; by default 10,000 for the ladder, 50,000 for importance
                sampling, 5,000 each way for annealing.
            moves: Hamiltonian moves at each level of "ladder" and "annealed".
            seed: of the samples.

        Returns:
            The estimate with its error, or those of all conditions.  A ``UserWarning`` says so
            if one can't be trusted.

        Raises:
            ValueError: wrong data or unknown method, the noise does not suit the method, or too
                many conditions or too few rows of one.
        """
        rows = check_pixels(check_rows(data, "data", self.data_shape), "data")
        c = check_conditions(conditions, self.condition_dim, len(rows), single=True)
        rows = self.inside(tf.constant(rows)).numpy()
        settings = self.noise, method, sigma, samples, moves, seed
        found: LogPartition | LogPartitions
        if c is None:
            found = self.partition = estimate(self.evaluator, rows, *settings)
        else:
            estimates = {}
            c = np.broadcast_to(c, (len(rows), self.condition_dim))
            for condition, those in rows_by_condition(rows, c):

                def at(x: tf.Tensor, sigma: tf.Tensor, condition: Any = condition) -> tf.Tensor:
                    return self.at(x, sigma, repeated(condition, x))

                estimates[condition] = estimate(at, those, *settings)
            found = LogPartitions(tuple(estimates), tuple(estimates.values()))
            self.partitions = found
        if not found.trusted:
            advice = "train with tfdde.LogUniform noise and use the ladder"
            if isinstance(self.noise, LogUniform):
                advice = "train longer, or give the network more units"
            warnings.warn(
                f"This estimate can't be trusted, so `log_density` stays unnormalised: {found}. "
                f'Try method="annealed", or {advice}.',
                UserWarning,
                stacklevel=2,
            )
        return found

    def given(self, condition: Any) -> DDE:
        """The density at one condition: a ``DDE`` without conditions, with a copy of the weights.

        It has all that such a density has: ``log_partition``, ``tfdde.tuning.select_sigma``,
        saving, export.  Its log Z is that of ``partitions`` at the very condition, if there is
        one.  Otherwise ``log_partition`` finds it, at continuous conditions too: it takes rows
        of the condition, or of conditions nearby, for the ladder moves them to the density at
        this one.  It does not tell whether the density is right there: between and beyond the
        conditions of the training data, that is up to how the network goes on.

        Args:
            condition: one condition, shape (condition_dim,).

        Raises:
            ValueError: the density takes no conditions, or a wrong shape, NaN or infinity.
        """
        dde = DDE(
            fix(self.network, condition, self.condition_dim),
            self.noise,
            self.base,
            self.normalization,
            self.antithetic,
            self.time_weight,
            self.seed,
        )
        dde.partition = self.partitions.of(condition) if self.partitions else None
        return dde

    def get_config(self) -> dict[str, Any]:
        return {
            "network": keras.saving.serialize_keras_object(self.network),
            "noise": keras.saving.serialize_keras_object(self.noise),
            "base": keras.saving.serialize_keras_object(self.base),
            "normalization": keras.saving.serialize_keras_object(self.normalization),
            "antithetic": self.antithetic,
            "time_weight": self.time_weight,
            "partition": keras.saving.serialize_keras_object(self.partition),
            "partitions": keras.saving.serialize_keras_object(self.partitions),
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DDE:
        config = dict(config)
        config.setdefault("partitions", None)  # files of before there were conditions
        for name in ("network", "noise", "base", "normalization", "partition", "partitions"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        found = {name: config.pop(name) for name in ("partition", "partitions")}
        dde = cls(**config)
        dde.partition, dde.partitions = found["partition"], found["partitions"]
        return dde

    def get_compile_config(self) -> dict[str, Any] | None:
        return self._compile_config if self.compiled else None

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = dict(config)
        config["optimizer"] = keras.optimizers.deserialize(config["optimizer"])
        self.compile(**config)


def in_chunks(function: Callable[..., tf.Tensor], columns: list[Any]) -> tf.Tensor:
    """``function`` of ``columns``: arrays a few thousand rows at a time, tensors in one."""
    if any(tf.is_tensor(column) for column in columns):
        return function(*(tf.convert_to_tensor(column) for column in columns))
    starts = range(0, max(len(columns[0]), 1), CHUNK)
    chunks = [function(*(tf.constant(c[i : i + CHUNK]) for c in columns)) for i in starts]
    return chunks[0] if len(chunks) == 1 else tf.concat(chunks, axis=0)
