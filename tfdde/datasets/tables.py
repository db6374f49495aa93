"""Tables of numbers in memory: files of users, and small sets that come with scikit-learn.

``datasets.file_batches`` reads files that are larger than memory.
"""

from __future__ import annotations

import difflib
import numbers
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdde.datasets.readers.headers import (
    PLAIN,
    Dialect,
    check_local,
    chosen_columns,
    csv_names,
    import_pandas,
    parquet_schema,
    reading,
)
from tfdde.tables.schema import Schema
from tfdde.utils.checks import check_integer

BUILTIN = ("digits", "wine", "breast_cancer")
RAW = 5_000  # rows of each part of a table that are kept as they are in the file
_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".npy", ".npz")


@dataclass(frozen=True)
class Table:
    """A table in three parts (rows, columns), and the names of its columns.

    The rows are float32, or with a ``schema`` what its ``training_rows`` returns. ``raw`` then has
    the rows of each part that miss no value as they are in the file, up to 5,000: so, without noise
    within the steps of a grid, new rows will come to be scored.
    """

    x_train: np.ndarray
    x_validation: np.ndarray
    x_test: np.ndarray
    columns: tuple[str, ...]
    schema: Schema | None = None
    raw: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def to_score(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return up to 5,000 rows of each part as new rows will come to be scored."""
        if self.raw is not None:
            return self.raw
        return self.x_train[:RAW], self.x_validation[:RAW], self.x_test[:RAW]


def check_choice(value: Any, name: str, choices: Iterable[str]) -> None:
    """Raise ValueError, with the nearest choice, unless ``value`` is one of ``choices``."""
    choices = tuple(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.{hint}")


def check_finite(x: np.ndarray, columns: Sequence[str], path: Path) -> None:
    """Raise ValueError for the first column of ``x`` (rows, columns) with NaN or infinity."""
    for name, column in zip(columns, x.T, strict=True):
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            raise ValueError(
                f"Column {name!r} of {str(path)!r} must be finite in {x.dtype}, got NaN or "
                f"infinity in {len(bad)} of {len(x)} rows, the first at row {bad[0]}."
            )


def check_varying(x: np.ndarray, columns: Sequence[str], path: Path) -> None:
    """Raise ValueError for the first column of ``x`` (rows, columns) that is constant."""
    for name, column in zip(columns, x.T, strict=True):
        if (column == column[0]).all():
            raise ValueError(
                f"Column {name!r} of {str(path)!r} must vary to have a density, got the constant "
                f"{column[0]:g} (as {x.dtype})."
            )


def _read_csv(path: Path, columns: Sequence[str] | None, dialect: Dialect) -> tuple[Any, list[str]]:
    pd = import_pandas()
    names = csv_names(path, dialect, columns or ())
    chosen = chosen_columns(columns, names, path)
    with reading(path), warnings.catch_warnings():
        # A row with more cells than the header is an error; pandas would cut it.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            path,
            sep=dialect.delimiter,
            decimal=dialect.decimal,
            encoding=dialect.encoding,
            index_col=False,
            low_memory=False,
            skip_blank_lines=len(names) > 1,  # in a single column they are missing values
        )
    return frame.iloc[:, chosen], [names[i] for i in chosen]


def _read_parquet(path: Path, columns: Sequence[str] | None) -> tuple[Any, list[str]]:
    pd = import_pandas()
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError("Reading Parquet needs pyarrow: pip install 'tfdde[tables]'.") from None
    names = parquet_schema(path).names
    chosen = [names[i] for i in chosen_columns(columns, names, path)]
    with reading(path):
        # partitioning=None: read this file alone, even if its folder looks like a larger data set.
        table = pyarrow.parquet.read_table(path, columns=chosen, partitioning=None)
        frame = pd.DataFrame({name: table.column(name).to_pandas() for name in chosen})
    return frame, chosen


def _numbers_of_frame(frame: Any, names: list[str], path: Path) -> np.ndarray:
    pd = import_pandas()
    x = np.empty(frame.shape)
    for i, name in enumerate(names):
        series = frame.iloc[:, i]
        if not pd.api.types.is_numeric_dtype(series.dtype) or series.dtype.kind == "c":
            got = f"dtype {series.dtype}"
            if series.dtype.kind == "O":
                text = series.notna() & pd.to_numeric(series, errors="coerce").isna()
                if text.any():
                    row = int(text.to_numpy().argmax())
                    got += f", with {series.iloc[row]!r} at row {row}"
            raise ValueError(f"Column {name!r} of {str(path)!r} must be numeric, got {got}.")
        x[:, i] = series.to_numpy(np.float64, na_value=np.nan)
    return x


def _read_numpy(path: Path, columns: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    with reading(path), open(path, "rb") as f:  # np.load would leave a damaged file open
        array = np.load(f, allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            with array as arrays:
                if len(arrays.files) != 1:
                    raise ValueError(f"expected a single array, got {arrays.files}")
                array = arrays[arrays.files[0]]
        if array.ndim != 2 or array.dtype.kind not in "fiub":
            raise ValueError(
                f"expected numbers of shape (rows, columns), got shape {array.shape} and dtype "
                f"{array.dtype}"
            )
    names = [str(i) for i in range(array.shape[1])]
    chosen = chosen_columns(columns, names, path)
    return array[:, chosen].astype(np.float64), [names[i] for i in chosen]


def read_table(
    path: str | os.PathLike,
    columns: Sequence[str] | None = None,
    *,
    delimiter: str = ",",
    decimal: str = ".",
    encoding: str = "utf-8",
) -> tuple[np.ndarray, tuple[str, ...]]:
    r"""Read a table of numbers: .csv (.csv.gz), .parquet, .npy, or .npz with a single array.

    Args:
        path: the file. The first line of a CSV file holds the names of the columns;
            those of an array are "0", "1", and so on.
        columns: names of the columns to take, in this order; all if None.
        delimiter: the character between the cells of a CSV file: "," or ";" or a tab or "|".
        decimal: the decimal point in a CSV file, "." or ",".
        encoding: of a CSV file, as Python names it.

    Returns:
        float32 array (rows, columns), and the names of its columns.

    Raises:
        FileNotFoundError: no such file.
        ImportError: pandas or pyarrow, which CSV and Parquet need, is missing.
        ValueError: the suffix is unknown; the file is damaged, empty, or has another delimiter; a
            column is unknown, not numeric, not finite, or constant. Rows are numbered from 0.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("table.csv").write_text("a;b\n1,5;2\n3;4,25\n")
        >>> x, columns = tfdde.datasets.read_table("table.csv", delimiter=";", decimal=",")
        >>> x.tolist(), columns
        ([[1.5, 2.0], [3.0, 4.25]], ('a', 'b'))
    """
    wide, names = read_columns(
        path, columns, delimiter=delimiter, decimal=decimal, encoding=encoding
    )
    with np.errstate(over="ignore"):
        x = wide.astype(np.float32)
    check_finite(x, names, Path(path))
    check_varying(x, names, Path(path))
    return x, names


def read_columns(
    path: str | os.PathLike,
    columns: Sequence[str] | None = None,
    *,
    delimiter: str = ",",
    decimal: str = ".",
    encoding: str = "utf-8",
) -> tuple[np.ndarray, tuple[str, ...]]:
    r"""Read a table of numbers as it is, for ``tfdde.tables.Schema.learn``.

    Values may be missing, a column may be constant, and nothing is rounded to float32.

    >>> from pathlib import Path
    >>> _ = Path("table.csv").write_text("seconds,b\n1700000000.25,2\n1700000000.5,\n")
    >>> x, columns = tfdde.datasets.read_columns("table.csv")
    >>> x.tolist()
    [[1700000000.25, 2.0], [1700000000.5, nan]]

    Args:
        path, columns, delimiter, decimal, encoding: as for ``read_table``.

    Returns:
        float64 array (rows, columns), NaN where a value is missing, and the names of its columns.

    Raises:
        FileNotFoundError, ImportError: as ``read_table``.
        ValueError: as ``read_table``, but for values that are missing or constant.
    """
    check_local(path, "path")
    path = Path(path)
    suffix = next((s for s in _SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise ValueError(f"`path` must end in one of {', '.join(_SUFFIXES)}, got {str(path)!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"Table {str(path)!r} does not exist.")
    dialect = Dialect(delimiter, decimal, encoding)
    if dialect != PLAIN and not suffix.startswith(".csv"):
        raise ValueError(
            f"`delimiter`, `decimal` and `encoding` must be left out for {suffix} files, "
            f"got {dialect}."
        )
    if suffix in (".npy", ".npz"):
        x, names = _read_numpy(path, columns)
    else:
        if suffix == ".parquet":
            frame, names = _read_parquet(path, columns)
        else:
            frame, names = _read_csv(path, columns, dialect)
        x = _numbers_of_frame(frame, names, path) if len(frame) else np.empty(frame.shape)
    if x.size == 0:
        raise ValueError(
            f"{str(path)!r} is empty: expected at least one row and column, got {x.shape}."
        )
    return x, tuple(names)


def split_rows(
    x: np.ndarray, seed: int = 0, validation: float = 0.1, test: float = 0.1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shuffle the rows of ``x`` and split them: (train, validation, test).

    Args:
        x: array, shape (rows, ...).
        seed: seed of ``np.random.default_rng``, which fixes the order.
        validation: share of the rows for validation, in [0, 1), rounded down to whole rows.
        test: share of the rows for the test, likewise.

    Returns:
        Three arrays of the dtype of ``x`` that hold each row once.

    Raises:
        ValueError: a share or the seed is out of range, or a share above 0 gets no row.

    Example:
        >>> parts = tfdde.datasets.split_rows(np.arange(20), seed=0, validation=0.1, test=0.25)
        >>> [len(part) for part in parts]
        [13, 2, 5]
    """
    seed = check_integer(seed, "seed", minimum=0)
    x = np.asarray(x)
    if x.ndim == 0:
        raise ValueError(f"`x` must have shape (rows, ...), got the scalar {x}.")
    counts: list[int] = []
    for name, part in (("validation", validation), ("test", test)):
        if isinstance(part, bool) or not isinstance(part, numbers.Real) or not 0 <= part < 1:
            raise ValueError(f"`{name}` must be a number in [0, 1), got {part!r}.")
        counts.append(int(part * len(x)))
        if part > 0 and counts[-1] == 0:
            raise ValueError(f"`{name}` must leave a row, got {part!r} of {len(x)} rows.")
    rest = len(x) - sum(counts)
    if rest <= 0:
        raise ValueError(
            f"`validation` and `test` must leave a row to train with, got {validation!r} and "
            f"{test!r} of {len(x)} rows."
        )
    order = np.random.default_rng(seed).permutation(len(x))
    train, middle, last = np.split(order, [rest, rest + counts[0]])
    return x[train], x[middle], x[last]


def load_builtin(name: str, seed: int = 0) -> Table:
    """Load a small data set of scikit-learn; a tenth each is for validation and test.

    ``digits`` (1,797 pictures of 8 x 8 pixels 0 ... 16) is dequantised: (x + u) / 17 in [0, 1)
    with u uniform in [0, 1). ``wine`` (178 rows, 13 columns) and ``breast_cancer`` (569 rows,
    30 columns) are as scikit-learn has them, not standardised.

    Args:
        name: digits, wine or breast_cancer.
        seed: fixes the split and the noise.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: unknown name, or the seed is out of range.
    """
    check_choice(name, "name", BUILTIN)
    seed = check_integer(seed, "seed", minimum=0)
    try:
        from sklearn import datasets
    except ImportError:
        raise ImportError(
            f"The {name} data come with scikit-learn: pip install 'tfdde[tables]'."
        ) from None
    bunch = getattr(datasets, f"load_{name}")()
    x = bunch.data
    if name == "digits":
        # Another generator than the one that orders the rows.
        x = (x + np.random.default_rng([seed, 1]).random(x.shape)) / 17
        x = np.minimum(x, np.nextafter(np.float32(1), np.float32(0)))  # not 1 when rounded
    columns = tuple(str(column) for column in bunch.feature_names)
    return Table(*split_rows(x.astype(np.float32), seed), columns)
