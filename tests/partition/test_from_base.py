"""log Z by importance sampling from the base: exact mixtures, refusals, and its checks."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from mixtures import Mixture
from test_partition import LOG_Z, exact

import tfdde
from tfdde import networks, tuning
from tfdde.partition.estimate import estimate
from tfdde.partition.evaluator import Evaluator
from tfdde.partition.from_base import Base, at_levels, from_base
from tfdde.partition.ladder import ladder_levels

N, LOW, TOP = 6, 0.1, 8.0
NOISE = tfdde.LogUniform(LOW, TOP)
MEANS = 2.0 * np.eye(3, N)
ROWS = Mixture(MEANS, [0.3, 0.5, 0.8], [1, 2, 3])
APART = Mixture(4.0 * np.eye(3, N), [0.1, 0.1, 0.1], [1, 1, 1])  # far from one Gaussian


def base_of(mixture, most=8):
    """The base that fits a mixture's rows, with what it is compared by."""
    layer = tfdde.GaussianBase(N, most_components=most)
    layer.adapt(mixture.sample(10_000, seed=99), sigma=LOW)
    return Base(layer, Evaluator(layer, (N,)))


@pytest.fixture(scope="module")
def base():
    """Of rows that are a little narrower and wider than those of ``ROWS``."""
    found = base_of(Mixture(MEANS + 0.1, [0.35, 0.45, 0.8], [2, 2, 3]))
    assert found.layer.components > 1
    return found


@pytest.fixture(scope="module")
def right():
    return Evaluator(exact(ROWS), (N,))


def test_intervals_of_fifty_runs_hold_log_z(base, right):
    z = []
    for seed in range(50):
        found = from_base(right, base, ROWS.sample(1_000, seed), 0.3, 1_000, seed)
        assert (found.method, found.sigma) == ("importance", 0.3) and found.trusted
        assert 200 < found.effective_sample_size < 1_000
        z.append((found.value - LOG_Z) / found.standard_error)
        assert found.standard_error < 0.04
    assert (np.abs(z) < 1.96).sum() >= 44  # 95 % of 50 are 47.5 ± 1.5
    assert 0.75 < np.sqrt(np.square(z).mean()) < 1.25


def test_more_samples_follow_from_more_precision(base, right):
    data = ROWS.sample(2_000, seed=1)

    def to(precision, samples=None):
        settings = NOISE, None, None, samples, 1, 0, None, precision
        return estimate(right, data, *settings, base=base)

    coarse, fine = to(0.1), to(0.0045)
    assert coarse.half_width <= 0.1 and 0.002 < fine.half_width <= 0.0045
    assert abs(fine.value - LOG_Z) < 0.008
    assert fine.effective_sample_size > 2 * coarse.effective_sample_size
    assert (coarse.method, fine.method) == ("importance", "importance")
    with pytest.warns(UserWarning, match="`precision` was not reached"):
        assert to(0.0045, samples=1_000).method == "ladder"


def test_a_base_too_far_away_is_left_for_the_ladder():
    one, right = base_of(APART, most=1), Evaluator(exact(APART), (N,))
    data = APART.sample(3_000, seed=1)
    assert from_base(right, one, data, LOW) is None
    found = estimate(right, data, NOISE, None, None, 2_000, 2, 0, base=one)
    assert found.method == "ladder" and found.lower - 0.01 < LOG_Z < found.upper + 0.01


def test_rows_show_mass_that_the_base_does_not_have(base):
    """Two thirds of the rows and of e^s are at a mode that the base's samples never reach."""
    both = Mixture([*MEANS, 12.0 * np.ones(N)], [0.3, 0.5, 0.8, 0.5], [1, 2, 3, 12])
    s = Evaluator(exact(both), (N,))
    blind = from_base(s, base, ROWS.sample(2_000, seed=1), 0.3)
    assert abs(blind.value - (LOG_Z - math.log(3))) < 0.05  # what the rows are needed for
    assert from_base(s, base, both.sample(2_000, seed=1), 0.3) is None


def test_rows_of_weight_0_show_nothing(base):
    both = Mixture([*MEANS, 12.0 * np.ones(N)], [0.3, 0.5, 0.8, 0.5], [1, 2, 3, 12])
    s, data = Evaluator(exact(both), (N,)), both.sample(2_000, seed=1)
    light = np.where(data.mean(axis=1) > 6, 1e-9, 1.0)
    assert from_base(s, base, data, 0.3, weights=light) is not None
    assert from_base(s, base, data, 0.3, weights=1.0 / light) is None


def test_what_is_not_finite_is_left_for_the_ladder(base):
    s = Evaluator(lambda x, sigma: tf.math.log(x[:, 0] + 1e3) * np.nan, (N,))
    assert from_base(s, base, ROWS.sample(1_000, seed=1), 0.3) is None


@pytest.mark.parametrize("log_mass", [3.0, 5.0])
def test_mass_away_from_rows_and_base_is_a_doubt(base, log_mass):
    centre = tf.constant(np.full(N, 7.0 / math.sqrt(N)), tf.float32)

    def s(x, sigma):
        """A mode whose share grows as the noise falls, as that of an over-fitted network."""
        v = 1.0 + sigma**2
        square = tf.reduce_sum((x - centre) ** 2, axis=1)
        far = -0.5 * (square / v + N * tf.math.log(2 * math.pi * v))
        share = tf.math.log(TOP / sigma) / math.log(TOP / LOW)
        logs = exact(ROWS)(x, sigma), LOG_Z - 5.0 + (5.0 + log_mass) * share + far
        return tf.reduce_logsumexp(tf.stack(logs), axis=0)

    evaluate, data = Evaluator(s, (N,)), ROWS.sample(3_000, seed=1)
    assert not estimate(evaluate, data, NOISE, None, None, None, 5, 0, base=base).trusted


def test_levels_are_estimated_from_the_base_where_it_is_near():
    """A base of one Gaussian is near where the noise hides the three modes."""
    one, right = base_of(APART, most=1), Evaluator(exact(APART), (N,))
    levels, data = ladder_levels(LOW, TOP, N), APART.sample(3_000, seed=1)
    found = at_levels(len(levels) - 1, right, one, data, levels, 2_000, moves=2)
    methods = [z.method for z in found]
    assert methods == sorted(methods, reverse=True) and len(set(methods)) == 2
    assert [z.sigma for z in found] == levels[:-1].tolist()
    assert max(abs(z.value - LOG_Z) / z.standard_error for z in found) < 4
    few = at_levels(3, right, None, data, levels, 2_000, moves=2)
    assert {z.method for z in few} == {"ladder"} and len(few) == 3


@pytest.fixture
def constant():
    """A density whose network adds 3 nats everywhere, so that log Z is 3."""
    network = networks.residual_mlp(N, 16, 2, levels=True)
    last = next(layer for layer in network.layers[::-1] if layer.weights)
    last.set_weights([np.zeros_like(w) for w in last.get_weights()])
    output = keras.layers.Rescaling(1.0, 3.0)(network.output)
    network = keras.Model(network.inputs, output)
    dde = tfdde.DDE(network, NOISE, tfdde.GaussianBase(N, most_components=8), seed=0)
    dde.adapt(ROWS.sample(5_000, seed=1))
    return dde


def test_a_density_is_normalised_from_its_base(constant):
    data = ROWS.sample(2_000, seed=2)
    found = constant.log_partition(data)
    assert found.method == "importance" and found.trusted and abs(found.value - 3) < 1e-4
    by_ladder = constant.log_partition(data, "ladder", samples=1_000, moves=1)
    assert by_ladder.method == "ladder" and abs(by_ladder.value - 3) < 0.2
    constant.base.adapt(4.0 + ROWS.sample(5_000, seed=1))  # the base's samples follow
    again = constant.log_partition(4.0 + data)
    assert again.method == "importance" and abs(again.value - 3) < 1e-4


def test_every_level_is_read_from_the_base(constant):
    curve = tuning.select_sigma(constant, ROWS.sample(2_000, seed=2), samples=500)
    assert {z.method for z in curve.partitions} == {"importance"}
    assert max(abs(z.value - 3) for z in curve.partitions) < 1e-4
    assert all(z.trusted or z.doubt == tuning.curve.UNCHECKED for z in curve.partitions)
    assert curve.partitions[curve.best].trusted
    assert curve.partitions[0].sigma == LOW


def test_what_takes_the_time_is_told(constant, capsys):
    data = ROWS.sample(1_000, seed=2)
    quiet = constant.log_partition(data)
    assert not capsys.readouterr().out
    assert constant.log_partition(data, verbose=2) == quiet
    told = capsys.readouterr().out
    levels = len(ladder_levels(LOW, TOP, N))
    assert f"log Z: checked by annealing, {levels} noise levels, 4,000 samples at each" in told
    assert f"{levels}/{levels}" in told


def test_another_kind_of_base_is_followed_at_once(constant):
    """The density is its base, whatever that is, and 3 nats."""
    x = ROWS.sample(2_000, seed=2)
    assert constant.base.components > 1
    tuning.select_sigma(constant, x, samples=500)
    wide = 4.0 + 2.0 * np.random.default_rng(0).normal(size=(5_000, N)).astype("float32")
    constant.base.adapt(wide)
    assert constant.base.components == 1
    curve = tuning.select_sigma(constant, wide, samples=500)
    for sigma, value in zip(curve.sigmas[:3], curve.log_likelihood, strict=False):
        exact_mean = constant.base(wide, tf.constant(sigma, tf.float32)).numpy().mean()
        assert value == pytest.approx(exact_mean, abs=1e-3)
    drawn = tfdde.sample_rows(constant, wide, 1_000, seed=0)
    assert np.abs(drawn.std(axis=0) - 2.0).max() < 0.25
