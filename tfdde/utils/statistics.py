"""Means with their standard errors."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

QUANTILE = 1.96  # of the standard normal, for 95 % intervals


def mean_and_error(values: np.ndarray, log_z_error: float = 0.0) -> tuple[float, float]:
    """Mean over rows and its standard error, which includes that of log Z.

    >>> mean, error = tfdde.utils.statistics.mean_and_error(np.array([1.0, 2.0, 3.0]))
    >>> mean, round(error, 3)
    (2.0, 0.577)

    Args:
        values: one for each row, (rows,), at least 2.
        log_z_error: standard error of the log Z that all values share; the two errors are added
            in quadrature.
    """
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), math.hypot(error, log_z_error)


class Measured(NamedTuple):
    """A measured value with its standard error and 95 % interval."""

    value: float
    standard_error: float

    @property
    def lower(self) -> float:
        return self.value - QUANTILE * self.standard_error

    @property
    def upper(self) -> float:
        return self.value + QUANTILE * self.standard_error

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"
