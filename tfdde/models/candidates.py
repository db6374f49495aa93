"""Sampling-importance-resampling of a generator's latents (Rubin 1987)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfdde.utils import random
from tfdde.utils.random import Purpose


class Candidates(NamedTuple):
    """How many candidates a sample is chosen from, and the sigma at which they are compared."""

    number: int
    sigma: float


class Draws(NamedTuple):
    """Random numbers of n samples, as functions of a candidate's number.

    ``latent`` and ``noise`` are standard normal, (n, latent_dim) and (n, *data_shape). ``uniform``
    is uniform between 0 and 1, (n,). Latents of candidate 0 are those of samples without a choice.
    """

    latent: Callable[[Any], tf.Tensor]
    noise: Callable[[Any], tf.Tensor]
    uniform: Callable[[Any], tf.Tensor]


def draws(latent_dim: int, data_shape: tuple[int, ...], n: Any, seed: Any) -> Draws:
    """The draws of ``sample_from_candidates``; ``n`` and ``seed`` may be tensors."""
    return Draws(
        lambda k: random.normal((n, latent_dim), seed, k, Purpose.SAMPLE),
        lambda k: random.normal((n, *data_shape), seed, k, Purpose.CANDIDATE_NOISE),
        lambda k: random.uniform((n,), seed, k, Purpose.CANDIDATE_CHOICE),
    )


def gumbel(uniform: tf.Tensor) -> tf.Tensor:
    """Gumbel noise of numbers that are uniform between 0 and 1.

    Of several log-weights with such noise, the largest is a choice in proportion to the weights.
    """
    return -tf.math.log(-tf.math.log(uniform))


def with_largest_value(
    candidate: Callable[[Any], tuple[tf.Tensor, tf.Tensor]], first: tf.Tensor, candidates: Any
) -> tf.Tensor:
    """The latents whose value is the largest of all candidates.

    Candidates are made one after another, so the memory needed does not depend on their number.

    Args:
        candidate: function of a candidate's number that returns latents, (n, latent_dim), and the
            values, (n,), that they are chosen by.
        first: latents that are kept where all values are NaN, (n, latent_dim).
        candidates: how many there are.

    Returns:
        float32 tensor, shape (n, latent_dim).
    """

    def compare(k: tf.Tensor, chosen: tf.Tensor, largest: tf.Tensor) -> tuple[tf.Tensor, ...]:
        z, value = candidate(k)
        better = value > largest
        chosen = tf.where(better[:, None], z, chosen)
        return k + 1, chosen, tf.where(better, value, largest)

    # Not minus infinity: an ONNX file multiplies the value that it does not select by 0.
    start = tf.constant(0), first, tf.fill(tf.shape(first)[:1], tf.float32.min)
    shapes = tf.TensorShape(()), first.shape, first.shape[:1]
    return tf.while_loop(
        lambda k, *_: k < candidates, compare, start, shapes, parallel_iterations=1
    )[1]
