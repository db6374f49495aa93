"""Log-density and score of float64 rows, which are standardised before they are rounded.

Seconds since 1970 have no fractions in float32, and 200,000.01 is 200,000.02 there. A density with
a ``normalization`` sees (x - mean) / scale, which is some units at most, or with heavy tails the
asinh of that. So it loses nothing if the difference is taken in float64. Mean and scale are the
numbers that the density was trained with. So rows that float32 holds have the values of
``DDE.log_density`` and ``DDE.score``.
"""

from __future__ import annotations

import tensorflow as tf

from tfdde.losses import score_of
from tfdde.models.dde import DDE

SUFFIX = "_float64"  # of the names of these signatures


def log_density(density: DDE, x: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
    """Return float32 (rows,), normalised if log Z is trusted.

    Args:
        density: with a ``normalization``.
        x: float64 rows in the data's own units.
        condition: of a conditional density, float32 (rows, k).
    """
    value = _unnormalised(density, x, *condition)
    if not density.normalized:
        return value
    if condition:
        assert density.partitions is not None  # as the density is normalised
        return value - density.partitions.values(condition[0], density.noise.sigma)
    assert density.partition is not None
    return value - tf.constant(density.partition.value, tf.float32)


def score(density: DDE, x: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
    """Return the gradient in the data's own units, float32 of the shape of ``x``. Args as above."""
    gradient = score_of(lambda rows: _unnormalised(density, rows, *condition), x)
    return tf.cast(gradient, tf.float32)


def _unnormalised(density: DDE, x: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
    return density.in_data_units(x, tf.constant(density.noise.sigma, tf.float32), *condition)
