"""log Z by importance sampling from the base that a density corrects.

The base is normalised at every noise level, so that no ladder has to lead down to the level. Where
the network corrects it little, as a mixture of many Gaussians, a second's samples are worth more
than those of a ladder of minutes, and they have not to be moved. Where it corrects it a lot, few
samples have all the weight, and the ladder is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfdde.networks.gaussian_base import GaussianBase
from tfdde.partition.evaluator import BlurredBase, Evaluator
from tfdde.partition.importance import importance
from tfdde.partition.ladder import ladder
from tfdde.partition.result import TRUSTED_SAMPLES, LogPartition
from tfdde.partition.rows import RowDraws
from tfdde.utils.random import Purpose

SAMPLES, SPARE = 10_000, 1.1  # at first; then more than the law of the error asks for
ENOUGH = 0.2  # share of the samples that their effective size must be


class Base(NamedTuple):
    """The base of a density.

    Attributes:
        layer: which draws samples.
        evaluate: its log-density.
    """

    layer: GaussianBase
    evaluate: Evaluator


def from_base(
    evaluate: Evaluator,
    base: Base,
    data: np.ndarray,
    sigma: float,
    samples: int = SAMPLES,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> LogPartition | None:
    """Estimate log Z at a noise level, or return None where the base is too far from the density.

    It is near enough if the effective size is a fifth of the samples: that of their weights, and
    that of the weights at rows with noise (``importance``). The estimate is unbiased, and its
    interval covers the error of sampling. Mass where neither rows nor samples are is not seen here:
    ``from_above`` looks for that.

    Args:
        evaluate: s.
        base: of the density.
        data: float32 rows, shape (rows, *shape), of which at most ``samples`` are looked at.
        sigma, samples, seed: as of ``importance``.
        weights: of the rows, positive float64 (rows,), or None.
    """
    rng = np.random.default_rng([seed, Purpose.PARTITION, 5])
    rows = data[RowDraws(len(data), weights).take(min(samples, len(data)), rng)]
    proposal = BlurredBase(*base, sigma)
    estimate = importance(evaluate, rows, sigma, samples, seed, proposal=proposal)
    # A NaN is not near enough.
    near = estimate.effective_sample_size >= max(TRUSTED_SAMPLES, ENOUGH * samples)
    return estimate if near else None


def precise_from_base(
    evaluate: Evaluator,
    base: Base,
    data: np.ndarray,
    sigma: float,
    most: int,
    seed: int = 0,
    weights: np.ndarray | None = None,
    precision: float | None = None,
) -> LogPartition | None:
    """``from_base`` with as many samples as an asked precision needs.

    Args:
        evaluate, base, data, sigma, seed, weights: as of ``from_base``.
        most: samples; without ``precision`` so many are drawn.
        precision: half-width in nats of the 95 % interval.

    Returns:
        The estimate; None where the base is too far, or ``most`` samples are too few.
    """
    settings = evaluate, base, data, sigma
    samples = most if precision is None else min(most, SAMPLES)
    estimate = from_base(*settings, samples, seed, weights)
    if estimate is None or precision is None or (ratio := estimate.half_width / precision) <= 1.0:
        return estimate
    needed = math.ceil(SPARE * samples * ratio**2)
    estimate = from_base(*settings, needed, seed, weights) if needed <= most else None
    return estimate if estimate and estimate.half_width <= precision else None


def at_levels(
    count: int,
    evaluate: Evaluator,
    base: Base | None,
    data: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    samples: int,
    moves: int,
    seed: int = 0,
    weights: np.ndarray | None = None,
    by_score: bool | None = None,
) -> list[LogPartition]:
    """Estimate log Z at the lowest ``count`` of the noise levels: from the base, or by the ladder.

    Where the base is not near enough at one of them, the ladder goes down all levels, since it
    can't leave one out.

    Args:
        count: of estimates.
        evaluate: s.
        base: of the density, or None.
        data, sigmas, samples, moves, seed, weights, by_score: as of ``ladder``.
    """
    sigmas = np.asarray(sigmas, float)
    found = [
        from_base(evaluate, base, data, float(sigma), samples, seed, weights) if base else None
        for sigma in sigmas[:count]
    ]
    if None in found:
        settings = samples, moves, seed, weights
        by_ladder = ladder(evaluate, data, sigmas, *settings, by_score=by_score)[:count]
        found = [a or b for a, b in zip(found, by_ladder, strict=True)]
    return [z for z in found if z is not None]
