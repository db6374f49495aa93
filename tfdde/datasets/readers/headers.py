"""The columns of a table in a file: their names, their types, and which of them to read.

Errors name the file, the column and what was expected.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import difflib
import gzip
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HEADER_BYTES = 2**22  # longest first line of a CSV file
DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        delimiter: the character between cells: a comma, a semicolon, a tab or a vertical bar.
        decimal: the decimal point of numbers, "." or ",".
        encoding: of the text, as Python names it.

    Raises:
        ValueError: a value is none of these, or ``decimal`` is ``delimiter``.
    """

    delimiter: str = ","
    decimal: str = "."
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.delimiter not in DELIMITERS:
            known = ", ".join(map(repr, DELIMITERS))
            raise ValueError(f"`delimiter` must be one of {known}, got {self.delimiter!r}.")
        if self.decimal not in (".", ",") or self.decimal == self.delimiter:
            raise ValueError(
                f"`decimal` must be '.' or ',', and not the delimiter {self.delimiter!r}, "
                f"got {self.decimal!r}."
            )
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(
                f"`encoding` must be an encoding that Python knows, as 'latin-1', "
                f"got {self.encoding!r}."
            ) from None


PLAIN = Dialect()


def import_pandas() -> Any:
    """Return pandas, or raise ImportError saying how to install it."""
    try:
        import pandas
    except ImportError:
        raise ImportError("Reading tables needs pandas: pip install 'tfdde[tables]'.") from None
    return pandas


def check_local(path: str | os.PathLike, name: str) -> None:
    """Raise ValueError if a path is an address such as "s3://bucket/file"."""
    if "://" in os.fspath(path):
        raise ValueError(
            f"`{name}` must be a path of this machine, got {os.fspath(path)!r}: copy the files "
            "here, or mount the storage."
        )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error of reading the file ``path`` into a ValueError of one sentence."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"{str(path)!r} cannot be read: {reason}.") from None


def chosen_columns(
    columns: Sequence[str] | None, names: Sequence[str], path: str | os.PathLike
) -> list[int]:
    """Return the positions of the chosen columns among the ``names`` of a file; all if None.

    Raises:
        ValueError: a name occurs twice, is unknown or is empty.
    """
    position = {name: i for i, name in enumerate(names)}
    twice = next((name for i, name in enumerate(names) if position[name] != i), None)
    if twice is not None:
        raise ValueError(f"{str(path)!r} must name each column once, got {twice!r} twice.")
    if columns is None:
        columns = names
    elif isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"`columns` must be a list of column names, got {columns!r}.")
    elif len(columns) == 0 or len(set(columns)) < len(columns):
        raise ValueError(f"`columns` must name one column or more, each once, got {columns!r}.")
    for name in columns:
        if name not in position:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}" if near else f"there are {', '.join(names[:20])}"
            raise ValueError(f"`columns` must name columns of {str(path)!r}, got {name!r}; {hint}.")
        if not name.strip():
            raise ValueError(
                f"Column number {position[name]} of {str(path)!r} must have a name (is it an "
                "index?): name it, or choose others with `columns`."
            )
    return [position[name] for name in columns]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def csv_header(path: Path, dialect: Dialect) -> str:
    """Return the first line of a CSV file, without its end; empty for an empty file.

    Raises:
        ValueError: the line is blank, has an open quote, or does not end in a line feed.
    """
    with reading(path), open_csv(path, dialect) as f:
        line = f.readline(HEADER_BYTES)
    text = line.decode(errors="replace")
    if text and (not text.strip() or text.count('"') % 2 or "\r" in text.rstrip("\r\n")):
        raise ValueError(
            f"The first line of {str(path)!r} must hold the names of the columns and end in a line "
            f"feed, got {text[:40]!r}."
        )
    return text.rstrip("\r\n")


def other_delimiter(path: Path, dialect: Dialect = PLAIN) -> str | None:
    """Return the delimiter that a CSV file's first line has where it lacks that of ``dialect``."""
    line = csv_header(path, dialect)
    if dialect.delimiter in line:
        return None
    return next((delimiter for delimiter in DELIMITERS if delimiter in line), None)


def csv_names(path: Path, dialect: Dialect = PLAIN, chosen: Sequence[str] = ()) -> list[str]:
    """Return the names of the columns, which the first line of a CSV file holds.

    Args:
        path: the file.
        dialect: how it is written.
        chosen: names that the caller will choose. With one of them the line is surely a header,
            even if other names are numbers.

    Raises:
        ValueError: the file is empty, or its first line seems to hold numbers (other than the
            names 0, 1, 2 ...) or to have another delimiter.
    """
    line = csv_header(path, dialect)
    if other := other_delimiter(path, dialect):
        raise ValueError(
            f"{str(path)!r} must have {DELIMITERS[dialect.delimiter]} between its cells, but its "
            f"first line {line[:40]!r} has {DELIMITERS[other]}: read it with "
            f"delimiter={other!r}, or save it with {dialect.delimiter!r}."
        )
    if not line:
        raise ValueError(
            f"{str(path)!r} must hold the names of its columns in its first line, but it is empty."
        )
    with reading(path):
        names = next(csv.reader([line], delimiter=dialect.delimiter))
    numbered = names == [str(i) for i in range(len(names))]
    numbers = [name for name in names if _is_number(name)]
    if numbers and not numbered and not set(chosen) & set(names):
        raise ValueError(
            f"The first line of {str(path)!r} must hold the names of the columns, got the numbers "
            f"{', '.join(numbers[:5])}: add a line of names, or choose columns by these names."
        )
    return names


def parquet_schema(path: Path) -> Any:
    """Return the arrow schema of a Parquet file, without index columns that pandas added."""
    import pyarrow.parquet

    with reading(path):
        schema = pyarrow.parquet.read_schema(path)
    return pyarrow.schema([f for f in schema if not f.name.startswith("__index_level_")])


def open_bytes(file: Path) -> IO[bytes]:
    """Open a file to read its bytes; a gzip file is unzipped on the way."""
    with file.open("rb") as f:
        zipped = f.read(2) == b"\x1f\x8b"
    return gzip.open(file, "rb") if zipped else file.open("rb")  # type: ignore[return-value]


@contextlib.contextmanager
def open_csv(file: Path, dialect: Dialect) -> Iterator[Any]:
    """Open a CSV file; ``readline`` and ``readlines`` return bytes in UTF-8.

    In UTF-8 files, bytes that are not UTF-8 pass unchanged, so that only their line is bad.
    """
    with open_bytes(file) as f:
        if codecs.lookup(dialect.encoding).name != "utf-8":
            yield _Recoded(f, dialect.encoding)
            return
        if f.read(3) != codecs.BOM_UTF8:
            f.seek(0)
        yield f


class _Recoded:
    """Lines of a file in another encoding, as UTF-8."""

    def __init__(self, f: IO[bytes], encoding: str):
        self._text = io.TextIOWrapper(f, encoding, newline="\n")  # other breaks are no line ends

    def readline(self, size: int = -1) -> bytes:
        return self._text.readline(size).encode()

    def readlines(self, size: int) -> list[bytes]:
        lines: list[bytes] = []
        total = 0
        while total < size and (line := self.readline()):
            lines.append(line)
            total += len(line)
        return lines


def choose(
    names: Sequence[str],
    columns: Sequence[str] | None,
    conditions: Sequence[str] | None,
    keep: Sequence[str],
    width: int | None,
    condition_dim: int | None,
    path: str | os.PathLike,
) -> tuple[list[str], list[str]]:
    """Return the names of the columns that hold rows, and of those that hold conditions.

    Args:
        names: the columns of the file.
        columns: those that hold rows; by default all but ``conditions`` and ``keep``.
        conditions: those that hold conditions.
        keep: those that are passed on.
        width, condition_dim: how many columns the model needs; None for any number.
        path: the file, for messages.
    """
    for chosen in (columns, conditions, keep):
        chosen_columns(chosen or None, names, path)
    conditions = list(conditions or ())
    if columns is None:
        columns = [name for name in names if name not in conditions and name not in keep]
    for what, chosen, expected in (
        ("columns", columns, width),
        ("conditions", conditions, condition_dim),
    ):
        if expected is not None and len(chosen) != expected:
            some = ", ".join(chosen[:20]) or "none"
            raise ValueError(
                f"`{what}` must be {expected} of {str(path)!r}, since the model takes as many, got "
                f"{len(chosen)}: {some}."
            )
    return list(columns), conditions


def check_numeric(name: str, kind: Any, path: str | os.PathLike) -> None:
    """Raise ValueError unless the arrow type ``kind`` of a column is numeric."""
    from pyarrow import types

    if not any(
        is_(kind)
        for is_ in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    ):
        raise ValueError(f"Column {name!r} of {str(path)!r} must be numeric, got type {kind}.")
