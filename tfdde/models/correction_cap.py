"""A cap on what a density's network adds to its base.

Where no noisy row ever comes, nothing was learned, and a network may add thousands of nats there.
Images have hundreds of directions that lead to such places, and e^s can have nearly all of its
mass in one. Samples that start at rows don't find it, and other checks may miss it, too. With a
cap slightly above what the network adds at rows, such a place has at most e^cap times the mass
that the base has there, which is next to none.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.noise import LogUniform
from tfdde.partition.evaluator import Evaluator
from tfdde.partition.result import LogPartition
from tfdde.utils.random import Purpose

LEVELS, ROWS = 17, 2_000
# Above the largest value at noisy rows, in nats and as a share of its distance to the median.
MARGIN, SHARE = 5.0, 0.1
MANY_ENTRIES = 100  # of a row; with more, log Z is not trusted without a cap


def caps_of(
    correction: Evaluator, rows: np.ndarray, noise: LogUniform, seed: int
) -> tuple[float, ...]:
    """The caps at ``LEVELS`` noise levels from the lowest to the highest, in nats.

    Args:
        correction: what the network adds.
        rows: float32 (rows, *shape).
        noise: of the density.
        seed: of the noise.
    """
    rng = np.random.default_rng([seed, Purpose.PARTITION, 2])
    rows = rows.reshape(len(rows), -1)[rng.permutation(len(rows))[:ROWS]]
    caps = []
    for sigma in np.geomspace(noise.minimum, noise.maximum, LEVELS):
        epsilon = rng.standard_normal(rows.shape, np.float32)
        values = correction(rows + np.float32(sigma) * epsilon, float(sigma))
        largest = values.max()
        caps.append(float(largest + SHARE * (largest - np.median(values)) + MARGIN))
    return tuple(caps)


def capped(correction: tf.Tensor, cap: tf.Tensor) -> tf.Tensor:
    """The lesser of both, smoothly: -log(e^-correction + e^-cap).

    Args:
        correction: (batch,).
        cap: () or (batch,); no gradient goes to it.
    """

    @tf.custom_gradient
    def least(c: tf.Tensor) -> Any:
        # Equal to c to the bit far below the cap. With its gradient it converts to TFLite.
        value = tf.minimum(c, cap) - tf.math.log(1.0 + tf.exp(-tf.abs(c - cap)))
        return value, lambda dy: dy * tf.sigmoid(cap - c)

    return least(correction)


def doubted(estimate: LogPartition, caps: tuple[float, ...] | None, entries: int) -> LogPartition:
    """The estimate, with a doubt if rows have many entries and the correction has no cap."""
    if caps is not None or entries <= MANY_ENTRIES or not estimate.trusted:
        return estimate
    doubt = (
        f"without caps a density of more than {MANY_ENTRIES} entries may have mass where no rows "
        "are; caps need LogUniform noise, and of a conditional density `given(condition)`"
    )
    return dataclasses.replace(estimate, doubt=doubt)
