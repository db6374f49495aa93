"""x = g(z): a network that makes samples of latents."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.models.trainer import Trainer
from tfdde.networks.check_network import check_network, condition_width
from tfdde.utils import random
from tfdde.utils.checks import check_integer, to_conditions, to_rows
from tfdde.utils.random import Purpose


class Sampler(Trainer):
    """What ``Generator`` is used for once it is trained; its arguments are those of that."""

    def __init__(
        self,
        generator: keras.Model,
        latent_dim: int,
        seed: int | None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.latent_dim = check_integer(latent_dim, "latent_dim")
        self.seed = random.check_seed(seed)
        check_network(generator, "generator")
        self.condition_dim = condition_width(generator)
        latent = (None, self.latent_dim)
        if [tuple(i.shape) for i in generator.inputs[: -1 if self.condition_dim else None]] != [
            latent
        ]:
            raise ValueError(
                f"`generator` must take inputs of shape (None, latent_dim) = {latent}, beside any "
                f"`condition`, got {generator.input_shape}."
            )
        self.data_shape = tuple(generator.output_shape[1:])
        self.generator = generator

    def call(self, z: Any, condition: tf.Tensor | None = None) -> tf.Tensor:
        """g(z) or g(z, condition), shape (batch, *data_shape).

        ``z`` may be the list [z, condition], as in ``predict([z, condition])``.
        """
        if isinstance(z, list | tuple):
            z, condition = z
        x = self.generator(z if condition is None else [z, condition])
        return tf.cast(x, tf.float32)  # the network may compute in bfloat16

    def _latent(self, count: Any, iteration: Any, purpose: Purpose) -> tf.Tensor:
        return random.normal((count, self.latent_dim), self.seed, iteration, purpose)

    def sample(self, n: int, seed: int | None = None, *, conditions: Any = None) -> tf.Tensor:
        """``n`` samples g(z), without noise.

        Args:
            n: number of samples.
            seed: the same seed gives the same samples, also as the first ones of a larger n.
                By default it is drawn.
            conditions: of a conditional sampler, shape (n, condition_dim), or
                (1, condition_dim) for all samples alike.

        Returns:
            float32 tensor, shape (n, *data_shape).

        Raises:
            ValueError: ``n`` or ``seed`` is out of range; conditions for a sampler that takes
                none, none for one that does, or of a wrong shape.
        """
        return self._sample(*self._checked(n, seed, conditions))

    def _checked(self, n: int, seed: int | None, conditions: Any) -> list[tf.Tensor]:
        """``n``, the seed and, if the sampler takes them, the conditions, as tensors."""
        n, seed = check_integer(n, "n", minimum=0), random.check_seed(seed)
        columns = to_conditions(conditions, self.condition_dim, np.empty((n, 0)))
        condition = [tf.convert_to_tensor(column) for column in columns]
        return [tf.constant(n), tf.constant(seed, tf.int64), *condition]

    @tf.function(reduce_retracing=True, autograph=False)
    def _sample(self, n: tf.Tensor, seed: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        return self.call(random.latents(self.latent_dim, n, seed), *condition)

    def decode(self, z: Any, conditions: Any = None) -> tf.Tensor:
        """g(z) for given latents.

        Args:
            z: latents, shape (rows, latent_dim).
            conditions: as for ``sample``.

        Returns:
            float32 tensor, shape (rows, *data_shape).

        Raises:
            ValueError: wrong shape, NaN or infinity.
        """
        z = to_rows(z, "z", (self.latent_dim,))
        columns = z, *to_conditions(conditions, self.condition_dim, z)
        return self._decode(*(tf.convert_to_tensor(column) for column in columns))

    @tf.function(reduce_retracing=True, autograph=False)
    def _decode(self, z: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        return self.call(z, condition)

    def interpolate(self, z0: Any, z1: Any, steps: int, conditions: Any = None) -> tf.Tensor:
        """Samples along the straight line between two latents, both ends included.

        Args:
            z0, z1: latents, shape (latent_dim,).
            steps: number of samples, >= 2.
            conditions: of the samples, as for ``sample``.

        Returns:
            float32 tensor, shape (steps, *data_shape).
        """
        steps = check_integer(steps, "steps", minimum=2)
        ends = [
            to_rows(np.asarray(z)[None], name, (self.latent_dim,))
            for name, z in (("z0", z0), ("z1", z1))
        ]
        weight = tf.linspace(0.0, 1.0, steps)[:, None]
        return self.decode((1.0 - weight) * ends[0] + weight * ends[1], conditions)
