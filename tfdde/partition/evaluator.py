"""A log-density s compiled for NumPy rows, and the Gaussian of blurred data."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import tensorflow as tf

from tfdde.partition.hmc import Moves

LogDensity = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
CHUNK = 5_000  # rows of one evaluation of s


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
