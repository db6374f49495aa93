"""Shuffled batches of tables that are larger than memory, resumable as those in memory are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.datasets.readers import blocks
from tfdde.utils.checks import check_integer

BUFFER_VALUES = 2**24  # 64 MiB


def stream_files(
    path: str | os.PathLike,
    batch_size: int,
    seed: int,
    start: int = 0,
    columns: Sequence[str] | None = None,
    conditions: Sequence[str] | None = None,
    buffer_rows: int | None = None,
) -> tf.data.Dataset:
    """Endless full batches of the rows of files of any size, in constant memory.

    Batch k depends only on (files, batch_size, seed, buffer_rows, k).  An epoch runs through all
    rows once, in the order of the files but shuffled within each buffer: files that are sorted
    should be shuffled once on disk.  Of Parquet what precedes ``start`` is skipped, other formats
    are read again from where an epoch began, and they are read once to count their rows.

    Args:
        path: a CSV file with a header, a Parquet file, a file of tf.Example whose feature ``x``
            holds a row, a folder of one kind of them, or a pattern such as "parts/*.parquet".
        batch_size: rows in each batch.
        seed: fixes the order; every epoch has another one.
        start: number of the first batch, to resume a training after ``start`` steps.
        columns: names of the columns of a row, in this order; by default all but ``conditions``.
        conditions: names of the columns of the condition, for a conditional density; of
            tf.Example the feature ``condition``, if there is one.
        buffer_rows: rows that are shuffled together; by default 64 MiB of them.

    Returns:
        An infinite dataset of float32 tensors (batch_size, n), with conditions of pairs of those
        and (batch_size, k).  A row that is bad ends it with an error that says which and why.

    Raises:
        OSError: there is no such file.
        ValueError: no rows, a file or a column is not right, or a number is out of range.
    """
    check_integer(batch_size, "batch_size")
    check_integer(seed, "seed", minimum=0)
    check_integer(start, "start", minimum=0)
    source = blocks.Source(Path(path), columns, conditions, (), None, None)
    n, k = source.width, source.condition_dim
    if buffer_rows is None:
        buffer_rows = max(1, BUFFER_VALUES // (n + k))
    check_integer(buffer_rows, "buffer_rows")
    rows = source.rows()
    if rows is None:
        rows = sum(len(block) for block in source)
    if rows == 0:
        raise ValueError(f"{os.fspath(path)!r} is empty: expected at least one row.")

    def batches() -> Iterator[np.ndarray]:
        rest = np.empty((0, n + k), np.float32)
        for buffer, order in _buffers(source, rows, seed, start * batch_size, buffer_rows):
            begin = batch_size - len(rest)
            rest = np.concatenate([rest, buffer[order[:begin]]])
            if len(rest) < batch_size:
                continue
            yield rest
            end = len(order) - (len(order) - begin) % batch_size
            for at in range(begin, end, batch_size):
                yield buffer[order[at : at + batch_size]]
            rest = buffer[order[end:]]

    dataset = tf.data.Dataset.from_generator(
        batches, output_signature=tf.TensorSpec((batch_size, n + k), tf.float32)
    )
    if k:
        dataset = dataset.map(lambda both: (both[:, :n], both[:, n:]))
    # Never prefetched: a program that ends while another thread runs Python code would hang.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


def _buffers(
    source: blocks.Source, rows: int, seed: int, skip: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Buffers of rows, each with the order in which they are taken, without the first ``skip``.

    A buffer is valid until the next one.
    """
    buffer = np.empty((min(size, rows), source.width + source.condition_dim), np.float32)
    epoch, skip = divmod(skip, rows)
    while True:
        number, filled = skip // size, 0
        skip %= size
        for block in source.blocks(number * size):
            position = number * size + filled  # of the next row
            values = _checked(block, source)[max(0, position - int(block.rows[0])) :]
            while len(values):
                piece = values[: min(size, rows - number * size) - filled]
                buffer[filled : filled + len(piece)] = piece
                filled, values = filled + len(piece), values[len(piece) :]
                if filled == min(size, rows - number * size):
                    order = np.random.default_rng((seed, epoch, number)).permutation(filled)
                    yield buffer, order[skip:]
                    number, filled, skip = number + 1, 0, 0
        epoch += 1


def _checked(block: blocks.Block, source: blocks.Source) -> Any:
    """The values, or ValueError for the first bad row."""
    bad = next((i for i, reason in enumerate(block.reasons) if reason is not None), None)
    if bad is not None:
        name, row = str(source.files[block.file[0]]), int(block.rows[bad]) - block.file[1]
        raise ValueError(f"Row {row} of {name!r} is bad: {block.reasons[bad]}.")
    return block.values
