"""Held-out likelihood of one density at each of its noise levels."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.models.dde import DDE
from tfdde.noise import LogUniform
from tfdde.partition.ladder import ladder, ladder_levels
from tfdde.partition.result import LogPartition
from tfdde.utils.checks import check_integer, check_pixels, check_rows
from tfdde.utils.statistics import QUANTILE, mean_and_error

ENOUGH = 1_000  # held-out rows from which the samples for log Z can start
OVERFIT = 0.1  # nats, beyond what chance explains, that are worth a warning


class OverfittingWarning(UserWarning):
    """A density gives the rows that it was trained on more than others of their kind."""


def overfitting(training: Any, held_out: Any) -> str | None:
    """What a density knows by heart, as a sentence, or None.

    The mean log-densities of two sets of rows differ by chance alone, whatever the density, unless
    it was trained on one of them: what is left beyond three standard errors was learned by heart.
    It is missing where it counts: a density that beats the truth on its training rows loses to it
    on others.

    Args:
        training, held_out: log-densities of rows of one distribution, (rows,) each, in nats; log Z
            cancels, so they may be unnormalised.

    Returns:
        A warning if the difference exceeds three standard errors and a tenth of a nat.
    """
    held_out_mean, held_out_error = mean_and_error(np.asarray(held_out, np.float64))
    mean, error = mean_and_error(np.asarray(training, np.float64), held_out_error)
    gap = mean - held_out_mean
    if not gap > max(OVERFIT, 3.0 * error):
        return None
    return (
        f"Over-fitting: rows that the density was trained on have {gap:.2f} ± {error:.2f} nats "
        "more than held-out ones. Use a larger sigma, fewer steps (stop at the lowest validation "
        "loss), a smaller network, or more rows."
    )


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
        training: the same means over the training rows, (levels,), if these were given.
    """

    sigmas: np.ndarray
    log_likelihood: np.ndarray
    standard_error: np.ndarray
    partitions: tuple[LogPartition, ...]
    best: int
    one_standard_error: int
    training: np.ndarray | None = None

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


def ladder_starts(training: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Rows that samples for log Z start at: held-out ones, or all if these are few."""
    return held_out if len(held_out) >= ENOUGH else np.concatenate([training, held_out])


def select_sigma(
    dde: DDE,
    validation: Any,
    *,
    training: Any = None,
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
        training: rows that it was trained on; with them an ``OverfittingWarning`` says so if the
            density of the best level knows them by heart.
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
    if dde.condition_dim:
        raise ValueError(
            "`dde` must be a density without conditions, got one that takes "
            f"{dde.condition_dim} entries; dde.given(condition) is such a density."
        )
    rows = check_rows(validation, "validation", dde.data_shape)
    start = rows if starts is None else check_rows(starts, "starts", dde.data_shape)
    known = None if training is None else check_rows(training, "training", dde.data_shape)
    given = {"validation": rows, "starts": start} | ({} if known is None else {"training": known})
    for name, array in given.items():
        if len(array) < 2:
            raise ValueError(f"`{name}` must have at least 2 rows, got {len(array)}.")
    samples = check_integer(samples, "samples", 100)
    moves = check_integer(moves, "moves", 0)
    rows = check_pixels(rows, "validation", margin=10 * dde.noise.sigma)

    def inside(rows: np.ndarray) -> np.ndarray:
        return dde.inside(tf.constant(rows)).numpy()

    levels = ladder_levels(dde.noise.minimum, dde.noise.maximum, rows[0].size)
    # At the highest level, next to nothing of the data is left.
    found = ladder(dde.evaluator, inside(start), levels, samples, moves, seed)[:-1]
    jacobian = 0.0 if dde.normalization is None else float(dde.log_scale())

    def log_densities(rows: np.ndarray) -> list[np.ndarray]:
        flat = inside(rows).reshape(len(rows), -1)
        return [dde.evaluator(flat, each.sigma) - each.value + jacobian for each in found]

    values = log_densities(rows)
    pairs = zip(values, found, strict=True)
    means, errors = zip(*(mean_and_error(v, each.standard_error) for v, each in pairs), strict=True)
    best, one_standard_error = _choose(found, means, errors)
    heart = None
    if known is not None:
        learned = log_densities(known)
        if message := overfitting(learned[best], values[best]):
            warnings.warn(message, OverfittingWarning, stacklevel=2)
        heart = np.array([v.mean() for v in learned])
    return SigmaCurve(
        np.array([each.sigma for each in found]),
        np.array(means),
        np.array(errors),
        tuple(found),
        best,
        one_standard_error,
        heart,
    )


def _choose(found: Sequence[LogPartition], means: Any, errors: Any) -> tuple[int, int]:
    """``best`` and ``one_standard_error`` of a ``SigmaCurve``."""
    usable = [k for k, each in enumerate(found) if each.trusted] or [0]
    best = max(usable, key=lambda k: means[k])
    within = [k for k in usable if k >= best and means[k] >= means[best] - errors[best]]
    return best, max(within)


def split(x: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and held-out rows of each of ``folds`` parts, in an order drawn by ``seed``.

    Raises:
        ValueError: fewer than two rows a part.
    """
    folds = check_integer(folds, "folds", 2)
    if len(x) < 2 * folds:
        raise ValueError(
            f"`x` must have at least {2 * folds} rows for {folds} folds, got {len(x)}."
        )
    parts = np.array_split(np.random.default_rng(seed).permutation(len(x)), folds)
    return [(np.delete(x, part, axis=0), x[part]) for part in parts]


def mean_curve(curves: Sequence[SigmaCurve], rows: Sequence[int]) -> SigmaCurve:
    """The curve of several held-out sets together, each with a density of its own.

    Args:
        curves: with the same levels.
        rows: of each set.

    Returns:
        Means weighted by rows, their errors in quadrature; of log Z at each level the least
        certain.
    """
    means = np.average([c.log_likelihood for c in curves], axis=0, weights=rows)
    weighted = [count * c.standard_error for c, count in zip(curves, rows, strict=True)]
    errors = np.linalg.norm(weighted, axis=0) / np.sum(rows)
    levels = zip(*(c.partitions for c in curves), strict=True)
    found = tuple(max(level, key=lambda z: (not z.trusted, z.standard_error)) for level in levels)
    return SigmaCurve(curves[0].sigmas, means, errors, found, *_choose(found, means, errors))
