"""log Z by the method that suits the noise, or by the one asked for, and checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tfdde.networks.fixed_condition import repeated
from tfdde.networks.heavy_tails import extent
from tfdde.noise import LogUniform, Noise, check_level
from tfdde.partition.annealed import annealed
from tfdde.partition.evaluator import Evaluator, LogDensity
from tfdde.partition.far_field import checked
from tfdde.partition.from_above import confirmed_at_one_level
from tfdde.partition.from_base import Base, precise_from_base
from tfdde.partition.importance import importance
from tfdde.partition.ladder import ladder, ladder_levels
from tfdde.partition.result import LogPartition, LogPartitions
from tfdde.partition.to_precision import BATCH, MOST, ladder_to
from tfdde.utils.checks import check_integer, check_positive

MOST_CONDITIONS = 100  # that log Z is estimated for in one call
LEAST_ROWS = 100  # of data at a condition, for its log Z
LOW_NOISE = 0.5  # the highest noise level should be at least so many times the data's deviation


def too_low(noise: LogUniform, data: np.ndarray) -> str | None:
    """Return a warning if the highest noise level does not reach across the data, or None.

    Time-score matching then can't tell the weights of modes that lie apart, and the network hardly
    sees differences of the size of the noise.

    >>> x = np.random.default_rng(0).normal(size=(1_000, 1)) * 1_000
    >>> print(tfdde.partition.estimate.too_low(tfdde.LogUniform(0.2, 4.0), x))
    The highest noise level, LogUniform.maximum = 4, is small for data of standard deviation ...

    Args:
        noise: in the units of the rows.
        data: (rows, *shape).
    """
    deviation = extent(data.reshape(len(data), -1))
    if noise.maximum >= LOW_NOISE * deviation:
        return None
    return (
        f"The highest noise level, LogUniform.maximum = {noise.maximum:g}, is small for data of "
        f"standard deviation {deviation:.3g}, so the density may be wrong between and outside of "
        f"the rows. Use LogUniform({noise.minimum:g}, {2 * deviation:.2g}), or standardise the "
        "columns."
    )


def rows_by_condition(conditions: np.ndarray) -> Iterator[tuple[tuple[float, ...], np.ndarray]]:
    """Yield each distinct condition and a mask of its rows.

    Raises:
        ValueError: more conditions, or fewer rows of one, than log Z can be estimated for.
    """
    distinct, place, counts = np.unique(conditions, axis=0, return_inverse=True, return_counts=True)
    advice = (
        "dde.given(condition) is a density of its own, whose `log_partition` takes rows at or "
        "near the condition."
    )
    if len(distinct) > MOST_CONDITIONS:
        raise ValueError(
            f"`conditions` must have at most {MOST_CONDITIONS} distinct rows, each with a log Z "
            f"of its own, got {len(distinct)}; {advice}"
        )
    if counts.min() < LEAST_ROWS:
        raise ValueError(
            f"`data` must have at least {LEAST_ROWS} rows of each condition, got {counts.min()} "
            f"of {distinct[counts.argmin()].tolist()}; {advice}"
        )
    place = place.ravel()
    return ((tuple(c.tolist()), place == i) for i, c in enumerate(distinct))


def estimate_by_condition(
    log_density: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
    data: np.ndarray,
    conditions: np.ndarray,
    noise: Noise,
    method: str | None,
    sigma: float | None,
    samples: int | None,
    moves: int,
    seed: int,
    weights: np.ndarray | None = None,
    precision: float | None = None,
    verbose: int = 0,
) -> LogPartitions:
    """Estimate log Z at each distinct condition from its rows; see ``DDE.log_partition``.

    Args:
        log_density: maps x (rows, *shape), sigma () and conditions (rows, k) to s (rows,).
        data: float32 (rows, *shape).
        conditions: float32 (rows, k).
        noise, method, sigma, samples, moves, seed, weights, precision, verbose: as of ``estimate``.
    """
    estimates = {}
    # As a variable, so that what is traced for one condition serves all.
    here = tf.Variable(tf.zeros(conditions.shape[1]), trainable=False)
    evaluate = Evaluator(lambda x, sigma: log_density(x, sigma, repeated(here, x)), data.shape[1:])
    for condition, there in rows_by_condition(conditions):
        here.assign(condition)
        weights_there = None if weights is None else weights[there]
        settings = noise, method, sigma, samples, moves, seed, weights_there, precision, verbose
        estimates[condition] = estimate(evaluate, data[there], *settings)
    return LogPartitions(tuple(estimates), tuple(estimates.values()))


def estimate(
    log_density: LogDensity | Evaluator,
    data: np.ndarray,
    noise: Noise,
    method: str | None,
    sigma: float | None,
    samples: int | None,
    moves: int,
    seed: int,
    weights: np.ndarray | None = None,
    precision: float | None = None,
    verbose: int = 0,
    base: Base | None = None,
) -> LogPartition:
    """Estimate log Z by the method that suits the noise, or the one asked for, and check it.

    With many noise levels that is importance sampling from the base, where one is given that is
    near enough (``from_base``), and otherwise the ladder.

    Args:
        log_density: maps x (rows, *shape) and sigma () to s (rows,), or its ``Evaluator``.
        data: float32 (rows, *shape).
        noise: of the density.
        method, sigma, samples, moves, seed: as of ``DDE.log_partition``.
        weights: of the rows, positive float64 (rows,), by default equal.
        precision, verbose: as of ``DDE.log_partition``.
        base: of the density (``DDE.proposal``), or None.

    Raises:
        ValueError: fewer than 2 rows, an unknown method or one that does not suit the noise or
            the precision, a level that was not trained, or weights that do not fit the rows.
    """
    if len(data) < 2:
        raise ValueError(f"`data` must have at least 2 rows, got {len(data)}.")
    if weights is not None and (weights.shape != (len(data),) or not (weights > 0).all()):
        raise ValueError(
            f"`weights` must be positive, one for each of {len(data)} rows, got shape "
            f"{weights.shape} with a minimum of {weights.min(initial=np.inf):g}."
        )
    many = isinstance(noise, LogUniform)
    from_base_first = method is None and many
    method = method or ("ladder" if many else "importance")
    if method not in ("ladder", "importance", "annealed"):
        raise ValueError(f'`method` must be "ladder", "importance" or "annealed", got {method!r}.')
    if method == "ladder" and not many:
        raise ValueError(
            '`method` "ladder" needs a density of all noise levels, trained with '
            f"noise=tfdde.LogUniform(minimum, maximum), got {noise!r}."
        )
    level = check_level(noise, sigma)
    default, least = {"ladder": 10_000, "importance": 50_000, "annealed": 5_000}[method], 100
    if precision is not None:
        precision = check_positive(precision, "precision")
        if method != "ladder":
            raise ValueError(
                f'`precision` needs the method "ladder", whose error falls with the samples, got '
                f"{method!r} (the method that suits {noise!r}, if none was asked for)."
            )
        default, least = MOST, BATCH
    samples = default if samples is None else check_integer(samples, "samples", least)
    if verbose not in (0, 1, 2):
        raise ValueError(f"`verbose` must be 0, 1 or 2, got {verbose!r}.")
    moves = check_integer(moves, "moves", 0)
    evaluate = Evaluator.of(log_density, data.shape[1:])
    levels = np.array([level])
    if isinstance(noise, LogUniform) and level < noise.maximum:
        levels = ladder_levels(level, noise.maximum, data[0].size)
    result, reason = None, ""
    if base is not None and from_base_first:
        result = precise_from_base(
            evaluate, base, data, level, samples, seed, weights, precision=precision
        )
    if result is not None:
        method = result.method
    elif method == "importance":
        result = importance(evaluate, data, level, samples, seed, weights)
    elif method == "annealed":
        result = annealed(evaluate, data, levels, samples, max(moves, 1), seed, weights=weights)
    elif precision is None:
        result = ladder(evaluate, data, levels, samples, moves, seed, weights, verbose)[0]
    else:
        settings = samples, moves, seed, weights, verbose
        result, reason = ladder_to(precision, evaluate, data, levels, *settings)
    if isinstance(noise, LogUniform) and (moves or method != "ladder"):
        result = confirmed_at_one_level(
            result, evaluate, data, levels, noise.minimum, moves, seed, weights, base, verbose
        )
    result = checked([result], evaluate, data, seed)[0]
    if precision is not None and not result.half_width <= precision:
        reason = reason or f"The checks have widened the interval of log Z: {result}."
        warnings.warn(f"`precision` was not reached. {reason}", UserWarning, stacklevel=3)
    return result
