"""Stateless random numbers, seeded by (seed, iteration, replica, purpose).

Nothing here has state, so a resumed training draws the numbers of an uninterrupted one, and every
replica of a ``tf.distribute`` strategy draws its own.
"""

from __future__ import annotations

import enum
import numbers
import random as python_random
from typing import Any

import tensorflow as tf


class Purpose(enum.IntEnum):
    """What random numbers are drawn for; each purpose has its own within one iteration."""

    DENSITY_NOISE = 1
    EVALUATION_NOISE = 2
    LATENT_DENSITY = 3
    LATENT_GENERATOR = 4
    GENERATOR_NOISE = 5
    SAMPLE = 6
    DENSITY_LEVEL = 7
    EVALUATION_LEVEL = 8
    GENERATOR_LEVEL = 9
    PARTITION = 10
    GENERATED_LEVEL = 11
    CANDIDATE_NOISE = 12
    CANDIDATE_CHOICE = 13
    OWN_SAMPLES = 14


def check_seed(seed: Any) -> int:
    """Return ``seed`` as an int in [0, 2**31), or draw one if it is None.

    It is drawn from Python's generator, which ``keras.utils.set_random_seed`` seeds.
    """
    if seed is None:
        return python_random.randrange(2**31)
    if (
        isinstance(seed, bool)
        or not isinstance(seed, numbers.Integral)
        or not 0 <= int(seed) < 2**31
    ):
        raise ValueError(f"`seed` must be None or an integer in [0, 2**31), got {seed!r}.")
    return int(seed)


def key(seed: Any, iteration: Any, purpose: Purpose) -> tf.Tensor:
    """The int64[2] seed of one (seed, iteration, replica, purpose); no two share a seed.

    ``seed`` and ``iteration`` may be integer tensors.
    """
    context = tf.distribute.get_replica_context()
    replica = 0 if context is None else context.replica_id_in_sync_group
    first = int(purpose) * 2**32 + tf.cast(seed, tf.int64)
    second = tf.cast(replica, tf.int64) * 2**40 + tf.cast(iteration, tf.int64)
    return tf.stack([first, second])


def normal(shape: Any, seed: Any, iteration: Any, purpose: Purpose) -> tf.Tensor:
    """Standard normal float32 tensor of ``shape`` for this iteration, replica and purpose."""
    return tf.random.stateless_normal(shape, key(seed, iteration, purpose))


def latents(dim: int, n: Any, seed: Any) -> tf.Tensor:
    """The ``n`` latents, shape (n, dim), of the samples with this seed; both may be tensors."""
    return normal((n, dim), seed, 0, Purpose.SAMPLE)


def uniform(shape: Any, seed: Any, iteration: Any, purpose: Purpose) -> tf.Tensor:
    """Float32 tensor of ``shape``, uniform in [0, 1), for this iteration, replica and purpose."""
    return tf.random.stateless_uniform(shape, key(seed, iteration, purpose))
