"""A threshold for anomaly scores, by the rate of false alarms that is accepted."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaincinv


class Threshold(NamedTuple):
    """A threshold, and how often normal rows will exceed it.

    Attributes:
        value: a score above it is an alarm.
        rate: the expected rate of false alarms, at most the one that was asked for.
        low, high: interval of the true rate of this threshold, at the confidence asked for.
        rows: normal rows that it was calibrated on.
    """

    value: float
    rate: float
    low: float
    high: float
    rows: int


def threshold(scores: Any, rate: float = 0.05, confidence: float = 0.95) -> Threshold:
    """Return the threshold that normal rows exceed at most at a given rate.

    It is an order statistic of the scores of normal rows, which must not be training rows: a
    density knows those better. The true rate of false alarms of the r-th of n scores has the
    distribution Beta(n + 1 - r, r), whatever that of the scores is, and the mean (n + 1 - r) /
    (n + 1). If scores tie, the rate is lower.

    >>> found = tfdde.anomalies.threshold(range(99), rate=0.1)
    >>> found.value, found.rate
    (89.0, 0.1)

    Args:
        scores: anomaly scores (n,) of held-out normal rows.
        rate: rate of false alarms that is accepted, in (0, 1).
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: NaN, wrong shape, a rate or confidence outside (0, 1), or too few scores for
            the rate: there must be 1 / rate - 1 or more.
    """
    for name, share in (("rate", rate), ("confidence", confidence)):
        if not 0 < share < 1:
            raise ValueError(f"`{name}` must be in (0, 1), got {share!r}.")
    values = np.sort(np.asarray(scores, np.float64))
    if values.ndim != 1 or np.isnan(values).any():
        raise ValueError(f"`scores` must have shape (rows,) without NaN, got {values.shape}.")
    n = len(values)
    rank = math.ceil((n + 1) * (1 - rate) - 1e-9)
    if rank > n:
        least = math.ceil(1 / rate - 1 - 1e-9)
        raise ValueError(f"`scores` must be of {least} rows or more for a rate of {rate}, got {n}.")
    rank = max(rank, 1)
    tail = (1 - confidence) / 2
    low, high = betaincinv(n + 1 - rank, rank, [tail, 1 - tail])
    return Threshold(float(values[rank - 1]), (n + 1 - rank) / (n + 1), float(low), float(high), n)
