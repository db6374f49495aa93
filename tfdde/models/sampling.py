"""Rows drawn from a density of a table, in the units and on the grids of its columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.models.dde import DDE
from tfdde.networks.normalization import outside
from tfdde.partition.evaluator import CHUNK
from tfdde.tables.frames import as_frame, is_frame
from tfdde.tables.schema import Schema
from tfdde.utils.checks import check_integer, check_rows, check_weights

MOVES = 20  # Hamiltonian moves of a sample
CHAINS = 100  # samples that run together at least: their mean acceptance adapts the step


def sample_rows(
    dde: DDE, data: Any, count: int, *, sample_weight: Any = None, seed: int = 0
) -> np.ndarray:
    """Draw rows from a density of a table, which is that of the blurred data.

    The samples are rows of ``data`` with noise of sigma, moved by Hamiltonian Monte Carlo under the
    density.  The moves hardly ever cross between modes far apart, so that the shares of these
    modes are those in ``data``.  log Z is not needed.

    Values of a column on a grid, such as integers, are put back on it: to the nearest value of the
    grid between the lowest and the highest that the ``Schema`` was learned from.

    >>> import pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> table = pd.DataFrame({"visits": rng.poisson(3, 500), "amount": rng.normal(size=500)})
    >>> schema = tfdde.tables.Schema.learn(table)
    >>> rows, noise = schema.training_rows(table, seed=0), tfdde.LogUniform(0.1, 8.0)
    >>> dde = tfdde.recipes.table_density(rows, noise, width=16, depth=1, normalization=schema)
    >>> drawn = tfdde.sample_rows(dde, table, 4)
    >>> drawn.shape, bool((drawn[:, 0] == drawn[:, 0].round()).all())
    ((4, 2), True)

    Args:
        dde: a density of flat rows, without conditions.
        data: rows to start at, as the training rows: a table whose columns have the names of the
            ``Schema``, or an array (rows, n) as ``dde.log_density`` takes it.
        count: number of rows to draw.
        sample_weight: of the rows of ``data``, (rows,), not negative.
        seed: of the draws.

    Returns:
        float64 array (count, n) in the data's own units. The columns are in the order of the
        ``Schema``'s ``names``.

    Raises:
        ValueError: a conditional density, images, wrong rows, bad weights, or ``count`` below 1.
    """
    if dde.condition_dim or len(dde.data_shape) != 1:
        raise ValueError(
            "`dde` must be a density of flat rows without conditions, got rows of shape "
            f"{dde.data_shape} and conditions of {dde.condition_dim} entries; "
            "dde.given(condition) has none."
        )
    frame = as_frame(data)
    if isinstance(dde.normalization, Schema) and is_frame(frame):
        data = dde.normalization.rows(frame)
    rows = check_rows(data, "data", dde.data_shape, dtype=dde.row_dtype)
    weights = check_weights(sample_weight, len(rows))
    return draw(dde, dde.inside(tf.constant(rows)).numpy(), count, weights, seed)


def draw(
    dde: DDE, starts: np.ndarray, count: int, weights: np.ndarray | None, seed: int
) -> np.ndarray:
    """``sample_rows`` from standardised rows, as ``dde.inside`` returns them."""
    count = check_integer(count, "count")
    rng = np.random.default_rng(seed)
    chances = None if weights is None else weights.astype(np.float64) / weights.sum(dtype="f8")
    sigma, chunks = dde.noise.sigma, []
    for first in range(0, count, CHUNK):
        size = max(min(count - first, CHUNK), CHAINS)
        start = starts[rng.choice(len(starts), size, p=chances)]
        noisy = (start + sigma * rng.standard_normal(start.shape)).astype(np.float32)
        chunks.append(dde.evaluator.moves(noisy, sigma, sigma, MOVES, int(rng.integers(2**31))))
    z = np.concatenate(chunks)[:count]
    x = z if dde.normalization is None else outside(dde.normalization, z)
    if isinstance(dde.normalization, Schema):
        x = dde.normalization.on_grids(x)
    return np.asarray(x, np.float64)
