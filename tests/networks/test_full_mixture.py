"""The mixture of Gaussians with a covariance each that can be the base of a density."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from new_base import adapted_and_loaded, exported
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

import tfdde
from tfdde import networks
from tfdde.models.dde import copy_of
from tfdde.networks import full_mixture
from tfdde.networks.blurred_rows import blur

SIGMA = 0.2


class Exact:
    """A mixture of three turned Gaussians, in float64."""

    def __init__(self, n):
        rng = np.random.default_rng(n)
        self.weights = np.array([0.5, 0.3, 0.2])
        self.means = rng.normal(0, 2.5, (3, n))
        turned = [np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(3)]
        self.covariances = [(q * rng.uniform(0.05, 1.0, n) ** 2) @ q.T for q in turned]

    def sample(self, count, seed):
        rng = np.random.default_rng(seed)
        picked = rng.choice(3, count, p=self.weights)
        drawn = np.stack(
            [
                rng.multivariate_normal(m, c, count)
                for m, c in zip(self.means, self.covariances, strict=True)
            ]
        )
        return drawn[picked, np.arange(count)].astype(np.float32)

    def log_density(self, x, sigma):
        return log_density(x, self.weights, self.means, self.covariances, sigma)


def log_density(x, weights, means, covariances, sigma):
    """By SciPy, component by component, in float64."""
    noise = sigma**2 * np.eye(len(means[0]))
    parts = [
        np.log(w) + np.atleast_1d(multivariate_normal.logpdf(np.float64(x), m, c + noise))
        for w, m, c in zip(weights, means, covariances, strict=True)
    ]
    return logsumexp(parts, axis=0)


def moments(mixture):
    """Means and covariances of a fitted mixture, in the coordinates of the rows."""
    axes = np.broadcast_to(mixture.axes, (len(mixture.weights), *mixture.axes.shape[-2:]))
    means = mixture.centre + np.einsum("kij,kj->ki", axes, mixture.means)
    covariances = [(a * v) @ a.T for a, v in zip(axes, mixture.variances, strict=True)]
    return means, covariances


def fitted(x, sigma, most, weights=None):
    """The mixture of rows with noise, or None."""
    return full_mixture.fit_if_it_suffices(blur(x, sigma, weights), most)[0]


def noisy(x, sigma, seed):
    return (x + sigma * np.random.default_rng(seed).standard_normal(x.shape)).astype(np.float32)


@pytest.mark.parametrize("n", [2, 8])
def test_it_finds_an_exact_mixture(n):
    exact = Exact(n)
    mixture = fitted(exact.sample(10_000, 1), SIGMA, most=16)
    y = noisy(exact.sample(5_000, 2), SIGMA, 3)
    gap = np.mean(exact.log_density(y, SIGMA) - mixture.log_density(y, SIGMA))
    assert 0 <= gap < 0.05  # of one Gaussian: 1.0 and 4.7
    assert len(mixture.weights) == 4  # numbers double
    # At another level, which it was not fitted for.
    y = noisy(exact.sample(5_000, 2), 1.0, 3)
    gap = np.mean(exact.log_density(y, 1.0) - mixture.log_density(y, 1.0))
    assert -0.005 < gap < 0.03


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_em_algorithm_is_that_of_scikit_learn(monkeypatch, diagonal):
    """Step by step, in float64; their covariances have 1e-6 more in the diagonal."""
    monkeypatch.setattr(full_mixture, "ENOUGH", -np.inf)  # all steps
    rows = noisy(Exact(3).sample(4_000, 1), SIGMA, 2).astype(np.float64)
    labels = np.argsort(np.argsort(rows[:, 0])) // 1_000  # quarters by the first column
    shares = np.eye(4)[labels]
    mixture, value = full_mixture.fit(rows, np.ones(len(rows)), shares, 0.0, 20, diagonal)
    widths = [np.cov(rows[labels == k].T, bias=True) for k in range(4)]
    theirs = GaussianMixture(
        4,
        covariance_type="diag" if diagonal else "full",
        max_iter=19,
        tol=0,
        weights_init=shares.mean(axis=0),
        means_init=[rows[labels == k].mean(axis=0) for k in range(4)],
        precisions_init=[1 / np.diag(c) if diagonal else np.linalg.inv(c) for c in widths],
    )
    with pytest.warns(UserWarning, match="did not converge"):
        theirs.fit(rows)
    assert value == pytest.approx(theirs.score(rows), abs=1e-4)
    means, covariances = moments(mixture)
    np.testing.assert_allclose(means, theirs.means_, atol=1e-3)
    expected = [np.diag(c) if diagonal else c for c in theirs.covariances_]
    np.testing.assert_allclose(covariances, expected, atol=1e-3)


def test_one_gaussian_stays_one():
    x = np.random.default_rng(0).multivariate_normal([1, 2], [[1, 0.9], [0.9, 1]], 4_000)
    assert fitted(x, SIGMA, most=32) is None
    base = tfdde.GaussianBase(2, most_components=32)
    base.adapt(x, sigma=SIGMA)
    plain = tfdde.GaussianBase(2)
    plain.adapt(x)
    assert base.components == 1 and len(base.weights) == 3
    y, sigma = tf.constant(x[:50].astype("f4")), tf.constant(SIGMA)
    np.testing.assert_array_equal(base(y, sigma), plain(y, sigma))


def assert_base_is_the_mixture(base, mixture, x, sigma):
    y = noisy(x[:200], sigma, 2)
    expected = log_density(y, mixture.weights, *moments(mixture), sigma)
    one = base(tf.constant(y), tf.constant(sigma))
    each = base(tf.constant(y), tf.fill((len(y),), sigma))
    np.testing.assert_allclose(one, expected, rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(each, expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 8.0])
def test_the_base_is_the_mixture_with_noise(sigma):
    x = Exact(3).sample(4_000, 1) + np.float32(100.0)
    base = tfdde.GaussianBase(3, most_components=8)
    base.adapt(x, sigma=SIGMA)
    assert base.components == 4 and not base.heavy_tailed
    mixture = fitted(x, SIGMA, most=8)
    assert_base_is_the_mixture(base, mixture, x, sigma)


def test_no_component_is_narrower_than_the_noise():
    """Rows that repeat a few points: without noise the likelihood has no bound."""
    points = np.random.default_rng(0).normal(size=(6, 2)) * 3
    x = points[np.random.default_rng(1).integers(6, size=4_000)]
    mixture = fitted(x, SIGMA, most=16)
    assert (mixture.variances >= 0).all()
    covariances = [np.zeros((2, 2))] * 6
    shares = np.unique(x, axis=0, return_counts=True)[1] / len(x)
    order = np.unique(x, axis=0)
    y = noisy(x, SIGMA, 3)
    truth = log_density(y, shares, order, covariances, SIGMA)
    assert np.mean(truth - mixture.log_density(y, SIGMA)) < 0.02
    without = fitted(x, 0.0, most=16)
    assert np.isfinite(without.log_density(x)).all()
    assert without.variances.min() >= 0.99 * full_mixture.LEAST_VARIANCE * x.var(axis=0).mean()


def test_held_out_rows_are_not_seen():
    """Their log-densities are those of a mixture of the other rows."""
    x = Exact(2).sample(2_000, 1)
    blurred = blur(x, SIGMA)
    values = full_mixture.fit_if_it_suffices(blurred, most=8)[1]
    truth = Exact(2).log_density(blurred.held_out[0], SIGMA)
    assert len(values) == 400 and 0 < np.mean(truth - values) < 0.05
    one, values = full_mixture.fit_if_it_suffices(blurred, most=1)
    rest = blurred.training[0].astype(float)
    normal = multivariate_normal(rest.mean(axis=0), np.cov(rest.T, bias=True))
    assert one is None
    np.testing.assert_allclose(values, normal.logpdf(blurred.held_out[0]), atol=1e-3)


def test_weights_count_rows():
    x = np.concatenate([noisy(np.full((2_000, 2), m), 0.5, m + 9) for m in (-3, 3)])
    weights = np.repeat([1.0, 4.0], 2_000)
    mixture = fitted(x, SIGMA, 8, weights)
    right = moments(mixture)[0][:, 0] > 0
    assert mixture.weights[right].sum() == pytest.approx(0.8, abs=0.01)
    none = np.where(x[:, 0] < 0, 0.0, 1.0)
    assert fitted(x, SIGMA, 8, none) is None  # one Gaussian is left


def test_few_rows_choose_the_likeliest_mixture():
    """None, or one that is likelier for fresh rows than one Gaussian, though not the truth."""
    exact, fresh = Exact(2), noisy(Exact(2).sample(5_000, 5), SIGMA, 6)
    assert len(fitted(exact.sample(1_000, 1), SIGMA, 32).weights) == 4
    mixtures = []
    for seed in range(5):
        x = exact.sample(150, seed)
        mixture = fitted(x, SIGMA, most=32)
        if mixture is None:  # 30 rows are held out, which may not tell
            continue
        mixtures.append(mixture)
        assert len(mixture.weights) <= 8  # 120 rows train, and each component needs 16
        covariance = np.cov(x.T) + SIGMA**2 * np.eye(2)
        one = multivariate_normal(x.mean(axis=0), covariance).logpdf(fresh).mean()
        found = mixture.log_density(fresh, SIGMA).mean()
        assert one + 0.3 < found < exact.log_density(fresh, SIGMA).mean()
    assert len(mixtures) >= 3
    for few in (99, 20, 2):  # too few are held out
        assert fitted(exact.sample(few, 1), SIGMA, most=32) is None


def independent(n=20, rows=900):
    """Rows of four groups, whose columns are independent in each."""
    rng = np.random.default_rng(0)
    means, widths = rng.normal(0, 1.5, (4, n)), rng.uniform(0.2, 1.5, (4, n))
    group = rng.integers(4, size=rows)
    return (means[group] + widths[group] * rng.standard_normal((rows, n))).astype("f4")


def test_few_rows_may_have_independent_columns_in_each_component():
    """A covariance of 20 columns has 210 numbers: too many for so few rows."""
    x = independent()
    mixture = fitted(x, SIGMA, most=32)
    assert mixture.axes.shape == (20, 20) and len(mixture.weights) in (4, 8)
    base = tfdde.GaussianBase(20, most_components=32)
    base.adapt(x, sigma=SIGMA)
    assert base.shared_axes and not base.heavy_tailed
    for sigma in (0.2, 1.0, 8.0):
        assert_base_is_the_mixture(base, mixture, x, sigma)
    copied = copy_of(base)
    assert copied.kind == base.kind
    np.testing.assert_array_equal(
        copied(tf.constant(x), tf.constant(0.5)), base(tf.constant(x), tf.constant(0.5))
    )


def test_rows_that_no_few_gaussians_suffice_for_have_one():
    """A thin ring: each doubling of the components makes it likelier."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 5_000)
    x = 20 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert fitted(x, SIGMA, most=16) is None


def test_a_large_gain_takes_more_components():
    """A hundred narrow ones in twelve columns: 32 are not enough, but far better than one."""
    rng, n, width = np.random.default_rng(0), 12, 0.05
    centres = rng.normal(size=(100, n))
    rows = centres[rng.integers(100, size=20_000)] + width * rng.standard_normal((20_000, n))
    y = centres[rng.integers(100, size=2_000)] + width * rng.standard_normal((2_000, n))
    y = noisy(y, width, 1)
    truth = log_density(y, np.full(100, 0.01), centres, [width**2 * np.eye(n)] * 100, width)
    gaps = {}
    for most in (1, 32, 128):
        base = tfdde.GaussianBase(n, most_components=most)
        base.adapt(rows, sigma=width)
        assert base.components == most
        gaps[most] = np.mean(truth - base(tf.constant(y), tf.constant(width)))
    assert gaps[1] - gaps[32] > full_mixture.MUCH
    assert gaps[128] < min(1.0, gaps[32] / 4)


def test_too_few_rows_are_not_taken_for_a_sufficient_number():
    """A curve in twenty columns: 16 components lose by their number, not for want of structure."""
    rng = np.random.default_rng(0)
    t = rng.uniform(0, 4 * np.pi, 5_200)
    curve = np.stack([np.cos(t), np.sin(t), t / 4, np.cos(2 * t)], axis=1)
    x = np.concatenate([curve, np.zeros((len(t), 16))], axis=1)
    x += 0.25 * rng.normal(size=x.shape)
    assert fitted(x, 0.1, most=128) is None


def test_halves_cut_each_component_across_its_widest_axis():
    rows = noisy(Exact(3).sample(2_000, 1), SIGMA, 2).astype(np.float64)
    shares = np.eye(3)[np.argsort(np.argsort(rows[:, 0])) // 667]
    mixture = full_mixture.fit(rows, np.ones(2_000), shares, 0.0, 3)[0]
    owner = mixture.shares(rows).argmax(axis=1)
    halves = mixture.halves(rows)
    np.testing.assert_array_equal(halves.sum(axis=1), 1.0)
    np.testing.assert_array_equal(halves[:, :3] + halves[:, 3:], np.eye(3)[owner])
    means, covariances = moments(mixture)
    for k in range(3):
        widest = np.linalg.eigh(covariances[k])[1][:, -1]
        ahead = (rows[owner == k] - means[k]) @ widest > 0
        upper = halves[owner == k, 3 + k] > 0
        assert np.all(upper == ahead) or np.all(upper != ahead)


def test_shares_that_are_left_out_change_little(monkeypatch):
    """Of five clusters, each of which hardly shares most rows."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 8, (5, 4))[rng.integers(5, size=2_000)] + rng.standard_normal((2_000, 4))
    shares = np.eye(5)[np.argsort(np.argsort(rows[:, 0])) // 400]  # which cut the clusters
    monkeypatch.setattr(full_mixture, "ENOUGH", -np.inf)
    some, value = full_mixture.fit(rows, np.ones(2_000), shares, 0.0, 20)
    assert (some.shares(rows) < np.exp(full_mixture.SHUT)).mean() > 0.2
    monkeypatch.setattr(full_mixture, "SHUT", -np.inf)
    every, expected = full_mixture.fit(rows, np.ones(2_000), shares, 0.0, 20)
    assert value == pytest.approx(expected, abs=2e-3)
    difference = some.log_density(rows) - every.log_density(rows)
    assert np.sqrt(np.square(difference).mean()) < 0.02


def test_heavy_tails_come_first():
    base = tfdde.GaussianBase(2, most_components=8)
    base.adapt(np.random.default_rng(0).standard_t(2, (1_000, 2)))
    assert base.heavy_tailed


@pytest.mark.parametrize("name", ["most_components", "components"])
def test_bad_numbers_of_components(name):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1, got 0"):
        tfdde.GaussianBase(2, **{name: 0})
    with pytest.raises(ValueError, match="`sigma` must be a finite number > 0, got -0.1"):
        tfdde.GaussianBase(2).adapt(np.eye(2), sigma=-0.1)
    with pytest.raises(
        ValueError, match="`base` must be 'gaussian', 'mixture', 'tree' or None, got 'mixed'"
    ):
        tfdde.recipes.table_density(np.zeros((9, 2)), tfdde.LogUniform(0.2, 8.0), base="mixed")


def density(noise, n=2, weight=0.01):
    levels = isinstance(noise, tfdde.LogUniform)
    network = networks.residual_mlp(n, 8, 1, levels=levels, experts=2)
    network.set_weights([w + weight for w in network.get_weights()])
    base = tfdde.GaussianBase(n, most_components=8)
    return tfdde.DDE(network, noise, base, seed=0)


def test_a_base_of_independent_columns_is_followed_and_loaded(tmp_path):
    dde, fresh = (density(tfdde.LogUniform(SIGMA, 8.0), 20) for _ in range(2))
    dde.compile()
    dde.fit(independent()[:64], verbose=0)
    for other in adapted_and_loaded(dde, fresh, independent(), SIGMA, tmp_path):
        assert other.base.kind == dde.base.kind and other.base.shared_axes


def test_what_was_traced_before_follows_the_base(tmp_path):
    x, light = Exact(2).sample(2_000, 1), np.random.default_rng(0).normal(size=(2_000, 2))
    dde, fresh = (density(tfdde.LogUniform(SIGMA, 8.0)) for _ in range(2))
    dde.compile()
    dde.fit(x[:64], verbose=0)
    loaded = adapted_and_loaded(dde, fresh, x, SIGMA, tmp_path)
    assert dde.base.components == 4
    for other in loaded:
        assert other.base.components == 4 and other.base.most_components == 8
    copied = copy_of(dde.base)
    np.testing.assert_array_equal(
        copied(tf.constant(x), tf.constant(0.5)), dde.base(tf.constant(x), tf.constant(0.5))
    )
    dde.adapt(np.random.default_rng(0).standard_t(2, (1_000, 2)))  # as many, but of another kind
    assert dde.base.heavy_tailed and dde.base.components == 8
    dde.adapt(light)
    assert dde.base.components == 1 and len(dde.base.weights) == 3
    expected = dde.at(tf.constant(x[:9]), tf.constant(SIGMA))
    np.testing.assert_allclose(dde.log_density(x[:9], normalized=False), expected, rtol=1e-5)


def test_the_score_is_that_of_finite_differences():
    x = Exact(2).sample(2_000, 1)
    dde = density(tfdde.LogUniform(SIGMA, 8.0))
    dde.adapt(x)
    mixture = fitted(x, SIGMA, most=8)
    network_only = lambda y: dde.correction(tf.constant(y), tf.constant(SIGMA)).numpy()  # noqa: E731
    y, h = x[:20], 1e-2
    for column in range(2):
        step = np.float32(h * np.eye(2)[column])
        up, down = (
            mixture.log_density(np.float64(y + s), SIGMA) + network_only(y + s)
            for s in (step, -step)
        )
        slope = (up - down) / (2 * h)
        np.testing.assert_allclose(dde.score(y)[:, column], slope, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("n", [2, 8, 21])
def test_log_z_of_an_exact_mixture_is_zero(n):
    x = Exact(n).sample(6_000, 1)
    network = networks.residual_mlp(n, 8, 1, levels=True)
    network.set_weights([0 * w for w in network.get_weights()])  # s is the base
    dde = tfdde.DDE(
        network, tfdde.LogUniform(SIGMA, 12.0), tfdde.GaussianBase(n, most_components=8)
    )
    dde.adapt(x[:5_000])
    assert dde.base.components > 1
    found = dde.log_partition(x[5_000:], samples=2_000, seed=1)
    assert found.trusted
    assert found.standard_error < 0.2
    assert abs(found.value) < 3 * found.standard_error + 0.01


@pytest.mark.parametrize("n", [2, 20])
def test_all_artifacts_have_the_mixture_and_its_gradient(tmp_path, n):
    x = Exact(2).sample(2_000, 1) if n == 2 else independent()
    dde = density(tfdde.LogUniform(SIGMA, 8.0), n)
    dde.adapt(x)
    assert dde.base.shared_axes == (n == 20)
    dde.partition = tfdde.LogPartition.around(0.5, 0.01, 900.0, "ladder", SIGMA)
    folder, errors = exported(dde, tmp_path)
    assert errors.pop("log_density_nats") < 1e-5 * n
    assert max(errors.values()) < 1e-5
    session = onnxruntime.InferenceSession(folder / "log_density/1/model.onnx")
    (values,) = session.run(None, {"x": x[:9]})
    mixture = fitted(x, SIGMA, most=8)
    own = mixture.log_density(np.float64(x[:9]), SIGMA) - 0.5
    own += dde.correction(tf.constant(x[:9]), tf.constant(SIGMA))
    np.testing.assert_allclose(values, own, atol=1e-3)
