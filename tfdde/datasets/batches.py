"""Shuffled batches whose order is a function of (seed, position) alone, so that runs resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.utils.checks import check_integer, check_rows


def _order(rows: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """The row numbers 0 ... rows - 1 in the order of one epoch: int64 (rows,).

    Every order of the rows is equally likely. The pair (seed, epoch) is hashed to a full key of
    the Philox generator. (``tf.random.experimental.index_shuffle``, which could compute single
    entries, uses only the lowest bits of its seed: for up to 65,536 rows 8 bits of the epoch.)
    """
    key = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    numbers = tf.range(rows, dtype=tf.int64)
    return tf.random.experimental.stateless_shuffle(numbers, key, alg="philox")


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same dataset without the thread that tunes it, which has nothing to tune here.

    At the end of ``fit`` TensorFlow waits for that thread, often for seconds.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def _resident(
    x: Any, conditions: Any, weights: Any = None
) -> tuple[int, Callable[[tf.Tensor], Any]]:
    """Copy the rows to memory that tf.data reads.

    Returns:
        The number of rows, and a function from row numbers to those rows, or to tuples of rows
        and their conditions and weights.
    """
    rows = len(x)
    if rows == 0:
        raise ValueError(f"`x` is empty: expected at least one row, got shape {np.shape(x)}.")
    if conditions is not None:
        conditions = check_rows(conditions, "conditions", np.shape(conditions)[1:])
        if len(conditions) != rows:
            raise ValueError(
                f"`conditions` must have {rows} rows, as `x` has, got {len(conditions)}."
            )
    with tf.device("CPU:0"):  # tf.data runs there; one copy is kept, and batches are gathered
        columns = tuple(tf.constant(part) for part in (x, conditions, weights) if part is not None)
    data = columns if len(columns) > 1 else columns[0]
    return rows, lambda index: tf.nest.map_structure(lambda part: tf.gather(part, index), data)


def stream(
    x: Any,
    batch_size: int,
    seed: int,
    start: int = 0,
    conditions: Any = None,
    weights: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Return endless, full batches of shuffled rows.

    Every epoch has each row once, in an order of its own; a batch may end one epoch and begin the
    next. Batch k depends only on (x, batch_size, seed, k), so a resumed training sees the batches
    of an uninterrupted one.

    Args:
        x: array, shape (rows, ...).
        batch_size: rows in each batch; may exceed the rows of ``x``.
        seed: fixes the orders of all epochs.
        start: number of the first batch, to resume a training after ``start`` steps.
        conditions: for a conditional density, an array of shape (rows, k).
        weights: of the rows, (rows,), as ``DDE.fit`` takes them.

    Returns:
        An infinite dataset of tensors (batch_size, ...); with ``conditions`` or ``weights``, of
        tuples of those, (batch_size, k) and (batch_size,).

    Raises:
        ValueError: ``x`` is empty, ``conditions`` don't fit it, or a number is out of range.

    Example:
        >>> batches = tfdde.datasets.stream(np.arange(6), batch_size=3, seed=0)
        >>> first_epoch = np.concatenate([b.numpy() for b in batches.take(2)])
        >>> sorted(first_epoch.tolist())
        [0, 1, 2, 3, 4, 5]
    """
    batch_size = check_integer(batch_size, "batch_size")
    start = check_integer(start, "start", minimum=0)
    rows, gather = _resident(x, conditions, weights)
    first_epoch, first_row = divmod(start * batch_size, rows)

    def order(epoch: tf.Tensor) -> tf.Tensor:
        return _order(rows, seed, epoch)[tf.where(epoch == first_epoch, first_row, 0) :]

    epochs = tf.data.Dataset.counter(start=first_epoch, dtype=tf.int64).map(order)
    # The next epoch's order is computed while the last batches of this one are used.
    numbers = epochs.prefetch(1).rebatch(batch_size, drop_remainder=True)
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return without_autotune(numbers.apply(endless).map(gather).prefetch(4))


def epoch_batches(
    x: Any,
    batch_size: int,
    seed: int,
    epoch: tf.Variable,
    conditions: Any = None,
    weights: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Return one epoch of shuffled batches, the last one possibly smaller.

    The order is that of ``stream`` in the same epoch.

    Args:
        x: array, shape (rows, ...).
        batch_size: rows in a batch.
        seed: fixes the order, together with the epoch.
        epoch: int64 variable with the number of the epoch, read whenever an iterator starts.
        conditions: as for ``stream``.
        weights: of the rows, (rows,).

    Returns:
        A finite dataset of tensors (<= batch_size, ...), or of tuples of them and the conditions
        and weights that there are.

    Raises:
        ValueError: ``x`` is empty, or ``batch_size`` is not a positive integer.
    """
    batch_size = check_integer(batch_size, "batch_size")
    rows, gather = _resident(x, conditions, weights)
    steps = -(-rows // batch_size)

    def batches(_: tf.Tensor) -> tf.data.Dataset:
        order = _order(rows, seed, epoch.read_value())

        def batch(k: tf.Tensor) -> Any:
            return gather(order[k * batch_size : (k + 1) * batch_size])

        return tf.data.Dataset.range(steps).map(batch)

    dataset = tf.data.Dataset.from_tensors(0).flat_map(batches)
    known = tf.data.experimental.assert_cardinality(steps)
    return without_autotune(dataset.apply(known).prefetch(4))
