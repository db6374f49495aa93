"""Annealing through the noise levels from the highest down, one population, with resampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from tfdde.partition.evaluator import Evaluator
from tfdde.partition.rows import at_shares


class Reached(NamedTuple):
    """What annealing has at a noise level.

    Attributes:
        sigma: the level.
        value: log of an unbiased estimate of Z there; -inf where all samples are outside of the
            density, and NaN where s is not finite. Both end the way down.
        error: its standard error, at most about 1: then a single ancestor has all the weight.
        y: the samples after their moves at this level, float32 (samples, n).
        s: of these, float64 (samples,).
    """

    sigma: float
    value: float
    error: float
    y: np.ndarray
    s: np.ndarray


def descend(
    evaluate: Evaluator,
    y: np.ndarray,
    log_first: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    moved: Callable[[np.ndarray, float, np.random.Generator], tuple[np.ndarray, np.ndarray]],
    rng: np.random.Generator,
) -> Iterator[Reached]:
    """Annealed importance sampling from a normalised density through decreasing noise levels.

    At each level the samples are weighted, resampled if their effective size has fallen to half,
    and moved (Neal 2001; Del Moral et al. 2006). The error is from the shares that each first
    sample's descendants have of the weight (Chan & Lai 2013; Lee & Whiteley 2018).

    Args:
        evaluate: s.
        y: samples of the first density, float32 (samples, n).
        log_first: its log-density there, float64 (samples,).
        sigmas: decreasing.
        moved: of samples, level and random numbers: the samples after moves that keep e^s at the
            level, and s there.
        rng: of resampling and moves.
    """
    samples = len(y)
    log_w, log_z = -log_first, 0.0
    ancestors = np.arange(samples)
    for sigma in sigmas:
        s = evaluate(y, sigma)
        log_w = log_w + s
        if np.isnan(log_w).any() or not log_w.max() < np.inf:
            yield Reached(sigma, math.nan, math.nan, y, s)
            return
        if log_w.max() == -np.inf:
            yield Reached(sigma, -math.inf, 1.0, y, s)
            return
        log_sum = logsumexp(log_w)
        w = np.exp(log_w - log_sum)
        shares = np.bincount(ancestors, w, samples)
        error = math.sqrt(max(0.0, np.square(shares).sum() - 1 / samples))
        value = float(log_z + log_sum - math.log(samples))
        if 1 / np.square(w).sum() < samples / 2:
            picked = at_shares(w, (rng.random() + np.arange(samples)) / samples)
            y, ancestors = y[picked], ancestors[picked]
            log_w, log_z = np.zeros(samples), value
        y, s = moved(y, float(sigma), rng)
        log_w = log_w - s
        yield Reached(sigma, value, error, y, s)
