"""Normal rows beside a model: they give ranges of columns, thresholds, and what to compare with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfdde.anomalies import NormalRows, Range, ranges
from tfdde.anomalies.normal_rows import FILE, MOST
from tfdde.datasets.readers.blocks import find_files, format_of
from tfdde.scoring.inputs import drawn_rows, open_input
from tfdde.scoring.scorer import Scorer


class Normal(NamedTuple):
    """What is known of normal rows.

    Attributes:
        ranges: of the columns.
        held_out_log_density: of held-out rows, float64 (k,).
        held_out_rows: float64 (k, n); None if the model keeps none.
        files: that all this comes from.
    """

    ranges: Sequence[Range]
    held_out_log_density: np.ndarray
    held_out_rows: np.ndarray | None
    files: list[Path]


def find_normal(
    scorer: Scorer,
    path: str | os.PathLike | None = None,
    columns: Sequence[str] | None = None,
    **dialect: Any,
) -> Normal:
    """Return what is known of normal rows, from a table of them or from the model's own files.

    A run folder keeps rows in ``normal_rows.npz``. The metadata of an artifact keep the ranges of
    the columns and the log-densities of held-out rows, but no rows.

    Args:
        scorer: the model.
        path: of a table of normal rows that the model was not trained on, as for
            ``tfdde.scoring.score_file``. Of more than 5,000 rows, so many are drawn. Bad rows are
            left out.
        columns: names of its columns, in the model's order.
        dialect: of its CSV files: ``delimiter``, ``decimal`` and ``encoding``.

    Raises:
        OSError: there is no such table.
        ValueError: the density is conditional, nothing is known, or a file is damaged.
    """
    if scorer.condition_dim:
        raise ValueError(
            "`explain`, `threshold` and drift need a density without conditions, got one of "
            f"{scorer.condition_dim}: what is normal differs from condition to condition."
        )
    if path is not None:
        is_csv = format_of(find_files(Path(path))[0][0]) == "csv"
        source = open_input(scorer, path, columns, **(dialect if is_csv else {}))
        rows = drawn_rows(source, MOST)
        if not len(rows):
            raise ValueError(f"`normal` must have at least one good row, got {os.fspath(path)!r}.")
        return Normal(ranges(rows), _at(scorer, rows), rows, source.files)
    if (file := scorer.folder / FILE).exists():
        kept = NormalRows.load(file, scorer.width)
        rows = kept.held_out
        return Normal(ranges(kept.training), _at(scorer, rows), rows, [file])
    if known := scorer.facts.get("normal"):
        return _from_facts(scorer, known)
    raise ValueError(
        f"Model {str(scorer.folder)!r} knows no normal rows, which `explain`, `threshold` and "
        f"drift need: there is neither {FILE} of a run nor `normal` in the metadata of an "
        "artifact. Give a table of rows that are normal and were not trained on as `normal`."
    )


def _at(scorer: Scorer, rows: np.ndarray) -> np.ndarray:
    """Log-densities of float64 rows, float64 (rows,)."""
    return scorer(rows.astype(scorer.dtype)).astype(np.float64)


def _from_facts(scorer: Scorer, known: Any) -> Normal:
    """What the metadata of an artifact tell."""
    try:
        found = [
            Range(float(r["low"]), float(r["high"]), r["values"] and tuple(map(float, r["values"])))
            for r in known["ranges"]
        ]
        # They were float32 values, written with as many digits as these need.
        values = np.asarray(known["held_out_log_density"], np.float32).astype(np.float64)
        if len(found) != scorer.width or values.ndim != 1 or not np.isfinite(values).all():
            raise ValueError(f"it has {len(found)} ranges for {scorer.width} columns")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`normal` in the metadata of {str(scorer.folder)!r} is damaged: {error}."
        ) from None
    return Normal(found, values, None, [])
