"""Check an estimate of log Z by looking for mass of e^s where there are no rows.

The ladder starts at the rows, so a mode of e^s that the network put elsewhere is not in its log Z.
The checks here start far outside of the rows as well. Each gives an unbiased estimate of Z:

- In up to 3 dimensions importance sampling is precise. Its log Z must agree with the estimate, and
  what the statistical errors don't explain of a small difference widens the estimate's interval.
- In more dimensions annealed importance sampling mostly falls short of Z. But by Markov's
  inequality an unbiased estimate exceeds Z by a factor of 1,000 with a probability of at most
  1/1,000, so that a larger value proves that mass is missing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, ndtri
from scipy.stats import qmc

from tfdde.partition.annealed import anneal
from tfdde.partition.evaluator import Evaluator
from tfdde.partition.result import LogPartition
from tfdde.partition.rows import at_shares
from tfdde.utils.random import Purpose

DIMENSIONS = 3  # up to this many, importance sampling from everywhere is precise
ERRORS, MARGIN = 3.0, 0.01  # standard errors and nats that two estimates may differ by
ODDS = 1_000.0  # factor by which an unbiased estimate may exceed Z, and 1 / probability
ROWS = 5_000  # rows that the checks look at
CENTRES, FAR_CENTRES = 512, 64  # Gaussians around rows, and around rows that lie far apart
NEIGHBOURS = 4  # that a Gaussian around a row reaches
SCALES = 2.0 ** np.arange(11)  # how many times as far as the rows the checks look
PART = 256  # points whose distances to all centres fit into a cache
SETS, POINTS, ROUNDS = 8, 1024, 4  # of importance sampling: the error is the spread of the sets
CHAINS, CHAIN_SCALES, STEPS = 64, 2.0 ** np.arange(6), 20  # of annealing
LEVELS = 13  # annealed at once, so about 5,000 chains
SCALE_OF_CHAIN = np.repeat(CHAIN_SCALES, CHAINS)[:, None]


def checked(
    estimates: Sequence[LogPartition],
    evaluate: Evaluator,
    data: np.ndarray,
    seed: int = 0,
) -> list[LogPartition]:
    """Return the estimates, with a ``doubt`` or a wider interval where the check disagrees.

    A normal density, and a mode of e^70 times its mass at 60:

    >>> logs = lambda x: tf.concat([-(x**2) / 2, 70 - (x - 60) ** 2 / 2], 1)
    >>> s = lambda x, sigma: tf.reduce_logsumexp(logs(x), 1)
    >>> x = np.random.default_rng(0).normal(size=(5_000, 1)).astype("float32")
    >>> evaluate = tfdde.partition.evaluator.Evaluator(s, (1,))
    >>> estimate = tfdde.LogPartition.around(0.919, 0.01, 5_000, "ladder", 0.1)
    >>> [estimate] = tfdde.partition.far_field.checked([estimate], evaluate, x)
    >>> print(estimate.doubt)
    samples from outside of the rows give 70.9..., so the density has mass where no rows are

    Args:
        estimates: at one or more noise levels.
        evaluate: s.
        data: float32 rows, shape (rows, *shape).
        seed: of the check's samples.
    """
    rows = data.reshape(len(data), -1)
    rng = np.random.default_rng([seed, Purpose.PARTITION, 1])
    rows = rows[rng.permutation(len(rows))[:ROWS]].astype(np.float64)
    n, sigmas = rows.shape[1], [estimate.sigma for estimate in estimates]
    annealings = [Annealing(math.nan, rows[:0]) for _ in sigmas]
    if n > 1:  # on a line, the points of importance sampling alone leave no gap
        annealings = annealing_from_outside(evaluate, rows, sigmas, rng)
    result = []
    for estimate, (value, ends) in zip(estimates, annealings, strict=True):
        if n > DIMENSIONS:
            doubt = disproof(estimate, value) or estimate.doubt
            result.append(dataclasses.replace(estimate, doubt=doubt))
            continue
        enough = max(0.004, estimate.standard_error / 2)
        other = importance_from_everywhere(evaluate, rows, estimate.sigma, enough, rng, ends)
        doubt = disagreement(estimate, *other)
        result.append(
            dataclasses.replace(estimate, doubt=doubt) if doubt else widened(estimate, *other)
        )
    return result


def widened(estimate: LogPartition, value: float, error: float) -> LogPartition:
    """Add to an estimate's error what the two errors do not explain of the difference.

    The ladder's own error leaves out that its samples have not quite reached the density.
    """
    both = math.hypot(error, estimate.standard_error)
    return estimate.widened(max(0.0, abs(value - estimate.value) - both))


def disagreement(estimate: LogPartition, value: float, error: float) -> str:
    """Say how ``importance_from_everywhere`` disagrees with an estimate, or return ""."""
    if not math.isfinite(value):
        return NOT_INTEGRABLE
    tolerance = ERRORS * math.hypot(error, estimate.standard_error) + MARGIN
    if abs(value - estimate.value) <= min(tolerance, math.log(ODDS)):
        return ""
    reason = MISSING if value > estimate.value else "its samples are not those of the density"
    return f"samples from outside of the rows give {value:.3f} ± {error:.3f}, so {reason}"


def disproof(estimate: LogPartition, value: float) -> str:
    """Say how ``annealing_from_outside`` disproves an estimate, or return ""."""
    if not math.isfinite(value):
        return NOT_INTEGRABLE
    if value <= estimate.value + ERRORS * estimate.standard_error + math.log(ODDS):
        return ""
    return f"annealing from outside of the rows gives {value:.3f}, so {MISSING}"


MISSING = "the density has mass where no rows are"
NOT_INTEGRABLE = "far from the rows s is not finite, or grows without bound"


class Proposal(NamedTuple):
    """A mixture of round Gaussians, float64.

    Attributes:
        centres: (k, n).
        widths: standard deviations, (k,).
        weights: that sum to 1, (k,).
    """

    centres: np.ndarray
    widths: np.ndarray
    weights: np.ndarray

    def points(self, uniform: np.ndarray) -> np.ndarray:
        """Turn uniform numbers (rows, 1 + n) into points of the mixture, (rows, n)."""
        picked = at_shares(self.weights, uniform[:, 0])
        inside = np.clip(uniform[:, 1:], 1e-12, 1 - 1e-12)
        return self.centres[picked] + self.widths[picked, None] * ndtri(inside)

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """Log-density at points (rows, n): (rows,)."""
        n = y.shape[1]
        logs = np.log(self.weights) - n * np.log(self.widths * math.sqrt(2 * math.pi))
        factor = -0.5 / np.square(self.widths)

        def of_part(y: np.ndarray) -> np.ndarray:  # in place: SciPy's logsumexp takes much longer
            values = cdist(y, self.centres, "sqeuclidean")
            values *= factor
            values += logs
            highest = values.max(axis=1, keepdims=True)
            values -= highest
            # NumPy's exp takes a tenth of the time in float32, and errs by 1e-7 of the sum.
            exp = np.exp(values, dtype=np.float32)
            return highest[:, 0] + np.log(exp.sum(axis=1, dtype=np.float64))

        parts = [y[i : i + PART] for i in range(0, len(y), PART)]
        return np.concatenate([of_part(part) for part in parts])

    def magnified(self, centre: np.ndarray | float, scale: float) -> Proposal:
        """The same mixture, ``scale`` times as large."""
        return Proposal(centre + scale * (self.centres - centre), scale * self.widths, self.weights)


def kernels(rows: np.ndarray, least: float, neighbours: int = NEIGHBOURS) -> Proposal:
    """One Gaussian around each row, as wide as its neighbours are far and ``least`` at least.

    In n dimensions the width is the distance divided by the square root of n.
    """
    count = min(neighbours + 1, len(rows))
    near = cKDTree(rows).query(rows, [count])[0][:, 0] / math.sqrt(rows.shape[1])
    return Proposal(rows, np.hypot(near, least), np.full(len(rows), 1 / len(rows)))


def joined(parts: Sequence[tuple[float, Proposal]]) -> Proposal:
    """A mixture of mixtures with these weights."""
    return Proposal(
        np.concatenate([part.centres for _, part in parts]),
        np.concatenate([part.widths for _, part in parts]),
        np.concatenate([share * part.weights for share, part in parts]),
    )


def spread_out(rows: np.ndarray, count: int) -> np.ndarray:
    """Pick rows one by one, each time the one farthest from those before: (count, n)."""
    picked = [int(np.square(rows - rows.mean(axis=0)).sum(axis=1).argmax())]
    distance = np.full(len(rows), np.inf)
    while len(picked) < min(count, len(rows)):
        distance = np.minimum(distance, np.square(rows - rows[picked[-1]]).sum(axis=1))
        picked.append(int(distance.argmax()))
    return rows[picked]


class Units(NamedTuple):
    """Units of the columns, in which the rows have about unit scale: z = (x - centre) / spread."""

    centre: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, sigma: float) -> Units:
        """The median, and the deviation that a quarter of the rows exceed, with noise."""
        centre = np.median(rows, axis=0)
        return cls(centre, np.hypot(np.quantile(np.abs(rows - centre), 0.75, axis=0), sigma))

    def log_density(self, evaluate: Evaluator, z: np.ndarray, sigma: float) -> np.ndarray:
        """s of points in these units, with the Jacobian."""
        x = (self.centre + self.spread * z).astype(np.float32)
        return evaluate(x, sigma) + np.log(self.spread).sum()


def importance_from_everywhere(
    evaluate: Evaluator,
    rows: np.ndarray,
    sigma: float,
    error: float,
    rng: np.random.Generator,
    others: np.ndarray | None = None,
) -> tuple[float, float]:
    """Estimate log Z by importance sampling around the rows and far outside of them.

    Points are drawn (scrambled Sobol sequences) from Gaussians around rows and from a pattern of
    Gaussians that reaches 1,024 times as far as the rows; in each further round mostly from
    Gaussians around those points of the last round that had the largest weights (population Monte
    Carlo, Cappé et al. 2004).

    Args:
        evaluate: s.
        rows: float64 (rows, n), n <= 3.
        sigma: noise level.
        error: standard error that is small enough to stop.
        rng: of the points.
        others: points that may lie in modes of e^s, (k, n), to look around as well.

    Returns:
        The estimate, NaN if s is not finite, and its standard error.
    """
    units = Units.of(rows, sigma)
    z = (rows - units.centre) / units.spread
    n, least = z.shape[1], sigma / units.spread.min()
    around = kernels(z[:CENTRES], least)
    pattern = kernels(spread_out(z, FAR_CENTRES), least, neighbours=1)
    wide = joined([(1 / len(SCALES), pattern.magnified(0.0, scale)) for scale in SCALES])
    if others is not None and len(others):
        there = kernels((others - units.centre) / units.spread, least)
        wide = joined([(0.5, wide), (0.5, there)])
    proposal = joined([(0.5, around), (0.5, wide)])
    value = its_error = math.nan
    for _ in range(ROUNDS):
        sets = [proposal.points(qmc.Sobol(n + 1, rng=rng).random(POINTS)) for _ in range(SETS)]
        y = np.concatenate(sets)
        log_w = units.log_density(evaluate, y, sigma) - proposal.log_density(y)
        each = logsumexp(log_w.reshape(SETS, POINTS), axis=1) - math.log(POINTS)
        value = float(logsumexp(each) - math.log(SETS))
        if not math.isfinite(value):
            return math.nan, math.nan
        its_error = float(np.exp(each - value).std(ddof=1) / math.sqrt(SETS))
        if its_error <= error:
            break
        steps = (rng.random() + np.arange(CENTRES)) / CENTRES
        heavy = y[at_shares(np.exp(log_w - log_w.max()), steps)]
        heavy = heavy + 1e-3 * least * rng.standard_normal(heavy.shape)  # no two in one place
        there = kernels(heavy, 0.5 * least)
        broad = Proposal(there.centres, 3.0 * there.widths, there.weights)
        proposal = joined([(0.5, there), (0.2, broad), (0.1, around), (0.2, wide)])
    return value, its_error


class Annealing(NamedTuple):
    """Log of the mean of the estimates of Z, NaN if s is not finite, and where the chains end."""

    value: float
    ends: np.ndarray


def from_pattern(evaluate: Evaluator, z: tf.Tensor, level: tuple[tf.Tensor, ...]) -> tf.Tensor:
    """Log-density on the geometric path from each chain's start to e^s, up to a constant.

    Args:
        evaluate: s.
        z: chains of all levels, (levels * chains, n), in units of their own.
        level: share of s; sigmas, (levels,); centre and spread of the units; centres and widths
            of the pattern that the chains start at, in float64.
    """
    share, sigmas, centre, spread, centres, widths = level
    inside = tf.cast(z, tf.float64) / tf.tile(SCALE_OF_CHAIN, (tf.shape(sigmas)[0], 1))
    square = tf.reduce_sum(tf.square(centres), axis=1) + tf.reduce_sum(
        tf.square(inside), axis=1, keepdims=True
    )
    square -= 2.0 * tf.matmul(inside, centres, transpose_b=True)
    logs = -z.shape[1] * tf.math.log(widths) - 0.5 * square / tf.square(widths)
    start = tf.cast(tf.reduce_logsumexp(logs, axis=1), tf.float32)
    return share * evaluate.flat(centre + spread * z, sigmas) + (1.0 - share) * start


def annealing_from_outside(
    evaluate: Evaluator, rows: np.ndarray, sigmas: Sequence[float], rng: np.random.Generator
) -> list[Annealing]:
    """Estimate log Z at noise levels by annealed importance sampling from outside of the rows.

    The chains start at Gaussians around rows that lie far apart, in six groups: this pattern at 1
    to 32 times its size. Each group anneals from its own start to e^s, with its own step size. The
    mean of the groups' estimates of Z is unbiased.

    Args:
        evaluate: s.
        rows: float64 (rows, n).
        sigmas: noise levels.
        rng: of the chains.

    Returns:
        The result at each level.
    """
    units = Units.of(rows, min(sigmas))
    z = (rows - units.centre) / units.spread
    least = min(sigmas) / units.spread.min()
    pattern = kernels(spread_out(z, FAR_CENTRES), least, neighbours=1)
    blocks = [sigmas[i : i + LEVELS] for i in range(0, len(sigmas), LEVELS)]
    return [a for block in blocks for a in _anneal_all(evaluate, units, pattern, block, rng)]


def _anneal_all(
    evaluate: Evaluator,
    units: Units,
    pattern: Proposal,
    sigmas: Sequence[float],
    rng: np.random.Generator,
) -> list[Annealing]:
    """Anneal from a pattern to e^s at some levels, the chains of all levels at once."""
    n, count, groups = len(units.centre), len(sigmas), len(CHAIN_SCALES)
    shares = np.linspace(0.0, 1.0, STEPS + 1) ** 4
    scale = np.tile(SCALE_OF_CHAIN, (count, 1))
    chains = evaluate.moves_along(from_pattern, count * groups)
    where = *units, tf.constant(pattern.centres), tf.constant(pattern.widths)
    widest = np.tile(CHAIN_SCALES * np.median(pattern.widths), count)
    finest = np.repeat(np.asarray(sigmas) / units.spread.min(), groups)
    finite = np.full(count, True)

    def increment(k: int, y: np.ndarray) -> np.ndarray:
        parts = zip(np.split(y, count), sigmas, strict=True)
        s = np.concatenate([units.log_density(evaluate, part, sigma) for part, sigma in parts])
        start = pattern.log_density(y / scale) - n * np.log(scale[:, 0])
        fine = s < np.inf  # nor NaN
        finite[:] &= fine.reshape(count, -1).all(axis=1)
        return (shares[k + 1] - shares[k]) * np.where(fine, s - start, 0.0)

    def move(k: int, y: np.ndarray, seed: int) -> np.ndarray:
        # From the width of the start to that of the noise.
        width = widest ** (1 - k / STEPS) * finest ** (k / STEPS)
        return chains(y, (shares[k + 1], np.asarray(sigmas), *where), width, 2, seed)

    starts = [pattern.magnified(0.0, scale) for scale in CHAIN_SCALES] * count
    first = np.concatenate([s.points(rng.random((CHAINS, n + 1))) for s in starts])
    increments = [partial(increment, k) for k in range(STEPS)]
    moves = [partial(move, k) for k in range(STEPS)]
    log_z, _, y = anneal(increments, moves, first.astype(np.float32), count * groups, rng)
    values = logsumexp(log_z.reshape(count, groups), axis=1) - math.log(groups)
    ends = np.split(units.centre + units.spread * y.astype(np.float64), count)
    return [
        Annealing(float(value), end) if fine else Annealing(math.nan, end[:0])
        for value, end, fine in zip(values, ends, finite, strict=True)
    ]
