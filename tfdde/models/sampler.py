"""x = g(z): a network that makes samples of latents, and the two densities that judge them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.models.candidates import Candidates, Draws, draws, gumbel, with_largest_value
from tfdde.models.dde import DDE
from tfdde.models.trainer import Trainer
from tfdde.networks.check_network import check_network, condition_width
from tfdde.noise import check_level
from tfdde.utils import random
from tfdde.utils.checks import check_integer, to_conditions, to_rows
from tfdde.utils.random import Purpose


class Sampler(Trainer):
    """What ``Generator`` is used for once it is trained; its arguments are those of that."""

    def __init__(
        self,
        generator: keras.Model,
        data_dde: DDE,
        generated_dde: DDE,
        latent_dim: int,
        relative: bool,
        seed: int | None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.relative = bool(relative)
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
        self._check_densities(data_dde, generated_dde)
        self.data_dde = data_dde
        self.generated_dde = generated_dde
        self._traced_with = self.parts_in_traces()

    def _check_densities(self, data_dde: DDE, generated_dde: DDE) -> None:
        for name, dde in (("data_dde", data_dde), ("generated_dde", generated_dde)):
            if not isinstance(dde, DDE):
                raise ValueError(f"`{name}` must be a tfdde.DDE, got {dde!r}.")
        if data_dde is generated_dde or data_dde.network is generated_dde.network:
            raise ValueError(
                "`generated_dde` must be another DDE than `data_dde`, with its own network."
            )
        if data_dde.base is not None and data_dde.base is generated_dde.base:
            raise ValueError(
                "`generated_dde` must have a `base` of its own, since Keras saves a layer in one "
                "place only: make another tfdde.GaussianBase and adapt it to the same data."
            )
        for name, dde in (("data_dde", data_dde), ("generated_dde", generated_dde)):
            if dde.data_shape != self.data_shape:
                raise ValueError(
                    f"`{name}` must take rows of the generator's shape {self.data_shape}, "
                    f"got {dde.data_shape}."
                )
            if dde.condition_dim != self.condition_dim:
                raise ValueError(
                    f"`{name}` must take conditions of {self.condition_dim} entries, as "
                    f"`generator` does, got one that takes {dde.condition_dim}."
                )
            if dde.normalization is not None:
                raise ValueError(
                    f"`{name}` must have no `normalization`: a generator makes rows in the units "
                    "that its densities see; standardise the data beforehand."
                )
        if data_dde.noise.levels != generated_dde.noise.levels:
            raise ValueError(
                "`data_dde` and `generated_dde` must have the same noise level, or range of "
                f"levels, got {data_dde.noise!r} and {generated_dde.noise!r}."
            )

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

    def sample_from_candidates(
        self,
        n: int,
        candidates: int = 8,
        seed: int | None = None,
        *,
        sigma: float | None = None,
        conditions: Any = None,
    ) -> tf.Tensor:
        """``n`` samples, each chosen from several by the log-ratio that was learned.

        Sampling-importance-resampling (Rubin 1987; with a discriminator, Azadi et al. 2019): of
        ``candidates`` samples g(z), one is taken with probability in proportion to
        exp(s_p - s_q) at g(z) + eta. With many candidates and an exact s_q - s_p, g(z) + eta is
        then distributed as noisy data. It takes ``candidates`` times as long as ``sample``.

        >>> def density():
        ...     network = tfdde.networks.residual_mlp(2, width=16, depth=2)
        ...     return tfdde.DDE(network, tfdde.Constant(0.5))
        >>> network = tfdde.networks.residual_mlp(3, width=16, depth=2, output_shape=2)
        >>> generator = tfdde.Generator(network, density(), density(), latent_dim=3)
        >>> generator.sample_from_candidates(64, candidates=4, seed=1).shape
        TensorShape([64, 2])

        Args:
            n, seed, conditions: as for ``sample``.
            candidates: number of samples that one is chosen from; one candidate is ``sample``'s.
            sigma: noise level at which they are compared. By default the geometric mean of the
                lowest and the highest level.

        Returns:
            float32 tensor, shape (n, *data_shape).

        Raises:
            ValueError: as for ``sample``, or ``candidates`` < 1, or a sigma that was not trained.
        """
        count, fixed_seed, *condition = self._checked(n, seed, conditions)
        number, level = self.check_candidates(candidates, sigma)
        if number == 1:  # there is no choice, for which s_p and s_q would be computed
            return self._sample(count, fixed_seed, *condition)
        parts = self.parts_in_traces()
        choice = tf.constant(number), tf.constant(level, tf.float32)
        return self._sample_from_candidates(parts, count, fixed_seed, *choice, *condition)

    def parts_in_traces(self) -> tuple[Any, ...]:
        return self.data_dde.parts_in_traces(), self.generated_dde.parts_in_traces()

    def check_candidates(self, number: int = 8, sigma: float | None = None) -> Candidates:
        """``candidates`` and ``sigma`` of ``sample_from_candidates``, checked and with defaults."""
        number = check_integer(number, "candidates")
        low, high = self.data_dde.noise.levels
        if sigma is None:
            sigma = low if low == high else math.sqrt(low * high)
        level = check_level(self.data_dde.noise, sigma)
        decaying = [dde for dde in (self.data_dde, self.generated_dde) if dde.decaying]
        if decaying and number > 1:
            warnings.warn(
                f"Candidates are compared at sigma = {level:g}, but training has only come down to "
                f"{max(dde.level_reached for dde in decaying):.3g}: s_q - s_p has never seen noise "
                f"of {level:g}. Train on until the decay has ended ({self.data_dde.noise!r}).",
                UserWarning,
                stacklevel=3,
            )
        return Candidates(number, level)

    @tf.function(reduce_retracing=True, autograph=False)
    def _sample_from_candidates(
        self,
        parts: tuple[Any, ...],  # what is traced with some serves no others
        n: tf.Tensor,
        seed: tf.Tensor,
        candidates: tf.Tensor,
        sigma: tf.Tensor,
        *condition: tf.Tensor,
    ) -> tf.Tensor:
        numbers = draws(self.latent_dim, self.data_shape, n, seed)
        return self.call(self.choose(numbers, candidates, sigma, *condition), *condition)

    def choose(
        self, numbers: Draws, candidates: Any, sigma: tf.Tensor, *condition: tf.Tensor
    ) -> tf.Tensor:
        """Latents of samples that are chosen from candidates, shape (n, latent_dim).

        Args:
            numbers: the random numbers of n samples.
            candidates: that each is chosen from, an integer or a tensor.
            sigma: level at which they are compared, shape ().
            condition: of a conditional sampler, (n, condition_dim).
        """
        return with_largest_value(
            lambda k: self.candidate(numbers, k, sigma, *condition), numbers.latent(0), candidates
        )

    def candidate(
        self, numbers: Draws, k: Any, sigma: tf.Tensor, *condition: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Latents of candidate ``k``, (n, latent_dim), and the values it is chosen by, (n,).

        The candidate with the largest value is chosen. It is s_p - s_q at g(z) + eta, in nats, with
        Gumbel noise. The arguments are those of ``choose``.
        """
        z = numbers.latent(k)
        y = self.call(z, *condition) + sigma * numbers.noise(k)
        return z, gumbel(numbers.uniform(k)) - self.log_ratio(y, sigma, *condition)

    def log_ratio(self, y: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        """s_q - s_p of noisy rows, in nats up to a constant, shape (batch,)."""
        if self.relative:
            return self.generated_dde.correction(y, sigma, *condition)
        s_q = self.generated_dde.at(y, sigma, *condition)
        return s_q - self.data_dde.at(y, sigma, *condition)

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
