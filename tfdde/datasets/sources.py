"""Tables by name or from a file, split into training, validation and test rows."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from tfdde.datasets.images import load_mnist_components
from tfdde.datasets.tables import (
    BUILTIN,
    RAW,
    Table,
    load_builtin,
    read_columns,
    read_table,
    split_rows,
)
from tfdde.datasets.toys import TOYS, sample_toy
from tfdde.datasets.uci import UCI, load_uci
from tfdde.tables.schema import Schema
from tfdde.utils.random import check_seed


def load_table(
    source: str | os.PathLike,
    columns: Sequence[str] | None = None,
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    *,
    rows: int = 10_000,
    components: int = 43,
) -> Table:
    """Load a known data set by its name, or a table from a file.

    Args:
        source: one of ``TOYS``, "mnist" (principal components of its images), one of ``UCI``,
            "digits", "wine" or "breast_cancer", or the path of a file for ``read_table``.
        columns: columns of the file to take, all if None.
        data_dir: folder with the files of "mnist" or of a UCI set.
        seed: fixes the split, and the points of a toy.
        rows: number of points of a toy.
        components: number of principal components of "mnist".

    Raises:
        FileNotFoundError: a file is missing.
        ImportError: a package that the data need is missing.
        ValueError: fewer than two test rows, or as the loader of the source.
    """
    check_seed(seed)
    if source in TOYS:
        table = Table(*split_rows(sample_toy(str(source), rows, seed), seed), ("x", "y"))
    elif source == "mnist":
        table = load_mnist_components(components, data_dir, seed)
    elif source in UCI:
        table = load_uci(str(source), data_dir)
    elif source in BUILTIN:
        table = load_builtin(str(source), seed)
    else:
        x, names = read_table(source, columns)
        table = Table(*split_rows(x, seed), names)
    _check_test(table.x_test)
    return table


def learn_table(
    path: str | os.PathLike,
    columns: Sequence[str] | None = None,
    seed: int = 0,
    *,
    missing: str | None = None,
    dependent: str | None = None,
    tails: str | None = None,
) -> Table:
    """Load a table from a file as it is, and learn the schema of its training rows.

    Args:
        path: a file for ``read_columns``.
        columns: columns of the file to take, all if None.
        seed: fixes the split, the draws for missing values, and the noise within the steps of a
            grid.
        missing, dependent, tails: as for ``tfdde.tables.Schema.learn``.

    Returns:
        The table with its ``schema``. All three parts are ``training_rows``, so that a likelihood
        of the test rows is one of the columns with this noise. ``raw`` has them without it.

    Raises:
        FileNotFoundError, ImportError: as ``read_columns``.
        ValueError: fewer than two test rows, or as ``read_columns`` and ``Schema.learn``.
    """
    check_seed(seed)
    x, names = read_columns(path, columns)
    parts = split_rows(x, seed)
    _check_test(parts[-1])
    schema = Schema.learn(parts[0], names, missing=missing, dependent=dependent, tails=tails)
    train, validation, test = (
        schema.training_rows(part, seed + 2**31 * k) for k, part in enumerate(parts)
    )
    whole = (part[~np.isnan(part).any(axis=1)][:RAW] for part in parts)
    raw_train, raw_validation, raw_test = map(schema.rows, whole)
    raw = raw_train, raw_validation, raw_test
    return Table(train, validation, test, schema.names, schema, raw)


def _check_test(rows: np.ndarray) -> None:
    if len(rows) < 2:
        raise ValueError("There must be at least 20 rows: a tenth of them is for the test.")
