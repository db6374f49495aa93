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
from tfdde.partition.far_field import checked
from tfdde.partition.from_above import confirmed
from tfdde.partition.from_base import at_levels
from tfdde.partition.ladder import ladder_levels
from tfdde.partition.result import LogPartition
from tfdde.utils.checks import check_integer, check_pixels, check_rows
from tfdde.utils.statistics import QUANTILE, mean_and_error

ENOUGH = 1_000  # held-out rows that suffice as starts of the samples for log Z
OVERFIT = 0.1  # nats, the least difference that is worth a warning
UNCHECKED = "it was not checked for mass where no rows are, since its level was not chosen"


class OverfittingWarning(UserWarning):
    """A density gives its training rows a higher likelihood than held-out rows."""


def overfitting(training: Any, held_out: Any) -> str | None:
    """Return an overfitting warning, or None.

    The mean log-densities of two sets of rows of one distribution differ by chance only, unless
    the density was trained on one of the sets.  A difference of more than three standard errors
    shows that it has memorised training rows; it then has a lower likelihood on other rows.

    Args:
        training, held_out: log-densities of training and held-out rows, (rows,) each, in nats;
            they may be unnormalised, since log Z cancels.

    Returns:
        A warning if the difference exceeds three standard errors and 0.1 nats.

    >>> tfdde.tuning.overfitting(training=np.full(500, -1.0), held_out=np.full(500, -3.0))
    'Over-fitting: training rows have a log-likelihood 2.00 ± 0.00 nats above ...'
    """
    held_out_mean, held_out_error = mean_and_error(np.asarray(held_out, np.float64))
    mean, error = mean_and_error(np.asarray(training, np.float64), held_out_error)
    gap = mean - held_out_mean
    if not gap > max(OVERFIT, 3.0 * error):
        return None
    return (
        f"Over-fitting: training rows have a log-likelihood {gap:.2f} ± {error:.2f} nats above "
        "that of held-out rows. Use a larger sigma, fewer steps (stop at the lowest validation "
        "loss), a smaller network, or more rows."
    )


@dataclasses.dataclass(frozen=True)
class SigmaCurve:
    """Normalised held-out log-likelihood of one density at each of its noise levels.

    Attributes:
        sigmas: the levels, increasing, float64 (levels,).
        log_likelihood: means over the held-out rows, in nats, (levels,).
        standard_error: of ``log_likelihood``: that of the mean over the rows and that of log Z in
            quadrature, (levels,).
        partitions: log Z at each level. Unless all were checked for mass where no rows are, those
            that were not have a ``doubt`` that says so (``UNCHECKED``).
        best: index of the level with the highest log-likelihood among those whose log Z is
            trusted; 0, the lowest level, if none is trusted.
        one_standard_error: index of the highest trusted level whose log-likelihood is within one
            standard error of the best: the smoothest density that the rows can't distinguish from
            the best.
        training: means over the training rows, (levels,), if these were given.
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
        """Lower ends of the 95 % intervals, (levels,)."""
        return self.log_likelihood - QUANTILE * self.standard_error

    @property
    def upper(self) -> np.ndarray:
        """Upper ends of the 95 % intervals, (levels,)."""
        return self.log_likelihood + QUANTILE * self.standard_error

    def __str__(self) -> str:
        lines = [f"{'sigma':>8}  log-likelihood in nats"]
        for k, sigma in enumerate(self.sigmas):
            log_z = self.partitions[k]
            known = log_z.trusted or log_z.doubt == UNCHECKED
            notes = [] if known else ["log Z NOT to be trusted"]
            notes += ["best"] if k == self.best else []
            notes += ["one standard error"] if k == self.one_standard_error else []
            value, error = self.log_likelihood[k], self.standard_error[k]
            lines.append(f"{sigma:8.4g}  {value:.4f} ± {error:.4f}  {', '.join(notes)}".rstrip())
        return "\n".join(lines)


def ladder_starts(training: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Return the rows at which samples for log Z start: held-out rows, with few of them all."""
    return held_out if len(held_out) >= ENOUGH else np.concatenate([training, held_out])


def select_sigma(
    dde: DDE,
    validation: Any,
    *,
    training: Any = None,
    starts: Any = None,
    samples: int = 1_000,
    moves: int = 5,
    seed: int = 0,
    check_all: bool = False,
) -> SigmaCurve:
    """Find the held-out log-likelihood at every level of a density.

    One ladder, or in 4 to 100 columns importance sampling from a base that is near enough, gives
    log Z at all levels.  The density stays as it is; to read it at the level
    found, set the ``sigma`` of its noise.

    The check of log Z that starts far from the rows (``tfdde.partition.far_field``) costs more than
    the ladder. It is made at the two levels that are chosen, and where it finds something wrong, at
    those chosen next. ``dde.log_partition(data, sigma=...)`` checks log Z at any level.

    Args:
        dde: a density trained with ``LogUniform`` noise.
        validation: held-out rows without noise, shape (rows, *shape), in the data's own units.
        training: rows that the density was trained on; with them an ``OverfittingWarning`` tells
            whether the density of the best level has memorised them.
        starts: rows at which the ladder's samples start, by default ``validation``; a few dozen
            rows are too few.
        samples: number of samples for log Z at each level.
        moves: Monte Carlo steps of the ladder at each level.
        seed: of the ladder.
        check_all: check log Z of all levels, as ``mean_curve`` needs it.

    Raises:
        ValueError: the density has one level only, or the rows are wrong.
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

    def checked_rows(x: Any, name: str) -> np.ndarray:
        return check_rows(x, name, dde.data_shape, dtype=dde.row_dtype)

    rows = checked_rows(validation, "validation")
    start = rows if starts is None else checked_rows(starts, "starts")
    known = None if training is None else checked_rows(training, "training")
    arrays = {"validation": rows, "starts": start}
    if known is not None:
        arrays["training"] = known
    for name, array in arrays.items():
        if len(array) < 2:
            raise ValueError(f"`{name}` must have at least 2 rows, got {len(array)}.")
    samples = check_integer(samples, "samples", 100)
    moves = check_integer(moves, "moves", 0)
    rows = check_pixels(rows, "validation", margin=10 * dde.noise.sigma)

    def inside(rows: np.ndarray) -> np.ndarray:
        return dde.inside(tf.constant(rows)).numpy()

    at_start = inside(start)
    dde.cap_if_many_entries(at_start, seed)
    levels = ladder_levels(dde.noise.minimum, dde.noise.maximum, rows[0].size)
    # The highest level is left out: hardly anything of the data remains there.
    settings = samples, moves, seed
    count = len(levels) - 1
    partitions = at_levels(count, dde.evaluator, dde.proposal, at_start, levels, *settings)
    if moves:
        partitions = confirmed(partitions, dde.evaluator, at_start, levels, seed)

    def log_densities(rows: np.ndarray) -> list[np.ndarray]:
        standardised = inside(rows)
        jacobian = dde.log_jacobian(tf.constant(standardised)).numpy()
        flat = standardised.reshape(len(rows), -1)
        return [dde.evaluator(flat, z.sigma) - z.value + jacobian for z in partitions]

    values = log_densities(rows)
    means = np.array([v.mean() for v in values])

    def checked_at(chosen: Sequence[int]) -> None:
        some = checked([partitions[k] for k in chosen], dde.evaluator, at_start, seed)
        for k, z in zip(chosen, some, strict=True):
            partitions[k] = z

    unchecked = set(range(len(partitions)))
    if check_all:
        checked_at(sorted(unchecked))
        unchecked = set()
    while True:
        errors = [
            mean_and_error(v, z.standard_error)[1] for v, z in zip(values, partitions, strict=True)
        ]
        best, one_standard_error = _choose(partitions, means, errors)
        if not (now := sorted({best, one_standard_error} & unchecked)):
            break
        checked_at(now)
        unchecked -= set(now)
    for k in unchecked:
        if partitions[k].trusted:
            partitions[k] = dataclasses.replace(partitions[k], doubt=UNCHECKED)
    training_means = None
    if known is not None:
        learned = log_densities(known)
        if message := overfitting(learned[best], values[best]):
            warnings.warn(message, OverfittingWarning, stacklevel=2)
        training_means = np.array([v.mean() for v in learned])
    return SigmaCurve(
        np.array([z.sigma for z in partitions]),
        means,
        np.array(errors),
        tuple(partitions),
        best,
        one_standard_error,
        training_means,
    )


def _choose(partitions: Sequence[LogPartition], means: Any, errors: Any) -> tuple[int, int]:
    """``best`` and ``one_standard_error`` of a ``SigmaCurve``."""
    usable = [k for k, z in enumerate(partitions) if z.trusted] or [0]
    best = max(usable, key=lambda k: means[k])
    within = [k for k in usable if k >= best and means[k] >= means[best] - errors[best]]
    return best, max(within)


def split(x: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split rows into ``folds`` pairs of training and held-out rows for cross-validation.

    Args:
        x: array, shape (rows, ...).
        folds: number of parts, each of which is held out once.
        seed: of the random order of the rows.

    Returns:
        A list of pairs (training rows, held-out rows).

    Raises:
        ValueError: a part would have fewer than two rows.

    >>> [len(held_out) for _, held_out in tfdde.tuning.split(np.arange(10), folds=4, seed=0)]
    [3, 3, 2, 2]
    """
    folds = check_integer(folds, "folds", 2)
    if len(x) < 2 * folds:
        raise ValueError(
            f"`x` must have at least {2 * folds} rows for {folds} folds, got {len(x)}."
        )
    parts = np.array_split(np.random.default_rng(seed).permutation(len(x)), folds)
    return [(np.delete(x, part, axis=0), x[part]) for part in parts]


def mean_curve(curves: Sequence[SigmaCurve], rows: Sequence[int]) -> SigmaCurve:
    """Combine the curves of several held-out sets, each of its own density.

    Args:
        curves: with the same levels.
        rows: number of rows of each held-out set.

    Returns:
        The curve of means weighted by rows, with their errors in quadrature and, at each level,
        the least certain log Z.
    """
    means = np.average([c.log_likelihood for c in curves], axis=0, weights=rows)
    weighted = [count * c.standard_error for c, count in zip(curves, rows, strict=True)]
    errors = np.linalg.norm(weighted, axis=0) / np.sum(rows)
    levels = zip(*(c.partitions for c in curves), strict=True)
    worst = tuple(max(level, key=lambda z: (not z.trusted, z.standard_error)) for level in levels)
    return SigmaCurve(curves[0].sigmas, means, errors, worst, *_choose(worst, means, errors))
