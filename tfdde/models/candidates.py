"""Sampling-importance-resampling of a generator's latents (Rubin 1987)."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from tfdde.utils import random
from tfdde.utils.random import Purpose


def chosen_latents(
    latent_dim: int,
    n: tf.Tensor,
    seed: tf.Tensor,
    candidates: tf.Tensor,
    log_weight: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Latents, each chosen from several with probability in proportion to its weight.

    The one with the largest sum of log-weight and Gumbel noise is such a choice. Candidates are
    made one after another, so the memory needed does not depend on their number.

    Args:
        latent_dim: entries of a latent.
        n, seed, candidates: scalars: of the latents, and how many each is chosen from.
        log_weight: function of latents (n, latent_dim) and of the candidate's number, which
            its noise is drawn with, that returns (n,).

    Returns:
        float32 tensor, shape (n, latent_dim).
    """

    def compare(k: tf.Tensor, chosen: tf.Tensor, largest: tf.Tensor) -> tuple[tf.Tensor, ...]:
        z = random.normal((n, latent_dim), seed, k, Purpose.SAMPLE)
        uniform = random.uniform((n,), seed, k, Purpose.CANDIDATE_CHOICE)
        value = log_weight(z, k) - tf.math.log(-tf.math.log(uniform))
        better = value > largest
        chosen = tf.where(better[:, None], z, chosen)
        return k + 1, chosen, tf.where(better, value, largest)

    start = tf.constant(0), random.latents(latent_dim, n, seed), tf.fill((n,), -math.inf)
    shapes = tuple(tf.TensorShape(shape) for shape in ((), (None, latent_dim), (None,)))
    return tf.while_loop(
        lambda k, *_: k < candidates, compare, start, shapes, parallel_iterations=1
    )[1]
