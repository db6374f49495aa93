"""The signature `sample` of TFLite and ONNX files, which lack the generator that Keras uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.models.candidates import Draws
from tfdde.models.generator import Generator
from tfdde.serving.signatures import Sampler

Drawn = Callable[[int, int], Iterator[tuple[str, dict[str, Any], Draws]]]


def counter_sampler(
    generator: Generator | None, batch_size: int | None = None
) -> tuple[Sampler, Drawn]:
    """Return `sample`, whose numbers are those of ``counter_draws``, and its draws for ``verify``.

    Args:
        generator: whose samples are drawn; without one there are no draws.
        batch_size: rows of every call; then there is no input ``num``.
    """

    def numbers(latent_dim: int, data_shape: tuple[int, ...], *inputs: tf.Tensor) -> Draws:
        num, seed = inputs if batch_size is None else (tf.constant(batch_size), *inputs)
        return counter_draws(latent_dim, data_shape, num, seed)

    num = [] if batch_size else [tf.TensorSpec((), tf.int32, name="num")]
    specs = [*num, tf.TensorSpec((), tf.int32, name="seed")]

    def drawn(count: int, seed: int) -> Iterator[tuple[str, dict[str, Any], Draws]]:
        assert generator is not None
        inputs = {"num": np.int32(count), "seed": np.int32(seed)}
        sizes = generator.latent_dim, generator.data_shape
        of_rows = counter_draws(*sizes, tf.constant(count), tf.constant(seed))
        yield "sample", {spec.name: inputs[spec.name] for spec in specs}, of_rows

    return (numbers, specs), drawn


def counter_draws(
    latent_dim: int, data_shape: tuple[int, ...], num: tf.Tensor, seed: tf.Tensor
) -> Draws:
    """Random numbers of ``num`` samples with a seed, both int32 scalars, by ``counter_normal``.

    The latents of candidate 0 are those of the seed itself; all other numbers are those of seeds
    that are hashed from it.
    """

    def own_seed(k: Any, kind: int) -> tf.Tensor:
        if isinstance(k, int) and k == kind == 0:
            return seed
        stream = 3 * tf.convert_to_tensor(k) + kind
        return tf.where(stream > 0, _hash(_hash(seed) + stream * _int32(0x9E3779B9)), seed)

    def noise(k: Any) -> tf.Tensor:
        rows = counter_normal(num, math.prod(data_shape), own_seed(k, 1))
        return tf.reshape(rows, (-1, *data_shape))

    return Draws(
        lambda k: counter_normal(num, latent_dim, own_seed(k, 0)),
        noise,
        lambda k: _uniform(_words(num, own_seed(k, 2))),
    )


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
    uniform = _uniform(tf.reshape(_words(num * (2 * dim), seed), (-1, 2)))
    radius = tf.sqrt(-2.0 * tf.math.log(uniform[:, 0]))
    # In two parts, since a float16 file stores 2 pi as 6.28125.
    angle = 6.28125 * uniform[:, 1] + (2.0 * math.pi - 6.28125) * uniform[:, 1]
    return tf.reshape(radius * tf.cos(angle), (-1, dim))


def _words(count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Return int32 words, shape (count,), that depend on the seed and their position."""
    key1 = _hash(seed ^ _int32(0x9E3779B9))
    key2 = _hash(key1 + _int32(0x85EBCA6B))
    # With only one keyed round, close seeds would give the same words in another order.
    return _hash(_hash(tf.range(count) ^ key1) ^ key2)


def _uniform(word: tf.Tensor) -> tf.Tensor:
    """Return 31 bits of each word as a number above 0 and up to 1."""
    # Adding one half keeps the logarithm finite. A float16 file stores every constant as float16,
    # where 2**-31 is 0: so the number is computed in two parts.
    high = _shift(word, 16)
    low = _shift(word, 1) - high * 2**15
    low_part = (tf.cast(low, tf.float32) + 0.5) * 2.0**-15
    return (tf.cast(high, tf.float32) + low_part) * 2.0**-16


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
