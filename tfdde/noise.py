"""Where a training step takes its noise level sigma from.

``Constant`` is the paper's setting. ``Decay`` lowers the one level while training runs, as in
the paper's tabular experiments. ``LogUniform`` gives every row its own level, for a density
s(x, sigma) of all levels at once. A noise object answers two questions: which sigma the rows of
an iteration use (``draw``), and at which sigma the finished density is read (``sigma``).
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfdde.utils import random
from tfdde.utils.checks import check_positive
from tfdde.utils.random import Purpose


def check_level(noise: Noise, sigma: float | None, name: str = "sigma") -> float:
    """Return the level to read a density at, by default ``noise.sigma``.

    Args:
        noise: of the density.
        sigma: the user's argument.
        name: of the argument.

    Raises:
        ValueError: ``sigma`` is not a number, or not a level that the density was trained at.
    """
    sigma = noise.sigma if sigma is None else check_positive(sigma, name)
    low, high = noise.levels
    if not low <= sigma <= high:
        trained = str(low) if low == high else f"in [{low}, {high}]"
        raise ValueError(
            f"`{name}` must be {trained}, where this density was trained ({noise!r}), got {sigma}."
        )
    return sigma


def between_levels(values: Any, place: tf.Tensor) -> tf.Tensor:
    """Interpolate the values of some noise levels, and keep the outermost beyond them.

    >>> tfdde.noise.between_levels([1.0, 3.0, 7.0], tf.constant([-1.0, 0.5, 2.0])).numpy().tolist()
    [1.0, 5.0, 7.0]

    Args:
        values: of levels from the lowest to the highest, equally far apart in log sigma, (levels,).
        place: of the level that is asked for, from -1 to 1 (``LogUniform.place``), () or (batch,).

    Returns:
        float32 of the shape of ``place``.
    """
    values = tf.convert_to_tensor(values, tf.float32)
    count = int(values.shape[0])
    steps = (tf.clip_by_value(place, -1.0, 1.0) + 1.0) * (0.5 * (count - 1))
    shares = tf.nn.relu(1.0 - tf.abs(steps[..., None] - tf.range(count, dtype=tf.float32)))
    return tf.reduce_sum(shares * values, axis=-1)


@keras.saving.register_keras_serializable(package="tfdde")
class Constant:
    """One noise level for the whole training, as in the paper.

    >>> noise = tfdde.Constant(0.2)
    >>> noise.sigma, noise.levels
    (0.2, (0.2, 0.2))

    Args:
        sigma: standard deviation of the Gaussian noise, in the units of the data.

    Raises:
        ValueError: ``sigma`` is not a finite number > 0.
    """

    def __init__(self, sigma: float):
        self.sigma = check_positive(sigma, "sigma")

    @property
    def levels(self) -> tuple[float, float]:
        """The lowest and the highest level at which the finished density can be read."""
        return self.sigma, self.sigma

    def at(self, iteration: tf.Tensor) -> tf.Tensor:
        """Sigma at training iteration ``iteration``: a float32 scalar."""
        del iteration
        return tf.constant(self.sigma, tf.float32)

    def draw(self, rows: Any, seed: int, iteration: Any, purpose: Purpose) -> tf.Tensor:
        """Sigma of all rows at training iteration ``iteration``: a float32 scalar."""
        del rows, seed, purpose
        return self.at(iteration)

    def get_config(self) -> dict[str, Any]:
        return {"sigma": self.sigma}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Constant:
        return cls(**config)

    def __repr__(self) -> str:
        return f"Constant(sigma={self.sigma})"


@keras.saving.register_keras_serializable(package="tfdde")
class Decay:
    """One noise level that falls from ``initial`` to ``final`` in steps.

    Every ``decay_steps`` iterations sigma is divided by ``rate``, until it would fall below
    ``final``, where it stays. The paper's tabular schedule divides 0.1 by 1.1 down to 0.05. The
    finished density is the one at ``final``.

    >>> noise = tfdde.Decay(0.1, 0.05, decay_steps=1_000)
    >>> [round(float(noise.at(k)), 4) for k in (0, 999, 1_000, 2_000, 100_000)]
    [0.1, 0.1, 0.0909, 0.0826, 0.05]
    >>> noise.sigma
    0.05

    Args:
        initial: sigma of the first iteration.
        final: sigma of the finished density, 0 < final <= initial.
        decay_steps: iterations between two divisions.
        rate: the divisor, > 1.

    Raises:
        ValueError: a level is not > 0, ``final`` > ``initial``, ``decay_steps`` < 1 or
            ``rate`` <= 1.
    """

    def __init__(self, initial: float, final: float, decay_steps: int, rate: float = 1.1):
        self.initial = check_positive(initial, "initial")
        self.final = check_positive(final, "final")
        if self.final > self.initial:
            raise ValueError(
                f"`final` must not exceed `initial` ({self.initial}), got {self.final}."
            )
        if int(decay_steps) != decay_steps or decay_steps < 1:
            raise ValueError(f"`decay_steps` must be an integer >= 1, got {decay_steps!r}.")
        if not (math.isfinite(rate) and rate > 1):
            raise ValueError(f"`rate` must be a finite number > 1, got {rate!r}.")
        self.decay_steps = int(decay_steps)
        self.rate = float(rate)

    @property
    def sigma(self) -> float:
        """The level of the finished density."""
        return self.final

    @property
    def levels(self) -> tuple[float, float]:
        """The lowest and the highest level at which the finished density can be read."""
        return self.final, self.final

    def at(self, iteration: tf.Tensor) -> tf.Tensor:
        """Sigma at training iteration ``iteration``: a float32 scalar."""
        power = tf.cast(iteration // self.decay_steps, tf.float32)
        # In logarithms: rate**power overflows float32 for a long training.
        log_sigma = math.log(self.initial) - power * math.log(self.rate)
        return tf.exp(tf.maximum(log_sigma, math.log(self.final)))

    def draw(self, rows: Any, seed: int, iteration: Any, purpose: Purpose) -> tf.Tensor:
        """Sigma of all rows at training iteration ``iteration``: a float32 scalar."""
        del rows, seed, purpose
        return self.at(iteration)

    def get_config(self) -> dict[str, Any]:
        return {
            "initial": self.initial,
            "final": self.final,
            "decay_steps": self.decay_steps,
            "rate": self.rate,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Decay:
        return cls(**config)

    def __repr__(self) -> str:
        return (
            f"Decay(initial={self.initial}, final={self.final}, "
            f"decay_steps={self.decay_steps}, rate={self.rate})"
        )


@keras.saving.register_keras_serializable(package="tfdde")
class LogUniform:
    """A noise level for each row, log-uniform between two: for s(x, sigma) at every level.

    The levels of a batch are spread evenly, from a random start. ``maximum`` should be well
    above the data's own scale, so that the data with this noise are nearly Gaussian.

    >>> noise = tfdde.LogUniform(0.1, 10.0)
    >>> noise.sigma, noise.levels
    (0.1, (0.1, 10.0))
    >>> [round(float(noise.place(tf.constant(sigma))), 3) for sigma in (0.1, 10.0)]
    [-1.0, 1.0]

    Args:
        minimum: the lowest sigma, in the units of the data, or in standardised units if the
            density has a ``normalization``.
        maximum: the highest sigma, > ``minimum``.
        sigma: the level that the density is read at unless another is asked for; by default
            ``minimum``.

    Raises:
        ValueError: a level is not > 0, ``maximum`` <= ``minimum``, or ``sigma`` is not between
            the two.
    """

    def __init__(self, minimum: float, maximum: float, sigma: float | None = None):
        self.minimum = check_positive(minimum, "minimum")
        self.maximum = check_positive(maximum, "maximum")
        if self.maximum <= self.minimum:
            raise ValueError(f"`maximum` must exceed `minimum` ({self.minimum}), got {maximum}.")
        self.sigma = self.minimum
        self.sigma = check_level(self, sigma)

    @property
    def levels(self) -> tuple[float, float]:
        """The lowest and the highest level at which the density can be read."""
        return self.minimum, self.maximum

    def draw(self, rows: Any, seed: int, iteration: Any, purpose: Purpose) -> tf.Tensor:
        """Sigma of each of ``rows`` rows at training iteration ``iteration``: float32 (rows,)."""
        start = random.uniform((), seed, iteration, purpose)
        share = tf.cast(tf.range(rows), tf.float32) / tf.cast(rows, tf.float32)
        # Modulo 1, so that a row's position in the batch does not determine its level.
        return self.at_share(tf.math.floormod(share + start, 1.0))

    def at_share(self, share: tf.Tensor) -> tf.Tensor:
        """Sigma for a share from 0 (``minimum``) to 1 (``maximum``), linear in log sigma."""
        low, high = math.log(self.minimum), math.log(self.maximum)
        return tf.exp(low + (high - low) * share)

    def place(self, sigma: tf.Tensor) -> tf.Tensor:
        """Position of sigma from -1 (``minimum``) to 1 (``maximum``), linear in log sigma."""
        low, high = math.log(self.minimum), math.log(self.maximum)
        return (2.0 * tf.math.log(sigma) - (low + high)) / (high - low)

    def get_config(self) -> dict[str, Any]:
        return {"minimum": self.minimum, "maximum": self.maximum, "sigma": self.sigma}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LogUniform:
        return cls(**config)

    def __repr__(self) -> str:
        level = f", sigma={self.sigma}" if self.sigma != self.minimum else ""
        return f"LogUniform(minimum={self.minimum}, maximum={self.maximum}{level})"


Noise = Constant | Decay | LogUniform
