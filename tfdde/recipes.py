"""The density that the benchmarks found to suit tables best, in one call."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfdde import networks
from tfdde.models.dde import DDE
from tfdde.networks.gaussian_base import GaussianBase
from tfdde.noise import LogUniform, Noise
from tfdde.utils.checks import check_rows

ROWS_PER_COLUMN = 5  # at least, for independent components to be worth their name


def table_density(
    x: Any,
    noise: Noise,
    width: int = 128,
    depth: int = 4,
    normalization: keras.layers.Normalization | None = None,
    seed: int | None = None,
) -> DDE:
    """A ``DDE`` of a table, not yet compiled: products of mixtures over a residual MLP of SiLUs.

    Base and normalization are adapted to the rows, and the first layer starts at their
    independent components, if it has a unit for each and the rows are enough.

    Args:
        x: training rows, shape (rows, n).
        noise: its levels; the network has an input for them with ``LogUniform``.
        width: units of each hidden layer.
        depth: number of residual layers.
        normalization: layer that standardises the columns; None: they are taken as they are.
        seed: of the density.

    Raises:
        ValueError: wrong shape, NaN or infinity, fewer than two rows.
    """
    x = check_rows(x, "x", np.shape(x)[1:2] or (1,))
    n = x.shape[1]
    network = table_network(n, width, depth, isinstance(noise, LogUniform))
    dde = DDE(network, noise, GaussianBase(n), normalization, antithetic=True, seed=seed)
    dde.adapt(x)
    start(dde, x, width)
    return dde


def table_network(n: int, width: int, depth: int, levels: bool = True) -> keras.Model:
    """The network of ``table_density``, for rows of ``n`` columns."""
    return networks.residual_mlp(n, width, depth, activation="silu", levels=levels, experts=4)


def start(dde: DDE, x: np.ndarray, width: int) -> None:
    """Start an adapted density at independent components, if units and rows are enough."""
    if x.shape[1] <= min(width, len(x) // ROWS_PER_COLUMN):
        dde.start_at_independent_components(x)


def adam(
    learning_rate: float, steps: int, power: float = 0.5, **kwargs: Any
) -> keras.optimizers.Adam:
    """Adam for networks that follow one another.

    Its rate falls to 0 in ``steps`` steps, by the share of them that is left to ``power``.
    """
    schedule = keras.optimizers.schedules.PolynomialDecay(learning_rate, steps, 0.0, power)
    # Little momentum: what s_q and g follow is moving.
    return keras.optimizers.Adam(schedule, beta_1=0.5, beta_2=0.99, **kwargs)
