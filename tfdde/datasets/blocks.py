"""Files of any size as blocks of rows, in constant memory; bad rows come with the reason.

A row of a table is what its format calls one, but one line in a CSV file: blank lines are no
rows, and a line whose quotes don't close is a bad one.  Rows count from 0, through the files of a
folder in the order of their names.  The names of the columns are the first line of a CSV file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfdde.datasets import tfrecords
from tfdde.datasets.tables import chosen_columns, csv_names, parquet_names, reading

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet
except ImportError:
    raise ImportError("Blocks of tables need pyarrow: pip install 'tfdde[tables]'.") from None

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
    """

    rows: np.ndarray
    values: np.ndarray
    reasons: list[str | None]
    kept: Any

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Block:
        kept = self.kept.slice(part.start, part.stop - part.start)
        return Block(self.rows[part], self.values[part], self.reasons[part], kept)


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


@dataclass(frozen=True)
class Source:
    """A file, or the files of a folder, to be read in blocks.

    Args:
        path: a CSV file with a header (.csv, .csv.gz), a Parquet file (.parquet), a file of
            tf.Example (.tfrecord, also in shards; .gz), or a folder of one kind of them.
        columns: names of the columns of a table that hold the rows; by default all but those of
            ``conditions`` and ``keep``.  Not for TFRecord, whose feature ``x`` holds a row.
        conditions: names of the columns with the conditions, if there are any; not for TFRecord,
            whose feature ``condition`` holds them.
        keep: names of the columns, or features of one value, that are passed on.
        width: entries of a row.
        condition_dim: entries of its condition.

    Attributes:
        files: their paths.
        schema: pyarrow schema of the columns that are passed on: text if from CSV.

    Raises:
        OSError: there is no such file.
        ValueError: unknown ending, damaged file, unknown column, a column of a Parquet file that
            is not of numbers, or another number of columns than ``width``.
    """

    path: Path
    columns: Sequence[str] | None
    conditions: Sequence[str] | None
    keep: Sequence[str]
    width: int
    condition_dim: int = 0
    files: list[Path] = field(init=False)
    schema: Any = field(init=False)

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the rest is fixed from here on
        set_(self, "files", _files(self.path))
        if self.format == "tfrecord":
            if self.columns or self.conditions:
                raise ValueError(
                    "`columns` and `conditions` must be left out for TFRecord, whose features "
                    f"`x` and `condition` hold the rows, got {self.columns or self.conditions!r}."
                )
            set_(self, "schema", tfrecords.schema(self.files, self.keep))
            return
        first = self.names(self.files[0])
        columns, conditions = choose(
            first,
            self.columns,
            self.conditions,
            self.keep,
            self.width,
            self.condition_dim,
            self.files[0],
        )
        set_(self, "columns", columns)
        set_(self, "conditions", conditions)
        schemas = [self._check(file) for file in self.files]
        set_(self, "schema", schemas[0])

    @property
    def format(self) -> str:
        """One of ``SUFFIXES``."""
        return format_of(self.files[0]) or ""

    @property
    def used(self) -> list[str]:
        """Names of the columns that hold rows and conditions."""
        return [*(self.columns or ()), *(self.conditions or ())]

    def rows(self) -> int | None:
        """How many there are; None if that is known only at the end."""
        if self.format != "parquet":
            return None
        return sum(pyarrow.parquet.read_metadata(file).num_rows for file in self.files)

    def names(self, file: Path) -> list[str]:
        """Names of the columns of a table."""
        if self.format == "csv":
            _check_header(file)
            return csv_names(file)
        return parquet_names(file)

    def _check(self, file: Path) -> Any:
        """Raise ValueError unless the file has the columns; the schema of those passed on."""
        names = self.names(file)
        for chosen in (self.used, self.keep):
            if chosen:
                chosen_columns(chosen, names, file)
        if self.format == "csv":
            return pa.schema([(name, pa.string()) for name in self.keep])
        schema = pyarrow.parquet.read_schema(file)
        for name in self.used:
            check_numeric(name, schema.field(name).type, file)
        return plain(pa.schema([schema.field(name) for name in self.keep]))

    def __iter__(self) -> Iterator[Block]:
        read = {"csv": self._csv, "parquet": self._parquet, "tfrecord": self._tfrecord}
        start = 0
        for file in self.files:
            with reading(file):
                for block in read[self.format](file, start):
                    start += len(block)
                    yield block

    def _parquet(self, file: Path, start: int) -> Iterator[Block]:
        names = list(dict.fromkeys([*self.used, *self.keep]))
        size = min(max(BLOCK_VALUES // len(names), 1), BLOCK_ROWS)
        # With a buffer a row group isn't read as a whole; pre-buffered, the file would stay.
        with pyarrow.parquet.ParquetFile(
            file, buffer_size=BLOCK_BYTES, pre_buffer=False
        ) as parquet:
            for batch in parquet.iter_batches(size, columns=names):
                table = pa.Table.from_batches([batch])
                yield self.block(table, start)
                start += len(table)

    def block(self, table: Any, start: int) -> Block:
        """The block of a pyarrow table, whose first row is number ``start``."""
        values, reasons = numbers(table, self.used)
        kept = table.select(self.keep).cast(self.schema)
        return Block(np.arange(start, start + len(table)), values, reasons, kept)

    def _csv(self, file: Path, start: int) -> Iterator[Block]:
        names = csv_names(file)
        with tfrecords.open_bytes(file) as f:
            f.readline()  # the names
            while lines := f.readlines(BLOCK_BYTES):
                if not (lines := [line for line in lines if line.strip()]):
                    continue
                table, wrong = parse_lines(lines, names)
                block = self.block(table, start)
                for i, reason in wrong.items():
                    block.reasons[i] = reason
                yield block
                start += len(lines)

    def _tfrecord(self, file: Path, start: int) -> Iterator[Block]:
        with tfrecords.open_bytes(file) as f:
            for records, wrong in tfrecords.read(f, BLOCK_ROWS, BLOCK_BYTES):
                values, reasons, kept = tfrecords.parse(
                    records, wrong, self.width, self.condition_dim, self.schema
                )
                rows = np.arange(start, start + len(records))
                yield Block(rows, values, reasons, kept)
                start += len(records)


def choose(
    names: Sequence[str],
    columns: Sequence[str] | None,
    conditions: Sequence[str] | None,
    keep: Sequence[str],
    width: int,
    condition_dim: int,
    path: str | os.PathLike,
) -> tuple[list[str], list[str]]:
    """Names of the columns with rows and with conditions, as ``Source`` has them."""
    for chosen in (columns, conditions, keep):
        chosen_columns(chosen or None, names, path)
    conditions = list(conditions or ())
    if columns is None:
        columns = [name for name in names if name not in conditions and name not in keep]
    for what, chosen, expected in (
        ("columns", columns, width),
        ("conditions", conditions, condition_dim),
    ):
        if len(chosen) != expected:
            some = ", ".join(chosen[:20]) or "none"
            raise ValueError(
                f"`{what}` must be {expected} of {str(path)!r}, as the model has them, got "
                f"{len(chosen)}: {some}."
            )
    return list(columns), conditions


def plain(schema: Any) -> Any:
    """The schema without views, for which arrow lacks filters and writers."""
    types = {"string_view": pa.string(), "binary_view": pa.binary()}
    return pa.schema([f.with_type(types.get(str(f.type), f.type)) for f in schema])


def check_numeric(name: str, kind: Any, path: str | os.PathLike) -> None:
    """Raise ValueError unless a column has a type of numbers."""
    types = pa.types
    if not any(
        is_(kind)
        for is_ in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    ):
        raise ValueError(f"Column {name!r} of {str(path)!r} must be numeric, got type {kind}.")


def parse_lines(lines: list[bytes], names: Sequence[str]) -> tuple[Any, dict[int, str]]:
    """Lines of a CSV file as a table of text; a row of nulls where one is wrong, and why."""
    wrong: dict[int, str] = {}
    text = b"".join(lines)
    try:
        text.decode()
    except UnicodeDecodeError:
        for i, line in enumerate(lines):
            if line.decode(errors="ignore").encode() != line:
                wrong[i] = "line is not UTF-8"
    if b'"' in text:
        wrong |= {
            i: "line has an open quote" for i, line in enumerate(lines) if line.count(b'"') % 2
        }
    whole = [i for i in range(len(lines)) if i not in wrong]
    rows, invalid = _parse_whole([lines[i] for i in whole], names)
    wrong |= {whole[i]: reason for i, reason in invalid.items()}
    if wrong:
        order = np.cumsum([i not in wrong for i in range(len(lines))]) - 1
        absent = np.isin(np.arange(len(lines)), list(wrong))
        rows = rows.take(pa.array(order, mask=absent))
    return rows, wrong


def _parse_whole(lines: list[bytes], names: Sequence[str]) -> tuple[Any, dict[int, str]]:
    """Table of the lines that are right, and why each other one is wrong."""
    if not lines:
        return pa.table({name: pa.array([], pa.string()) for name in names}), {}
    text = b"".join(lines)
    # Within a line a carriage return may make two rows of it; the rest can only make one of many.
    if len(lines) == 1 or text.count(b"\r") == text.count(b"\r\n"):
        rows, wrong = _parse(text, names)
        if len(rows) + len(wrong) == len(lines):
            return rows, wrong
        if len(lines) == 1:
            reason = "line is not one row: it has a stray carriage return or quote"
            return rows.slice(0, 0), {0: reason}
    middle = len(lines) // 2
    first, wrong = _parse_whole(lines[:middle], names)
    second, more = _parse_whole(lines[middle:], names)
    return pa.concat_tables([first, second]), wrong | {middle + i: r for i, r in more.items()}


def _parse(text: bytes, names: Sequence[str]) -> tuple[Any, dict[int, str]]:
    """Table of the rows of CSV that have as many fields as names, and why the others are wrong."""
    wrong: dict[int, str] = {}

    def skip(row: Any) -> str:
        wrong[row.number - 1] = (
            f"line must have {row.expected_columns} fields, got {row.actual_columns}"
        )
        return "skip"

    rows = pyarrow.csv.read_csv(
        pa.py_buffer(text),
        # One thread: several don't count the rows.
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False, block_size=2 * len(text), column_names=names
        ),
        parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=skip),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    return rows, wrong


def _check_header(file: Path) -> None:
    """Raise ValueError unless the names of a CSV file are one line, its first."""
    with reading(file), tfrecords.open_bytes(file) as f:
        line = f.readline(BLOCK_BYTES)
    if line and (not line.strip() or line.count(b'"') % 2 or b"\r" in line.rstrip(b"\r\n")):
        raise ValueError(
            f"The first line of {str(file)!r} must hold the names of the columns and end in a line "
            f"feed, got {line[:40].decode(errors='replace')!r}."
        )


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] not in "._")
    elif path.is_file():
        files = [path]
    else:
        raise FileNotFoundError(f"Input {str(path)!r} does not exist.")
    formats = {format_of(file) for file in files}
    if len(formats) != 1 or None in formats:
        got = f"got {len(files)} files, {', '.join(p.name for p in files[:5]) or 'none'}"
        raise ValueError(
            f"Input {str(path)!r} must end in .csv, .csv.gz, .parquet or .tfrecord, or be a folder "
            f"of one kind of them, {got}."
        )
    return files
