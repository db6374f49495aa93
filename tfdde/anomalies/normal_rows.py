"""Normal rows that a run keeps beside its density, for what is asked of new rows later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfdde.utils.checks import check_rows
from tfdde.utils.files import atomic

FILE = "normal_rows.npz"  # in a run folder
MOST = 5_000  # rows of each kind that are kept


class NormalRows(NamedTuple):
    """Rows as they are scored: in the units of the table, without noise on its grids.

    >>> rows = np.random.default_rng(0).normal(size=(30, 2))
    >>> tfdde.anomalies.NormalRows(rows[:20], rows[20:]).save("normal_rows.npz")
    >>> tfdde.anomalies.NormalRows.load("normal_rows.npz", 2).held_out.shape
    (10, 2)

    Attributes:
        training: rows (m, n) that the density was trained on; they give each column's range.
        held_out: rows (k, n) that it was not trained on; they give thresholds, and are what new
            rows are compared with.
    """

    training: np.ndarray
    held_out: np.ndarray

    def save(self, path: str | os.PathLike) -> None:
        """Write up to 5,000 rows of each kind, the first ones, as float64."""
        training, held_out = (np.asarray(x[:MOST], np.float64) for x in self)
        with atomic(path) as temporary:
            np.savez_compressed(temporary, training=training, held_out=held_out)

    @classmethod
    def load(cls, path: str | os.PathLike, width: int) -> NormalRows:
        """Read what ``save`` has written.

        Args:
            path: the file.
            width: numbers in a row.

        Raises:
            ValueError: the file is damaged, or its rows are not of this width; one line.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as arrays:
                found: dict[str, Any] = {name: arrays[name] for name in cls._fields}
            return cls(**{k: check_rows(x, k, (width,), dtype="float64") for k, x in found.items()})
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds for a bad file
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"{path} can't be read as normal rows of {width} columns: {reason}"
            ) from error
