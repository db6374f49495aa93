"""Means with their standard errors."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

QUANTILE = 1.96  # of the standard normal: intervals are of 95 %


def mean_and_error(values: np.ndarray, log_z_error: float = 0.0) -> tuple[float, float]:
    """Mean over rows, and its standard error with that of log Z in quadrature.

    Args:
        values: of each row, (rows,), at least 2.
        log_z_error: standard error of what all of them share.
    """
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), math.hypot(error, log_z_error)


class Measured(NamedTuple):
    """A measure with its standard error and an interval of 95 %."""

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
