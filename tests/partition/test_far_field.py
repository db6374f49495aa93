"""The check of log Z finds mass where no rows are, and does not cry wolf."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from mixtures import Mixture
from test_partition import LOG_Z, exact, narrow

import tfdde
from tfdde.partition.annealed import annealed
from tfdde.partition.estimate import estimate, too_low
from tfdde.partition.evaluator import Evaluator
from tfdde.partition.far_field import (
    annealing_from_outside,
    checked,
    importance_from_everywhere,
)
from tfdde.partition.importance import importance
from tfdde.partition.ladder import ladder, ladder_levels
from tfdde.partition.result import LogPartition
from tfdde.partition.rows import RowDraws
from tfdde.tuning import select_sigma


def wide(n, seed):
    rng = np.random.default_rng([n, seed])
    return Mixture(rng.standard_normal((10, n)), rng.uniform(0.25, 1, 10), np.ones(10))


def with_a_far_mode(n, log_mass, distance, width=1.0):
    """s = log of N(0, I) and e^log_mass times a Gaussian along the first axis, and its log Z."""
    centre = tf.constant([[float(distance)] + [0.0] * (n - 1)])

    def s(x, sigma):
        near = -0.5 * tf.reduce_sum(x**2, 1)
        far = -0.5 * tf.reduce_sum((x - centre) ** 2, 1) / width**2 - n * math.log(width)
        logs = tf.stack([near, log_mass + far], 1) - n / 2 * math.log(2 * math.pi)
        return tf.reduce_logsumexp(logs, 1)

    return s, np.logaddexp(0, log_mass)


def found(value, error=0.01, sigma=0.1):
    return LogPartition.around(value, error, 5_000, "ladder", sigma)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "kind", [wide, lambda n, seed: narrow(n, seed=seed)], ids=["wide", "narrow"]
)
def test_importance_from_everywhere_is_right_within_its_error(n, kind):
    for seed in range(2):
        mixture, rng = kind(n, seed), np.random.default_rng(seed)
        rows = mixture.sample(5_000, seed).astype(float)
        evaluate = Evaluator(exact(mixture), (n,))
        value, error = importance_from_everywhere(evaluate, rows, 0.1, 0.004, rng)
        assert abs(value - LOG_Z) < 4.5 * error and error < 0.03


@pytest.mark.parametrize("log_mass", [-3.0, 0.0, 70.0])
@pytest.mark.parametrize("n", [1, 2])
def test_importance_from_everywhere_finds_a_far_mode(n, log_mass):
    s, log_z = with_a_far_mode(n, log_mass, 60.0)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5_000, n))
    evaluate = Evaluator(s, (n,))
    ends = annealing_from_outside(evaluate, rows, [0.1], rng)[0].ends if n > 1 else None
    value, error = importance_from_everywhere(evaluate, rows, 0.1, 0.004, rng, ends)
    assert abs(value - log_z) < 4.5 * error + 0.003 and error < 0.1
    [estimate] = checked([found(0.0)], Evaluator(s, (n,)), rows.astype("f4"))
    assert not estimate.trusted and "mass where no rows are" in estimate.doubt


@pytest.mark.parametrize(
    "n, log_mass, distance", [(4, 76.0, 60.0), (8, 30.0, 10.0), (43, 76.0, 60.0)]
)
def test_annealing_finds_a_far_mode(n, log_mass, distance):
    s, log_z = with_a_far_mode(n, log_mass, distance, width=distance / 15)
    rows = np.random.default_rng(0).standard_normal((5_000, n)).astype("f4")
    [estimate] = checked([found(0.0)], Evaluator(s, (n,)), rows)
    assert not estimate.trusted and "mass where no rows are" in str(estimate)
    [right] = checked([found(log_z)], Evaluator(s, (n,)), rows)
    assert right.trusted


def test_annealing_is_unbiased():
    """The mean of exp of its values is Z, here of a correlated Gaussian in 4 dimensions."""
    precision = tf.constant(np.linalg.inv(np.full((4, 4), 0.5) + 0.5 * np.eye(4)), tf.float32)
    log_scale = 0.5 * np.linalg.slogdet(2 * np.pi * np.linalg.inv(precision.numpy()))[1]

    def s(x, sigma):
        return LOG_Z - log_scale - 0.5 * tf.reduce_sum(x * tf.matmul(x, precision), 1)

    rng = np.random.default_rng(0)
    rows = rng.multivariate_normal(np.zeros(4), np.linalg.inv(precision.numpy()), 2_000)
    annealings = annealing_from_outside(Evaluator(s, (4,)), rows, [0.2] * 20, rng)
    z = np.exp([a.value - LOG_Z for a in annealings])
    assert abs(z.mean() - 1) < 4 * z.std() / math.sqrt(20) < 0.3


def test_levels_are_annealed_together_as_one_by_one():
    """Also where one of them is not finite, which does not spoil the others."""

    def s(x, sigma):
        v = tf.reshape(1 + sigma**2, (-1, 1))
        value = tf.reduce_sum(-0.5 * x**2 / v - 0.5 * tf.math.log(2 * math.pi * v), 1)
        return tf.where(sigma < 0.5, value, np.nan)

    rows = np.random.default_rng(0).standard_normal((2_000, 4))
    sigmas = [0.2, 0.4, 0.8, *np.linspace(0.2, 0.45, 12)]  # more than fit into one block
    results = [
        annealing_from_outside(
            Evaluator(s, (4,), by_row=by_row), rows, sigmas, np.random.default_rng(1)
        )
        for by_row in (True, False)
    ]
    for together, apart, sigma in zip(*results, sigmas, strict=True):
        if sigma == 0.8:
            assert math.isnan(together.value) and math.isnan(apart.value)
            assert len(together.ends) == 0
            continue
        assert together.value == pytest.approx(apart.value, abs=1e-3)
        assert abs(together.value) < 0.5  # log Z is 0
        np.testing.assert_allclose(np.std(together.ends), math.hypot(1, sigma), rtol=0.2)


def test_one_trace_serves_all_numbers_of_rows_and_levels():
    traced = []

    def s(x, sigma):
        traced.append(sigma.shape.rank)
        return -0.5 * tf.reduce_sum(x**2, 1) / (1 + sigma**2)

    def results(evaluate, count, sigmas):
        moved = evaluate.moves(rows[:count], 0.3, 0.3, 3, 0)
        rng = np.random.default_rng(1)
        return moved, annealing_from_outside(evaluate, rows.astype(float), sigmas, rng)[-1].value

    rows = np.random.default_rng(0).standard_normal((300, 4)).astype("f4")
    evaluate = Evaluator(s, (4,), by_row=True)
    results(evaluate, 200, [0.2, 0.4])
    assert sorted(traced) == [0, 1]  # values and moves share one; the path of annealing has another
    again = results(evaluate, 300, [0.5])
    assert len(traced) == 2
    for a, b in zip(again, results(Evaluator(s, (4,), by_row=True), 300, [0.5]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n, seeds", [(2, 5), (8, 3), (21, 2)])
def test_exact_mixtures_stay_trusted(n, seeds):
    for seed in range(seeds):
        mixture = wide(n, seed)
        evaluate = Evaluator(exact(mixture), (n,))
        [estimate] = checked([found(LOG_Z, 0.005)], evaluate, mixture.sample(5_000, seed), seed)
        assert estimate.trusted and estimate.doubt == ""


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_doubted(n, bad):
    s = lambda x, sigma: tf.where(tf.abs(x[:, 0]) > 9, bad, -0.5 * tf.reduce_sum(x**2, 1))  # noqa: E731
    rows = np.random.default_rng(0).standard_normal((1_000, n)).astype("f4")
    [estimate] = checked([found(0.919 * n)], Evaluator(s, (n,)), rows)
    assert "not finite" in estimate.doubt and not estimate.trusted


def test_doubt_is_told_and_saved():
    fine = found(1.0)
    doubted = dataclasses.replace(fine, doubt="mass at 60")
    assert fine.trusted and not doubted.trusted
    assert str(doubted).endswith("NOT to be trusted: mass at 60)")
    assert "doubt" not in fine.get_config()  # as in files from before there was a check
    for one in (fine, doubted):
        assert LogPartition.from_config(one.get_config()) == one
        several = tfdde.LogPartitions(((1.0,),), (one,))
        assert tfdde.LogPartitions.from_config(several.get_config()) == several


class Wrong(tfdde.DDE):
    """An untrained density with a spurious mode."""

    def at(self, x, sigma, *condition):
        far = 40.0 - 0.5 * tf.reduce_sum((x - 60.0) ** 2, 1)
        return tf.reduce_logsumexp(tf.stack([super().at(x, sigma), far], 1), 1)


def test_a_spurious_mode_is_noticed_by_all_that_use_log_z():
    x = np.random.default_rng(0).normal(size=(2_000, 1)).astype("f4")
    network = tfdde.networks.residual_mlp(1, 8, 1, levels=True)
    network.set_weights([0 * w for w in network.get_weights()])
    dde = Wrong(network, tfdde.LogUniform(0.2, 4.0))
    dde.adapt(x)
    for method in ("ladder", "importance", "annealed"):
        with pytest.warns(UserWarning, match="mass where no rows are"):
            dde.log_partition(x, method, samples=1_000)
        assert not dde.normalized
    curve = select_sigma(dde, x, samples=1_000)
    assert not any(estimate.trusted for estimate in curve.partitions)
    assert "NOT to be trusted" in str(curve)


@pytest.fixture(scope="module")
def hard_sets():
    path = Path(__file__).parents[2] / "benchmarks" / "hard_sets.py"
    spec = importlib.util.spec_from_file_location("hard_sets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quadrature_of_the_benchmark(hard_sets):
    """Against closed forms: heavy tails, and a mode that only cells far outside show."""
    for n in (1, 2):
        rows = np.random.default_rng(0).standard_t(2, (5_000, n))
        law = lambda y, n=n: -(2 + n) / 2 * np.log1p((y**2).sum(1) / 2)  # noqa: E731
        expected = math.log(2 * math.pi) if n == 2 else math.log(2 * math.sqrt(2))
        assert hard_sets.integral(law, rows, 0.2, reach=1e3) == pytest.approx(expected, abs=5e-3)
    far = lambda y: np.logaddexp(-0.5 * y[:, 0] ** 2, 70 - 2 * (y[:, 0] - 300) ** 2)  # noqa: E731
    expected = 70 + 0.5 * math.log(math.pi / 2)
    assert hard_sets.integral(far, rows[:, :1], 0.2) == pytest.approx(expected, abs=1e-3)


@pytest.mark.filterwarnings("ignore:This estimate can't be trusted")
@pytest.mark.filterwarnings("ignore:The highest noise level")
@pytest.mark.parametrize(
    "name, heavy_tailed",
    [("t, 2 degrees", True), ("outlier of 1e4", True), ("Laplace", False), ("scale 1e3", False)],
)
def test_trained_densities_are_right_or_not_trusted(hard_sets, name, heavy_tailed):
    x = hard_sets.sample(name, 5_000, 0)
    dde = hard_sets.train(x, hard_sets.SETS[name][1], "silu 48x3", epochs=20)
    estimate = dde.log_partition(x, samples=5_000)
    right = abs(estimate.value - hard_sets.true_log_z(dde, x)) < 3 * estimate.standard_error + 0.02
    assert right or not estimate.trusted
    assert dde.base.heavy_tailed is heavy_tailed
    if name != "scale 1e3":
        assert right and estimate.trusted


def test_too_low_noise_is_warned_of():
    x = 1_000 * np.random.default_rng(0).normal(size=(500, 1))
    dde = tfdde.DDE(tfdde.networks.residual_mlp(1, 8, 1, levels=True), tfdde.LogUniform(0.2, 4.0))
    with pytest.warns(
        UserWarning, match=r"LogUniform.maximum = 4.*Use LogUniform\(0.2, 2.*e\+03\)"
    ):
        dde.adapt(x)
    two = 50 * np.random.default_rng(0).choice([-1.0, 1.0], (500, 1))
    assert "maximum = 2," in too_low(tfdde.LogUniform(0.2, 2.0), two)
    heavy = np.random.default_rng(0).standard_t(2, (500, 1))
    assert too_low(tfdde.LogUniform(0.2, 4.0), heavy) is None
    assert too_low(tfdde.LogUniform(0.2, 4.0), 5 * x / 1_000) is None


class TestWeights:
    """Rows of a mixture with the wrong shares, and weights that make them right."""

    shares = np.array([0.6, 0.3, 0.1])
    mixture = Mixture([[-4.0, 0.0], [0.0, 3.0], [4.0, 0.0]], [0.2, 0.3, 0.1], shares)

    def rows(self, seed, count=4_000):
        equal = Mixture(self.mixture.means, self.mixture.variances, np.ones(3))
        x = equal.sample(count, seed)
        nearest = np.square(x[:, None] - self.mixture.means).sum(-1).argmin(1)
        return x, 3 * self.shares[nearest]

    def test_draws_are_in_proportion(self):
        weights = np.array([1.0, 2.0, 0.5, 4.5])
        draws, rng = RowDraws(4, weights), np.random.default_rng(0)
        for count in (3, 8, 16_000):
            index = draws.take(count, rng)
            assert np.abs(np.bincount(index, minlength=4) - count * weights / 8).max() <= 1
        assert draws.effective_share == pytest.approx(64 / (4 * (1 + 4 + 0.25 + 4.5**2)))
        even = RowDraws(4, None)
        assert even.effective_share == 1
        np.testing.assert_array_equal(np.bincount(even.take(8, rng)), [2] * 4)

    def test_ladder(self):
        levels = ladder_levels(0.1, 8.0, 2)
        errors, reported, plain = [], [], []
        evaluate = Evaluator(exact(self.mixture), (2,))
        for seed in range(12):
            x, weights = self.rows(seed, 1_000)
            estimate = ladder(evaluate, x, levels, 1_000, 0, seed, weights)[0]
            errors.append(estimate.value - LOG_Z)
            reported.append(estimate.standard_error)
            plain.append(ladder(evaluate, x, levels, 1_000, 0, seed)[0].value - LOG_Z)
        assert np.abs(errors).max() < 4 * np.mean(reported)
        assert abs(np.mean(errors)) < 3 * np.mean(reported) / math.sqrt(12)
        assert 0.6 < np.std(errors) / np.mean(reported) < 1.6
        assert abs(np.mean(plain)) > 3 * np.mean(reported)

    @pytest.mark.parametrize("noise", [tfdde.LogUniform(0.1, 8.0), tfdde.Constant(0.1)], ids=str)
    @pytest.mark.parametrize("method", ["ladder", "importance", "annealed"])
    def test_all_methods(self, method, noise):
        if method == "ladder" and isinstance(noise, tfdde.Constant):
            pytest.skip("needs many levels")
        x, weights = self.rows(0)
        settings = noise, method, None, 2_000, 2, 0
        value = estimate(exact(self.mixture), x, *settings, weights)
        assert abs(value.value - LOG_Z) < 4 * value.standard_error + 0.01
        assert value.doubt == ""

    def test_the_gaussians_take_them(self):
        x, weights = self.rows(0)
        plain = importance(exact(self.mixture), x, 0.1, 2_000)
        assert importance(exact(self.mixture), x, 0.1, 2_000, weights=weights) != plain
        ones = importance(exact(self.mixture), x, 0.1, 2_000, weights=np.ones(len(x)))
        assert ones.value == pytest.approx(plain.value, abs=1e-4)
        up = annealed(exact(self.mixture), x, [0.1], 500, weights=weights)
        assert up.lower - 0.1 < LOG_Z < up.upper + 0.1

    @pytest.mark.parametrize("weights", [np.ones(3), np.zeros(4), np.array([1, 1, 1, np.nan])])
    def test_bad_weights_are_refused(self, weights):
        with pytest.raises(ValueError, match="`weights` must be positive, one for each of 4 rows"):
            estimate(
                exact(self.mixture),
                np.zeros((4, 2), "f4"),
                tfdde.Constant(0.1),
                None,
                None,
                None,
                0,
                0,
                weights,
            )


def test_a_small_disagreement_widens_the_interval():
    """An estimate that is off by more than its error, by less than what the check doubts."""
    mixture = wide(2, 0)
    rows = mixture.sample(5_000, 0)
    evaluate = Evaluator(exact(mixture), (2,))
    off = LogPartition.around(LOG_Z - 0.012, 0.001, 5_000, "ladder", 0.1)
    right = LogPartition.around(LOG_Z, 0.02, 5_000, "ladder", 0.1)
    first, second = checked([off, right], evaluate, rows)
    assert first.trusted and first.value == off.value
    assert first.lower < first.value < LOG_Z < first.value + 3 * first.standard_error
    assert off.standard_error < first.standard_error < 0.02
    assert second.standard_error == pytest.approx(right.standard_error, rel=0.05)


@pytest.mark.parametrize("n", [2, 6])
def test_the_doubt_of_the_moves_is_kept(n):
    """In more than three columns this check had removed it, and the estimate was trusted."""
    mixture = Mixture(np.eye(3, n), [0.5, 0.8, 1.0], [1, 2, 3])
    evaluate, data = Evaluator(exact(mixture), (n,)), mixture.sample(1_000, seed=1)
    doubted = LogPartition(LOG_Z, 0.1, LOG_Z - 0.2, LOG_Z + 0.2, 900.0, "ladder", 0.1, "it drifts")
    assert checked([doubted], evaluate, data)[0].doubt == "it drifts"
