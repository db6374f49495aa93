"""Read files of any size in blocks of rows, in constant memory. Bad rows come with a reason.

In a CSV file, the first line holds the names of the columns and every other line is one row; a line
whose quotes don't close is a bad row. Blank lines are not rows, except in a file of one column,
where they are missing values. Rows are numbered from 0, through all files in the order of their
paths.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdde.datasets.readers.headers import (
    PLAIN,
    Dialect,
    check_numeric,
    choose,
    chosen_columns,
    open_csv,
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
BLOCK_ROWS = 2**16  # the most rows of a block
BLOCK_VALUES = 2**20  # the most values of a block, unless one row has more
BLOCK_BYTES = 2**22  # the bytes of text or records in a block, about


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a file.

    Attributes:
        rows: int64 (rows,), the numbers of the rows.
        values: (rows, columns), float32 or as asked for; meaningless where there is a reason.
        reasons: for each row None, or why it is bad.
        kept: pyarrow table of the columns that are only passed on.
        file: the number of the file, and the number of its first row.
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
    """Return the format, a key of ``SUFFIXES``, by the end of the name; None if unknown."""
    name = os.fspath(path).lower()
    return next((kind for kind, suffix in SUFFIXES.items() if suffix.search(name)), None)


def numbers(
    table: Any, names: Sequence[str], decimal: str = ".", dtype: str = "float32", gaps: int = 0
) -> tuple[np.ndarray, list[str | None]]:
    """Convert columns of a pyarrow table to numbers.

    Args:
        table: a table whose columns ``names`` hold numbers, or text of numbers.
        names: of the columns, in this order.
        decimal: the decimal point in text.
        dtype: of the numbers, "float32" or "float64".
        gaps: so many of the first columns may miss values, which are NaN then.

    Returns:
        Values (rows, columns); and for each row None, or the reason why it is bad: a value is
        missing, no number, or not finite in ``dtype``.
    """
    wide = np.empty((len(table), len(names)))
    for j, name in enumerate(names):
        wide[:, j] = _floats(table.column(name), decimal)
    with np.errstate(over="ignore"):
        values = wide.astype(dtype)
    reasons: list[str | None] = [None] * len(values)
    bad = ~np.isfinite(values)
    for j, name in enumerate(names[:gaps]):
        if bad[:, j].any():
            bad[:, j] &= ~_missing(table.column(name))
    for i in np.flatnonzero(bad.any(axis=1)):
        name = names[bad[i].argmax()]
        why = _why_bad(table.column(name)[i].as_py(), decimal, dtype)
        reasons[i] = f"column {name!r} {why}"
    return values, reasons


def _floats(column: Any, decimal: str) -> np.ndarray:
    """Return a column as float64; NaN where it is missing or no number."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column.cast(pa.float64(), safe=False).to_numpy()  # NaN for a null
    text = pc.ascii_trim_whitespace(column)
    if decimal == ",":
        # A point in such a number is an error: "_" makes it one, here and for Python's float().
        text = pc.replace_substring(pc.replace_substring(text, ".", "_"), ",", ".")
    try:
        return text.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:  # at least one is no number: convert them one by one
        values = map(_float, text.to_pylist())
        return np.array([np.nan if v is None else v for v in values], np.float64)


def _missing(column: Any) -> np.ndarray:
    """Return whether the values of a column are missing: null, NaN, or blank in text."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        text = pc.utf8_lower(pc.ascii_trim_whitespace(column))
        column = pc.if_else(pc.is_in(text, pa.array(["", "nan"], text.type)), None, text)
    return pc.is_null(column, nan_is_null=True).to_numpy()


def _float(text: str | None) -> float | None:
    """Return the number in a text; None if it is missing or no number."""
    try:
        return None if text is None or "_" in text else float(text)
    except ValueError:
        return None


def _why_bad(value: Any, decimal: str, dtype: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is missing"
    if isinstance(value, str):
        text = value if decimal == "." else value.replace(".", "_").replace(",", ".")
        number = _float(text)
        if number is None:
            hint = f" with the decimal point {decimal!r}" if decimal != "." else ""
            return f"must be a number{hint}, got {value[:40]!r}"
        value = number
    return f"must be finite in {dtype}, got {value}"


class Source:
    r"""A file, or several of one format, to be read in blocks.

    Args:
        path: a CSV file with a header (.csv, .csv.gz), a Parquet file (.parquet), a file of
            tf.Example (.tfrecord, also in shards; also .gz), a folder of one of these formats with
            folders in it to any depth, or a pattern of paths such as "parts/**/*.csv". Files and
            folders whose names begin with "_" or "." are skipped.
        columns: names of the columns of a table that hold the rows; by default all but those of
            ``conditions`` and ``keep``. Not for TFRecord, whose feature ``x`` holds a row.
        conditions: names of the columns that hold the conditions. Not for TFRecord, whose feature
            ``condition`` holds them.
        keep: names of the columns, or of features of one value, that are passed on.
        width: numbers in a row; None for as many as there are.
        condition_dim: numbers in a condition; None for as many as there are.
        dialect: how CSV files are written.
        dtype: of the values, "float32" or "float64".
        gaps: whether the rows of a table may miss values, which are NaN then. Without it, and in
            TFRecord, such rows are bad.

    Attributes:
        files: the paths, in order.
        skipped: the paths that were skipped because of their names.
        format: a key of ``SUFFIXES``.
        columns, conditions, keep, width, condition_dim: as given, or as found in the files.
        schema: pyarrow schema of the columns that are passed on; text for CSV.

    Raises:
        OSError: there is no such file.
        ValueError: an ending is unknown, a file is damaged, a column is unknown or not numeric
            (Parquet), the number of columns is not ``width``, or the files have different types of
            a column that is passed on.

    Example:
        >>> from pathlib import Path
        >>> from tfdde.datasets.readers.blocks import Source
        >>> _ = Path("table.csv").write_text("id,a,b\nx,1,2\ny,3,oops\n")
        >>> (block,) = Source(Path("table.csv"), ["a", "b"], None, ["id"], width=2)
        >>> block.values[0].tolist(), block.reasons
        ([1.0, 2.0], [None, "column 'b' must be a number, got 'oops'"])
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str] | None,
        conditions: Sequence[str] | None,
        keep: Sequence[str],
        width: int | None,
        condition_dim: int | None = 0,
        dialect: Dialect = PLAIN,
        dtype: str = "float32",
        gaps: bool = False,
    ):
        self.columns, self.conditions, self.keep = columns, conditions, keep
        self.dialect, self.dtype, self.gaps = dialect, dtype, gaps
        self.files, self.skipped = find_files(path)
        self.format = format_of(self.files[0]) or ""
        if self.format != "csv" and dialect != PLAIN:
            raise ValueError(
                f"`delimiter`, `decimal` and `encoding` must be left out for {self.format} files, "
                f"got {dialect}."
            )
        if self.format == "tfrecord":
            self._open_records(width, condition_dim)
        else:
            self._open_tables(width, condition_dim)

    def _open_records(self, width: int | None, condition_dim: int | None) -> None:
        if self.columns or self.conditions:
            raise ValueError(
                "`columns` and `conditions` must be left out for TFRecord, whose features "
                f"`x` and `condition` hold the rows, got {self.columns or self.conditions!r}."
            )
        if self.dtype != "float32":
            raise ValueError(
                f"The rows must be in {self.dtype}, got TFRecord, whose floats are float32: write "
                "Parquet."
            )
        self.schema = tfrecords.schema(self.files, self.keep)
        if width is None or condition_dim is None:
            sizes = tfrecords.sizes(self.files[0])
            width = sizes[0] if width is None else width
            condition_dim = sizes[1] if condition_dim is None else condition_dim
        self.width, self.condition_dim = width, condition_dim

    def _open_tables(self, width: int | None, condition_dim: int | None) -> None:
        chosen = [*(self.columns or ()), *(self.conditions or ()), *self.keep]
        self._schemas = [
            parquet_schema(file)
            if self.format == "parquet"
            else csv_lines.schema(file, self.dialect, chosen)
            for file in self.files
        ]
        self.columns, self.conditions = choose(
            self._schemas[0].names,
            self.columns,
            self.conditions,
            self.keep,
            width,
            condition_dim,
            self.files[0],
        )
        self.width, self.condition_dim = len(self.columns), len(self.conditions)
        for file, schema in zip(self.files, self._schemas, strict=True):
            for names in filter(None, (self.used, self.keep)):
                chosen_columns(names, schema.names, file)
            if self.format == "parquet":
                for name in self.used:
                    check_numeric(name, schema.field(name).type, file)
        self.schema = plain(pa.schema([(name, self._kept_type(name)) for name in self.keep]))

    def _kept_type(self, name: str) -> Any:
        """Return the type that holds the values of a kept column in all files."""
        types = [schema.field(name).type for schema in self._schemas]
        common = common_type(types)
        if common is None:
            pairs = itertools.combinations(zip(types, self.files, strict=True), 2)
            (first, file), (second, other) = next(
                pair for pair in pairs if common_type([kind for kind, _ in pair]) is None
            )
            raise ValueError(
                f"`keep` must name columns of one type, but {name!r} is {first} in "
                f"{str(file)!r} and {second} in {str(other)!r}."
            )
        return common

    @property
    def used(self) -> list[str]:
        """The names of the columns that hold rows and conditions."""
        return [*(self.columns or ()), *(self.conditions or ())]

    def rows(self) -> int | None:
        """Return the number of rows; None if only reading all files can tell."""
        if self.format != "parquet":
            return None
        return sum(pyarrow.parquet.read_metadata(file).num_rows for file in self.files)

    def __iter__(self) -> Iterator[Block]:
        return self.blocks()

    def blocks(self, first: int = 0, file: tuple[int, int] = (0, 0)) -> Iterator[Block]:
        """Yield the rows from number ``first`` on in blocks, and perhaps some rows before.

        The blocks have the same bounds wherever one begins.

        Args:
            first: earlier rows are not read if the format allows it, else not parsed.
            file: ``Block.file`` of that row, or of an earlier one.
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
        # The buffer avoids reading row groups as a whole; pre-buffering would keep the file.
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
        """Return the block of a pyarrow table, whose first row has the number ``start``."""
        gaps = self.width if self.gaps else 0
        values, reasons = numbers(table, self.used, self.dialect.decimal, self.dtype, gaps)
        kept = table.select(self.keep).cast(self.schema)
        return Block(np.arange(start, start + len(table)), values, reasons, kept, file)

    def _csv(self, file: tuple[int, int], first: int) -> Generator[Block, None, int]:
        number, start = file
        names = self._schemas[number].names
        with open_csv(self.files[number], self.dialect) as f:
            f.readline()  # the names
            while lines := f.readlines(BLOCK_BYTES):
                if len(names) > 1:
                    lines = [line for line in lines if line.strip()]
                if lines and start + len(lines) > first:
                    table, wrong = csv_lines.parse(lines, names, self.dialect.delimiter)
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
    """Yield groups of row groups that have ``size`` rows or more together, and their rows."""
    groups, rows = [], 0
    for i in range(metadata.num_row_groups):
        groups.append(i)
        rows += metadata.row_group(i).num_rows
        if rows >= size or i == metadata.num_row_groups - 1:
            yield groups, rows
            groups, rows = [], 0


def plain(schema: Any) -> Any:
    """Return the schema without views, for which arrow lacks filters and writers."""
    types = {"string_view": pa.string(), "binary_view": pa.binary(), "null": pa.string()}
    return pa.schema([f.with_type(types.get(str(f.type), f.type)) for f in schema])


def common_type(types: Sequence[Any]) -> Any:
    """Return the arrow type that holds all values of all ``types`` unchanged; None without one.

    Columns without a value have the type null, which fits any other.

    Example:
        >>> import pyarrow as pa
        >>> from tfdde.datasets.readers.blocks import common_type
        >>> common_type([pa.null(), pa.int32(), pa.int64()])
        DataType(int64)
        >>> common_type([pa.int64(), pa.float64()]) is None
        True
    """
    known = list(dict.fromkeys(kind for kind in types if not pa.types.is_null(kind)))
    if len(known) <= 1:
        return known[0] if known else pa.null()
    if any(map(pa.types.is_dictionary, known)):
        return common_type([t.value_type if pa.types.is_dictionary(t) else t for t in known])
    t = pa.types
    if all(t.is_string(k) or t.is_large_string(k) or t.is_string_view(k) for k in known):
        return pa.large_string() if any(map(t.is_large_string, known)) else pa.string()
    for alike in (t.is_signed_integer, t.is_unsigned_integer, t.is_floating):
        if all(map(alike, known)):
            return max(known, key=lambda kind: kind.bit_width)
    return None


def find_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the files at a path, in a folder or of a pattern; and those skipped for their names.

    A name that begins with "_" or "." is skipped: such files are not data, as ``_SUCCESS`` is not.

    Raises:
        OSError: there is no such file.
        ValueError: there are no files, or not all have one known format.
    """
    skipped: list[Path] = []
    if path.is_file():
        files = [path]
    else:
        folder = path.is_dir()
        found = path.rglob("*") if folder else map(Path, glob.glob(str(path), recursive=True))
        files = []
        for file in sorted({file for file in found if file.is_file()}):
            names = file.relative_to(path).parts if folder else (file.name,)
            (skipped if any(name[0] in "._" for name in names) else files).append(file)
    if not files and not skipped and not path.is_dir():
        raise FileNotFoundError(f"Input {str(path)!r} does not exist.")
    formats = {format_of(file) for file in files}
    if len(formats) != 1 or None in formats:
        got = f"got {len(files)} files, {', '.join(p.name for p in files[:5]) or 'none'}"
        if skipped:
            got += f" (without {skipped[0].name!r}, whose name begins with {skipped[0].name[0]!r})"
        raise ValueError(
            f"Input {str(path)!r} must end in .csv, .csv.gz, .parquet or .tfrecord, or be a folder "
            f"or a pattern of files of one of these formats, {got}."
        )
    return files, skipped
