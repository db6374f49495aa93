"""Open files of rows as a model takes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfdde.datasets.readers.blocks import Source, find_files, format_of
from tfdde.datasets.readers.headers import DELIMITERS, Dialect, other_delimiter
from tfdde.scoring.scorer import Scorer


def open_input(
    scorer: Scorer,
    path: str | os.PathLike,
    columns: Sequence[str] | None = None,
    conditions: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    *,
    delimiter: str | None = None,
    decimal: str = ".",
    encoding: str = "utf-8",
) -> Source:
    """Open the rows of a file for a model. Arguments and errors are those of ``score_file``."""
    dialect = _dialect(Path(path), delimiter, decimal, encoding)
    if columns is None and format_of(find_files(Path(path))[0][0]) != "tfrecord":
        columns = scorer.columns
    return Source(
        Path(path),
        columns,
        conditions,
        keep,
        scorer.width,
        scorer.condition_dim,
        dialect,
        scorer.dtype,
        scorer.medians is not None,
    )


def _dialect(source: Path, delimiter: str | None, decimal: str, encoding: str) -> Dialect:
    """Return the dialect of the input; without a delimiter, by the first line of the first file."""
    if delimiter is not None:
        return Dialect(delimiter, decimal, encoding)
    usual = Dialect("," if decimal == "." else ";", decimal, encoding)
    files, _ = find_files(source)
    if format_of(files[0]) != "csv" or (other := other_delimiter(files[0], usual)) is None:
        return usual
    print(f"The first line of {files[0]} has {DELIMITERS[other]} between its cells.")
    return Dialect(other, decimal, encoding)


def drawn_rows(source: Source, most: int, seed: int = 0) -> np.ndarray:
    """Return good rows of a file, up to ``most`` drawn without replacement: float64 (rows, n).

    Rows that miss values are left out, as among the normal rows of a run. The others are in the
    order of the file, and the same for any size of its blocks.
    """
    rng = np.random.default_rng(seed)
    kept, keys = np.empty((0, source.width)), np.empty(0)
    for block in source:
        good = np.array([reason is None for reason in block.reasons], bool)
        good &= ~np.isnan(block.values).any(axis=1)
        keys = np.concatenate([keys, rng.random(len(block))[good]])
        kept = np.concatenate([kept, block.values[good]])
        if len(keys) > most:
            first = np.sort(np.argpartition(keys, most)[:most])
            kept, keys = kept[first], keys[first]
    return kept
