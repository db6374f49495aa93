"""The signature `sample` of TFLite and ONNX files, which lack the generator that Keras uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.models.generator import Generator
from tfdde.serving.signatures import Sampler

Draws = Callable[[int, int], Iterator[tuple[str, dict[str, Any], tf.Tensor]]]


def counter_sampler(
    generator: Generator | None, batch_size: int | None = None
) -> tuple[Sampler, Draws]:
    """Return `sample`, whose latents are those of ``counter_normal``, and its draws for ``verify``.

    Args:
        generator: whose latents are drawn; without one there are no draws.
        batch_size: rows of every call; then there is no input ``num``.
    """

    def latent(dim: int, *inputs: tf.Tensor) -> tf.Tensor:
        num, seed = inputs if batch_size is None else (tf.constant(batch_size), *inputs)
        return counter_normal(num, dim, seed)

    num = [] if batch_size else [tf.TensorSpec((), tf.int32, name="num")]
    specs = [*num, tf.TensorSpec((), tf.int32, name="seed")]

    def drawn(count: int, seed: int) -> Iterator[tuple[str, dict[str, Any], tf.Tensor]]:
        assert generator is not None
        inputs = {"num": np.int32(count), "seed": np.int32(seed)}
        z = counter_normal(tf.constant(count), generator.latent_dim, tf.constant(seed))
        yield "sample", {spec.name: inputs[spec.name] for spec in specs}, z

    return (latent, specs), drawn


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
        >>> from tfdde.serving.counter_sampler import counter_normal
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
