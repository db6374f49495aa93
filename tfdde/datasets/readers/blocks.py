"""Files of any size as blocks of rows, in constant memory; bad rows come with the reason.

A row of a table is what its format calls one, but one line in a CSV file: blank lines are no
rows, and a line whose quotes don't close is a bad one.  Rows count from 0, through the files of a
folder in the order of their names.  The names of the columns are the first line of a CSV file.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdde.datasets.readers.headers import (
    check_numeric,
    choose,
    chosen_columns,
    parquet_schema,
    reading,
)

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet

    from tfdde.datasets.readers import csv_lines, tfrecords
except ImportError as error:
    raise ImportError(
        f"Reading files in blocks needs {error.name}: pip install 'tfdde[tables]'."
    ) from None


SUFFIXES = {
    "csv": re.compile(r"\.csv(\.gz)?$"),
    "parquet": re.compile(r"\.parquet$"),
    "tfrecord": re.compile(r"\.tfrecords?(-\d+-of-\d+)?(\.gz)?$"),
}
BLOCK_ROWS = 2**16  # at most
BLOCK_VALUES = 2**20  # at most, unless one row has more
BLOCK_BYTES = 2**22  # about, of text or records


@dataclass(frozen=True)
class Block:
    """Rows that follow one another.

    Attributes:
        rows: int64 (rows,), their positions.
        values: float32 (rows, columns), anything where there is a reason.
        reasons: why a row is bad; None where it is good.
        kept: pyarrow table of the columns that are only passed on.
        file: number of the file that they are of, and the position of its first row.
    """

    rows: np.ndarray
    values: np.ndarray
    reasons: list[str | None]
    kept: Any
    file: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Block:
        kept = self.kept.slice(part.start, part.stop - part.start)
        return Block(self.rows[part], self.values[part], self.reasons[part], kept, self.file)


def format_of(path: str | os.PathLike) -> str | None:
    """The format by the end of the name, a key of ``SUFFIXES``; None if it is another."""
    name = os.fspath(path).lower()
    return next((kind for kind, suffix in SUFFIXES.items() if suffix.search(name)), None)


def numbers(table: Any, names: Sequence[str]) -> tuple[np.ndarray, list[str | None]]:
    """Columns of a pyarrow table as float32.

    Args:
        table: its columns ``names`` are of numbers, or of text that holds them.
        names: of the columns, in this order.

    Returns:
        float32 (rows, columns), and for each row None, or why not all its values are finite.
    """
    wide = np.empty((len(table), len(names)))
    for j, name in enumerate(names):
        wide[:, j] = _floats(table.column(name))
    with np.errstate(over="ignore"):
        x = wide.astype(np.float32)
    reasons: list[str | None] = [None] * len(x)
    bad = ~np.isfinite(x)
    for i in np.flatnonzero(bad.any(axis=1)):
        name = names[bad[i].argmax()]
        value = table.column(name)[i].as_py()
        reasons[i] = f"column {name!r} {_wrong(value)}"
    return x, reasons


def _floats(column: Any) -> np.ndarray:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column.cast(pa.float64(), safe=False).to_numpy()  # NaN where it is missing
    try:
        return pc.ascii_trim_whitespace(column).cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:  # one of them is no number: look at each
        values = map(_float, column.to_pylist())
        return np.array([np.nan if v is None else v for v in values], np.float64)


def _float(text: str | None) -> float | None:
    try:
        return None if text is None or "_" in text else float(text)
    except ValueError:
        return None


def _wrong(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is missing"
    if isinstance(value, str):
        if (number := _float(value)) is None:
            return f"must be a number, got {value[:40]!r}"
        value = number
    return f"must be finite in float32, got {value}"


class Source:
    """A file, or several, to be read in blocks.

    Args:
        path: a CSV file with a header (.csv, .csv.gz), a Parquet file (.parquet), a file of
            tf.Example (.tfrecord, also in shards; .gz), or a folder of one kind of them, or a
            pattern of their paths, as "parts/*.csv".
        columns: names of the columns of a table that hold the rows; by default all but those of
            ``conditions`` and ``keep``.  Not for TFRecord, whose feature ``x`` holds a row.
        conditions: names of the columns with the conditions, if there are any; not for TFRecord,
            whose feature ``condition`` holds them.
        keep: names of the columns, or features of one value, that are passed on.
        width: entries of a row; None: as many as there are.
        condition_dim: entries of its condition; None likewise.

    Attributes:
        files: their paths, in order.
        format: one of ``SUFFIXES``.
        columns, conditions, keep, width, condition_dim: as given, or as found.
        schema: pyarrow schema of the columns that are passed on: text if from CSV.

    Raises:
        OSError: there is no such file.
        ValueError: unknown ending, damaged file, unknown column, a column of a Parquet file that
            is not of numbers, or another number of columns than ``width``.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str] | None,
        conditions: Sequence[str] | None,
        keep: Sequence[str],
        width: int | None,
        condition_dim: int | None = 0,
    ):
        self.columns, self.conditions, self.keep = columns, conditions, keep
        self.files = _files(path)
        self.format = format_of(self.files[0]) or ""
        if self.format == "tfrecord":
            if columns or conditions:
                raise ValueError(
                    "`columns` and `conditions` must be left out for TFRecord, whose features "
                    f"`x` and `condition` hold the rows, got {columns or conditions!r}."
                )
            self.schema = tfrecords.schema(self.files, keep)
            found = tfrecords.sizes(self.files[0]) if None in (width, condition_dim) else (0, 0)
            self.width = found[0] if width is None else width
            self.condition_dim = found[1] if condition_dim is None else condition_dim
            return
        read = parquet_schema if self.format == "parquet" else csv_lines.schema
        self._schemas = [read(file) for file in self.files]
        self.columns, self.conditions = choose(
            self._schemas[0].names, columns, conditions, keep, width, condition_dim, self.files[0]
        )
        self.width, self.condition_dim = len(self.columns), len(self.conditions)
        for file, schema in zip(self.files, self._schemas, strict=True):
            for chosen in filter(None, (self.used, keep)):
                chosen_columns(chosen, schema.names, file)
            if self.format == "parquet":
                for name in self.used:
                    check_numeric(name, schema.field(name).type, file)
        self.schema = plain(pa.schema([self._schemas[0].field(name) for name in keep]))

    @property
    def used(self) -> list[str]:
        """Names of the columns that hold rows and conditions."""
        return [*(self.columns or ()), *(self.conditions or ())]

    def rows(self) -> int | None:
        """How many there are; None if that is known only at the end."""
        if self.format != "parquet":
            return None
        return sum(pyarrow.parquet.read_metadata(file).num_rows for file in self.files)

    def __iter__(self) -> Iterator[Block]:
        return self.blocks()

    def blocks(self, first: int = 0, file: tuple[int, int] = (0, 0)) -> Iterator[Block]:
        """The rows from position ``first`` on, and maybe some before, in blocks.

        The blocks are the same from wherever one begins.

        Args:
            first: rows before it are left unread where the format allows it, or unparsed.
            file: as ``Block.file`` of that row, or of one before.
        """
        read = {"csv": self._csv, "parquet": self._parquet, "tfrecord": self._tfrecord}
        number, start = file
        while number < len(self.files):
            with reading(self.files[number]):
                start = yield from read[self.format]((number, start), first)
            number += 1

    def _parquet(self, file: tuple[int, int], first: int) -> Generator[Block, None, int]:
        number, start = file
        names = list(dict.fromkeys([*self.used, *self.keep]))
        size = min(max(BLOCK_VALUES // len(names), 1), BLOCK_ROWS)
        # With a buffer a row group isn't read as a whole; pre-buffered, the file would stay.
        with pyarrow.parquet.ParquetFile(
            self.files[number], buffer_size=BLOCK_BYTES, pre_buffer=False
        ) as parquet:
            for groups, rows in _spans(parquet.metadata, size):
                if start + rows <= first:
                    start += rows
                    continue
                for batch in parquet.iter_batches(size, groups, names):
                    yield self._block(pa.Table.from_batches([batch]), start, file)
                    start += len(batch)
        return start

    def _block(self, table: Any, start: int, file: tuple[int, int]) -> Block:
        """The block of a pyarrow table, whose first row is number ``start``."""
        values, reasons = numbers(table, self.used)
        kept = table.select(self.keep).cast(self.schema)
        return Block(np.arange(start, start + len(table)), values, reasons, kept, file)

    def _csv(self, file: tuple[int, int], first: int) -> Generator[Block, None, int]:
        number, start = file
        with tfrecords.open_bytes(self.files[number]) as f:
            f.readline()  # the names
            while lines := f.readlines(BLOCK_BYTES):
                lines = [line for line in lines if line.strip()]
                if lines and start + len(lines) > first:
                    table, wrong = csv_lines.parse(lines, self._schemas[number].names)
                    block = self._block(table, start, file)
                    for i, reason in wrong.items():
                        block.reasons[i] = reason
                    yield block
                start += len(lines)
        return start

    def _tfrecord(self, file: tuple[int, int], first: int) -> Generator[Block, None, int]:
        number, start = file
        with tfrecords.open_bytes(self.files[number]) as f:
            for records, wrong in tfrecords.read(f, BLOCK_ROWS, BLOCK_BYTES):
                if start + len(records) > first:
                    values, reasons, kept = tfrecords.parse(
                        records, wrong, self.width, self.condition_dim, self.schema
                    )
                    rows = np.arange(start, start + len(records))
                    yield Block(rows, values, reasons, kept, file)
                start += len(records)
        return start


def _spans(metadata: Any, size: int) -> Iterator[tuple[list[int], int]]:
    """Row groups that are read together, and how many rows they have: ``size`` or more."""
    groups, rows = [], 0
    for i in range(metadata.num_row_groups):
        groups.append(i)
        rows += metadata.row_group(i).num_rows
        if rows >= size or i == metadata.num_row_groups - 1:
            yield groups, rows
            groups, rows = [], 0


def plain(schema: Any) -> Any:
    """The schema without views, for which arrow lacks filters and writers."""
    types = {"string_view": pa.string(), "binary_view": pa.binary()}
    return pa.schema([f.with_type(types.get(str(f.type), f.type)) for f in schema])


def _files(path: Path) -> list[Path]:
    if path.is_file():
        files = [path]
    else:
        found = path.iterdir() if path.is_dir() else map(Path, glob.glob(os.fspath(path)))
        files = sorted(p for p in found if p.is_file() and p.name[0] not in "._")
    if not files and not path.is_dir():
        raise FileNotFoundError(f"Input {str(path)!r} does not exist.")
    formats = {format_of(file) for file in files}
    if len(formats) != 1 or None in formats:
        got = f"got {len(files)} files, {', '.join(p.name for p in files[:5]) or 'none'}"
        raise ValueError(
            f"Input {str(path)!r} must end in .csv, .csv.gz, .parquet or .tfrecord, or be a folder "
            f"or a pattern of one kind of them, {got}."
        )
    return files
