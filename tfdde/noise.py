"""Where a training step takes its noise level sigma from.

``Constant`` is the paper's setting; ``Decay`` moves the one level down while
training runs (the paper's tabular experiments).  A noise object answers two
questions: which sigma does iteration ``k`` use (``at``), and at which sigma is
the finished density to be read (``sigma``).
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import keras
import tensorflow as tf


def check_sigma(value: Any, name: str = "sigma") -> float:
    """Return ``value`` as a float, or raise ValueError unless it is finite and > 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"`{name}` must be a positive number, got {value!r}.")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"`{name}` must be a finite number > 0, got {value!r}.")
    return float(value)


@keras.saving.register_keras_serializable(package="tfdde")
class Constant:
    """One noise level for the whole training, as in the paper.

    Args:
        sigma: standard deviation of the Gaussian noise, in the units of the data.

    Raises:
        ValueError: ``sigma`` is not a finite number > 0.
    """

    def __init__(self, sigma: float):
        self.sigma = check_sigma(sigma)

    def at(self, iteration: tf.Tensor) -> tf.Tensor:
        """Sigma at training iteration ``iteration``: a float32 scalar."""
        del iteration
        return tf.constant(self.sigma, tf.float32)

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
        self.initial = check_sigma(initial, "initial")
        self.final = check_sigma(final, "final")
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

    def at(self, iteration: tf.Tensor) -> tf.Tensor:
        """Sigma at training iteration ``iteration``: a float32 scalar."""
        power = tf.cast(iteration // self.decay_steps, tf.float32)
        # In logarithms: rate**power overflows float32 for a long training.
        log_sigma = math.log(self.initial) - power * math.log(self.rate)
        return tf.exp(tf.maximum(log_sigma, math.log(self.final)))

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


Noise = Constant | Decay
