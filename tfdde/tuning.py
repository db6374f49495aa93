"""The noise level, chosen by the data: the paper leaves it to be set by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.checks import check_integer, check_pixels, check_rows
from tfdde.density import DDE
from tfdde.estimate import QUANTILE, Evaluator, LogPartition
from tfdde.ladder import ladder, ladder_levels
from tfdde.noise import LogUniform


@dataclasses.dataclass(frozen=True)
class SigmaCurve:
    """Normalised held-out log-likelihood of one density at each of its noise levels.

    Attributes:
        sigmas: the levels, increasing, float64 (levels,).
        log_likelihood: means over the rows, in nats, (levels,).
        standard_error: of the mean over the rows and of log Z, in quadrature, (levels,).
        partitions: log Z at each level.
        best: the index of the level with the highest log-likelihood, of those whose log Z is
            trusted; 0, the lowest, if none is.
        one_standard_error: the index of the highest such level that is within one standard error
            of the best: the smoothest density that the rows can't tell from it.
    """

    sigmas: np.ndarray
    log_likelihood: np.ndarray
    standard_error: np.ndarray
    partitions: tuple[LogPartition, ...]
    best: int
    one_standard_error: int

    @property
    def lower(self) -> np.ndarray:
        """Lower ends of the intervals of 95 %, (levels,)."""
        return self.log_likelihood - QUANTILE * self.standard_error

    @property
    def upper(self) -> np.ndarray:
        """Upper ends of the intervals of 95 %, (levels,)."""
        return self.log_likelihood + QUANTILE * self.standard_error

    def __str__(self) -> str:
        lines = [f"{'sigma':>8}  log-likelihood in nats"]
        for k, sigma in enumerate(self.sigmas):
            notes = [] if self.partitions[k].trusted else ["log Z NOT to be trusted"]
            notes += ["best"] if k == self.best else []
            notes += ["one standard error"] if k == self.one_standard_error else []
            value, error = self.log_likelihood[k], self.standard_error[k]
            lines.append(f"{sigma:8.4g}  {value:.4f} ± {error:.4f}  {', '.join(notes)}".rstrip())
        return "\n".join(lines)


def select_sigma(
    dde: DDE,
    validation: Any,
    *,
    starts: Any = None,
    samples: int = 5_000,
    moves: int = 5,
    seed: int = 0,
) -> SigmaCurve:
    """Held-out log-likelihood at every level of a density trained with ``LogUniform`` noise.

    One ladder gives log Z at all of them.  The density stays as it is; to read it at the level
    found, give its noise that ``sigma``.

    Args:
        dde: the density.
        validation: held-out rows, clean, shape (rows, *shape), in the data's own units.
        starts: rows that the ladder's samples start at, by default ``validation``; a few dozen
            do not suffice.
        samples: of the ladder at each level.
        moves: Monte Carlo steps of the ladder at each level.
        seed: of the ladder.

    Raises:
        ValueError: the density has one level only, or wrong rows.
    """
    if not isinstance(dde.noise, LogUniform):
        raise ValueError(
            "`dde` must be a density of many noise levels, trained with tfdde.LogUniform, got "
            f"{dde.noise!r}."
        )
    rows = check_rows(validation, "validation", dde.data_shape)
    start = rows if starts is None else check_rows(starts, "starts", dde.data_shape)
    for array, name in ((rows, "validation"), (start, "starts")):
        if len(array) < 2:
            raise ValueError(f"`{name}` must have at least 2 rows, got {len(array)}.")
    samples = check_integer(samples, "samples", 100)
    moves = check_integer(moves, "moves", 0)
    rows = check_pixels(rows, "validation", margin=10 * dde.noise.sigma)
    inside = dde.inside(tf.constant(start)).numpy()
    levels = ladder_levels(dde.noise.minimum, dde.noise.maximum, rows[0].size)
    # At the highest level, next to nothing of the data is left.
    found = ladder(dde.at, inside, levels, samples, moves, seed)[:-1]
    evaluate = Evaluator(dde._outside, dde.data_shape)
    flat = rows.reshape(len(rows), -1)
    means, errors = [], []
    for each in found:
        s = evaluate(flat, each.sigma)
        means.append(s.mean() - each.value)
        errors.append(math.hypot(s.std(ddof=1) / math.sqrt(len(s)), each.standard_error))
    usable = [k for k, each in enumerate(found) if each.trusted] or [0]
    best = max(usable, key=lambda k: means[k])
    within = [k for k in usable if k >= best and means[k] >= means[best] - errors[best]]
    return SigmaCurve(
        np.array([each.sigma for each in found]),
        np.array(means),
        np.array(errors),
        tuple(found),
        best,
        max(within),
    )
