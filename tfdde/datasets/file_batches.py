"""Shuffled batches of tables that are larger than memory, resumable like those in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.datasets.batches import without_autotune
from tfdde.datasets.readers import blocks
from tfdde.datasets.readers.headers import Dialect, check_local
from tfdde.utils.checks import check_integer

BUFFER_VALUES = 2**24  # the values of a buffer: 64 MiB


def stream_files(
    path: str | os.PathLike,
    batch_size: int,
    seed: int,
    start: int = 0,
    columns: Sequence[str] | None = None,
    conditions: Sequence[str] | None = None,
    buffer_rows: int | None = None,
    *,
    delimiter: str = ",",
    decimal: str = ".",
    encoding: str = "utf-8",
) -> tf.data.Dataset:
    r"""Return endless, full batches of the rows of files of any size, in constant memory.

    Batch k depends only on (files, batch_size, seed, buffer_rows, k). An epoch has every row once.
    Rows are shuffled within buffers of consecutive rows only: shuffle a sorted file once on disk.
    To resume at ``start``, Parquet files are read from there on; CSV and TFRecord files are read
    again from the beginning of the epoch, and once more to count their rows.

    Args:
        path: the input; see ``tfdde.datasets.readers.blocks.Source``.
        batch_size: rows in each batch.
        seed: fixes the orders of all epochs.
        start: number of the first batch, to resume a training after ``start`` steps.
        columns: names of the columns of a row, in this order; by default all but ``conditions``.
        conditions: names of the columns of the condition, for a conditional density. TFRecord has
            conditions in the feature ``condition``, if there is one.
        buffer_rows: rows that are shuffled together; by default 64 MiB of them.
        delimiter, decimal, encoding: how CSV files are written; see ``read_table``.

    Returns:
        An infinite dataset of float32 tensors (batch_size, n); with conditions, of pairs of those
        and (batch_size, k). A bad row ends it with an error that says which row and why.

    Raises:
        OSError: there is no such file.
        ValueError: there are no rows, a file or a column is unusable, or a number is out of range.

    Example:
        >>> from pathlib import Path
        >>> from tfdde.datasets.file_batches import stream_files
        >>> _ = Path("table.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
        >>> (batch,) = stream_files("table.csv", batch_size=3, seed=0).take(1)
        >>> sorted(batch.numpy().tolist())
        [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    """
    check_integer(batch_size, "batch_size")
    check_integer(seed, "seed", minimum=0)
    check_integer(start, "start", minimum=0)
    check_local(path, "path")
    dialect = Dialect(delimiter, decimal, encoding)
    source = blocks.Source(Path(path), columns, conditions, (), None, None, dialect)
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
    # Without prefetching: a program would hang if it ended while another thread runs Python code.
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    return without_autotune(dataset.with_options(options))


def _buffers(
    source: blocks.Source, rows: int, seed: int, skip: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield buffers of rows with the order in which to take them, without the first ``skip`` rows.

    A buffer is overwritten by the next one.
    """
    buffer = np.empty((min(size, rows), source.width + source.condition_dim), np.float32)
    epoch, skip = divmod(skip, rows)
    while True:
        number, filled = skip // size, 0
        skip %= size
        for block in source.blocks(number * size):
            position = number * size + filled  # the number of the next row
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
    """Return the values of a block, or raise ValueError for its first bad row."""
    bad = next((i for i, reason in enumerate(block.reasons) if reason is not None), None)
    if bad is not None:
        name, row = str(source.files[block.file[0]]), int(block.rows[bad]) - block.file[1]
        raise ValueError(f"Row {row} of {name!r} is bad: {block.reasons[bad]}.")
    return block.values
