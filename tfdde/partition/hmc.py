"""Hamiltonian Monte Carlo for many rows at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

Path = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
LEAPFROGS = 4  # steps of one Hamiltonian move
ACCEPTANCE = 0.8  # that the step size is steered to


class Moves:
    """Hamiltonian Monte Carlo for many rows at once, compiled.

    The step starts at half of a given scale, the finest of the density, and follows the mean
    acceptance of all rows (Neal, Handbook of Markov Chain Monte Carlo, 2011).

    Args:
        path: log-densities of flat rows (n, d) at a level (), such as s(rows, sigma).
    """

    def __init__(self, path: Path):
        self._path = path
        self._run = tf.function(self._moves, reduce_retracing=True)

    def __call__(
        self, rows: np.ndarray, level: float, scale: float, count: int, seed: int
    ) -> np.ndarray:
        """Rows after ``count`` moves at ``level`` of the path."""
        numbers = [tf.constant(v, tf.float32) for v in (level, scale)]
        seeds = tf.constant([seed, 0], tf.int64)
        return self._run(tf.constant(rows), *numbers, tf.constant(count), seeds).numpy()

    def _value_and_score(self, y: tf.Tensor, level: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(y)
            s = self._path(y, level)
        return s, tape.gradient(s, y)

    def _moves(
        self, y: tf.Tensor, level: tf.Tensor, scale: tf.Tensor, count: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        s, score = self._value_and_score(y, level)
        step = 0.5 * scale
        for i in tf.range(count):
            seeds = tf.unstack(tf.random.split(seed + tf.cast([0, i], tf.int64), 2))
            momentum = tf.random.stateless_normal(tf.shape(y), seeds[0])
            proposal, new_s, new_score = y, s, score
            p = momentum
            for _ in tf.range(LEAPFROGS):
                p += 0.5 * step * new_score
                proposal += step * p
                new_s, new_score = self._value_and_score(proposal, level)
                p += 0.5 * step * new_score
            kinetic = tf.reduce_sum(tf.square(momentum) - tf.square(p), axis=1)
            log_accept = tf.minimum(new_s - s + 0.5 * kinetic, 0.0)
            accept = tf.exp(tf.where(tf.math.is_finite(log_accept), log_accept, -np.inf))
            taken = tf.random.stateless_uniform(tf.shape(accept), seeds[1]) < accept
            y = tf.where(taken[:, None], proposal, y)
            s = tf.where(taken, new_s, s)
            score = tf.where(taken[:, None], new_score, score)
            step *= tf.exp(0.5 * (tf.reduce_mean(accept) - ACCEPTANCE))
        return y
