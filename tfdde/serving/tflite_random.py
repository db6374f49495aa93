"""Normal random numbers from a seed, made of operations that TFLite has."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf


def counter_normal(num: tf.Tensor, dim: int, seed: tf.Tensor) -> tf.Tensor:
    """Return standard normal numbers that depend on the seed and their position only.

    Position i has the 32-bit words hash(hash(counter ^ key1) ^ key2), with counter = 2i and 2i + 1
    and keys hashed from the seed; Box and Muller's transform makes one number of two words. The
    numbers are good enough to draw latents; they are not meant for cryptography.

    Args:
        num: number of rows, int32 scalar.
        dim: width of a row.
        seed: int32 scalar. Equal seeds give equal rows; with a larger ``num`` they come first
            (up to rounding in the last bit).

    Returns:
        float32 tensor, shape (num, dim).

    Example:
        >>> from tfdde.serving.tflite_random import counter_normal
        >>> z = counter_normal(tf.constant(10_000), 3, tf.constant(7))
        >>> z.shape.as_list(), bool(abs(tf.reduce_mean(z)) < 0.03)
        ([10000, 3], True)
    """
    key1 = _hash(seed ^ _int32(0x9E3779B9))
    key2 = _hash(key1 + _int32(0x85EBCA6B))
    counter = tf.range(num * (2 * dim))
    # With only one keyed round, close seeds would give the same words in another order.
    word = tf.reshape(_hash(_hash(counter ^ key1) ^ key2), (-1, 2))
    # 31 bits become a number in (0, 1); adding one half keeps the logarithm finite. A float16 file
    # stores every constant as float16, where 2**-31 is 0 and 2 pi is 6.28125: so both the number
    # and the angle are computed in two parts.
    high = _shift(word, 16)
    low = _shift(word, 1) - high * 2**15
    low_part = (tf.cast(low, tf.float32) + 0.5) * 2.0**-15
    uniform = (tf.cast(high, tf.float32) + low_part) * 2.0**-16
    radius = tf.sqrt(-2.0 * tf.math.log(uniform[:, 0]))
    angle = 6.28125 * uniform[:, 1] + (2.0 * math.pi - 6.28125) * uniform[:, 1]
    return tf.reshape(radius * tf.cos(angle), (-1, dim))


def _hash(x: tf.Tensor) -> tf.Tensor:
    """Mix 32 bits by a bijection, lowbias32 of C. Wellons; products are modulo 2**32."""
    x = (x ^ _shift(x, 16)) * _int32(0x7FEB352D)
    x = (x ^ _shift(x, 15)) * _int32(0x846CA68B)
    return x ^ _shift(x, 16)


def _shift(x: tf.Tensor, bits: int) -> tf.Tensor:
    """Shift int32 right with zeros: TFLite has the arithmetic shift, but no AND to mask it."""
    shifted = tf.bitwise.right_shift(x, tf.constant(bits, tf.int32))
    return shifted + tf.where(x < 0, _int32(1 << (32 - bits)), 0)


def _int32(word: int) -> tf.Tensor:
    """Return the int32 constant with the bits of an unsigned word."""
    return tf.constant(np.uint32(word).astype(np.int32))
