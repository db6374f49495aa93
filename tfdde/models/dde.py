"""The denoising density estimator (DDE), section 3 of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde import optimizers
from tfdde.losses import dde_loss, joint_loss
from tfdde.models.contrast import Drawn, DrawOwnSamples, OwnSamples
from tfdde.models.normalized_density import NormalizedDensity
from tfdde.models.trainer import (
    add_penalty,
    global_count,
    local_count,
    unscaled,
    update_mean,
    warn_of_underflow,
)
from tfdde.networks.fixed_condition import fix
from tfdde.networks.gaussian_base import GaussianBase
from tfdde.noise import Decay, LogUniform, Noise
from tfdde.partition.evaluator import LogDensity
from tfdde.tables.schema import Schema
from tfdde.utils import random
from tfdde.utils.checks import check_integer
from tfdde.utils.random import Purpose


@keras.saving.register_keras_serializable(package="tfdde")
class DDE(NormalizedDensity):
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
        contrast_weight: with ``LogUniform`` noise and no conditions, the weight, relative to one
            of the n entries of x in eq. 10, of a logistic regression that tells noisy rows from
            samples of the density itself, as it was up to 75 steps ago
            (``tfdde.models.contrast``). With few rows in many columns most of e^s may otherwise
            come to lie far from the rows at low noise, and log Z is refused there. ``fit`` then
            reports ``contrast``, which is 1 if a coin tells as much.

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
        contrast_weight: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(network, noise, base, normalization, seed, **kwargs)
        if not (np.isfinite(time_weight) and time_weight >= 0):
            raise ValueError(f"`time_weight` must be a finite number >= 0, got {time_weight!r}.")
        if not (np.isfinite(contrast_weight) and contrast_weight >= 0):
            raise ValueError(
                f"`contrast_weight` must be a finite number >= 0, got {contrast_weight!r}."
            )
        self.antithetic = bool(antithetic)
        self.time_weight = float(time_weight)
        self.contrast_weight = float(contrast_weight)
        self.own_samples: OwnSamples | None = None
        if self.contrast_weight:
            if self.condition_dim or not isinstance(self.noise, LogUniform):
                kind = "a conditional density" if self.condition_dim else repr(self.noise)
                raise ValueError(
                    "`contrast_weight` must be 0 except for a density of LogUniform noise without "
                    f"conditions, got {contrast_weight!r} for {kind}."
                )
            self.own_samples = OwnSamples(network, self.noise, math.prod(self.data_shape))
        self._saved_whole = False
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.contrast_tracker = keras.metrics.Mean(name="contrast")
        self._rows_evaluated = tf.Variable(
            0,
            dtype=tf.int64,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
        self.built = True

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
        self._jit()

    def _jit(self) -> None:
        self._loss_and_gradients = self.maybe_jit(self.loss_and_gradients)
        self._contrast_and_gradients = self.maybe_jit(self.contrast_and_gradients)

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

    def contrast_and_gradients(
        self,
        x: tf.Tensor,
        epsilon: tf.Tensor,
        sigma: tf.Tensor,
        total: tf.Tensor,
        own: Drawn,
        weights: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The sum of the contrast's losses, and the gradient of its weighted share of the loss.

        Args:
            x, epsilon, sigma, total, weights: as for ``loss_and_gradients``, sigma (batch,).
            own: as many samples, by ``OwnSamples.take``.
        """
        assert self.own_samples is not None
        n = float(math.prod(self.data_shape))
        with tf.GradientTape() as tape:
            losses = self.own_samples.losses(self, x, epsilon, sigma, own)
            loss = tf.reduce_sum(losses if weights is None else losses * weights)
            scaled = self.contrast_weight / (n + self.time_weight) * loss / total
        return loss, tape.gradient(scaled, self.network.trainable_variables)

    def _contrasted(
        self,
        x: tf.Tensor,
        epsilon: tf.Tensor,
        sigma: tf.Tensor,
        total: tf.Tensor,
        **weighted: tf.Tensor,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """``loss_and_gradients`` with the gradient of the contrast, whose mean it keeps."""
        assert self.own_samples is not None
        loss, gradients = self._loss_and_gradients(x, epsilon, sigma, total, **weighted)
        own = self.own_samples.take(tf.shape(x)[0], self.seed, self.optimizer.iterations)
        contrast, more = self._contrast_and_gradients(x, epsilon, sigma, total, own, **weighted)
        update_mean(self.contrast_tracker, contrast, local_count(x, **weighted))
        return loss, [a + b for a, b in zip(gradients, more, strict=True)]

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
        gradients = self._contrasted if self.own_samples else self._loss_and_gradients
        loss, count = self.minimize(gradients, x, self.optimizer, sigma, *condition, **weighted)
        update_mean(self.loss_tracker, loss, count)
        return {m.name: m.result() for m in self.metrics}

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

    @property
    def metrics(self) -> list:
        return [self.loss_tracker, *[self.contrast_tracker] * bool(self.contrast_weight)]

    def own_callbacks(self) -> list[keras.callbacks.Callback]:
        return [DrawOwnSamples()] if self.own_samples else []

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
        dde.take_log_z(self, condition)
        dde.level_reached = self.level_reached
        return dde

    # Saving and loading.

    def get_config(self) -> dict[str, Any]:
        names = ("antithetic", "time_weight", "contrast_weight")
        return super().get_config() | {name: getattr(self, name) for name in names}

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model as Keras does, without the samples of its training."""
        self._saved_whole = True
        try:
            super().save(filepath, *args, **kwargs)
        finally:
            self._saved_whole = False

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Write the samples of the training to a file of weights, so that it can go on."""
        super().save_own_variables(store)
        if self.own_samples is not None and not self._saved_whole:
            for name, value in self.own_samples.state().items():
                store[name] = value

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Read what ``save_own_variables``, or an earlier version, wrote."""
        if self.own_samples is not None and "samples" in store:
            self.own_samples.restore(store)

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
