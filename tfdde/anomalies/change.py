"""Has a table changed: new rows against earlier ones, by all columns and by the density."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tfdde.utils.checks import check_integer, check_rows

CHUNK = 20_000_000  # entries of the arrays of a chunk of permutations
ROUNDING = 1e-6  # of a distance in float32: distances that tie must be counted


class Drift(NamedTuple):
    """What a test for change found.

    Attributes:
        p_value: probability of so large a change in any column or in the scores, if there is none.
        by_column: adjusted p-values of the columns, shape (n,): under no change, with probability
            alpha at most, one of them is below alpha.
        scores: the same of the anomaly scores, or None if none were given.
        distances: Kolmogorov-Smirnov distances of the columns, shape (n,).
    """

    p_value: float
    by_column: np.ndarray
    scores: float | None
    distances: np.ndarray


def drift(
    reference: Any,
    new: Any,
    reference_scores: Any = None,
    new_scores: Any = None,
    permutations: int = 999,
    seed: int = 0,
) -> Drift:
    """Test whether new rows come from the distribution of the reference rows.

    Each column, and the anomaly scores, have their Kolmogorov-Smirnov distance between both
    tables. The scores see what no single column shows, such as a correlation that is lost. The
    largest distance is compared with those of random permutations of the rows, which makes the
    p-values exact for any distribution, ties and dependent columns included (max-T of Westfall
    and Young).

    The reference rows must not be training rows if scores are given: a density knows those better
    than new rows, and would find a change in each table.

    >>> found = tfdde.anomalies.drift(x[:256], x[256:] + [0.0, 2.0])
    >>> found.p_value < 0.01, int(found.by_column.argmin())
    (True, 1)

    Args:
        reference: rows (m, n) that are known to be normal.
        new: rows (k, n).
        reference_scores, new_scores: their anomaly scores, shapes (m,) and (k,); both or none.
        permutations: of the rows; the smallest possible p-value is 1 / (permutations + 1).
        seed: of the permutations.

    Raises:
        ValueError: wrong shapes, NaN or infinity, or only one table's scores.
    """
    reference = check_rows(
        reference, "reference", np.shape(reference)[1:2] or (1,), dtype="float64"
    )
    new = check_rows(new, "new", reference.shape[1:], dtype="float64")
    permutations = check_integer(permutations, "permutations")
    if (reference_scores is None) != (new_scores is None):
        raise ValueError("`reference_scores` and `new_scores` must both be given, or none of them.")
    features = np.concatenate([reference, new])
    if reference_scores is not None:
        found = [
            check_rows(np.reshape(s, (-1, 1)), f"{name}_scores", (1,), dtype="float64")
            for s, name in ((reference_scores, "reference"), (new_scores, "new"))
        ]
        if [len(s) for s in found] != [len(reference), len(new)]:
            raise ValueError(
                f"`reference_scores` and `new_scores` must have {len(reference)} and {len(new)} "
                f"values, got {len(found[0])} and {len(found[1])}."
            )
        features = np.column_stack([features, np.concatenate(found)])
    rng = np.random.default_rng(seed)
    is_new = np.repeat([False, True], [len(reference), len(new)])
    distances = _distances(features, is_new[None])[0]
    largest = np.concatenate(
        [
            _distances(features, rng.permuted(np.tile(is_new, (some, 1)), axis=1)).max(axis=1)
            for some in _chunks(permutations, len(features))
        ]
    )
    exceeded = (largest[:, None] >= distances - ROUNDING).sum(axis=0)
    p_values = (1.0 + exceeded) / (1.0 + permutations)
    n = reference.shape[1]
    scores = None if reference_scores is None else float(p_values[n])
    return Drift(float(p_values.min()), p_values[:n], scores, distances[:n])


def _chunks(total: int, rows: int) -> list[int]:
    most = max(1, CHUNK // rows)
    return [min(most, total - i) for i in range(0, total, most)]


def _distances(features: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """Kolmogorov-Smirnov distances (labellings, features) of rows that ``is_new`` splits."""
    rows, new = features.shape[0], int(is_new[0].sum())
    weights = np.where(is_new, np.float32(1 / new), np.float32(-1 / (rows - new)))
    out = np.empty((len(is_new), features.shape[1]))
    for j, column in enumerate(features.T):
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        last = np.append(ordered[1:] != ordered[:-1], True)  # of each run of ties
        out[:, j] = np.abs(np.cumsum(weights[:, order], axis=1)[:, last]).max(axis=1)
    return out
