"""Hamiltonian Monte Carlo for many rows at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

Path = Callable[[tf.Tensor, Any], tf.Tensor]
LEAPFROGS = 4  # steps of one Hamiltonian move
ACCEPTANCE = 0.8  # the mean acceptance that the step size is adapted to
CHUNK = 5_000  # rows whose gradients are computed at once; two such chunks run in parallel
MOST_ENTRIES = 100  # of a row, for moves in the shape of the density; with more it costs too much
ENOUGH = 3  # rows for each entry that show the shape
WIDEST = 1_000.0  # times its finest scale: the most that a density is taken to be wide
FAR = 3.0  # root mean square scores of noise, beyond which a row's score is cut


class State(NamedTuple):
    """Rows on their way, in NumPy.

    Attributes:
        y: float32 (k, n).
        value: of the path there, float64 (k,).
        score: gradient of the path there, float32 (k, n).
    """

    y: np.ndarray
    value: np.ndarray
    score: np.ndarray


class Shape:
    """Coordinates in which a density is about equally wide in all directions.

    They come from the mean of score score' over rows, the Fisher information: of a Gaussian it is
    the inverse covariance, of modes that are small beside their distances the mean of theirs
    (Titsias, "Optimal Preconditioning and Fisher Adaptive Langevin Sampling", 2023). Few moves then
    cross a density however much its columns depend on each other.

    Each half of the rows moves in the shape that the other half shows. In a shape of their own,
    rows would not keep the density: where their scores happen to be large, their steps would be
    small. Too few rows show nothing, and move by steps of the same size in all directions.

    Args:
        score: of the density at the rows, (k, n).
        scale: the finest scale of the density, (). With noise of this level it has at most the
            Fisher information of the noise, so that larger scores are of places that do not count.
    """

    def __init__(self, score: tf.Tensor, scale: tf.Tensor):
        self._half = tf.shape(score)[0] // 2
        others = score[self._half :], score[: self._half]
        self._inverses = [inverse_root(part, scale) for part in others]

    def pull(self, score: tf.Tensor) -> tf.Tensor:
        """Scores (k, n) in these coordinates."""
        return self._by_half(score, transpose_b=True)

    def push(self, way: tf.Tensor) -> tf.Tensor:
        """Ways in these coordinates as ways of the rows, (k, n)."""
        return self._by_half(way)

    def _by_half(self, rows: tf.Tensor, **kwargs: bool) -> tf.Tensor:
        parts = zip((rows[: self._half], rows[self._half :]), self._inverses, strict=True)
        return tf.concat([tf.matmul(part, inverse, **kwargs) for part, inverse in parts], axis=0)


def inverse_root(score: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """The inverse of C, where C C' is the Fisher information of scores (k, n): float32 (n, n)."""
    score, scale = tf.cast(score, tf.float64), tf.cast(scale, tf.float64)
    n, count = int(score.shape[1]), tf.shape(score)[0]
    score = tf.where(tf.math.is_finite(score), score, 0.0)
    score = tf.clip_by_norm(score, FAR * math.sqrt(n) / scale, axes=[1])
    information = tf.matmul(score, score, transpose_a=True) / tf.cast(count, tf.float64)
    one = tf.eye(n, dtype=tf.float64)
    information = tf.where(count >= ENOUGH * n, information, one / tf.square(scale))
    factor = tf.linalg.cholesky(information + one / tf.square(WIDEST * scale))
    return tf.cast(tf.linalg.triangular_solve(factor, one), tf.float32)


class Moves:
    """Hamiltonian Monte Carlo for many rows at once, compiled.

    The step size starts at half of a given scale, which should be the finest scale of the density,
    and follows the mean acceptance of all rows (Neal, Handbook of Markov Chain Monte Carlo, 2011).
    ``shaped`` moves of at most 100 entries are made in the ``Shape`` of the density.

    >>> moves = tfdde.partition.hmc.Moves(lambda y, level: -0.5 * tf.reduce_sum(y**2, 1) / level)
    >>> y = moves(np.full((2_000, 1), 3.0, np.float32), level=4.0, scale=2.0, count=20, seed=0)
    >>> bool(abs(y.std() - 2.0) < 0.1)  # exp(path) is the density of N(0, 4)
    True

    Args:
        path: log-density, up to a constant, of flat rows (k, n) at a level, which is a number or
            a tuple of tensors.
        groups: equal parts of the rows, in their order, with a step size each; None: as many as
            the scale has, and one trace serves all numbers of them.
        shaped: for one group of rows that are nearly samples of the density, as in the ladder.
    """

    def __init__(self, path: Path, groups: int | None = 1, shaped: bool = False):
        self._path, self._groups, self._shaped = path, groups, shaped
        # A function of its own is traced once, although ``_moves`` calls it in two places.
        self._value_and_score = tf.function(self._at, reduce_retracing=True, autograph=False)
        # A partial, so that TensorFlow does not take the traces of several objects for retracing.
        self._run = tf.function(partial(self._moves), reduce_retracing=True, autograph=False)

    def __call__(
        self, rows: np.ndarray, level: Any, scale: Any, count: int, seed: int
    ) -> np.ndarray:
        """Return the rows after ``count`` moves at ``level``.

        Args:
            rows: float32 (k, n).
            level: argument of the path; numbers become float32 tensors.
            scale: of the density, () or (groups,).
            count: of moves.
            seed: of momenta and acceptances.
        """
        return self.with_values(rows, level, scale, count, seed)[0]

    def with_values(
        self, rows: np.ndarray, level: Any, scale: Any, count: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows after ``count`` moves at ``level``, and the path's values there."""
        return self.with_middle(rows, level, scale, count, seed)[1][:2]

    def with_middle(
        self, rows: np.ndarray, level: Any, scale: Any, count: int, seed: int
    ) -> tuple[State, State]:
        """Return the rows after half of ``count`` moves and after all."""
        seeds = tf.constant([seed, 0], tf.int64)
        level = tf.nest.map_structure(_as_tensor, level)
        scale = tf.constant(scale, tf.float32)
        settings = level, scale, tf.constant(count), seeds
        states = self._traced(rows.shape, *settings)(tf.constant(rows), *settings)
        middle, end = (
            State(y.numpy(), s.numpy().astype(float), score.numpy()) for y, s, score in states
        )
        return middle, end

    def _traced(self, shape: tuple[int, ...], *settings: Any) -> Callable[..., Any]:
        """What moves rows of this shape: one trace for all numbers of rows, but those in chunks."""
        rows = None if shape[0] <= CHUNK or self._groups != 1 else shape[0]
        if self._groups is None:
            settings = tf.nest.map_structure(_of_any_length, settings)
        return self._run.get_concrete_function(tf.TensorSpec((rows, shape[1])), *settings)

    def _at(self, y: tf.Tensor, level: Any) -> tuple[tf.Tensor, tf.Tensor]:
        def of_chunk(y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(y)
                s = self._path(y, level)
            return s, tape.gradient(s, y)

        rows, n = y.shape
        if self._groups != 1 or rows is None or rows <= CHUNK or rows % CHUNK:
            return of_chunk(y)
        chunks = tf.reshape(y, (-1, CHUNK, n))
        types = (tf.float32, tf.float32)
        s, score = tf.map_fn(of_chunk, chunks, fn_output_signature=types, parallel_iterations=2)
        return tf.reshape(s, (rows,)), tf.reshape(score, (rows, n))

    def _moves(
        self, y: tf.Tensor, level: Any, scale: tf.Tensor, count: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
        start = y, *self._value_and_score(y, level)
        shape = None
        if self._shaped and y.shape[1] <= MOST_ENTRIES:
            shape = Shape(start[2], scale)
        pull = shape.pull if shape else tf.identity
        push = shape.push if shape else tf.identity
        initial = tf.constant(0.5) if shape else 0.5 * scale

        def move(i: tf.Tensor, middle: Any, now: Any, step: tf.Tensor) -> tuple[Any, ...]:
            y, s, score = now
            seeds = tf.unstack(tf.random.split(seed + tf.stack([0, tf.cast(i, tf.int64)]), 2))
            momentum = tf.random.stateless_normal(tf.shape(y), seeds[0])
            width = self._of_rows(step, y)

            def leapfrog(k: tf.Tensor, p: tf.Tensor, proposed: Any) -> tuple[Any, ...]:
                y, _, score = proposed
                p += 0.5 * width * pull(score)
                y += push(width * p)
                s, score = self._value_and_score(y, level)
                return k + 1, p + 0.5 * width * pull(score), (y, s, score)

            loop = 0, momentum, now
            _, p, proposed = tf.while_loop(lambda k, *_: k < LEAPFROGS, leapfrog, loop)
            kinetic = tf.reduce_sum(tf.square(momentum) - tf.square(p), axis=1)
            log_accept = tf.minimum(proposed[1] - s + 0.5 * kinetic, 0.0)
            accept = tf.exp(tf.where(tf.math.is_finite(log_accept), log_accept, -np.inf))
            taken = tf.random.stateless_uniform(tf.shape(accept), seeds[1]) < accept
            y = tf.where(taken[:, None], proposed[0], y)
            s = tf.where(taken, proposed[1], s)
            score = tf.where(taken[:, None], proposed[2], score)
            step *= tf.exp(0.5 * (self._mean(accept, step) - ACCEPTANCE))
            first, now = i < count // 2, (y, s, score)
            middle = tuple(tf.where(first, a, b) for a, b in zip(now, middle, strict=True))
            return i + 1, middle, now, step

        loop = 0, start, start, initial
        _, middle, end, _ = tf.while_loop(lambda i, *_: i < count, move, loop)
        return middle, end

    def _of_rows(self, step: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """The step size of each row: one for all, or (rows, 1)."""
        if self._groups == 1:
            return step
        return tf.repeat(step, tf.shape(y)[0] // tf.shape(step)[0])[:, None]

    def _mean(self, accept: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """The mean acceptance of each group."""
        if self._groups == 1:
            return tf.reduce_mean(accept)
        return tf.reduce_mean(tf.reshape(accept, (tf.shape(step)[0], -1)), axis=1)


def _as_tensor(number: Any) -> tf.Tensor:
    return number if tf.is_tensor(number) else tf.constant(number, tf.float32)


def _of_any_length(tensor: tf.Tensor) -> tf.TensorSpec:
    """Tensors of this kind with any first dimension."""
    return tf.TensorSpec((None,) * bool(tensor.shape.rank) + tuple(tensor.shape[1:]), tensor.dtype)
