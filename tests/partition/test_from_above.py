"""Annealing from the highest level: it finds log Z, and mass that the ladder's samples miss."""

import math

import numpy as np
import pytest
import tensorflow as tf
from mixtures import Mixture
from test_partition import LOG_Z, exact

import tfdde
from tfdde.partition import from_above
from tfdde.partition.estimate import estimate
from tfdde.partition.evaluator import Evaluator
from tfdde.partition.far_field import DIMENSIONS
from tfdde.partition.from_above import (
    Level,
    annealing_from_above,
    confirmed,
    mean_of,
    with_excess,
)
from tfdde.partition.ladder import ladder, ladder_levels
from tfdde.partition.result import LogPartition

N, LOW, TOP = 6, 0.1, 8.0
ROWS = Mixture(np.eye(3, N), [0.5, 0.8, 1.0], [1, 2, 3])
FAR = 7.0  # distance of the misplaced mass from the rows: far for moves, at low noise


def leaking(log_mass, power=1.0):
    """An exact mixture and a far mode, whose mass grows as the noise falls, as a fitted network's.

    At the lowest level Z is e^LOG_Z (1 + e^log_mass), and at the highest the mode has a share of
    e^-5 at most. With a high power it grows late.
    """
    right = exact(ROWS)
    centre = tf.constant(np.full(N, FAR / math.sqrt(N)), tf.float32)

    def s(x, sigma):
        v = 1.0 + sigma**2
        square = tf.reduce_sum((x - centre) ** 2, axis=1)
        far = -0.5 * (square / v + N * tf.math.log(2 * math.pi * v))
        share = (tf.math.log(TOP / sigma) / math.log(TOP / LOW)) ** power
        return tf.reduce_logsumexp(
            tf.stack([right(x, sigma), LOG_Z - 5.0 + (5.0 + log_mass) * share + far]), axis=0
        )

    return s


def given(evaluate, seed=0):
    """The estimate as ``log_partition`` gives it: the ladder and all checks."""
    settings = tfdde.LogUniform(LOW, TOP), None, None, 2_000, 5, seed
    return estimate(evaluate, ROWS.sample(3_000, seed=seed + 1), *settings)


def true_log_z(log_mass):
    return LOG_Z + math.log1p(math.exp(log_mass))


@pytest.mark.parametrize("log_mass", [1.0, 3.0, 5.0])
def test_mass_that_the_moves_do_not_reach_is_seen(log_mass):
    """Below the 6.9 nats that annealing from outside must exceed an estimate by."""
    evaluate, truth = Evaluator(leaking(log_mass), (N,)), true_log_z(log_mass)
    levels, data = ladder_levels(LOW, TOP, N), ROWS.sample(3_000, seed=1)
    alone, found = ladder(evaluate, data, levels, 2_000, 5, 0)[0], given(evaluate)
    assert alone.upper < truth - 0.5  # wrong without the check, and up to 3 nats trusted
    assert alone.trusted or log_mass > 3.0
    assert not found.trusted
    if alone.trusted:
        assert "annealing from the highest noise level gives" in found.doubt


def test_no_trusted_interval_leaves_out_a_mode_of_a_quarter_or_two_thirds():
    for log_mass in (-1.0, 0.7):
        evaluate, truth = Evaluator(leaking(log_mass), (N,)), true_log_z(log_mass)
        for seed in range(5):
            found = given(evaluate, seed)
            assert found.lower <= truth <= found.upper or not found.trusted


@pytest.mark.parametrize("method", ["ladder", "annealed"])
def test_the_level_asked_for_is_doubted_if_mass_is_missed_little_below(method):
    evaluate, data = Evaluator(leaking(4.0, power=8.0), (N,)), ROWS.sample(3_000, seed=1)
    near, far = (
        estimate(evaluate, data, tfdde.LogUniform(LOW, TOP), method, sigma, 2_000, 5, 0)
        for sigma in (2.5 * LOW, 5.0 * LOW)
    )
    # The mode's share is e^-3.6 at the one level, too little to be seen there, and e^-4.7 at the
    # other.
    assert "its samples miss mass, and part of it may be missing here" in near.doubt
    assert abs(near.value - LOG_Z) < 0.2
    assert far.trusted and far.lower - 0.01 <= LOG_Z <= far.upper + 0.01


@pytest.mark.parametrize("n", [4, 8, 21])
def test_log_z_of_exact_mixtures_is_found_and_not_exceeded(n):
    mixture = Mixture(1.5 * np.eye(3, n), [0.3, 0.5, 1.0], [1, 2, 3])
    evaluate, levels = Evaluator(exact(mixture), (n,)), ladder_levels(0.1, 8.0, n)
    z, estimates = [], []
    for seed in range(10):
        data = mixture.sample(2_000, seed=seed)
        found = annealing_from_above(evaluate, data, levels, seed)
        assert len(found) == len(levels)
        z += [(level.value - LOG_Z) / level.error for level in (found[0], found[len(found) // 2])]
        right = LogPartition.around(LOG_Z, 0.03, 5_000, "ladder", 0.1)
        estimates.append(with_excess(right, found[0]))
        assert found[0].error < 0.35
    assert np.abs(z).max() < 4 and 0.4 < np.sqrt(np.square(z).mean()) < 1.6
    assert all(e.trusted and e.lower <= LOG_Z <= e.upper for e in estimates)


def test_the_bound_is_unbiased():
    """Near log Z for a Gaussian, and never far above it for mixtures."""
    one = Mixture(np.zeros((1, 8)), [1.0], [1])
    mixture = Mixture(1.5 * np.eye(3, 8), [0.3, 0.5, 1.0], [1, 2, 3])
    levels = ladder_levels(0.1, 8.0, 8)
    for exactly, density in ((True, one), (False, mixture)):
        found = annealing_from_above(
            Evaluator(exact(density), (8,)), density.sample(2_000, 1), levels
        )
        bounds = np.array([level.bound for level in found]) - LOG_Z
        assert bounds.max() < 0.5
        assert not exactly or np.abs(bounds).max() < 0.1


def test_a_bound_of_a_thousand_times_z_is_a_doubt():
    given = LogPartition.around(1.0, 0.03, 500, "ladder", 0.5)
    assert with_excess(given, Level(1.0, 0.1, 7.9)) == given
    doubted = with_excess(given, Level(1.0, 0.1, 8.0))
    assert "importance sampling near annealed samples gives 8.00" in doubted.doubt
    assert mean_of(Level(1.0, 0.1, 8.0), Level(1.0, 0.1)).bound == pytest.approx(8.0 - math.log(2))


def test_rows_that_it_is_not_for_are_left_as_they_are():
    for n in (DIMENSIONS, 101):
        given = [LogPartition.around(0.0, 0.1, 500, "ladder", 0.1)]
        assert confirmed(given, None, np.zeros((5, n), "f4"), np.array([0.1]), 0) == given


def test_estimates_of_some_levels_are_compared_at_these():
    evaluate, levels = Evaluator(leaking(4.0), (N,)), ladder_levels(LOW, TOP, N)
    data = ROWS.sample(2_000, seed=1)
    low, high = (LogPartition.around(LOG_Z, 0.03, 5_000, "ladder", k) for k in levels[[0, -1]])
    found = confirmed([high, low], evaluate, data, levels)
    assert found[0].trusted and found[0].lower <= LOG_Z <= found[0].upper
    assert "gives" in found[1].doubt and found[1].sigma == levels[0]


def test_levels_near_one_that_misses_mass_are_doubted(monkeypatch):
    sigmas = np.array([0.1, 0.2, 0.3, 0.59, 0.61, 2.0])
    given = [LogPartition.around(0.0, 0.03, 5_000, "ladder", k) for k in sigmas]
    found = [Level(0.0, 0.1), Level(5.0, 0.5), *[Level(0.0, 0.1)] * 4]
    monkeypatch.setattr(from_above, "annealing_from_above", lambda *_, **__: found)
    data = np.zeros((5, N), "f4")
    result = confirmed(given, None, data, sigmas)
    assert "gives 5.00" in result[1].doubt
    assert all("at sigma = 0.2 its samples miss mass" in result[k].doubt for k in (0, 2, 3))
    assert result[4:] == given[4:]
    found[1] = Level(0.0, 0.1)
    assert confirmed(given, None, data, sigmas) == given


@pytest.mark.parametrize(
    "levels, populations",
    [
        ([Level(0.0, 0.1), Level(0.0, 0.1)], 1),  # no excess
        ([Level(0.0, 0.1), Level(0.3, 0.1)], 2),  # one that may be chance
        ([Level(0.0, 0.1, 7.0), Level(0.0, 0.1)], 1),  # a bound that no other population changes
        ([Level(0.0, 0.1, 7.0), Level(0.3, 0.1)], 2),
    ],
)
def test_a_second_population_is_annealed_where_it_may_tell(monkeypatch, levels, populations):
    calls = []

    def annealing(*args, **kwargs):
        calls.append(kwargs.get("population", 0))
        return levels

    monkeypatch.setattr(from_above, "annealing_from_above", annealing)
    sigmas = np.array([0.1, 2.0])
    given = [LogPartition.around(0.0, 0.03, 5_000, "ladder", k) for k in sigmas]
    result = confirmed(given, None, np.zeros((5, N), "f4"), sigmas)
    assert calls == list(range(populations))
    assert [z.trusted for z in result] == [level.bound < 0 for level in levels]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_s_without_a_finite_value_is_doubted(wrong):
    s = lambda x, sigma: tf.where(x[:, 0] > 1.0, np.float32(wrong), exact(ROWS)(x, sigma))  # noqa: E731
    found = annealing_from_above(Evaluator(s, (N,)), ROWS.sample(500, 0), np.array([0.5, 1.0]))
    given = LogPartition.around(0.0, 0.1, 500, "ladder", 0.5)
    assert "s is not finite" in with_excess(given, found[0]).doubt


def test_a_density_without_the_annealed_samples_shows_nothing():
    s = lambda x, sigma: tf.fill(tf.shape(x)[:1], np.float32(-np.inf))  # noqa: E731
    found = annealing_from_above(Evaluator(s, (N,)), ROWS.sample(500, 0), np.array([0.5, 1.0]))
    given = LogPartition.around(0.0, 0.1, 500, "ladder", 0.5)
    assert len(found) == 2 and with_excess(given, found[0]) == given


def test_an_excess_widens_the_interval_to_the_upper_end_of_what_is_found():
    given = LogPartition.around(1.0, 0.03, 500, "ladder", 0.5)  # with 0.04: 0.05 together
    assert with_excess(given, Level(1.049, 0.04)) == given
    for excess in (0.1, 0.15, 0.24):
        widened = with_excess(given, Level(1.0 + excess, 0.04))
        assert widened.trusted and widened.value == 1.0
        assert widened.upper > 1.0 + excess + 1.96 * 0.04
    assert with_excess(given, Level(1.26, 0.04)).doubt.startswith("annealing from the highest")
    coarse = LogPartition.around(1.0, 0.3, 500, "ladder", 0.5)  # with 0.8: 0.85
    assert with_excess(coarse, Level(2.1, 0.8)).trusted
    assert "gives 2.30 ± 0.80" in with_excess(coarse, Level(2.3, 0.8)).doubt


def test_the_check_keeps_the_doubt_of_an_estimate():
    evaluate, data = Evaluator(exact(ROWS), (N,)), ROWS.sample(1_000, seed=1)
    doubted = LogPartition(LOG_Z, 0.1, LOG_Z - 0.2, LOG_Z + 0.2, 900.0, "ladder", 0.1, "it drifts")
    assert confirmed([doubted], evaluate, data, ladder_levels(LOW, TOP, N))[0].doubt == "it drifts"
