"""A counter-based sampler of normal numbers from operations that TFLite has."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf


def counter_normal(num: tf.Tensor, dim: int, seed: tf.Tensor) -> tf.Tensor:
    """Standard normal numbers from a counter, by operations that TFLite has.

    The words are hash(hash(counter ^ key1) ^ key2) of 32 bits with keys hashed from the
    seed; Box-Muller takes two words to one number.  Good enough to draw latents
    with, not meant for cryptography.

    Args:
        num: number of rows, int32 scalar.
        dim: width of a row.
        seed: int32 scalar; the same seed gives the same rows, and the first ones of more
            (to the last bit or so).

    Returns:
        float32 tensor, shape (num, dim).
    """
    key1 = _hash(seed ^ _int32(0x9E3779B9))
    key2 = _hash(key1 + _int32(0x85EBCA6B))
    counter = tf.range(num * (2 * dim))
    # Two keyed rounds: with one, close seeds would draw the same words in another order.
    word = tf.reshape(_hash(_hash(counter ^ key1) ^ key2), (-1, 2))
    # 31 bits to (0, 1): the half keeps the logarithm finite.  In two parts, as is 2 pi, since
    # files of float16 have all constants so, where 2**-31 would be 0 and 2 pi is 6.28125.
    high = _shift(word, 16)
    low = _shift(word, 1) - high * 2**15
    low_part = (tf.cast(low, tf.float32) + 0.5) * 2.0**-15
    uniform = (tf.cast(high, tf.float32) + low_part) * 2.0**-16
    radius = tf.sqrt(-2.0 * tf.math.log(uniform[:, 0]))
    angle = 6.28125 * uniform[:, 1] + (2.0 * math.pi - 6.28125) * uniform[:, 1]
    return tf.reshape(radius * tf.cos(angle), (-1, dim))


def _hash(x: tf.Tensor) -> tf.Tensor:
    """Mix 32 bits one to one: Wellons' lowbias32, all products modulo 2**32."""
    x = (x ^ _shift(x, 16)) * _int32(0x7FEB352D)
    x = (x ^ _shift(x, 15)) * _int32(0x846CA68B)
    return x ^ _shift(x, 16)


def _shift(x: tf.Tensor, bits: int) -> tf.Tensor:
    """Logical right shift of int32: TFLite has the arithmetic one, but no AND to mask it."""
    shifted = tf.bitwise.right_shift(x, tf.constant(bits, tf.int32))
    return shifted + tf.where(x < 0, _int32(1 << (32 - bits)), 0)


def _int32(word: int) -> tf.Tensor:
    """The int32 with the bits of an unsigned word."""
    return tf.constant(np.uint32(word).astype(np.int32))
