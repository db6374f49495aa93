"""The generator, section 4 of the paper: Algorithm 1 as a keras.Model."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde import optimizers
from tfdde.losses import forward_kl_weights, per_row
from tfdde.models import log_ratio
from tfdde.models.dde import DDE
from tfdde.models.sampler import Sampler
from tfdde.models.trainer import (
    add_penalty,
    global_count,
    local_count,
    repeat,
    unscaled,
    update_mean,
    warn_of_underflow,
)
from tfdde.networks.fixed_condition import fix
from tfdde.noise import Decay, LogUniform
from tfdde.utils import random
from tfdde.utils.checks import check_integer
from tfdde.utils.random import Purpose


@keras.saving.register_keras_serializable(package="tfdde")
class Generator(Sampler):
    """One-shot sampler x = g(z), z ~ N(0, I), trained to minimise KL(q~ || p~).

    Here p~ and q~ are the densities of data and of g(z), both blurred by the same
    noise. Each training step first makes ``dde_steps`` updates of the generated DDE s_q on
    fresh g(z), then moves g down the gradient of E[s_q(g(z) + eta) - s_p(g(z) + eta)] with
    both densities held constant (Algorithm 1; its printed "+" is a sign slip). The optimum is
    q = p, not merely q~ = p~.

    >>> def density():
    ...     network = tfdde.networks.residual_mlp(2, width=16, depth=2)
    ...     return tfdde.DDE(network, tfdde.Constant(0.5))
    >>> network = tfdde.networks.residual_mlp(3, width=16, depth=2, output_shape=2)
    >>> generator = tfdde.Generator(network, density(), density(), latent_dim=3, dde_steps=2)
    >>> generator.compile("adam", dde_optimizer="adam", data_optimizer="adam")
    >>> history = generator.fit(x, batch_size=128, verbose=0)
    >>> sorted(history.history)
    ['data_loss', 'dde_loss', 'loss']
    >>> generator.sample(64, seed=1).shape
    TensorShape([64, 2])

    With conditional densities it is a conditional sampler x = g(z, condition). In training s_p,
    s_q and g all see the conditions of the batch's rows: ``generator.fit(x, conditions)``, then
    ``generator.sample(64, conditions=conditions[:64])``.

    Args:
        generator: Keras model (batch, latent_dim) -> (batch, *shape), with a second input
            ``condition`` (batch, k) if the densities take one.
        data_dde: s_p, a ``DDE`` of the data: trained beforehand and frozen, or trained together
            with g if ``compile`` is given a ``data_optimizer``.
        generated_dde: s_q, another ``DDE`` of the same shape and noise level.
        latent_dim: dimensions of z.
        dde_steps: updates of s_q for each update of g.
        data_steps: updates of s_p for each update of g, if s_p is trained together with g.
        relative: let the generated DDE's network learn s_q - s_p instead of s_q. Its error is
            then an error of that small difference only, which is all that the generator sees.
            With a frozen s_p an update of s_q costs about half as much again, and
            ``generated_dde`` by itself is not a density.
        ratio: how a ``relative`` s_q - s_p is learned. "denoising": the generated DDE's own loss
            on s_p + (s_q - s_p), as in the paper. "logistic": ``tfdde.losses.log_ratio_loss``, by
            telling noisy data from noisy samples; it has the same optimum, needs neither s_p nor a
            second derivative, and finds the weights of modes that lie apart.
        forward: share, from 0 to 1, of KL(p~ || q~) in what g minimises; the rest is the paper's
            KL(q~ || p~), whose optimum is the same but which lets go of modes easily. Needs
            ``ratio="logistic"``.
        level_power: with ``LogUniform`` noise, levels are weighted by (sigma / minimum) to this
            power; the optimum is the same.
        one_stage: let one pass through both networks serve the update of s_q - s_p and that of g,
            as in ``tfdde.models.log_ratio.one_stage``: both see the same samples and noise, and a
            step costs less. Needs ``ratio="logistic"`` and ``dde_steps=1``.
        seed: integer in [0, 2**31) that fixes latents and noise; by default drawn.

    Raises:
        ValueError: shapes, conditions or noise levels do not fit together.
    """

    def __init__(
        self,
        generator: keras.Model,
        data_dde: DDE,
        generated_dde: DDE,
        latent_dim: int = 16,
        dde_steps: int = 10,
        data_steps: int = 1,
        relative: bool = False,
        level_power: float = 1.0,
        seed: int | None = None,
        ratio: str = "denoising",
        forward: float = 0.0,
        one_stage: bool = False,
        **kwargs: Any,
    ):
        super().__init__(generator, data_dde, generated_dde, latent_dim, relative, seed, **kwargs)
        self.dde_steps = check_integer(dde_steps, "dde_steps")
        self.data_steps = check_integer(data_steps, "data_steps")
        if not np.isfinite(level_power):
            raise ValueError(f"`level_power` must be a finite number, got {level_power!r}.")
        self.level_power = float(level_power)
        if ratio not in ("denoising", "logistic"):
            raise ValueError(f'`ratio` must be "denoising" or "logistic", got {ratio!r}.')
        if ratio == "logistic" and not relative:
            raise ValueError('`ratio` "logistic" learns s_q - s_p: it needs `relative=True`.')
        if not 0.0 <= forward <= 1.0:
            raise ValueError(f"`forward` must be a number in [0, 1], got {forward!r}.")
        if forward and ratio != "logistic":
            raise ValueError(f'`forward` = {forward!r} needs `ratio="logistic"`.')
        self.ratio, self.forward = ratio, float(forward)
        self.one_stage = bool(one_stage)
        if self.one_stage and (ratio != "logistic" or self.dde_steps != 1):
            raise ValueError(
                '`one_stage` needs `ratio="logistic"` and `dde_steps=1`, got '
                f"{ratio!r} and {dde_steps}."
            )
        if generated_dde.contrast_weight:
            raise ValueError(
                "`generated_dde` must have a `contrast_weight` of 0: the generator trains it "
                f"without samples of its own, got {generated_dde.contrast_weight}."
            )
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.dde_loss_tracker = keras.metrics.Mean(name="dde_loss")
        self.data_loss_tracker = keras.metrics.Mean(name="data_loss")
        self.built = True

    def compile(
        self,
        optimizer: Any = "adam",
        *,
        dde_optimizer: Any = "adam",
        data_optimizer: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: Any = "auto",
    ) -> None:
        """Choose the optimizers.

        Args:
            optimizer: of the generator.
                With ``use_ema`` in one of the optimizers, its network has the averages of its
                weights when ``fit`` ends.
            dde_optimizer: of the generated DDE; it makes ``dde_steps`` updates a step.
            data_optimizer: of the data DDE; it makes ``data_steps`` updates a step on the
                batch. None leaves the data DDE frozen.
            run_eagerly, steps_per_execution, jit_compile: as in ``DDE.compile``.
        """
        super().compile(
            optimizer=optimizers.get(optimizer),
            run_eagerly=run_eagerly,
            steps_per_execution=check_integer(steps_per_execution, "steps_per_execution"),
            jit_compile=jit_compile,
        )
        if data_optimizer is not None and self.data_dde.contrast_weight:
            raise ValueError(
                "`data_optimizer` must be None for a `data_dde` with a `contrast_weight` "
                f"({self.data_dde.contrast_weight}), which only its own `fit` heeds."
            )
        if data_optimizer is None and self.data_dde.decaying:
            warnings.warn(
                f"`data_dde` stays frozen at sigma = {self.data_dde.noise.sigma:g}, but its own "
                f"training has only come down to {self.data_dde.level_reached:.3g}. Train it until "
                f"the decay has ended ({self.data_dde.noise!r}), or pass a `data_optimizer`.",
                UserWarning,
                stacklevel=2,
            )
        self.dde_optimizer = optimizers.get(dde_optimizer)
        self.data_optimizer = None if data_optimizer is None else optimizers.get(data_optimizer)
        self._compile_config = {
            "optimizer": keras.optimizers.serialize(self.optimizer),
            "dde_optimizer": keras.optimizers.serialize(self.dde_optimizer),
            "data_optimizer": self.data_optimizer
            and keras.optimizers.serialize(self.data_optimizer),
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "jit_compile": jit_compile,
        }
        warn_of_underflow(self)
        self.optimizer.build(self.generator.trainable_variables)
        self.dde_optimizer.build(self.generated_dde.network.trainable_variables)
        if self.data_optimizer is not None:
            self.data_optimizer.build(self.data_dde.network.trainable_variables)
        self._jit()

    def _jit(self) -> None:
        reference = self.data_dde.at if self.relative else None

        def generated_gradients(*args: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            return self.generated_dde.loss_and_gradients(*args, reference=reference)

        self._generator_gradients = self.maybe_jit(self._loss_and_gradients)
        self._data_gradients = self.maybe_jit(self.data_dde.loss_and_gradients)
        if self.ratio == "logistic":
            generated_gradients = partial(
                log_ratio.loss_and_gradients,
                self.generated_dde.network,
                self.generated_dde.correction,
            )
        self._generated_gradients = self.maybe_jit(generated_gradients)
        self._one_stage = self.maybe_jit(self._losses_and_gradients)

    def _level(self, rows: tf.Tensor, iteration: Any, purpose: Purpose) -> tf.Tensor:
        """Sigma: one level for each row with ``LogUniform`` noise, otherwise one for all."""
        noise = self.data_dde.noise
        if isinstance(noise, LogUniform):
            return noise.draw(rows, self.seed, iteration, purpose)
        if self.data_optimizer is None:  # a frozen s_p was trained down to its final level
            return tf.constant(noise.sigma, tf.float32)
        return noise.at(tf.convert_to_tensor(self.optimizer.iterations))

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, condition, _ = self.training_data.batch(data)
        rows = tf.shape(x)[0]
        iteration = tf.convert_to_tensor(self.optimizer.iterations)

        def update_data() -> None:
            assert self.data_optimizer is not None
            sigma = self._level(rows, self.data_optimizer.iterations, Purpose.DENSITY_LEVEL)
            loss, count = self.data_dde.minimize(
                self._data_gradients, x, self.data_optimizer, sigma, *condition
            )
            update_mean(self.data_loss_tracker, loss, count)

        def update_generated() -> None:
            updates = self.dde_optimizer.iterations
            z = self._latent(rows, updates, Purpose.LATENT_DENSITY)
            sigma = self._level(rows, updates, Purpose.GENERATED_LEVEL)
            columns = [self.call(z, *condition), sigma, *condition]
            if self.ratio == "logistic":  # the data at the same levels, and then the samples
                first = [x, sigma, *condition]
                columns = [
                    tf.concat([a, b], axis=0) if b.shape.rank else b
                    for a, b in zip(first, columns, strict=True)
                ]
            y, *others = columns
            loss, count = self.generated_dde.minimize(
                self._generated_gradients, y, self.dde_optimizer, *others
            )
            update_mean(self.dde_loss_tracker, loss, count)

        if self.data_optimizer is not None:
            repeat(update_data, self.data_steps)
        if self.one_stage:
            return self._update_both(x, iteration, *condition)
        repeat(update_generated, self.dde_steps)
        count, total = global_count(x)
        z = self._latent(rows, iteration, Purpose.LATENT_GENERATOR)
        epsilon = random.normal(tf.shape(x), self.seed, iteration, Purpose.GENERATOR_NOISE)
        sigma = self._level(rows, iteration, Purpose.GENERATOR_LEVEL)
        total = unscaled(total, self.optimizer)
        loss, gradients = self._generator_gradients(z, epsilon, sigma, total, *condition)
        self.optimizer.apply_gradients(
            zip(gradients, self.generator.trainable_variables, strict=True)
        )
        update_mean(self.loss_tracker, loss, count)
        return {m.name: m.result() for m in self.metrics}

    def _update_both(
        self, x: tf.Tensor, iteration: tf.Tensor, *condition: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Update r and g from one pass: the step of ``one_stage``."""
        rows = tf.shape(x)[0]
        count, total = global_count(x)
        totals = unscaled(total, self.optimizer), unscaled(2.0 * total, self.dde_optimizer)
        z = self._latent(rows, iteration, Purpose.LATENT_GENERATOR)
        shape = tf.concat([[2 * rows], tf.shape(x)[1:]], axis=0)
        epsilon = random.normal(shape, self.seed, iteration, Purpose.GENERATOR_NOISE)
        sigma = self._level(rows, iteration, Purpose.GENERATOR_LEVEL)
        (loss, gradients), (dde_loss, dde_gradients) = self._one_stage(
            x, z, epsilon, sigma, totals, *condition
        )
        network = self.generated_dde.network
        self.dde_optimizer.apply_gradients(
            zip(dde_gradients, network.trainable_variables, strict=True)
        )
        self.optimizer.apply_gradients(
            zip(gradients, self.generator.trainable_variables, strict=True)
        )
        update_mean(self.dde_loss_tracker, dde_loss, 2.0 * count)
        update_mean(self.loss_tracker, loss, count)
        return {m.name: m.result() for m in self.metrics}

    def _loss_and_gradients(
        self,
        z: tf.Tensor,
        epsilon: tf.Tensor,
        sigma: tf.Tensor,
        total: tf.Tensor,
        *condition: tf.Tensor,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        variables = self.generator.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in variables])
            loss = tf.reduce_sum(self._divergence(z, epsilon, sigma, *condition))
            loss = add_penalty(loss, self.generator, local_count(z))
            scaled = loss / total
        return loss, tape.gradient(scaled, variables)

    def _losses_and_gradients(
        self,
        x: tf.Tensor,
        z: tf.Tensor,
        epsilon: tf.Tensor,
        sigma: tf.Tensor,
        totals: tuple[tf.Tensor, tf.Tensor],
        *condition: tf.Tensor,
    ) -> tuple[log_ratio.Loss, log_ratio.Loss]:
        return log_ratio.one_stage(
            (self.generator, self.generated_dde.network),
            lambda: self.call(z, *condition),
            self.generated_dde.correction,
            lambda r: self._weights(r, sigma),
            x,
            epsilon,
            sigma,
            totals,
            *condition,
        )

    def _divergence(
        self, z: tf.Tensor, epsilon: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor
    ) -> tf.Tensor:
        """w (s_q - s_p) at g(z) + eta, in nats up to a constant, shape (batch,)."""
        x = self.call(z, *condition)
        difference = self.log_ratio(x + per_row(sigma, x) * epsilon, sigma, *condition)
        return self._weights(difference, sigma) * difference

    def _weights(self, difference: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """Weights of the samples' s_q - s_p in what g minimises, shape () or (batch,)."""
        weights = tf.ones(())
        if self.forward:
            weights = 1.0 - self.forward + self.forward * forward_kl_weights(difference)
        noise = self.data_dde.noise
        if isinstance(noise, LogUniform):
            # The scores differ by about 1 / sigma, so a power of 1 makes every level pull alike.
            weights *= tf.pow(sigma / noise.minimum, self.level_power)
        return weights

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Mean of w(sigma) (s_q - s_p) on fresh samples, as many as the batch has rows."""
        x, condition, _ = self.training_data.batch(data)
        # The number of rows evaluated so far numbers the batch; each evaluation starts at 0.
        rows_done = tf.cast(self.loss_tracker.count, tf.int64)
        z = self._latent(tf.shape(x)[0], rows_done, Purpose.SAMPLE)
        epsilon = random.normal(tf.shape(x), self.seed, rows_done, Purpose.EVALUATION_NOISE)
        noise = self.data_dde.noise
        sigma = tf.constant(noise.sigma, tf.float32)
        if isinstance(noise, LogUniform):
            sigma = noise.draw(tf.shape(x)[0], self.seed, rows_done, Purpose.EVALUATION_LEVEL)
        loss = tf.reduce_sum(self._divergence(z, epsilon, sigma, *condition))
        loss = add_penalty(loss, self.generator, local_count(x))
        update_mean(self.loss_tracker, loss, local_count(x))
        return {"loss": self.loss_tracker.result()}

    def check_resolution(self, rows: np.ndarray, name: str) -> None:
        self.data_dde.check_resolution(rows, name)

    def trained_parts(self) -> list[tuple[Any, keras.Model, str]]:
        parts = [
            (self.optimizer, self.generator, "generator"),
            (self.dde_optimizer, self.generated_dde.network, "generated_dde.network"),
        ]
        if self.data_optimizer is not None:
            parts.append((self.data_optimizer, self.data_dde.network, "data_dde.network"))
        return parts

    def after_training(self) -> None:
        noise, steps = self.data_dde.noise, self.optimizer.iterations.numpy()
        if isinstance(noise, Decay) and self.data_optimizer is not None and steps:
            for dde in (self.data_dde, self.generated_dde):
                dde.level_reached = float(noise.at(tf.constant(steps - 1)))

    def before_weights_change(self) -> None:
        for dde in (self.data_dde, self.generated_dde):
            dde.before_weights_change()

    @property
    def metrics(self) -> list:
        trackers = [self.loss_tracker, self.dde_loss_tracker]
        if self.compiled and self.data_optimizer is not None:
            trackers.append(self.data_loss_tracker)
        return trackers

    def given(self, condition: Any) -> Generator:
        """The sampler at one condition: a ``Generator`` that takes none, with copied weights.

        Its densities are ``DDE.given`` of this generator's densities.

        Args:
            condition: one condition, shape (condition_dim,).

        Raises:
            ValueError: the sampler takes no conditions, or a wrong shape, NaN or infinity.
        """
        return Generator(
            fix(self.generator, condition, self.condition_dim),
            self.data_dde.given(condition),
            self.generated_dde.given(condition),
            self.latent_dim,
            self.dde_steps,
            self.data_steps,
            self.relative,
            self.level_power,
            self.seed,
            self.ratio,
            self.forward,
            self.one_stage,
        )

    def get_config(self) -> dict[str, Any]:
        parts = ("generator", "data_dde", "generated_dde")
        return {
            **{p: keras.saving.serialize_keras_object(getattr(self, p)) for p in parts},
            "latent_dim": self.latent_dim,
            "dde_steps": self.dde_steps,
            "data_steps": self.data_steps,
            "relative": self.relative,
            "level_power": self.level_power,
            "ratio": self.ratio,
            "forward": self.forward,
            "one_stage": self.one_stage,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Generator:
        config = dict(config)
        for part in ("generator", "data_dde", "generated_dde"):
            config[part] = keras.saving.deserialize_keras_object(config[part])
        return cls(**config)

    def get_compile_config(self) -> dict[str, Any] | None:
        return self._compile_config if self.compiled else None

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = dict(config)
        for name in ("optimizer", "dde_optimizer", "data_optimizer"):
            if config[name] is not None:
                config[name] = keras.optimizers.deserialize(config[name])
        self.compile(**config)
