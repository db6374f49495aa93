"""log Z by the method that suits the noise, or by the one asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tfdde.noise import LogUniform, Noise, check_level
from tfdde.partition.annealed import annealed
from tfdde.partition.evaluator import Evaluator, LogDensity
from tfdde.partition.importance import importance
from tfdde.partition.ladder import ladder, ladder_levels
from tfdde.partition.result import LogPartition
from tfdde.utils.checks import check_integer

MOST_CONDITIONS = 100  # that log Z is looked for at once
LEAST_ROWS = 100  # of data at a condition, for its log Z


def rows_by_condition(
    rows: np.ndarray, conditions: np.ndarray
) -> Iterator[tuple[tuple[float, ...], np.ndarray]]:
    """Each distinct condition with its rows.

    Raises:
        ValueError: more conditions, or fewer rows of one, than log Z can be found for.
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
    return ((tuple(c.tolist()), rows[place == i]) for i, c in enumerate(distinct))


def estimate(
    log_density: LogDensity | Evaluator,
    data: np.ndarray,
    noise: Noise,
    method: str | None,
    sigma: float | None,
    samples: int | None,
    moves: int,
    seed: int,
) -> LogPartition:
    """log Z by the method that suits the noise, or the one asked for; see ``DDE.log_partition``."""
    if len(data) < 2:
        raise ValueError(f"`data` must have at least 2 rows, got {len(data)}.")
    many = isinstance(noise, LogUniform)
    method = method or ("ladder" if many else "importance")
    if method not in ("ladder", "importance", "annealed"):
        raise ValueError(f'`method` must be "ladder", "importance" or "annealed", got {method!r}.')
    if method == "ladder" and not many:
        raise ValueError(
            '`method` "ladder" needs a density of all noise levels, trained with '
            f"noise=tfdde.LogUniform(minimum, maximum), got {noise!r}."
        )
    level = check_level(noise, sigma)
    default = {"ladder": 10_000, "importance": 50_000, "annealed": 5_000}[method]
    samples = default if samples is None else check_integer(samples, "samples", 100)
    moves = check_integer(moves, "moves", 0)
    if method == "importance":
        return importance(log_density, data, level, samples, seed)
    levels = np.array([level])
    if isinstance(noise, LogUniform) and level < noise.maximum:
        levels = ladder_levels(level, noise.maximum, data[0].size)
    if method == "annealed":
        return annealed(log_density, data, levels, samples, max(moves, 1), seed)
    return ladder(log_density, data, levels, samples, moves, seed)[0]
