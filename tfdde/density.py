"""The denoising density estimator (DDE), section 3 of the paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdde import random
from tfdde.base import GaussianBase
from tfdde.checks import check_pixels
from tfdde.losses import dde_loss, score_of
from tfdde.noise import Constant, Decay, Noise
from tfdde.random import Stream
from tfdde.training import Trainer, as_batch, global_count, to_rows, update_mean


@keras.saving.register_keras_serializable(package="tfdde")
class DDE(Trainer):
    """Denoising density estimator: a scalar network s(x) = log(p * N(0, sigma**2 I))(x) + C.

    Trained by ``|| grad s(x + eta) + eta / sigma**2 ||**2`` (eq. 10), reported
    multiplied by sigma**2 / n: 1 means "knows nothing", whatever sigma and n are.

    >>> dde = tfdde.DDE(tfdde.networks.residual_mlp(2), noise=tfdde.Constant(0.2))
    >>> dde.compile("adam")
    >>> dde.fit(x, batch_size=2048, epochs=10)
    >>> dde.log_density(x), dde.score(x)

    Args:
        network: Keras model (batch, *shape) -> (batch, 1), twice differentiable almost
            everywhere (no ReLU: its score is a step function).
        noise: where training takes sigma from, ``Constant`` or ``Decay``.
        base: Gaussian that is added to the network's output; by default none, as in the
            paper, and then e^s need not be integrable.
        antithetic: train on each row twice, at x + eta and x - eta.  The two losses' largest
            random term cancels, so this beats twice the rows at the same cost.
        seed: integer in [0, 2**31) that fixes noise and order of the rows; by default
            drawn, which ``keras.utils.set_random_seed`` makes reproducible.

    Raises:
        ValueError: the network is not scalar or not built, or ``noise`` is no noise.
    """

    def __init__(
        self,
        network: keras.Model,
        noise: Noise | None = None,
        base: GaussianBase | None = None,
        antithetic: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        noise = Constant(0.2) if noise is None else noise
        if not isinstance(noise, Constant | Decay):
            raise ValueError(
                f"`noise` must be tfdde.Constant or tfdde.Decay, got {noise!r}; "
                "for one level write tfdde.Constant(sigma)."
            )
        if not isinstance(network, keras.Model) or not network.built:
            raise ValueError(f"`network` must be a built keras.Model, got {network!r}.")
        if network.output_shape != (None, 1):
            raise ValueError(
                "`network` must map a batch to one scalar a row, output shape (None, 1), "
                f"got {network.output_shape}."
            )
        self.data_shape = tuple(network.input_shape[1:])
        if base is not None and (
            not isinstance(base, GaussianBase) or base.row_shape != self.data_shape
        ):
            raise ValueError(
                f"`base` must be a tfdde.GaussianBase({self.data_shape}), like the network's "
                f"input, got {getattr(base, 'row_shape', base)!r}."
            )
        self.network = network
        self.base = base
        self.noise = noise
        self.antithetic = bool(antithetic)
        self.seed = random.check_seed(seed)
        self.loss_tracker = keras.metrics.Mean(name="loss")
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
        self.prepare(self.maybe_jit)

    def prepare(self, compiler: Callable) -> None:
        """Trace loss and gradients through ``compiler``, of the model that trains this one."""
        self._gradients = compiler(self._loss_and_gradients)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """s(x) at the final noise level, shape (batch,)."""
        return self.at(x, tf.constant(self.noise.sigma, tf.float32))

    def at(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """s(x) while training is at noise level ``sigma``, shape (batch,)."""
        s = tf.squeeze(self.network(x), axis=-1)
        # add_n, since the gradient of "+" with a dynamic batch is beyond TFLite.
        return s if self.base is None else tf.add_n([s, self.base(x, sigma)])

    def row_losses(self, x: tf.Tensor, epsilon: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """Eq. 10 for each row, times sigma**2 / n: shape (batch,)."""
        return dde_loss(lambda y: self.at(y, sigma), x, epsilon, sigma)

    def minimize(
        self, x: tf.Tensor, optimizer: Any, sigma: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One step of ``optimizer`` on eq. 10 at noise level ``sigma``, in replica context.

        Returns:
            The sum of the losses of this replica's rows and their number.
        """
        local, total = global_count(x)
        epsilon = random.normal(tf.shape(x), self.seed, optimizer.iterations, Stream.DENSITY_NOISE)
        loss, gradients = self._gradients(x, epsilon, sigma, total)
        optimizer.apply_gradients(zip(gradients, self.network.trainable_variables, strict=True))
        return loss, local

    def _loss_and_gradients(
        self, x: tf.Tensor, epsilon: tf.Tensor, sigma: tf.Tensor, total: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        variables = self.network.trainable_variables
        if self.antithetic:
            x = tf.concat([x, x], axis=0)
            epsilon = tf.concat([epsilon, -epsilon], axis=0)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.row_losses(x, epsilon, sigma))
            if self.antithetic:
                loss /= 2.0
            scaled = loss / total
        return loss, tape.gradient(scaled, variables)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x = as_batch(data, self.data_shape)
        sigma = self.noise.at(tf.convert_to_tensor(self.optimizer.iterations))
        loss, count = self.minimize(x, self.optimizer, sigma)
        update_mean(self.loss_tracker, loss, count)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        x = as_batch(data, self.data_shape)
        # The rows counted so far number the batch, and are back at 0 for each evaluation.
        done = tf.cast(self.loss_tracker.count, tf.int64)
        epsilon = random.normal(tf.shape(x), self.seed, done, Stream.EVALUATION_NOISE)
        loss = self.row_losses(x, epsilon, tf.constant(self.noise.sigma, tf.float32))
        update_mean(self.loss_tracker, tf.reduce_sum(loss), tf.cast(tf.shape(x)[0], tf.float32))
        return {"loss": self.loss_tracker.result()}

    @property
    def metrics(self) -> list:
        return [self.loss_tracker]

    def log_density(self, x: Any) -> tf.Tensor:
        """Unnormalised log-density s(x) = log(p * N(0, sigma**2 I))(x) + C.

        C is one unknown constant of this model: differences between points mean
        something, a single value or another model's does not.

        Args:
            x: array or tensor, shape (rows, *data_shape).

        Returns:
            float32 tensor, shape (rows,), in nats.

        Raises:
            ValueError: wrong rank or width, NaN or infinity, unscaled pixels.
        """
        return self._log_density(self._rows(x))

    def score(self, x: Any) -> tf.Tensor:
        """Gradient of the log-density at each row, in nats per unit of x.

        Args and errors as for ``log_density``.

        Returns:
            float32 tensor, shape of ``x``.
        """
        return self._score(self._rows(x))

    def _rows(self, x: Any) -> tf.Tensor:
        rows = to_rows(x, "x", self.data_shape)
        if not tf.is_tensor(x):
            check_pixels(rows.numpy(), "x", margin=10 * self.noise.sigma)
        return rows

    @tf.function(reduce_retracing=True)
    def _log_density(self, x: tf.Tensor) -> tf.Tensor:
        return self(x)

    @tf.function(reduce_retracing=True)
    def _score(self, x: tf.Tensor) -> tf.Tensor:
        return score_of(self, x)

    def get_config(self) -> dict[str, Any]:
        return {
            "network": keras.saving.serialize_keras_object(self.network),
            "noise": keras.saving.serialize_keras_object(self.noise),
            "base": keras.saving.serialize_keras_object(self.base),
            "antithetic": self.antithetic,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DDE:
        config = dict(config)
        for name in ("network", "noise", "base"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)

    def get_compile_config(self) -> dict[str, Any] | None:
        return self._compile_config if self.compiled else None

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = dict(config)
        config["optimizer"] = keras.optimizers.deserialize(config["optimizer"])
        self.compile(**config)
