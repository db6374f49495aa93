"""Has a file of rows changed against the normal rows of a model?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfdde.anomalies import drift
from tfdde.anomalies.normal_rows import MOST
from tfdde.anomalies.report import drift_sentence
from tfdde.scoring.inputs import drawn_rows, open_input
from tfdde.scoring.normal import find_normal
from tfdde.scoring.scorer import Scorer


def file_drift(
    model: str | os.PathLike,
    source: str | os.PathLike,
    columns: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    normal: str | os.PathLike | None = None,
    *,
    delimiter: str | None = None,
    decimal: str = ".",
    encoding: str = "utf-8",
) -> str:
    """Test whether the rows of a file come from the distribution of held-out normal rows.

    The columns and the log-density are compared by ``tfdde.anomalies.drift``. Of a file of more
    than 5,000 good rows, so many are drawn, always the same ones.

    Args:
        model, source, columns, normal, delimiter, decimal, encoding: as for ``score_file``.
        keep: names of columns that are no part of a row.

    Returns:
        A sentence with the p-value, and the columns that have changed.

    Raises:
        OSError, ValueError: as ``score_file``; or neither is there a ``normal`` nor does the model
            keep rows.
    """
    scorer = Scorer(model)
    dialect: dict[str, Any] = {"delimiter": delimiter, "decimal": decimal, "encoding": encoding}
    rows = open_input(scorer, source, columns, keep=keep, **dialect)
    known = find_normal(scorer, normal, rows.columns, **dialect)
    if known.held_out_rows is None:
        raise ValueError(
            f"Model {str(scorer.folder)!r} keeps no rows, which drift needs, only ranges of the "
            "columns and log-densities: name its run folder as the model, or give a table of "
            "held-out normal rows as `normal`."
        )
    new = drawn_rows(rows, MOST)
    if not len(new):
        raise ValueError(f"`source` must have at least one good row, got {os.fspath(source)!r}.")
    scores = -scorer(new.astype(scorer.dtype)).astype(np.float64)
    found = drift(known.held_out_rows, new, -known.held_out_log_density, scores)
    names = rows.columns or [str(i) for i in range(scorer.width)]
    return drift_sentence(
        found, names, f"{len(known.held_out_rows)} held-out rows", f"{len(new)} new rows"
    )
