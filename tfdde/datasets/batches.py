"""Shuffled batches whose order is a function of (seed, position) alone, so that runs resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.utils.checks import check_integer, check_rows


def _permuted(rows: int, seed: int, index: tf.Tensor) -> tf.Tensor:
    """Row numbers at the positions ``index`` (int64) of an endless series of permutations.

    Positions e * rows ... (e + 1) * rows - 1 run through all rows once, in an order that
    depends on (seed, e); only the asked-for entries are computed.
    """
    epoch = index // rows
    tag = tf.fill(tf.shape(index), tf.constant(seed, tf.int64))
    seeds = tf.stack([tag, epoch, tf.zeros_like(epoch)], axis=-1)
    last = tf.fill(tf.shape(index), tf.constant(rows - 1, tf.int64))
    # The op behind tf.random.experimental.index_shuffle, which does not take several seeds.
    return tf.raw_ops.RandomIndexShuffle(index=index % rows, seed=seeds, max_index=last, rounds=4)


def _resident(x: Any, conditions: Any) -> tuple[int, Callable[[tf.Tensor], Any]]:
    """How many rows there are, and what gathers those of given numbers, with their conditions."""
    rows = len(x)
    if rows == 0:
        raise ValueError(f"`x` is empty: expected at least one row, got shape {np.shape(x)}.")
    if conditions is not None:
        conditions = check_rows(conditions, "conditions", np.shape(conditions)[1:])
        if len(conditions) != rows:
            raise ValueError(
                f"`conditions` must have {rows} rows, as `x` has, got {len(conditions)}."
            )
    with tf.device("CPU:0"):  # where tf.data runs: one copy, gathered from and never sliced
        data = tf.constant(x) if conditions is None else (tf.constant(x), tf.constant(conditions))
    return rows, lambda index: tf.nest.map_structure(lambda part: tf.gather(part, index), data)


def stream(
    x: Any, batch_size: int, seed: int, start: int = 0, conditions: Any = None
) -> tf.data.Dataset:
    """Endless full batches of shuffled rows; batch k depends only on (x, batch_size, seed, k).

    Args:
        x: array, shape (rows, ...).
        batch_size: rows in each batch; may exceed the rows of ``x``.
        seed: fixes the order; every epoch has another permutation.
        start: number of the first batch, to resume a training after ``start`` steps.
        conditions: of the rows, for a conditional density: array, shape (rows, k).

    Returns:
        An infinite dataset of tensors (batch_size, ...), with ``conditions`` of pairs of those
        and (batch_size, k).

    Raises:
        ValueError: ``x`` is empty, ``conditions`` don't fit it, or a number is out of range.
    """
    batch_size = check_integer(batch_size, "batch_size")
    start = check_integer(start, "start", minimum=0)
    rows, gather = _resident(x, conditions)

    def batch(k: tf.Tensor) -> Any:
        index = k * batch_size + tf.range(batch_size, dtype=tf.int64)
        return gather(_permuted(rows, seed, index))

    counter = tf.data.Dataset.counter(start=start, dtype=tf.int64)
    return counter.map(batch).prefetch(4)


def epoch_batches(
    x: Any, batch_size: int, seed: int, epoch: tf.Variable, conditions: Any = None
) -> tf.data.Dataset:
    """One epoch of shuffled batches, the last one possibly smaller.

    Args:
        x: array, shape (rows, ...).
        batch_size: rows in a batch.
        seed: fixes the order, together with the epoch.
        epoch: int64 variable, read whenever an iterator starts.
        conditions: of the rows, as for ``stream``.

    Returns:
        A finite dataset of tensors (<= batch_size, ...), or of pairs.

    Raises:
        ValueError: ``x`` is empty, or ``batch_size`` is not a positive integer.
    """
    batch_size = check_integer(batch_size, "batch_size")
    rows, gather = _resident(x, conditions)
    steps = -(-rows // batch_size)

    def batches(_: tf.Tensor) -> tf.data.Dataset:
        first = epoch.read_value() * rows

        def batch(k: tf.Tensor) -> Any:
            index = tf.range(k * batch_size, tf.minimum((k + 1) * batch_size, rows))
            return gather(_permuted(rows, seed, first + index))

        return tf.data.Dataset.range(steps).map(batch)

    dataset = tf.data.Dataset.from_tensors(0).flat_map(batches)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(4)
