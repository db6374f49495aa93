"""The first look at a file: its columns, their names and types."""

from __future__ import annotations

import contextlib
import difflib
import gzip
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any


def import_pandas() -> Any:
    """Return pandas, or raise ImportError saying how to install it."""
    try:
        import pandas
    except ImportError:
        raise ImportError("Reading tables needs pandas: pip install 'tfdde[tables]'.") from None
    return pandas


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader says of a damaged file into a ValueError of one sentence."""
    try:
        yield
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"{str(path)!r} cannot be read: {said}.") from None


def chosen_columns(
    columns: Sequence[str] | None, names: Sequence[str], path: str | os.PathLike
) -> list[int]:
    """Positions in ``names``, those of the file ``path``, of the columns asked for; all if None.

    Raises:
        ValueError: a name is given twice, unknown or empty.
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


def csv_names(path: Path) -> list[str]:
    """The names of the columns in the first line of a CSV file; ValueError if there are none."""
    pd = import_pandas()
    with reading(path):
        first = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
    names = first.iloc[0].tolist()
    numbered = names == [str(i) for i in range(len(names))]
    if all(map(_is_number, names)) and not numbered:
        raise ValueError(
            f"The first line of {str(path)!r} must hold the names of the columns, got the numbers "
            f"{', '.join(names[:5])}."
        )
    return names


def parquet_schema(path: Path) -> Any:
    """The arrow schema of a Parquet file, without the columns of an index that pandas added."""
    import pyarrow.parquet

    with reading(path):
        schema = pyarrow.parquet.read_schema(path)
    return pyarrow.schema([f for f in schema if not f.name.startswith("__index_level_")])


def open_bytes(file: Path) -> IO[bytes]:
    """Open a file to read, unzipped if it is gzipped."""
    with file.open("rb") as f:
        zipped = f.read(2) == b"\x1f\x8b"
    return gzip.open(file, "rb") if zipped else file.open("rb")  # type: ignore[return-value]


def choose(
    names: Sequence[str],
    columns: Sequence[str] | None,
    conditions: Sequence[str] | None,
    keep: Sequence[str],
    width: int | None,
    condition_dim: int | None,
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
        if expected is not None and len(chosen) != expected:
            some = ", ".join(chosen[:20]) or "none"
            raise ValueError(
                f"`{what}` must be {expected} of {str(path)!r}, as the model has them, got "
                f"{len(chosen)}: {some}."
            )
    return list(columns), conditions


def check_numeric(name: str, kind: Any, path: str | os.PathLike) -> None:
    """Raise ValueError unless a column has a type of numbers."""
    from pyarrow import types

    if not any(
        is_(kind)
        for is_ in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    ):
        raise ValueError(f"Column {name!r} of {str(path)!r} must be numeric, got type {kind}.")
