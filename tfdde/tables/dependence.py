"""Find columns that are linear combinations of others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EXACT = 1e-5  # what is left of a dependent column, at most, in its standard deviations
FAR = 30.0  # a row with an entry beyond is left out: a few such rows would hide all others
ROWS = 10_000  # that are looked at


def dependent_columns(z: np.ndarray) -> dict[int, list[int]]:
    """Return the columns that are linear combinations of columns before them.

    >>> z = np.random.default_rng(0).normal(size=(100, 3))
    >>> tfdde.tables.dependence.dependent_columns(np.column_stack([z, z[:, 0] - z[:, 2]]))
    {3: [0, 2]}

    Args:
        z: standardised rows (rows, columns), float64.

    Returns:
        For each dependent column those that it is a combination of. With hardly more rows than
        columns all columns are dependent by chance, and the result is empty.
    """
    inner = z[np.abs(z).max(axis=1) < FAR]
    inner = inner[:: max(1, len(inner) // ROWS)]
    n = z.shape[1]
    if len(inner) <= n + 1:
        return {}
    inner = inner - inner.mean(axis=0)
    spread = inner.std(axis=0)
    inner = inner / np.where(spread > 0, spread, 1.0)
    # Column j of R holds column j in the directions of the columns before it, and what is left.
    r = np.linalg.qr(inner / np.sqrt(len(inner)), mode="r")
    left = np.abs(np.diag(r))
    independent = [j for j in range(n) if left[j] > EXACT or spread[j] == 0]
    found = {}
    for j in sorted(set(range(n)) - set(independent)):
        before = [i for i in independent if i < j]
        shares = np.linalg.lstsq(inner[:, before], inner[:, j], rcond=None)[0]
        parts = [i for i, share in zip(before, shares, strict=True) if abs(share) > 100 * EXACT]
        if _holds_everywhere(z, j, before):
            found[j] = parts
    return found


def _holds_everywhere(z: np.ndarray, j: int, before: Sequence[int]) -> bool:
    """Whether column j is a combination of the others in the far rows, too."""
    size = np.abs(z).max(axis=1, keepdims=True) + 1.0  # far rows count as much as others
    design = np.column_stack([np.ones(len(z)), z[:, before]]) / size
    target = z[:, j] / size[:, 0]
    shares = np.linalg.lstsq(design, target, rcond=None)[0]
    return bool(np.abs(design @ shares - target).max() < 10 * EXACT)


def sentence(names: Sequence[str], found: dict[int, list[int]]) -> str:
    """Tell which columns depend on each other."""
    groups = []
    for j, parts in list(found.items())[:5]:
        involved = [repr(names[i]) for i in (*parts, j)]
        groups.append(f"{', '.join(involved[:-1])} and {involved[-1]}")
    more = ", ..." if len(found) > 5 else ""
    return (
        f"Columns {'; '.join(groups)}{more} are linearly dependent: no density in {len(names)} "
        "dimensions."
    )
