"""log Z by bridge sampling from noise level to noise level: the ladder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from tfdde.partition.evaluator import Evaluator, Gaussian, LogDensity, reference
from tfdde.partition.far_field import DIMENSIONS
from tfdde.partition.hmc import State
from tfdde.partition.progress import cost, followed
from tfdde.partition.result import LogPartition
from tfdde.partition.rows import RowDraws
from tfdde.utils.random import Purpose

ERRORS, MARGIN = 3.0, 0.1  # standard errors and nats that the last moves may change log Z by


def bridge(
    forward: np.ndarray, backward: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Estimate log(Z0 / Z1) of unnormalised densities q0 and q1, with the optimal bridge.

    Bennett's acceptance ratio (1976); Meng & Wong, Statistica Sinica 6 (1996).

    >>> rng = np.random.default_rng(0)
    >>> x0, x1 = rng.normal(0, 1, 10_000), rng.normal(0, 2, 10_000)
    >>> log_ratio = lambda x: -(x**2) / 2 + x**2 / 8  # exp(-x**2 / 2) over exp(-x**2 / 8)
    >>> round(tfdde.partition.ladder.bridge(log_ratio(x0), log_ratio(x1))[0], 1)  # log(1 / 2)
    -0.7

    Args:
        forward: log(q0 / q1) at samples of q0, shape (n0,).
        backward: log(q0 / q1) at samples of q1, shape (n1,).

    Returns:
        log(Z0 / Z1); the influence of each sample of q0 and of q1 on it, whose squares sum to
        its variance if the samples are independent; the effective sample size.
    """
    n0, n1 = len(forward), len(backward)
    share0, share1 = n0 / (n0 + n1), n1 / (n0 + n1)
    odds = math.log(share0 / share1)

    def terms(r: float) -> tuple[np.ndarray, np.ndarray]:
        # p1 / (share0 p0 + share1 p1) at samples of p0, and p0 / (the same) at those of p1.
        at0 = expit(-(forward - r) - odds) / share1
        at1 = expit(backward - r + odds) / share0
        return at0, at1

    def imbalance(r: float) -> float:
        at0, at1 = terms(r)
        return at1.mean() - at0.mean()

    both = np.concatenate([forward, backward])
    if not np.isfinite(both).all():
        return math.nan, np.full(n0, np.nan), np.full(n1, np.nan), 0.0
    r = brentq(imbalance, both.min() - 50, both.max() + 50, xtol=1e-10)
    at0, at1 = terms(r)
    mean0, mean1 = at0.mean(), at1.mean()
    if not (mean0 > 0 and mean1 > 0):  # no overlap at all
        return r, np.full(n0, np.nan), np.full(n1, np.nan), 0.0
    # Samples that hardly overlap give few large terms, and a small mean.
    size = min(
        at0.sum() ** 2 / np.square(at0).sum(),
        at1.sum() ** 2 / np.square(at1).sum(),
        min(n0, n1) * mean1,
    )
    return r, -(at0 / mean0 - 1) / n0, (at1 / mean1 - 1) / n1, float(size)


def ladder_levels(minimum: float, maximum: float, dimensions: int) -> np.ndarray:
    """Return noise levels in geometric progression, so close that neighbours overlap.

    Two Gaussians in n dimensions whose widths have the ratio e^d differ by n d**2 nats. Here this
    is at most 1, and there are at least 8 steps.

    >>> tfdde.partition.ladder.ladder_levels(0.5, 8.0, dimensions=2).round(2)
    array([0.5 , 0.71, 1.  , 1.41, 2.  , 2.83, 4.  , 5.66, 8.  ])
    """
    steps = max(8, math.ceil(math.log(maximum / minimum) * math.sqrt(dimensions)))
    return np.geomspace(minimum, maximum, steps + 1)


class Samples(NamedTuple):
    """What the error of log Z needs to know of samples at one noise level.

    Attributes:
        row: index of the data row that each sample started at, (samples,).
        controls: control variates, (samples, k).
    """

    row: np.ndarray
    controls: np.ndarray


class Link(NamedTuple):
    """What the bridge from a noise level to the next higher density is made of.

    Attributes:
        forward: log-ratio of the level to the higher density at samples of the level.
        backward: the same at samples of the higher density.
        low, high: the samples; ``high`` is None for a normalised density.
    """

    forward: np.ndarray
    backward: np.ndarray
    low: Samples
    high: Samples | None


def pooled(links: Sequence[Link]) -> Link:
    """Join the samples of several links between the same densities."""

    def all_of(samples: Sequence[Samples]) -> Samples:
        return Samples(*(np.concatenate(parts) for parts in zip(*samples, strict=True)))

    uppers = [link.high for link in links if link.high is not None]
    return Link(
        np.concatenate([link.forward for link in links]),
        np.concatenate([link.backward for link in links]),
        all_of([link.low for link in links]),
        all_of(uppers) if uppers else None,
    )


def noise_controls(
    centred: np.ndarray, noise: np.ndarray, gaussian: Gaussian, sigma: float
) -> np.ndarray:
    """Functions of the noise whose mean is known to be 0, shape (rows, 3).

    For a Gaussian, the log-ratio of two levels is quadratic in the noise. For any density a part
    of it is, and the regression on these functions removes the fluctuation of that part.
    """
    inverse = gaussian.precision * sigma**2
    pulled = noise @ inverse
    controls = [
        np.square(noise).sum(axis=1) - noise.shape[1],
        (pulled * noise).sum(axis=1) - np.trace(inverse),
        (pulled * centred).sum(axis=1) / sigma,
    ]
    return np.stack(controls, axis=1)


def score_controls(y: np.ndarray, score: np.ndarray, gaussian: Gaussian) -> np.ndarray:
    """Functions of samples of e^s / Z whose mean is 0, shape (rows, 2), by Stein's identity.

    The mean of div f + f . grad s is 0 for every f that does not grow too fast; here f is y - m
    and P (y - m), with mean m and precision P of the data with noise. For a Gaussian, the
    log-ratio of two near levels is linear in them, whatever moves the samples have made ("zero
    variance" control variates: Assaraf & Caffarel 1999; Mira, Solgi & Imparato 2013).

    Args:
        y: samples, (rows, n).
        score: gradient of s there, (rows, n).
        gaussian: of the data with noise.
    """
    centred = y - gaussian.mean
    scale = y.shape[1] / np.trace(gaussian.precision)  # so that both have one size
    pulled = scale * centred @ gaussian.precision
    return y.shape[1] + np.stack([(centred * score).sum(1), (pulled * score).sum(1)], axis=1)


def without_controls(influence: np.ndarray, controls: np.ndarray) -> tuple[float, np.ndarray]:
    """Regress on the control variates: the correction to subtract, and the influence left."""
    slopes = np.linalg.lstsq(controls, influence, rcond=None)[0]
    explained = controls @ slopes
    return float(explained.sum()), influence - explained


class Descent:
    """log Z from the top level downwards, and what each row and sample adds to its error.

    Args:
        rows: number of data rows.
    """

    def __init__(self, rows: int):
        self.value, self.effective_sample_size = 0.0, math.inf
        self.of_rows, self.of_top = np.zeros(rows), np.zeros(1)

    def add(self, link: Link) -> None:
        """Bridge the next level to the density above it."""
        value, of_lower, of_upper, size = bridge(link.forward, link.backward)
        self.value += value
        self.effective_sample_size = min(self.effective_sample_size, size)
        self._account(link.low, of_lower)
        if link.high is None:
            self.of_top = of_upper
        else:
            self._account(link.high, of_upper)

    def minus(self, other: Descent) -> tuple[float, float]:
        """The difference of two estimates from the same rows, and its standard error."""
        error = _norm(self.of_rows - other.of_rows, self.of_top - other.of_top)
        return self.value - other.value, error

    @property
    def standard_error(self) -> float:
        return _norm(self.of_rows, self.of_top)

    def estimate(self, sigma: float, effective_share: float) -> LogPartition:
        error = self.standard_error
        size = self.effective_sample_size * effective_share
        return LogPartition.around(self.value, error, size, "ladder", sigma)

    def _account(self, samples: Samples, influence: np.ndarray) -> None:
        correction, rest = without_controls(influence, samples.controls)
        self.value -= correction
        np.add.at(self.of_rows, samples.row, rest)


def _norm(*parts: np.ndarray) -> float:
    return math.sqrt(sum(np.square(part).sum() for part in parts))


def with_drift(estimate: LogPartition, drift: float, error: float) -> LogPartition:
    """Widen the interval of an estimate that the samples' last moves have changed, or doubt it.

    >>> estimate = tfdde.LogPartition.around(1.0, 0.02, 900.0, "ladder", 0.2)
    >>> tfdde.partition.ladder.with_drift(estimate, 0.02, 0.03) == estimate
    True
    >>> print(tfdde.partition.ladder.with_drift(estimate, 0.5, 0.03).doubt)
    the second half of the moves changes it by 0.50 ± 0.03 nats, so its samples need more moves

    Args:
        estimate: of log Z.
        drift: what the second half of the moves has changed it by, in nats.
        error: the standard error of the drift.
    """
    if not abs(drift) <= ERRORS * error + MARGIN:
        change = f"the second half of the moves changes it by {drift:.2f} ± {error:.2f} nats"
        return dataclasses.replace(estimate, doubt=f"{change}, so its samples need more moves")
    return estimate.widened(max(0.0, abs(drift) - error))


def estimate_of(descents: Sequence[Descent], sigma: float, effective_share: float) -> LogPartition:
    """The estimate at the level reached, of which a second descent is that of half the moves."""
    estimate = descents[0].estimate(sigma, effective_share)
    return with_drift(estimate, *descents[0].minus(descents[1])) if descents[1:] else estimate


class Sampler:
    """Draws the samples of a ladder, from the top downwards.

    Args:
        evaluate: s.
        data: float32 rows, shape (rows, *shape).
        sigmas: increasing noise levels.
        weights: of the rows, positive float64 (rows,), or None.
        by_score: whether the control variates are ``score_controls`` instead of those of the
            noise, which the moves make useless.
    """

    def __init__(
        self,
        evaluate: Evaluator,
        data: np.ndarray,
        sigmas: np.ndarray,
        weights: np.ndarray | None = None,
        by_score: bool = False,
    ):
        self._evaluate, self._by_score = evaluate, by_score
        self._rows = data.reshape(len(data), -1)
        self._sigmas, self._weights = sigmas, weights
        self._at_top = reference(self._rows, sigmas[-1], weights)
        self._draws = RowDraws(len(data), weights)
        self._blurred: dict[float, Gaussian] = {}  # by level: each takes a pass over all rows
        self.effective_share = self._draws.effective_share

    def links(
        self, samples: int, moves: int, rng: np.random.Generator
    ) -> Iterator[tuple[Link, ...]]:
        """Yield the link of each level to the density above it, from the highest level.

        In more than three dimensions a second link is that of the samples after half of the moves.
        """
        top = self._at_top.sample(samples, rng)
        above = self._sigmas[-1]
        uppers = self._draw(above, samples, moves, rng)
        at_top = self._evaluate(top, above) - self._at_top.log_density(top)
        yield tuple(
            Link(state.value - self._at_top.log_density(state.y), at_top, kept, None)
            for kept, state in uppers
        )
        for sigma in self._sigmas[-2::-1]:
            lowers = self._draw(sigma, samples, moves, rng)
            links = []
            for (upper, upper_state), (lower, state) in zip(uppers, lowers, strict=True):
                backward = self._evaluate(upper_state.y, sigma) - upper_state.value
                forward = state.value - self._evaluate(state.y, above)
                links.append(Link(forward, backward, lower, upper))
            yield tuple(links)
            uppers, above = lowers, sigma

    def _draw(
        self, sigma: float, samples: int, moves: int, rng: np.random.Generator
    ) -> tuple[tuple[Samples, State], ...]:
        """Samples at a level, and also as they were after half of the moves if that is checked."""
        rows, dimensions = self._rows, self._rows.shape[1]
        index = self._draws.take(samples, rng)
        noise = rng.standard_normal((samples, dimensions)).astype(np.float32)
        if sigma not in self._blurred:
            self._blurred[sigma] = Gaussian(rows, sigma, self._weights)
        blurred = self._blurred[sigma]
        y = rows[index] + np.float32(sigma) * noise
        if self._by_score:
            states = self._moved(y, sigma, moves, rng)
            return tuple(
                (Samples(index, score_controls(state.y, state.score, blurred)), state)
                for state in states
            )
        kept = Samples(index, noise_controls(rows[index] - blurred.mean, noise, blurred, sigma))
        if not moves:
            return ((kept, State(y, self._evaluate(y, sigma), np.empty(0))),)
        return tuple((kept, state) for state in self._moved(y, sigma, moves, rng))

    def _moved(
        self, y: np.ndarray, sigma: float, moves: int, rng: np.random.Generator
    ) -> tuple[State, ...]:
        seed = int(rng.integers(2**31))
        middle, end = self._evaluate.moves.with_middle(y, sigma, sigma, moves, seed)
        return (end, middle) if moves and y.shape[1] > DIMENSIONS else (end,)


def ladder(
    log_density: LogDensity | Evaluator,
    data: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    samples: int = 10_000,
    moves: int = 0,
    seed: int = 0,
    weights: np.ndarray | None = None,
    verbose: int = 0,
    by_score: bool | None = None,
) -> list[LogPartition]:
    """Estimate log Z at every noise level, by bridge sampling from level to level.

    x_i + sigma_k epsilon are samples of the data with noise, so of e^s(., sigma_k) / Z_k if s is
    right. The top level is bridged to a normalised density that resembles the data there. A
    trained s is not quite right, so ``moves`` steps of Hamiltonian Monte Carlo move the samples
    towards its own density. If in more than three dimensions the second half of the moves still
    changes log Z, the samples may not have reached the density: the interval is widened, or the
    estimate gets a ``doubt``. (In up to three, ``far_field`` sees that more precisely.)
    Otherwise the interval covers the sampling error alone (delta method, with the rows as
    clusters). Mass where no rows are is not seen here: ``far_field`` looks for that. Neither
    ``lower`` nor ``upper`` is a bound.

    For a normal density and log Z = 3 at every sigma:

    >>> log_p = lambda x, v: -x[:, 0] ** 2 / (2 * v) - 0.5 * tf.math.log(2 * np.pi * v)
    >>> s = lambda x, sigma: 3.0 + log_p(x, 1 + sigma**2)
    >>> x = np.random.default_rng(0).normal(size=(5_000, 1)).astype("float32")
    >>> levels = tfdde.partition.ladder.ladder_levels(0.2, 4.0, 1)
    >>> estimates = tfdde.partition.ladder.ladder(s, x, levels)
    >>> len(estimates), abs(estimates[0].value - 3.0) < 0.05
    (9, True)

    Args:
        log_density: s(x, sigma) for rows of the shape of ``data``'s, or its ``Evaluator``.
        data: float32 rows, shape (rows, *shape), preferably not those that s was trained on.
        sigmas: increasing noise levels, the last well above the data's own scale.
        samples: at each level.
        moves: Monte Carlo steps at each level.
        seed: of the noise.
        weights: of the rows, positive float64 (rows,), by default equal: samples start at rows
            in proportion to them.
        verbose: 1 or 2 says what the estimate costs and shows how far it is, as in Keras.
        by_score: whether the control variates are ``score_controls`` instead of those of the
            noise; by default if there are moves, which make the latter useless.

    Returns:
        An estimate for each of ``sigmas``.
    """
    sigmas = np.asarray(sigmas, float)
    rng = np.random.default_rng([seed, Purpose.PARTITION])
    evaluate = Evaluator.of(log_density, data.shape[1:])
    by_score = moves > 0 if by_score is None else by_score
    sampler = Sampler(evaluate, data, sigmas, weights, by_score)
    steps = sampler.links(samples, moves, rng)
    steps = followed(steps, len(sigmas), cost(len(sigmas), samples, moves), verbose)
    estimates: list[LogPartition] = []
    descents: tuple[Descent, ...] = (Descent(len(data)), Descent(len(data)))
    for sigma, links in zip(sigmas[::-1], steps, strict=True):
        descents = descents[: len(links)]
        for descent, link in zip(descents, links, strict=True):
            descent.add(link)
        estimates.append(estimate_of(descents, sigma, sampler.effective_share))
    return estimates[::-1]
