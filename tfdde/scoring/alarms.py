"""Which rows are alarms, and which column explains each: columns beside the log-density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfdde.anomalies import explain, threshold
from tfdde.anomalies.report import alarm_sentence
from tfdde.datasets.readers.blocks import pa
from tfdde.scoring.normal import Normal
from tfdde.scoring.scorer import Scorer

EXPLAIN = ("first", "all")


class Alarms:
    """Alarms and explanations of rows, as ``tfdde.anomalies`` finds them.

    Args:
        scorer: the model.
        names: of the columns of a row.
        normal: what is known of normal rows.
        rate: of false alarms that is accepted; None for no alarms.
        explain: "first" for the column that explains most, "all" for all columns as well, or None.
            Only alarms are explained; without a ``rate``, all rows are.

    Attributes:
        names: the columns that ``columns`` returns.
        sentence: on the threshold; "" without a ``rate``.

    Raises:
        ValueError: another ``explain``, or too few held-out rows for the ``rate``.
    """

    def __init__(
        self,
        scorer: Scorer,
        names: Sequence[str],
        normal: Normal,
        rate: float | None = None,
        explain: str | None = None,
    ):
        self._scorer, self._columns, self._normal = scorer, np.array(names), normal
        self._explain, self._highest, self.sentence = explain, None, ""
        self.names: list[str] = []
        if rate is not None:
            self._highest, self.sentence = _threshold(normal, rate)
            self.names.append("alarm")
        if explain is not None:
            self.names += ["strange_column", "strange_share", "usual_value"]
        if explain == "all":
            self.names += [f"{what}:{name}" for what in ("share", "usual") for name in names]

    def _log_density(self, rows: np.ndarray) -> np.ndarray:
        return self._scorer(rows.astype(self._scorer.dtype))

    def columns(self, values: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        """Return the columns of rows as pyarrow arrays by name.

        Args:
            values: rows (m, n).
            scores: their log-densities (m,), not finite for bad rows, which get nulls.
        """
        good = np.isfinite(scores)
        out: dict[str, Any] = {}
        chosen = good
        if self._highest is not None:
            alarm = -scores.astype(np.float64) > self._highest
            out["alarm"] = pa.array(alarm, pa.bool_(), mask=~good)
            chosen = good & alarm
        if self._explain is not None:
            out |= self._explained(values, chosen)
        return out

    def _explained(self, values: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
        shares, usual = np.zeros((2, *values.shape))
        if chosen.any():
            found = explain(self._log_density, values[chosen], self._normal.ranges)
            shares[chosen], usual[chosen] = found
        rows, first = np.arange(len(values)), shares.argmax(axis=1)
        share = shares[rows, first]
        out = {
            # No column of a row explains anything if it is as likely as it can be.
            "strange_column": pa.array(
                self._columns[first], pa.string(), mask=~chosen | (share == 0.0)
            ),
            "strange_share": pa.array(share, pa.float64(), mask=~chosen),
            "usual_value": pa.array(usual[rows, first], pa.float64(), mask=~chosen),
        }
        if self._explain == "all":
            for what, table in (("share", shares), ("usual", usual)):
                for name, column in zip(self._columns, table.T, strict=True):
                    out[f"{what}:{name}"] = pa.array(column, pa.float64(), mask=~chosen)
        return out


def _threshold(normal: Normal, rate: float) -> tuple[float, str]:
    """The anomaly score above which a row is an alarm, and a sentence on it."""
    rows = len(normal.held_out_log_density)
    if 0 < rate < 1 / (rows + 1):
        raise ValueError(
            f"`threshold` must be at least {1 / (rows + 1):.2g}, got {rate:g}: only {rows} "
            "held-out rows are known. Give more as `normal`."
        )
    if not 0 < rate < 1:
        raise ValueError(f"`threshold` must be a rate in (0, 1), got {rate!r}.")
    found = threshold(-normal.held_out_log_density, rate)
    return found.value, alarm_sentence(found, "held-out")
