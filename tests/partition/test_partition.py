"""log Z against exact mixtures, the parts of its estimators, and what a density does with it."""

import dataclasses
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from mixtures import Mixture, three
from scipy.stats import kstest, norm

import tfdde
from tfdde import datasets, metrics, networks
from tfdde.partition.annealed import anneal, annealed
from tfdde.partition.evaluator import Gaussian
from tfdde.partition.hmc import Moves
from tfdde.partition.importance import importance
from tfdde.partition.ladder import bridge, ladder, ladder_levels
from tfdde.partition.result import LogPartition

LOG_Z = 5.0
CHOICES = ("ladder", "importance", "annealed")


def exact(mixture, log_z=LOG_Z):
    """s(x, sigma) = log p~ + log Z of a mixture, in TensorFlow float32."""

    def log_density(x, sigma):
        v = tf.constant(mixture.variances, tf.float32) + sigma**2
        square = tf.reduce_sum((x[:, None, :] - tf.constant(mixture.means, tf.float32)) ** 2, -1)
        n = mixture.means.shape[1]
        parts = tf.constant(np.log(mixture.weights), tf.float32) - square / (2 * v)
        return log_z + tf.reduce_logsumexp(parts - n / 2 * tf.math.log(2 * math.pi * v), axis=1)

    return log_density


def narrow(n, components=20, seed=0):
    rng = np.random.default_rng(seed)
    return Mixture(
        rng.standard_normal((components, n)),
        rng.uniform(0.05, 0.2, components) ** 2,
        rng.dirichlet(np.ones(components)),
    )


class TestBridge:
    def test_two_gaussians(self):
        """Z of exp(-x**2 / 2 v): the ratio is the square root of the variances'."""
        rng = np.random.default_rng(0)
        v0, v1, n = 1.0, 2.5, 40_000
        x0, x1 = rng.standard_normal((2, n)) * np.sqrt([[v0], [v1]])
        ratio = lambda x: x**2 / 2 * (1 / v1 - 1 / v0)  # noqa: E731
        r, of0, of1, size = bridge(ratio(x0), ratio(x1))
        error = math.sqrt(np.square(of0).sum() + np.square(of1).sum())
        assert 0 < error < 0.01 and size > n / 2
        assert abs(r - 0.5 * math.log(v0 / v1)) < 4 * error

    def test_its_error_is_the_spread_of_many_runs(self):
        rng = np.random.default_rng(1)
        found, errors = [], []
        for _ in range(300):
            x0, x1 = rng.standard_normal((2, 200)) * np.sqrt([[1.0], [3.0]])
            r, of0, of1, _ = bridge(-(x0**2) / 3, -(x1**2) / 3)
            found.append(r)
            errors.append(math.sqrt(np.square(of0).sum() + np.square(of1).sum()))
        assert np.mean(errors) == pytest.approx(np.std(found), rel=0.15)

    def test_no_overlap_is_seen(self):
        rng = np.random.default_rng(2)
        x0, x1 = rng.standard_normal((2, 1000)) * 0.01 + [[0.0], [5.0]]
        ratio = lambda x: (-(x**2) + (x - 5) ** 2) / 2e-4  # noqa: E731
        assert bridge(ratio(x0), ratio(x1))[3] < 1


@pytest.mark.parametrize("n", [2, 8, 21])
@pytest.mark.parametrize("kind", ["wide", "narrow"])
def test_ladder_finds_log_z_of_exact_mixtures(n, kind):
    mixture = narrow(n) if kind == "narrow" else Mixture(np.eye(3, n), [0.5, 1, 2], [1, 2, 3])
    data = mixture.sample(5_000, seed=1)
    levels = ladder_levels(0.1, 8.0, n)
    found = ladder(exact(mixture), data, levels, samples=5_000)
    assert [f.sigma for f in found] == pytest.approx(list(levels))
    for f in (found[0], found[len(found) // 2], found[-1]):
        assert f.trusted and f.method == "ladder"
        assert abs(f.value - LOG_Z) <= 0.1
        assert f.lower <= LOG_Z <= f.upper
        assert f.upper - f.lower < 0.3
    assert found[0].standard_error > found[-1].standard_error > 0


def test_ladder_with_moves_corrects_a_wrong_density():
    """The data are not those of s: only its own samples find its Z."""
    n = 4
    s_of = Mixture(np.zeros((1, n)), [1.0], [1.0])
    data = Mixture(np.full((1, n), 0.4), [1.6], [1.0]).sample(4_000, seed=1)
    levels = ladder_levels(0.3, 8.0, n)
    plain = ladder(exact(s_of), data, levels, 4_000)[0]
    moved = ladder(exact(s_of), data, levels, 4_000, moves=10)[0]
    assert abs(plain.value - LOG_Z) > 0.2
    assert abs(moved.value - LOG_Z) < 0.1


@pytest.mark.parametrize("moves", [1, 2, 4, 8, 16])
def test_ladder_doubts_samples_that_have_not_reached_the_density(moves):
    """In 16 columns the rows are wider than s, so that few moves leave log Z too low or high."""
    n = 16
    s_of = Mixture(np.zeros((1, n)), [1.0], [1.0])
    data = Mixture(np.full((1, n), 0.3), [1.5], [1.0]).sample(4_000, seed=1)
    levels = ladder_levels(0.3, 8.0, n)
    moved = ladder(exact(s_of), data, levels, 2_000, moves=moves)[0]
    right = moved.lower <= LOG_Z <= moved.upper
    assert right or (not moved.trusted and "need more moves" in moved.doubt)
    if moves == 1:
        assert moved.doubt
    if moves == 16:
        assert moved.trusted and abs(moved.value - LOG_Z) < 0.15


def test_ladder_trusts_samples_that_were_there_from_the_start():
    mixture = Mixture(np.eye(3, 8), [0.5, 1, 2], [1, 2, 3])
    levels = ladder_levels(0.1, 8.0, 8)
    still = ladder(exact(mixture), mixture.sample(5_000, seed=1), levels, 3_000)[0]
    moved = ladder(exact(mixture), mixture.sample(5_000, seed=1), levels, 3_000, moves=4)[0]
    assert moved.trusted and moved.lower <= LOG_Z <= moved.upper
    assert moved.standard_error < 2.5 * still.standard_error


def test_importance_of_a_gaussian_and_of_what_is_none():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((8, 8))
    data = (rng.standard_normal((4_000, 8)) @ mix + 3).astype("f4")  # strongly correlated
    covariance = mix.T @ mix + 0.01 * np.eye(8)
    precision, mean = tf.constant(np.linalg.inv(covariance), "float32"), tf.constant([3.0] * 8)
    log_scale = 0.5 * np.linalg.slogdet(2 * math.pi * covariance)[1]

    def s(x, sigma):
        c = x - mean
        return LOG_Z - log_scale - 0.5 * tf.reduce_sum(c * tf.matmul(c, precision), axis=1)

    found = importance(s, data, 0.1)
    assert found.trusted and found.effective_sample_size > 10_000
    assert abs(found.value - LOG_Z) < 4 * found.standard_error < 0.1
    far = importance(exact(narrow(21)), narrow(21).sample(4_000, 1), 0.1)
    assert abs(far.value - LOG_Z) > 5 and not far.trusted and "NOT" in str(far)


@pytest.mark.parametrize("levels", [ladder_levels(0.2, 8.0, 6), np.array([0.2])])
def test_annealing_brackets_log_z(levels):
    mixture = Mixture(np.eye(3, 6) * 2, [0.3, 0.5, 1.0], [1, 2, 3])
    found = annealed(exact(mixture), mixture.sample(3_000, 1), levels, samples=2_000, moves=5)
    assert found.lower <= LOG_Z <= found.upper and found.upper - found.lower < 1.0
    assert found.method == "annealed" and found.trusted


def test_moves_leave_the_density_as_it_is_and_reach_it():
    mixture = Mixture([[-1.0], [1.5]], [0.3, 0.5], [0.4, 0.6])
    chains = Moves(lambda y, level: exact(mixture)(y, level))
    cdf = lambda x: sum(  # noqa: E731
        w * norm.cdf(x, m, math.sqrt(v + 0.04))
        for w, m, v in zip(mixture.weights, mixture.means[:, 0], mixture.variances, strict=True)
    )
    rng = np.random.default_rng(0)
    right = mixture.sample(4_000, 1) + np.float32(0.2) * rng.standard_normal((4_000, 1), "f4")
    assert kstest(chains(right, 0.2, 1.0, 20, seed=3)[:, 0], cdf).pvalue > 1e-3
    wrong = rng.uniform(-3, 3, (4_000, 1)).astype("f4")
    assert kstest(wrong[:, 0], cdf).pvalue < 1e-6
    moved = chains(wrong, 0.2, 1.0, 60, seed=3)
    assert kstest(moved[:, 0], cdf).pvalue > 1e-3
    np.testing.assert_array_equal(moved, chains(wrong, 0.2, 1.0, 60, seed=3))


def test_annealing_of_gaussians_is_unbiased():
    """exp of the estimates has the mean Z, whatever the way; here from variance 4 to 1."""
    rng = np.random.default_rng(0)
    steps = np.linspace(0.25, 1.0, 11)
    weigh = [
        lambda y, d=b - a: -0.5 * d * (y**2).sum(1) for a, b in zip(steps, steps[1:], strict=False)
    ]
    rows = 2.0 * rng.standard_normal((20_000, 2))
    log_z, least, end = anneal(weigh, [lambda y, seed: y] * 10, rows, 20, rng)
    estimates = np.exp(log_z)  # Z ratio: (1 / 4) ** (2 / 2)
    assert abs(estimates.mean() - 0.25) < 4 * estimates.std() / math.sqrt(20)
    assert 0 < least <= 20_000 and end.shape == rows.shape


def test_reference_gaussian_is_normalised():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 2)) @ np.array([[1.0, 0.5], [0.0, 0.3]])
    gaussian = Gaussian(rows, 0.2)
    grid, cell = metrics.grid(-9, 9, 400)
    assert metrics.grid_log_partition(gaussian.log_density(grid), cell) == pytest.approx(
        0, abs=1e-6
    )
    drawn = gaussian.sample(50_000, rng)
    np.testing.assert_allclose(
        np.cov(drawn, rowvar=False), np.cov(rows, rowvar=False) + 0.04 * np.eye(2), atol=0.03
    )


@pytest.mark.parametrize(
    "changes, trusted",
    [
        ({"value": 2.0}, True),
        ({"effective_sample_size": 150.0}, False),
        ({"value": math.nan}, False),
        ({"standard_error": math.nan}, False),
        ({"standard_error": 2.0}, False),
    ],
)
def test_trust(changes, trusted):
    found = dataclasses.replace(LogPartition(1.0, 0.1, 0.8, 1.2, 900.0, "ladder", 0.1), **changes)
    assert found.trusted is trusted
    assert ("NOT to be trusted" in str(found)) is not trusted


@pytest.fixture(scope="module")
def trained():
    """A density of the lopsided mixture in the plane at all levels, and fresh data."""
    keras.utils.set_random_seed(0)
    x = three().sample(50_000, seed=1) * 3 + [10, -5]  # in other units than the network's
    normalization = keras.layers.Normalization()
    dde = tfdde.DDE(
        networks.residual_mlp(2, 64, 2, activation="silu", levels=True, experts=2),
        tfdde.LogUniform(0.1, 6.0),
        normalization=normalization,
        antithetic=True,
        seed=1,
    )
    dde.adapt(x)
    schedule = keras.optimizers.schedules.CosineDecay(5e-3, 1500)
    dde.compile(keras.optimizers.Adam(schedule, use_ema=True), jit_compile=True)
    dde.fit(x, batch_size=500, epochs=15, verbose=0)
    return dde, three().sample(5_000, seed=2) * 3 + [10, -5]


def exact_outside(dde, x, sigma):
    """The blurred density in the data's units: noise of standardised scale is stretched back."""
    scale = np.sqrt(dde.normalization.variance.numpy()).ravel()
    mixture = three()
    v = 9 * mixture.variances[:, None] + (scale * sigma) ** 2
    centre = 3 * mixture.means + [10, -5]
    parts = -0.5 * ((x[:, None] - centre) ** 2 / v + np.log(2 * math.pi * v)).sum(-1)
    return np.log(np.exp(parts) @ mixture.weights)


@pytest.mark.parametrize("method", CHOICES)
@pytest.mark.parametrize("sigma", [None, 0.5])
def test_log_density_is_normalised_in_the_datas_units(trained, method, sigma):
    dde, data = trained
    samples = 2_000 if method == "annealed" else None
    found = dde.log_partition(data, method, sigma=sigma, samples=samples, seed=1)
    assert found.trusted and found.sigma == (sigma or 0.1)
    if sigma is None:
        assert found is dde.partition
    grid, cell = metrics.grid(-15, 25, 400)
    values = dde.log_density(grid, sigma).numpy()
    mass = metrics.grid_log_partition(values, cell)
    assert abs(mass) < 4 * found.standard_error + 0.01
    level = sigma or 0.1
    grid_log_p = exact_outside(dde, grid, level)
    assert metrics.grid_kl(grid_log_p, values, cell) < 0.01
    x = data[:1000]
    assert np.abs(dde.log_density(x, sigma) - exact_outside(dde, x, level)).mean() < 0.2


def test_methods_agree_on_a_trained_density(trained):
    dde, data = trained
    found = [dde.log_partition(data, method, samples=4_000) for method in CHOICES]
    assert max(f.lower for f in found) <= min(f.upper for f in found)
    values = [f.value for f in found]
    assert max(values) - min(values) < 0.3


def test_levels_share_one_constant(trained):
    """Time-score matching: s(x, sigma) is normalised up to one constant for all sigma."""
    dde, data = trained
    rows = dde.inside(tf.constant(data, tf.float32)).numpy()
    found = [f.value for f in ladder(dde.at, rows, ladder_levels(0.1, 6.0, 2), 5_000, moves=5)]
    assert max(found) - min(found) < 0.1


def test_score_is_the_gradient_in_the_datas_units(trained):
    dde, data = trained
    x, h = data[:50].astype("f4"), 0.05
    for sigma in (None, 1.0):
        score = dde.score(x, sigma).numpy()
        for d in range(2):
            step = np.eye(2, dtype="f4")[d] * h
            up, down = (dde.log_density(x + e, sigma, normalized=False) for e in (step, -step))
            np.testing.assert_allclose(score[:, d], (up - down) / (2 * h), atol=2e-2)


def test_saved_and_loaded_with_its_log_z(trained, tmp_path):
    dde, data = trained
    found = dde.log_partition(data, samples=1_000)
    dde.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    assert again.partition == found and again.noise.levels == (0.1, 6.0)
    np.testing.assert_array_equal(again.log_density(data), dde.log_density(data))
    np.testing.assert_allclose(again.score(data, 0.7), dde.score(data, 0.7), atol=1e-6)
    assert again.evaluate(data, verbose=0) == dde.evaluate(data, verbose=0)


def test_unnormalised_values_are_refused_or_labelled(trained):
    dde, data = trained
    dde.partition = None
    found = dde.log_partition(data, samples=1_000)
    x = data[:3]
    np.testing.assert_allclose(
        dde.log_density(x, normalized=False) - dde.log_density(x), [found.value] * 3, atol=1e-4
    )
    with pytest.warns(tfdde.UnnormalizedWarning, match="unnormalised: no trusted log Z"):
        dde.log_density(x, 0.5)  # log Z belongs to another level
    with pytest.raises(ValueError, match="no trusted log Z at sigma = 0.5"):
        dde.log_density(x, 0.5, normalized=True)
    dde.partition = LogPartition(1.0, 0.1, 0.8, 1.2, 5.0, "importance", 0.1)
    assert not dde.normalized
    with pytest.raises(ValueError, match="no trusted log Z"):
        dde.log_density(x, normalized=True)


def test_anomaly_scores_and_threshold(trained):
    dde, data = trained
    dde.log_partition(data, samples=1_000)
    inliers, outlier = dde.anomaly_score(data).numpy(), dde.anomaly_score([[40.0, 40.0]]).numpy()
    np.testing.assert_allclose(inliers, -dde.log_density(data).numpy())
    assert outlier[0] > inliers.max()
    threshold = dde.anomaly_threshold(data, contamination=0.05)
    assert (inliers > threshold).mean() == pytest.approx(0.05, abs=0.001)
    for share in (0, 0.6, math.nan):
        with pytest.raises(ValueError, match=r"`contamination` must be in \(0, 0.5\]"):
            dde.anomaly_threshold(data, share)


def test_training_discards_log_z():
    dde = tfdde.DDE(networks.residual_mlp(2, 8, 1), tfdde.Constant(0.5), tfdde.GaussianBase(2))
    dde.compile()
    x = np.random.default_rng(0).standard_normal((400, 2)).astype("f4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dde.log_partition(x)
    assert dde.partition is not None
    dde.fit(x, epochs=1, verbose=0)
    assert dde.partition is None


def test_an_estimate_that_cannot_be_trusted_says_so():
    x = datasets.sample_toy("checkerboard", 2_000, seed=0)
    dde = tfdde.DDE(networks.residual_mlp(2, 8, 1), tfdde.Constant(0.2))  # no base: s -> inf
    with pytest.warns(UserWarning, match="can't be trusted"):
        dde.log_partition(x * 50, samples=100)
    assert not dde.normalized


def bare(noise=None):
    noise = noise or tfdde.Constant(0.5)
    levels = isinstance(noise, tfdde.LogUniform)
    return tfdde.DDE(networks.residual_mlp(2, 8, 1, levels=levels), noise, tfdde.GaussianBase(2))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"data": np.zeros((5, 3))}, "`data` must have shape"),
        ({"data": [[0.0, np.nan]]}, "`data` must be finite"),
        ({"data": np.zeros((1, 2))}, "`data` must have at least 2 rows"),
        ({"method": "bridge"}, '`method` must be "ladder", "importance" or "annealed", got'),
        ({"method": "ladder"}, 'method` "ladder" needs a density of all noise levels'),
        ({"sigma": 0.4}, "`sigma` must be 0.5, where this density was trained"),
        ({"sigma": -1.0}, "`sigma` must be a finite number > 0"),
        ({"samples": 10}, "`samples` must be an integer >= 100"),
        ({"moves": -1}, "`moves` must be an integer >= 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    data = np.random.default_rng(0).standard_normal((10, 2))
    with pytest.raises(ValueError, match=message):
        bare().log_partition(**{"data": data, **arguments})


def test_levels_outside_the_range_are_refused():
    dde = bare(tfdde.LogUniform(0.1, 2.0))
    for sigma in (0.05, 3.0):
        with pytest.raises(ValueError, match=r"`sigma` must be in \[0.1, 2.0\]"):
            dde.log_density(np.zeros((1, 2)), sigma)
