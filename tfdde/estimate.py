"""What every estimate of log Z is made of: the result, a Gaussian to start from, s compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.annealing import Moves

LogDensity = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

TRUSTED_SAMPLES = 200  # the least effective sample size that an estimate is believed with
TRUSTED_ERROR = 1.0  # nats, the largest standard error that it is believed with
QUANTILE = 1.96  # of the standard normal: intervals are of 95 %
CHUNK = 5_000  # rows of one evaluation of s


@keras.saving.register_keras_serializable(package="tfdde")
@dataclasses.dataclass(frozen=True)
class LogPartition:
    """An estimate of log Z = log of the integral of e^s(x, sigma) dx, in nats.

    Attributes:
        value: the estimate.
        standard_error: its standard error.
        lower, upper: interval of 95 %; see the method for what it covers.
        effective_sample_size: how many independent draws the weakest part of it is worth.
        method: "ladder", "importance" or "annealed".
        sigma: the noise level it belongs to.
    """

    value: float
    standard_error: float
    lower: float
    upper: float
    effective_sample_size: float
    method: str
    sigma: float

    @classmethod
    def around(
        cls, value: float, error: float, effective_sample_size: float, method: str, sigma: float
    ) -> LogPartition:
        """An estimate whose interval is that of a normal error."""
        value, error, size = float(value), float(error), float(effective_sample_size)
        half = QUANTILE * error
        return cls(value, error, value - half, value + half, size, method, float(sigma))

    @property
    def trusted(self) -> bool:
        """Whether a log-likelihood may be built on it: enough effective samples, a small error."""
        enough = self.effective_sample_size >= TRUSTED_SAMPLES
        return enough and math.isfinite(self.value) and self.standard_error <= TRUSTED_ERROR

    def __str__(self) -> str:
        trust = "" if self.trusted else ", NOT to be trusted"
        return (
            f"log Z = {self.value:.3f} ± {self.standard_error:.3f} nats "
            f"(95 %: {self.lower:.3f} to {self.upper:.3f}; {self.method}, "
            f"{self.effective_sample_size:.0f} effective samples{trust})"
        )

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LogPartition:
        return cls(**config)


def mean_and_error(values: np.ndarray, log_z_error: float = 0.0) -> tuple[float, float]:
    """Mean over rows, and its standard error with that of log Z in quadrature.

    Args:
        values: of each row, (rows,), at least 2.
        log_z_error: standard error of what all of them share.
    """
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), math.hypot(error, log_z_error)


class Gaussian:
    """N(mean, covariance) of data blurred by N(0, sigma**2 I), in float64."""

    def __init__(self, rows: np.ndarray, sigma: float):
        self.mean = rows.mean(axis=0, dtype=np.float64)
        covariance = np.atleast_2d(np.cov(rows, rowvar=False, dtype=np.float64))
        self.factor = np.linalg.cholesky(covariance + sigma**2 * np.eye(len(self.mean)))
        self.precision = np.linalg.inv(covariance + sigma**2 * np.eye(len(self.mean)))
        self.log_scale = np.log(np.diag(self.factor)).sum()

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Float32 rows (n, d)."""
        z = rng.standard_normal((n, len(self.mean)))
        return (self.mean + z @ self.factor.T).astype(np.float32)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Float64 (rows,), in nats."""
        z = np.linalg.solve(self.factor, (x - self.mean).T)
        constant = self.log_scale + 0.5 * len(self.mean) * math.log(2 * math.pi)
        return -0.5 * np.square(z).sum(axis=0) - constant


class Evaluator:
    """s(x, sigma) of NumPy rows in float64, compiled and in chunks.

    Args:
        log_density: maps x (rows, *shape) and sigma () to s (rows,).
        shape: of one row.
    """

    def __init__(self, log_density: LogDensity, shape: tuple[int, ...]):
        self.shape = tuple(shape)
        self.log_density = log_density
        rows = tf.TensorSpec((None, math.prod(shape)), tf.float32)
        self._compiled = tf.function(
            self.flat, input_signature=[rows, tf.TensorSpec((), "float32")]
        )

    @classmethod
    def of(cls, log_density: LogDensity | Evaluator, shape: tuple[int, ...]) -> Evaluator:
        """That of ``log_density``, which may be one already: then it is not traced again."""
        return log_density if isinstance(log_density, cls) else cls(log_density, shape)

    @cached_property
    def moves(self) -> Moves:
        """Moves under s(., sigma), whose levels are sigma."""
        return Moves(self.flat)

    def flat(self, rows: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """s of flat rows (n, d), as a tensor."""
        return self.log_density(tf.reshape(rows, (-1, *self.shape)), sigma)

    def __call__(self, rows: np.ndarray, sigma: float) -> np.ndarray:
        level = tf.constant(sigma, tf.float32)
        chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
        return np.concatenate([self._compiled(c, level).numpy() for c in chunks]).astype(float)
