"""log Z by the ladder, with as many samples as an asked precision needs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from tfdde.partition.evaluator import Evaluator, LogDensity
from tfdde.partition.ladder import Descent, Link, Sampler, estimate_of, pooled
from tfdde.partition.progress import cost, followed
from tfdde.partition.result import LogPartition
from tfdde.utils.random import Purpose
from tfdde.utils.statistics import QUANTILE

BATCH = 500  # samples at each level that are drawn at once: one size, so that it is traced once
MOST = 50_000  # samples at each level, unless the caller allows more
SURE = 3.0  # standard errors of the drift that chance is not believed to make
LEAST_SHARE = 0.7  # of the half-width: sampling errors are not made less for a drift's sake


def ladder_to(
    precision: float,
    log_density: LogDensity | Evaluator,
    data: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    most: int = MOST,
    moves: int = 5,
    seed: int = 0,
    weights: np.ndarray | None = None,
    verbose: int = 0,
) -> tuple[LogPartition, str]:
    """Estimate log Z at the lowest noise level to a half-width of its 95 % interval.

    Samples are drawn in batches of 500 at each level. All samples so far are one ladder
    (``ladder.ladder``) with control variates from the score, which need far fewer samples. After
    the first batch, and then whenever they were expected to suffice, the half-width is compared
    with ``precision``; if it is larger, as many batches follow as the sampling error needs by its
    1 / sqrt(samples) law, but at most twice as many as there are. What the second half of the
    moves changes is no sampling error; where that surely keeps the interval wide, the samples end.

    Stopping when the error is found small favours errors that are found too small. The error of
    so many samples is known within some percent and hardly depends on that of the value, so that
    this costs the interval little of its 95 % (``tests/partition/test_to_precision.py``).

    For a normal density and log Z = 3 at every sigma:

    >>> log_p = lambda x, v: -x[:, 0] ** 2 / (2 * v) - 0.5 * tf.math.log(2 * np.pi * v)
    >>> s = lambda x, sigma: 3.0 + log_p(x, 1 + sigma**2)
    >>> x = np.random.default_rng(0).normal(size=(5_000, 1)).astype("float32")
    >>> levels = tfdde.partition.ladder.ladder_levels(0.2, 4.0, 1)
    >>> estimate, reason = tfdde.partition.to_precision.ladder_to(0.05, s, x, levels)
    >>> 0.5 * (estimate.upper - estimate.lower) <= 0.05, reason
    (True, '')

    Args:
        precision: half-width in nats.
        most: samples at each level.
        log_density, data, sigmas, moves, seed, weights, verbose: as of ``ladder.ladder``.

    Returns:
        The estimate; and why it is not as precise as asked, a sentence, or "" if it is.
    """
    sigmas = np.asarray(sigmas, float)
    rng = np.random.default_rng([seed, Purpose.PARTITION])
    evaluate = Evaluator.of(log_density, data.shape[1:])
    sampler = Sampler(evaluate, data, sigmas, weights, by_score=True)
    batches: list[list[tuple[Link, ...]]] = []
    goal, aim = 1, f"half-width {precision:g}: first "
    start = time.perf_counter()
    while True:
        count = goal - len(batches)
        steps = (links for _ in range(count) for links in sampler.links(BATCH, moves, rng))
        price = aim + cost(len(sigmas), count * BATCH, moves)
        drawn = list(followed(steps, count * len(sigmas), price, verbose))
        batches += [drawn[i : i + len(sigmas)] for i in range(0, len(drawn), len(sigmas))]
        estimate, descents = _of_all(batches, len(data), sigmas[0], sampler.effective_share)
        half, samples = estimate.half_width, BATCH * len(batches)
        if half <= precision or estimate.doubt or not math.isfinite(half):
            return estimate, ""
        drift, error = descents[0].minus(descents[1]) if descents[1:] else (0.0, 0.0)
        unexplained = QUANTILE * max(0.0, abs(drift) - error)  # what it adds to the half-width
        by_samples = math.sqrt(max(precision**2 - unexplained**2, (LEAST_SHARE * precision) ** 2))
        ratio = QUANTILE * descents[0].standard_error / by_samples
        needed = BATCH * math.ceil(len(batches) * ratio**2)
        got = f"The 95 % interval's half-width is {half:.3g} nats after {samples:,} samples"
        if needed <= samples and abs(drift) > SURE * error:
            return estimate, (
                f"{got}, and more would hardly bring it to {precision:g}, because the second half "
                f"of the moves changes log Z by {drift:.2f} ± {error:.2f}. Make more `moves` than "
                f"{moves}."
            )
        needed = max(needed, 2 * samples if needed <= samples else 0)  # for the drift's error
        if needed > most:
            seconds = (time.perf_counter() - start) / samples * needed
            return estimate, (
                f"{got}. {precision:g} needs about {needed:,} at each of {len(sigmas)} levels and "
                f"{seconds:.0f} s, more than `samples` ({most:,}) allows. Ask for less precision, "
                "or allow more `samples`."
            )
        goal = min(needed // BATCH, 3 * len(batches))
        aim = f"half-width {half:.3g} so far, {precision:g} needs about "


def _of_all(
    batches: Sequence[Sequence[tuple[Link, ...]]], rows: int, sigma: float, effective_share: float
) -> tuple[LogPartition, tuple[Descent, ...]]:
    """The estimate from all batches at the lowest level."""
    descents = tuple(Descent(rows) for _ in batches[0][0])
    for of_level in zip(*batches, strict=True):
        for descent, links in zip(descents, zip(*of_level, strict=True), strict=True):
            descent.add(pooled(links))
    return estimate_of(descents, sigma, effective_share), descents
