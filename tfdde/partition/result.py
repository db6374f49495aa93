"""Estimates of log Z with their errors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.utils.statistics import QUANTILE

TRUSTED_SAMPLES = 200  # the smallest effective sample size of a trusted estimate
TRUSTED_ERROR = 1.0  # nats, the largest standard error of a trusted estimate


@keras.saving.register_keras_serializable(package="tfdde")
@dataclasses.dataclass(frozen=True)
class LogPartition:
    """An estimate of log Z = log of the integral of e^s(x, sigma) dx, in nats.

    >>> estimate = tfdde.LogPartition(1.0, 0.01, 0.98, 1.02, 900.0, "ladder", 0.2)
    >>> estimate.trusted
    True
    >>> print(estimate)
    log Z = 1.000 ± 0.010 nats (95 %: 0.980 to 1.020; ladder, 900 effective samples)

    Attributes:
        value: the estimate.
        standard_error: its standard error.
        lower, upper: interval of 95 %; see the method for what it covers.
        effective_sample_size: the number of independent draws that its weakest part is worth.
        method: "ladder", "importance" or "annealed".
        sigma: the noise level that it belongs to.
        doubt: what an independent check found wrong (``tfdde.partition.far_field``), a phrase;
            empty if nothing, and in files from before there was a check.
    """

    value: float
    standard_error: float
    lower: float
    upper: float
    effective_sample_size: float
    method: str
    sigma: float
    doubt: str = ""

    @classmethod
    def around(
        cls, value: float, error: float, effective_sample_size: float, method: str, sigma: float
    ) -> LogPartition:
        """Return an estimate with the interval of a normally distributed error."""
        value, error, size = float(value), float(error), float(effective_sample_size)
        half = QUANTILE * error
        return cls(value, error, value - half, value + half, size, method, float(sigma))

    def widened(self, excess: float) -> LogPartition:
        """Return the estimate with a further, independent error of ``excess`` nats."""
        error = math.hypot(self.standard_error, excess)
        half = QUANTILE * error
        lower, upper = min(self.lower, self.value - half), max(self.upper, self.value + half)
        return dataclasses.replace(self, standard_error=error, lower=lower, upper=upper)

    @property
    def half_width(self) -> float:
        """Half of the interval's width, in nats."""
        return 0.5 * (self.upper - self.lower)

    @property
    def trusted(self) -> bool:
        """Whether a log-likelihood may be built on it.

        It needs enough effective samples, a small error, and no doubt.
        """
        enough = not self.doubt and self.effective_sample_size >= TRUSTED_SAMPLES
        return enough and math.isfinite(self.value) and self.standard_error <= TRUSTED_ERROR

    def __str__(self) -> str:
        trust = "" if self.trusted else ", NOT to be trusted"
        trust += f": {self.doubt}" if self.doubt else ""
        return (
            f"log Z = {self.value:.3f} ± {self.standard_error:.3f} nats "
            f"(95 %: {self.lower:.3f} to {self.upper:.3f}; {self.method}, "
            f"{self.effective_sample_size:.0f} effective samples{trust})"
        )

    def get_config(self) -> dict[str, Any]:
        config = dataclasses.asdict(self)
        if not self.doubt:
            del config["doubt"]  # as in files from before there was a check
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LogPartition:
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfdde")
@dataclasses.dataclass(frozen=True)
class LogPartitions:
    """Estimates of log Z of a conditional density at some conditions, in nats.

    >>> estimate = tfdde.LogPartition(1.0, 0.01, 0.98, 1.02, 900.0, "ladder", 0.2)
    >>> partitions = tfdde.LogPartitions(((0.0, 1.0),), (estimate,))
    >>> partitions.of([0, 1]).value, partitions.of([1, 0])
    (1.0, None)

    Attributes:
        conditions: each a tuple of k numbers that float32 holds exactly.
        estimates: the ``LogPartition`` of each.
    """

    conditions: tuple[tuple[float, ...], ...]
    estimates: tuple[LogPartition, ...]

    @property
    def trusted(self) -> bool:
        """Whether each of them is trusted."""
        return all(estimate.trusted for estimate in self.estimates)

    def of(self, condition: Any) -> LogPartition | None:
        """Return the estimate at exactly this condition, or None."""
        key = tuple(np.asarray(condition, np.float32).tolist())
        return dict(zip(self.conditions, self.estimates, strict=True)).get(key)

    def values(self, conditions: tf.Tensor, sigma: float) -> tf.Tensor:
        """Return log Z of each row's condition at ``sigma``, NaN where there is no trusted one.

        Args:
            conditions: float32 (rows, k).
            sigma: noise level.

        Returns:
            float32 (rows,).
        """
        known = [
            (condition, each.value)
            for condition, each in zip(self.conditions, self.estimates, strict=True)
            if each.trusted and each.sigma == sigma
        ]
        result = tf.fill((tf.shape(conditions)[0],), np.float32(np.nan))
        for condition, value in known:
            here = tf.reduce_all(tf.equal(conditions, tf.constant([condition], tf.float32)), axis=1)
            result = tf.where(here, np.float32(value), result)
        return result

    def __str__(self) -> str:
        pairs = zip(self.conditions, self.estimates, strict=True)
        return "\n".join(f"{list(condition)}: {each}" for condition, each in pairs)

    def get_config(self) -> dict[str, Any]:
        estimates = tuple(estimate.get_config() for estimate in self.estimates)
        return {"conditions": self.conditions, "estimates": estimates}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LogPartitions:
        return cls(
            tuple(tuple(condition) for condition in config["conditions"]),
            tuple(LogPartition(**each) for each in config["estimates"]),
        )
