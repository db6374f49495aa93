"""A log-density s compiled for NumPy rows, and normalised densities to compare it with."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import tensorflow as tf
from scipy.stats import Covariance, multivariate_normal

from tfdde.networks.gaussian_base import GaussianBase
from tfdde.networks.heavy_tails import Mixture, fit_if_heavy_tailed
from tfdde.partition.hmc import Moves

LogDensity = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
CHUNK = 5_000  # rows of one evaluation of s


class Gaussian:
    """N(mean, covariance) of rows plus noise N(0, sigma**2 I), in float64.

    >>> rows = np.random.default_rng(0).normal(size=(1_000, 2))
    >>> gaussian = tfdde.partition.evaluator.Gaussian(rows, sigma=0.5)
    >>> gaussian.sample(3, np.random.default_rng(1)).shape
    (3, 2)
    >>> gaussian.log_density(rows).shape
    (1000,)

    Args:
        rows: (rows, n).
        sigma: noise level.
        weights: of the rows, (rows,), by default equal.
    """

    def __init__(self, rows: np.ndarray, sigma: float, weights: np.ndarray | None = None):
        if weights is None:
            self.mean = rows.mean(axis=0, dtype=np.float64)
        else:
            self.mean = weights @ rows.astype(np.float64) / weights.sum()
        covariance = np.cov(rows, rowvar=False, dtype=np.float64, aweights=weights)
        covariance = np.atleast_2d(covariance) + sigma**2 * np.eye(len(self.mean))
        self.factor = np.linalg.cholesky(covariance)
        self.precision = np.linalg.inv(covariance)
        self._normal = multivariate_normal(self.mean, Covariance.from_cholesky(self.factor))

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return float32 rows (count, n)."""
        z = rng.standard_normal((count, len(self.mean)))
        return (self.mean + z @ self.factor.T).astype(np.float32)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Return the log-density of rows (count, n): float64 (count,), in nats."""
        return np.atleast_1d(self._normal.logpdf(x))


class BlurredMixture:
    """The mixture of heavy-tailed rows (``tfdde.networks.heavy_tails``) plus noise.

    Args:
        mixture: without noise.
        sigma: noise level.
    """

    def __init__(self, mixture: Mixture, sigma: float):
        self._mixture = mixture.with_noise(sigma)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return float32 rows (count, n)."""
        return self._mixture.sample(count, rng).astype(np.float32)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Return the log-density of rows (count, n): float64 (count,), in nats."""
        return self._mixture.log_density(x.astype(np.float64))


class BlurredBase:
    """The base that a density corrects, plus noise: a normalised density at every level.

    Args:
        base: of the density.
        evaluate: of the base.
        sigma: noise level.
    """

    def __init__(self, base: GaussianBase, evaluate: Evaluator, sigma: float):
        self._base, self._evaluate, self._sigma = base, evaluate, sigma

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return float32 rows (count, n)."""
        return self._base.sample(count, self._sigma, rng)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Return the log-density of rows (count, n): float64 (count,), in nats."""
        return self._evaluate(x, self._sigma)


Normalized = Gaussian | BlurredMixture | BlurredBase  # a density that is sampled and known


def reference(
    rows: np.ndarray, sigma: float, weights: np.ndarray | None = None
) -> Gaussian | BlurredMixture:
    """A normalised density that resembles the rows plus noise: a Gaussian, or for heavy tails more.

    Args:
        rows, sigma, weights: as of ``Gaussian``.
    """
    if weights is not None:
        picked = np.random.default_rng(0).choice(len(rows), len(rows), p=weights / weights.sum())
        mixture = fit_if_heavy_tailed(rows[picked])
    else:
        mixture = fit_if_heavy_tailed(rows)
    return BlurredMixture(mixture, sigma) if mixture else Gaussian(rows, sigma, weights)


class Evaluator:
    """s(x, sigma) of NumPy rows in float64, compiled and in chunks.

    >>> s = tfdde.partition.evaluator.Evaluator(lambda x, sigma: -sigma * x[:, 0] ** 2, (1,))
    >>> s(np.array([[1.0], [2.0]], np.float32), 0.5)
    array([-0.5, -2. ])

    Args:
        log_density: maps x (rows, *shape) and sigma () to s (rows,).
        shape: of one row.
        by_row: whether ``log_density`` also takes a sigma for each row, (rows,).
    """

    def __init__(self, log_density: LogDensity, shape: tuple[int, ...], by_row: bool = False):
        self.shape, self._by_row = tuple(shape), by_row
        self.log_density = log_density
        level = tf.TensorSpec((), tf.float32)
        self._moves: dict[tuple[Callable[..., tf.Tensor], int | None], Moves] = {}
        # What is traced for one level, and its gradient, is part of whatever is compiled below.
        self._at_one_level = tf.function(
            log_density,
            input_signature=[tf.TensorSpec((None, *self.shape), tf.float32), level],
            autograph=False,
        )
        self._compiled = tf.function(
            self.flat,
            input_signature=[tf.TensorSpec((None, math.prod(shape)), tf.float32), level],
            autograph=False,
        )

    @classmethod
    def of(cls, log_density: LogDensity | Evaluator, shape: tuple[int, ...]) -> Evaluator:
        """Return ``log_density`` itself if it is an ``Evaluator``: it is traced already."""
        return log_density if isinstance(log_density, cls) else cls(log_density, shape)

    @cached_property
    def moves(self) -> Moves:
        """Moves of samples of s(., sigma), whose levels are sigma, in the shape of the density."""
        return Moves(self.flat, shaped=True)

    def moves_along(self, path: Callable[..., tf.Tensor], groups: int = 1) -> Moves:
        """Moves under ``path(self, rows, level)``, compiled once for each path.

        If s does not take a sigma for each row, they are compiled for each number of groups.

        Args:
            path: a function of a module, so that it is found again; see ``Moves``.
            groups: as of ``Moves``.
        """
        any_groups = None if groups > 1 and self._by_row else groups
        if (path, any_groups) not in self._moves:
            self._moves[path, any_groups] = Moves(partial(path, self), any_groups)
        return self._moves[path, any_groups]

    def flat(self, rows: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """s of flat rows (rows, n), as a tensor.

        Args:
            rows: (rows, n).
            sigma: noise level, or those of equal parts of the rows, (parts,).
        """
        x = tf.reshape(rows, (-1, *self.shape))
        if sigma.shape.rank == 0:
            return self._at_one_level(x, sigma)
        if self._by_row:
            return self.log_density(x, tf.repeat(sigma, tf.shape(x)[0] // tf.shape(sigma)[0]))
        levels = tf.unstack(sigma)
        parts = zip(tf.split(x, len(levels)), levels, strict=True)
        return tf.concat([self._at_one_level(*part) for part in parts], axis=0)

    def __call__(self, rows: np.ndarray, sigma: float) -> np.ndarray:
        level = tf.constant(sigma, tf.float32)
        chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
        return np.concatenate([self._compiled(c, level).numpy() for c in chunks]).astype(float)
