"""Where a training step takes its noise level sigma from.

``Constant`` is the paper's setting; ``Decay`` moves the one level down while
training runs (the paper's tabular experiments); ``LogUniform`` gives every row its own
level, for a density s(x, sigma) of all levels at once.  A noise object answers two
questions: which sigma do the rows of an iteration use (``draw``), and at which sigma is
the finished density to be read (``sigma``).
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfdde.utils import random
from tfdde.utils.checks import check_positive
from tfdde.utils.random import Stream


def check_level(noise: Noise, sigma: float | None) -> float:
    """The level that a density is to be read at: by default ``noise.sigma``, or ValueError."""
    sigma = noise.sigma if sigma is None else check_positive(sigma, "sigma")
    low, high = noise.levels
    if not low <= sigma <= high:
        trained = str(low) if low == high else f"in [{low}, {high}]"
        raise ValueError(
            f"`sigma` must be {trained}, where this density was trained ({noise!r}), got {sigma}."
        )
    return sigma


@keras.saving.register_keras_serializable(package="tfdde")
class Constant:
    """One noise level for the whole training, as in the paper.

    Args:
        sigma: standard deviation of the Gaussian noise, in the units of the data.

    Raises:
        ValueError: ``sigma`` is not a finite number > 0.
    """

    def __init__(self, sigma: float):
        self.sigma = check_positive(sigma, "sigma")

    @property
    def levels(self) -> tuple[float, float]:
        """The lowest and the highest level that the finished density can be read at."""
        return self.sigma, self.sigma

    def at(self, iteration: tf.Tensor) -> tf.Tensor:
        """Sigma at training iteration ``iteration``: a float32 scalar."""
        del iteration
        return tf.constant(self.sigma, tf.float32)

    def draw(self, rows: Any, seed: int, iteration: Any, stream: Stream) -> tf.Tensor:
        """Sigma of all rows at training iteration ``iteration``: a float32 scalar."""
        del rows, seed, stream
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

    Every ``decay_steps`` iterations sigma is divided by ``rate``, until it
    would fall below ``final``, where it stays (the paper's tabular schedule:
    from 0.1 divided by 1.1 down to 0.05).  The density is that at ``final``.

    Args:
        initial: sigma of the first iteration.
        final: the level that the finished density has, 0 < final <= initial.
        decay_steps: iterations between two divisions.
        rate: the divisor, > 1.

    Raises:
        ValueError: a level is not > 0, ``final`` > ``initial``, ``decay_steps``
            < 1 or ``rate`` <= 1.
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
        """The lowest and the highest level that the finished density can be read at."""
        return self.final, self.final

    def at(self, iteration: tf.Tensor) -> tf.Tensor:
        """Sigma at training iteration ``iteration``: a float32 scalar."""
        power = tf.cast(iteration // self.decay_steps, tf.float32)
        # In logarithms: rate**power overflows float32 for a long training.
        log_sigma = math.log(self.initial) - power * math.log(self.rate)
        return tf.exp(tf.maximum(log_sigma, math.log(self.final)))

    def draw(self, rows: Any, seed: int, iteration: Any, stream: Stream) -> tf.Tensor:
        """Sigma of all rows at training iteration ``iteration``: a float32 scalar."""
        del rows, seed, stream
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

    The levels of a batch are spread evenly, from a random start.  ``maximum`` should be well
    above the data's own scale, so that data so blurred are nearly Gaussian.

    Args:
        minimum: the lowest sigma, in the units of the data (standardised, if they are).
        maximum: the highest, > ``minimum``.
        sigma: the level that the density is read at by default, by default ``minimum``.

    Raises:
        ValueError: a level is not > 0, ``maximum`` <= ``minimum``, or ``sigma`` is not between.
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
        """The lowest and the highest level that the density can be read at."""
        return self.minimum, self.maximum

    def draw(self, rows: Any, seed: int, iteration: Any, stream: Stream) -> tf.Tensor:
        """Sigma of each of ``rows`` rows, float32 (rows,)."""
        start = random.uniform((), seed, iteration, stream)
        share = tf.cast(tf.range(rows), tf.float32) / tf.cast(rows, tf.float32)
        # Modulo 1, a row's place in the batch says nothing of its level.
        return self.at_share(tf.math.floormod(share + start, 1.0))

    def at_share(self, share: tf.Tensor) -> tf.Tensor:
        """Sigma at a share of the way from ``minimum`` (0) to ``maximum`` (1), in logarithms."""
        low, high = math.log(self.minimum), math.log(self.maximum)
        return tf.exp(low + (high - low) * share)

    def place(self, sigma: tf.Tensor) -> tf.Tensor:
        """Where sigma is between ``minimum`` (-1) and ``maximum`` (1), in logarithms."""
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
