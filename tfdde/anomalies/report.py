"""Markdown on the rows of a table that a density finds strange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfdde.anomalies.change import Drift
from tfdde.anomalies.explanation import explain
from tfdde.anomalies.threshold import Threshold, threshold

MOST, COLUMNS = 5, 3  # rows that are shown, and columns of each
RATE = 0.05  # of false alarms


def alarm_rate(rows: int, rate: float = RATE) -> float:
    """Return a rate of false alarms, or with few held-out rows the lowest possible."""
    return max(rate, 1 / (rows + 1))


def alarm_sentence(found: Threshold, kind: str) -> str:
    """Say what a threshold of minus the log-density means.

    Args:
        found: the threshold.
        kind: of the rows that it was calibrated on.
    """
    return (
        f"A log-density below {-found.value:.4g} nats is an alarm. {100 * found.rate:.2g} % of "
        f"normal rows are expected to raise one (95 %: {100 * found.low:.2g} to "
        f"{100 * found.high:.2g} %; from {found.rows} {kind} rows)."
    )


def drift_sentence(
    found: Drift, names: Sequence[str], reference: str, new: str, alpha: float = 0.05
) -> str:
    """Say whether a test for change found one, and in which columns.

    >>> from tfdde.anomalies import report
    >>> rows = np.random.default_rng(0).normal(size=(99, 2))
    >>> found = tfdde.anomalies.drift(rows, rows + [0.0, 2.0])
    >>> report.drift_sentence(found, ["a", "b"], "99 rows", "99 later ones")
    '99 later ones were compared with 99 rows: there is a change (p = 0.001) of `b` (p = ...'

    Args:
        found: by ``drift``.
        names: of the columns.
        reference, new: what the two tables are, as "200 held-out rows".
        alpha: probability, if nothing has changed, of saying that something has.
    """
    compared = f"{new} were compared with {reference}"
    if found.p_value > alpha:
        return f"{compared}: no change was found (p = {found.p_value:.3g})."
    changed = [
        f"`{names[j]}` (p = {found.by_column[j]:.3g}, distance {found.distances[j]:.2g})"
        for j in np.lexsort((-found.distances, found.by_column))
        if found.by_column[j] <= alpha
    ]
    if found.scores is not None and found.scores <= alpha:
        changed.append(f"the log-density (p = {found.scores:.3g})")
    return f"{compared}: there is a change (p = {found.p_value:.3g}) of {', '.join(changed)}."


def strange_rows(
    log_density: Callable[[np.ndarray], Any],
    rows: np.ndarray,
    held_out: np.ndarray,
    reference: np.ndarray,
    names: Sequence[str],
    rate: float = RATE,
) -> str:
    """Describe a threshold of the log-density, and the rows that are farthest below it.

    >>> from tfdde.anomalies import report
    >>> normal = np.random.default_rng(0).normal(size=(300, 2))
    >>> rows = np.array([[0.0, 0.0], [0.0, 9.0]])
    >>> log_density = lambda x: -np.square(x).sum(axis=1) / 2
    >>> text = report.strange_rows(log_density, rows, normal, normal, ["a", "b"])
    >>> print(text.splitlines()[-1])
    | 1 | -40.5 | `b` = 9 (usual: ...; 40.5 nats) |

    Args:
        log_density: maps rows (m, n) to log-densities (m,).
        rows: to look at, (m, n).
        held_out: normal rows that were not trained on, which the threshold is calibrated on.
        reference: normal rows, which give each column's range.
        names: of the columns.
        rate: of false alarms that is accepted; with few ``held_out`` rows the lowest possible.

    Returns:
        A paragraph and a table of up to five rows, the strangest first.
    """
    scores = -np.asarray(log_density(held_out), np.float64)
    found = threshold(scores, alarm_rate(len(scores), rate))
    values = np.asarray(log_density(rows), np.float64)
    alarms = int((values < -found.value).sum())
    lines = [
        f"{alarm_sentence(found, 'validation')} {alarms} of {len(rows)} test rows do. The "
        "strangest test rows, and the columns whose usual value, given the row's other columns, "
        "would raise the log-density most:",
        "",
        "| test row | log-density | columns |",
        "| --- | --- | --- |",
    ]
    worst = np.argsort(values, kind="stable")[:MOST]
    worst = worst[values[worst] < -found.value]
    if not len(worst):
        return lines[0].partition(" The strangest")[0]
    explanation = explain(log_density, rows[worst], reference)
    for place, row in enumerate(worst):
        columns = [j for j in explanation.ranking()[place] if explanation.shares[place, j] > 0]
        cells = [
            f"`{names[j]}` = {rows[row, j]:.6g} (usual: {explanation.usual[place, j]:.6g}; "
            f"{explanation.shares[place, j]:.3g} nats)"
            for j in columns[:COLUMNS]
        ]
        lines.append(f"| {row} | {values[row]:.4g} | {', '.join(cells)} |")
    return "\n".join(lines)
