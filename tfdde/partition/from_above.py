"""Check estimates of log Z by annealing from the highest noise level down.

The ladder's samples start at the rows, and its moves are few. Mass of e^s that lies away from the
rows, as an over-fitted network has it at low noise, is then missing from log Z, and hardly any of
it shows in what the last moves change. At the highest level there is no such place: the samples
are everywhere. Annealed from there through all levels, they follow the mass wherever it goes.

Their estimate of Z is unbiased, so by Markov's inequality it exceeds Z by a factor of c with a
probability of at most 1/c. It mostly falls short where they lose a mode, so a lower value shows
nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy.special import logsumexp

from tfdde.partition.descent import descend
from tfdde.partition.evaluator import Evaluator, Gaussian, reference
from tfdde.partition.far_field import DIMENSIONS, NOT_INTEGRABLE
from tfdde.partition.from_base import Base, at_levels
from tfdde.partition.hmc import MOST_ENTRIES, inverse_root
from tfdde.partition.ladder import ladder_levels
from tfdde.partition.progress import cost, followed
from tfdde.partition.result import TRUSTED_ERROR, LogPartition
from tfdde.utils.random import Purpose
from tfdde.utils.statistics import QUANTILE

SAMPLES, MOVES = 4_000, 2  # of annealing; with one move the estimate varies far more
FEW = 1_000  # samples at levels below the one that is asked for
SHOWN = 1_000  # rows with noise that show the shape of a level
ERRORS, MARGIN = 3.0, 0.1  # standard errors and nats of an excess that chance may make
REACH = 3.0  # times the highest doubted level: the levels up to there are doubted as well
UNLIKELY = 1_000  # times Z: an unbiased estimate exceeds it with a probability of 1/1,000 at most
NARROW = 0.3  # of sigma: widens the Gaussian of the annealed samples a little
RISE = 3.0  # of the error that is added, for what exceeds one standard error


class Level(NamedTuple):
    """What annealing from above finds at a noise level.

    Attributes:
        value: log of an unbiased estimate of Z; NaN if s is not finite.
        error: its standard error, at most about 1: then a single ancestor has all the weight.
        bound: log of another unbiased estimate, by importance sampling from the Gaussian that the
            annealed samples resemble. It is mostly far too low. But where it exceeds log Z, it
            shows mass beyond doubt, however few samples have found it.
    """

    value: float
    error: float
    bound: float = -math.inf


def in_shape(evaluate: Evaluator, z: tf.Tensor, level: tuple[tf.Tensor, ...]) -> tf.Tensor:
    """s of rows in coordinates in which a level is about equally wide in all directions.

    Args:
        evaluate: s.
        z: (rows, n).
        level: sigma; mean, (n,); and ways of the rows for unit ways of z, (n, n).
    """
    sigma, mean, push = level
    return evaluate.flat(mean + tf.matmul(z, push), sigma)


def annealing_from_above(
    evaluate: Evaluator,
    data: np.ndarray,
    sigmas: np.ndarray,
    seed: int = 0,
    samples: int = SAMPLES,
    moves: int = MOVES,
    population: int = 0,
    verbose: int = 0,
) -> list[Level]:
    """Estimate log Z at all noise levels by one annealing through them, from the highest down.

    The moves of ``descend`` are in the shape that rows with noise show at each level, not the
    samples themselves: in a shape of their own they would not keep the density, and the estimate
    would be too high.

    For a normal density in five columns, and log Z = 3:

    >>> log_p = lambda y, v: -0.5 * tf.reduce_sum(y**2 / v + tf.math.log(2 * np.pi * v), 1)
    >>> s = lambda y, sigma: 3.0 + log_p(y, 1 + sigma**2)
    >>> x = np.random.default_rng(0).normal(size=(1_000, 5)).astype("float32")
    >>> evaluate = tfdde.partition.evaluator.Evaluator(s, (5,))
    >>> levels = tfdde.partition.ladder.ladder_levels(0.2, 4.0, 5)
    >>> found = tfdde.partition.from_above.annealing_from_above(evaluate, x, levels)
    >>> abs(found[0].value - 3.0) < 0.2, found[0].error < 0.1
    (True, True)

    Args:
        evaluate: s.
        data: float32 rows, shape (rows, *shape).
        sigmas: increasing noise levels.
        seed: of the samples.
        samples: of the highest level, which are then annealed.
        moves: Monte Carlo steps at each level.
        population: number of the population; each has samples of its own.
        verbose: 1 or 2 says what it costs and shows how far it is, as in Keras.

    Returns:
        The result at each of ``sigmas``.
    """
    rows = data.reshape(len(data), -1)
    rng = np.random.default_rng([seed, Purpose.PARTITION, 3, population])
    draws = np.random.default_rng([seed, Purpose.PARTITION, 4, population])
    first = reference(rows, sigmas[-1])
    y = first.sample(samples, rng)
    moved = partial(_moved, evaluate, rows, moves)
    found: list[Level] = []
    way = descend(evaluate, y, first.log_density(y), sigmas[::-1], moved, rng)
    price = f"checked by annealing, {cost(len(sigmas), samples, moves)}"
    for sigma, value, error, y, _ in followed(way, len(sigmas), price, verbose):
        if not math.isfinite(value):  # nothing is shown from here on
            found += [Level(value, error)] * (len(sigmas) - len(found))
            break
        near_y = Gaussian(y, NARROW * float(sigma))
        fresh = near_y.sample(samples, draws)
        ratios = evaluate(fresh, sigma) - near_y.log_density(fresh)
        found.append(Level(value, error, float(logsumexp(ratios) - math.log(samples))))
    return found[::-1]


def mean_of(first: Level, second: Level) -> Level:
    """The mean of two estimates of Z by independent populations, which is unbiased as well.

    >>> from tfdde.partition.from_above import Level, mean_of
    >>> both = mean_of(Level(0.0, 0.3), Level(np.log(3.0), 0.2))
    >>> float(np.exp(both.value).round(3)), round(both.error, 3)
    (2.0, 0.168)
    """
    value = float(np.logaddexp(first.value, second.value))
    bound = float(np.logaddexp(first.bound, second.bound)) - math.log(2.0)
    if not math.isfinite(value):
        return Level(value, max(first.error, second.error), bound)
    shares = (math.exp(level.value - value) for level in (first, second))
    errors = (level.error * share for level, share in zip((first, second), shares, strict=True))
    return Level(value - math.log(2.0), math.hypot(*errors), bound)


def _moved(
    evaluate: Evaluator,
    rows: np.ndarray,
    moves: int,
    y: np.ndarray,
    sigma: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples after a few moves under s at a level, and s there."""
    n = rows.shape[1]
    chains, seeds = evaluate.moves_along(in_shape), rng.integers(2**31, size=2)
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    shown = rows[rng.integers(len(rows), size=SHOWN)] - mean
    shown = shown + np.float32(sigma) * rng.standard_normal(shown.shape, np.float32)
    level = sigma, mean, np.eye(n, dtype=np.float32)
    score = chains.with_middle(shown, level, 1.0, 0, int(seeds[0]))[1].score
    push = inverse_root(tf.constant(score), tf.constant(sigma)).numpy()
    z = np.linalg.solve(push.T.astype(np.float64), (y - mean).T).T.astype(np.float32)
    z, values = chains.with_values(z, (sigma, mean, push), 1.0, moves, int(seeds[1]))
    return mean + z @ push, values


def is_for(entries: int) -> bool:
    """Whether rows of so many entries are annealed: more than 3 and at most 100."""
    return DIMENSIONS < entries <= MOST_ENTRIES


def confirmed(
    estimates: Sequence[LogPartition],
    evaluate: Evaluator,
    data: np.ndarray,
    sigmas: np.ndarray,
    seed: int = 0,
    verbose: int = 0,
) -> list[LogPartition]:
    """Return the estimates, with a ``doubt`` or a wider interval where annealing gives more.

    Where it does, a second population is annealed, and the mean of both counts, unless the bound
    alone doubts all of them.

    Rows of up to 3 columns are left to ``far_field``, which is precise there, and rows of more
    than 100 entries to their cap (``DDE.cap_correction``): annealing hardly follows them.

    Args:
        estimates: each at one of ``sigmas``.
        evaluate: s.
        data: float32 rows, shape (rows, *shape).
        sigmas: increasing noise levels, of which neighbours overlap (``ladder.ladder_levels``).
        seed: of the samples.
        verbose: as of ``annealing_from_above``.
    """
    if not is_for(data[0].size):
        return list(estimates)
    annealed = partial(annealing_from_above, evaluate, data, sigmas, seed, verbose=verbose)
    found = annealed()
    places = [int(np.abs(sigmas - estimate.sigma).argmin()) for estimate in estimates]

    def compared() -> list[LogPartition]:
        return [with_excess(z, found[k]) for z, k in zip(estimates, places, strict=True)]

    result = compared()
    changed = [k for k, z in enumerate(estimates) if result[k] != z]
    if not all(beyond_doubt(estimates[k], found[places[k]]) for k in changed):
        # As chance alone makes it in a sixth of the cases.
        again = annealed(population=1)
        found = [mean_of(*levels) for levels in zip(found, again, strict=True)]
        result = compared()
    missing = [new.sigma for z, new in zip(estimates, result, strict=True) if new.doubt != z.doubt]
    return [near(z, max(missing, default=0.0)) for z in result]


def confirmed_at_one_level(
    estimate: LogPartition,
    evaluate: Evaluator,
    data: np.ndarray,
    sigmas: np.ndarray,
    minimum: float,
    moves: int,
    seed: int = 0,
    weights: np.ndarray | None = None,
    base: Base | None = None,
    verbose: int = 0,
) -> LogPartition:
    """``confirmed`` for the estimate at the lowest of ``sigmas``.

    Levels below it are estimated with few samples, for the doubt of ``near``.

    Args:
        estimate, evaluate, data, sigmas, seed: as for ``confirmed``.
        minimum: lowest level that was trained.
        moves, weights: as for ``ladder``.
        base: of the density.
        verbose: as of ``confirmed``.
    """
    if not (estimate.trusted and is_for(data[0].size)):
        return estimate
    lower: list[LogPartition] = []
    low = max(minimum, estimate.sigma / REACH)
    if low < estimate.sigma:
        below = ladder_levels(low, estimate.sigma, data[0].size)[:-1]
        sigmas = np.concatenate([below, sigmas])
        settings = FEW, moves, seed, weights
        lower = at_levels(len(below), evaluate, base, data, sigmas, *settings)
    return confirmed([estimate, *lower], evaluate, data, sigmas, seed, verbose)[0]


def near(estimate: LogPartition, sigma: float) -> LogPartition:
    """Doubt an estimate little above, or below, the highest level that misses mass.

    Mass that appears as the noise falls was there a little earlier, too small a share to be seen.

    >>> estimate = tfdde.LogPartition.around(1.0, 0.03, 900.0, "ladder", 0.2)
    >>> print(tfdde.partition.from_above.near(estimate, 0.1).doubt)
    at sigma = 0.1 its samples miss mass, and part of it may be missing here
    >>> tfdde.partition.from_above.near(estimate, 0.05) == estimate
    True
    """
    if estimate.doubt or estimate.sigma > REACH * sigma:
        return estimate
    doubt = f"at sigma = {sigma:.3g} its samples miss mass, and part of it may be missing here"
    return dataclasses.replace(estimate, doubt=doubt)


def beyond_doubt(estimate: LogPartition, above: Level) -> bool:
    """Whether the bound shows that the estimate misses mass."""
    return above.bound - estimate.value > math.log(UNLIKELY)


def with_excess(estimate: LogPartition, above: Level) -> LogPartition:
    """Widen the interval of an estimate that annealing from above exceeds, or doubt it.

    Up to one standard error of both, an excess is chance. Soon beyond, the interval reaches to the
    upper end of what annealing finds. An excess of more than three standard errors and 0.1 nats, or
    one that would need an error of more than 1 nat, is a doubt, and so is a bound of 1,000 times Z.

    >>> from tfdde.partition.from_above import Level, with_excess
    >>> estimate = tfdde.LogPartition.around(1.0, 0.03, 900.0, "ladder", 0.2)
    >>> with_excess(estimate, Level(0.5, 0.04)) == with_excess(estimate, Level(1.05, 0.04))
    True
    >>> print(with_excess(estimate, Level(1.10, 0.04)))
    log Z = 1.000 ± 0.096 nats (95 %: 0.812 to 1.188; ladder, 900 effective samples)
    >>> print(with_excess(estimate, Level(4.0, 0.7)).doubt)
    annealing from the highest noise level gives 4.00 ± 0.70, so its samples miss mass

    Args:
        estimate: of log Z.
        above: what annealing finds at its level.
    """
    if beyond_doubt(estimate, above):
        doubt = (
            f"importance sampling near annealed samples gives {above.bound:.2f}, so its samples "
            "miss mass"
        )
        return dataclasses.replace(estimate, doubt=estimate.doubt or doubt)
    if math.isnan(above.value):
        return dataclasses.replace(estimate, doubt=estimate.doubt or NOT_INTEGRABLE)
    both = math.hypot(above.error, estimate.standard_error)
    excess = above.value - estimate.value
    further = min(RISE * max(0.0, excess - both), excess / QUANTILE + above.error)
    if excess <= ERRORS * both + MARGIN and further <= TRUSTED_ERROR:
        return estimate.widened(max(0.0, further))
    doubt = (
        f"annealing from the highest noise level gives {above.value:.2f} ± {above.error:.2f}, so "
        "its samples miss mass"
    )
    return dataclasses.replace(estimate, doubt=estimate.doubt or doubt)
