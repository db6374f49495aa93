"""The mixture that replaces the Gaussian base for heavy-tailed rows."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from new_base import adapted_and_loaded
from scipy import stats

import tfdde
from tfdde import networks, serving
from tfdde.networks import heavy_tails
from tfdde.networks.layers import log_squash, log_sum_exp

LIGHT = {
    "normal": lambda g, n: g.normal(size=n),
    "exponential": lambda g, n: g.exponential(size=n),
    "Laplace": lambda g, n: g.laplace(size=n),
    "uniform": lambda g, n: g.random(n),
    "two far modes": lambda g, n: 50 * g.choice([-1, 1], n) + g.normal(size=n),
    "constant": lambda g, n: np.full(n, 3.0),
}


def t_rows(seed=0, rows=5_000):
    """Correlated rows of Student t with 2 degrees of freedom."""
    g = np.random.default_rng(seed)
    normal = g.multivariate_normal([1.0, 0.0], [[1, 0.8], [0.8, 1]], rows)
    return (normal / np.sqrt(g.chisquare(2, (rows, 1)) / 2)).astype(np.float32)


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("rows", [200, 5_000])
def test_light_tails_keep_the_gaussian(name, rows):
    for seed in range(5):
        x = LIGHT[name](np.random.default_rng(seed), rows)[:, None]
        assert heavy_tails.fit_if_heavy_tailed(x) is None


@pytest.mark.parametrize(
    "law",
    [stats.t(1), stats.t(2), stats.lognorm(1.5), stats.pareto(1.5)],
    ids=["t1", "t2", "ln", "pareto"],
)
def test_the_mixture_is_nearly_as_likely_as_the_truth(law):
    x, fresh = (law.rvs((n, 1), random_state=seed) for n, seed in ((5_000, 0), (20_000, 1)))
    mixture = heavy_tails.fit_if_heavy_tailed(x)
    assert mixture.weights.sum() == pytest.approx(1)
    gap = law.logpdf(fresh[:, 0]) - mixture.log_density(fresh)
    assert gap.mean() < 0.1


def test_one_far_row_among_many_is_kept():
    x = np.random.default_rng(0).normal(size=(30_000, 1))
    x[7] = 1e4
    mixture = heavy_tails.fit_if_heavy_tailed(x)
    assert mixture.log_density(np.array([[1e4]])) > -30  # by the Gaussian's tail: -1,500
    assert mixture.log_density(x).mean() > stats.norm.logpdf(x).mean() - 0.02
    assert (mixture.reach < 5).all()  # beyond it, one row is too few to learn from


def test_the_base_is_the_mixture_with_noise():
    x = t_rows()
    base = tfdde.GaussianBase(2)
    base.adapt(x)
    assert base.heavy_tailed
    mixture = heavy_tails.fit_if_heavy_tailed(x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    noise = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    share = np.outer(weights, weights).ravel() / (2 * np.pi)
    for sigma in (0.2, 1.0):
        y = x[:20] + 0.1
        # The mean of the clean density over the noise, by Gauss-Hermite quadrature.
        clean = mixture.log_density((y[:, None] + sigma * noise).reshape(-1, 2)).reshape(20, -1)
        expected = np.log(np.exp(clean) @ share)
        one = base(tf.constant(y), tf.constant(sigma))
        each = base(tf.constant(y), tf.fill((20,), sigma))
        np.testing.assert_allclose(one, expected, atol=2e-3)
        np.testing.assert_allclose(one, each, atol=1e-5)


def test_the_network_sees_no_differences_beyond_the_rows():
    x = t_rows()
    base = tfdde.GaussianBase(2)
    base.adapt(x)
    for sigma in (tf.constant(0.2), tf.fill((4,), 0.2)):
        far = tf.constant([[1e4, 1e4], [1e6, 1e6], [-1e4, -1e4], [-1e6, -1e6]])
        u = base.scaled(far, sigma).numpy()
        np.testing.assert_allclose(u[0], u[1], atol=1e-3)
        np.testing.assert_allclose(u[2], u[3], atol=1e-3)
    u = base.scaled(tf.constant(x), tf.constant(0.2)).numpy()
    assert np.abs(u).max() < 6 and 0.5 < u.std() < 2
    order = np.argsort(x[:, 0])
    assert (np.diff(u[order, 0]) >= 0).all()


def test_log_squash_and_log_sum_exp_have_the_right_derivatives():
    x = np.linspace(-30, 30, 101)[:, None]
    top = np.full_like(x, np.arcsinh(5.0))

    def value(x, top):
        u = np.arcsinh(np.abs(x))
        return np.sign(x) * (np.minimum(u, top) + np.tanh(np.maximum(u - top, 0)))

    points, tops, h = tf.constant(x), tf.constant(top), 1e-5
    with tf.GradientTape(persistent=True) as outer:
        outer.watch([points, tops])
        with tf.GradientTape() as inner:
            inner.watch([points, tops])
            y = log_squash(points, tops)
        of_x, of_top = inner.gradient(y, [points, tops])
    np.testing.assert_allclose(y, value(x, top), atol=1e-12)
    slope = lambda x: (value(x + h, top) - value(x - h, top)) / (2 * h)  # noqa: E731
    np.testing.assert_allclose(of_x, slope(x), atol=1e-8)
    np.testing.assert_allclose(of_top, (value(x, top + h) - value(x, top - h)) / (2 * h), atol=1e-8)
    second = (slope(x + 1e-4) - slope(x - 1e-4)) / 2e-4
    np.testing.assert_allclose(outer.gradient(of_x, points), second, atol=1e-5)

    logits = tf.constant([[0.0, 1.0, -800.0], [900.0, 900.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = log_sum_exp(logits)
    np.testing.assert_allclose(total, tf.reduce_logsumexp(logits, 1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(total, logits), tf.nn.softmax(logits), atol=1e-6)


def density(noise):
    levels = isinstance(noise, tfdde.LogUniform)
    network = networks.residual_mlp(2, 8, 1, levels=levels, experts=2)
    return tfdde.DDE(network, noise, tfdde.GaussianBase(2), seed=0)


def test_what_was_traced_before_follows_the_base(tmp_path):
    """adapt, load_weights and .keras files turn the Gaussian into the mixture, and back."""
    x, light = t_rows(), np.random.default_rng(0).normal(size=(500, 2))
    dde, fresh = (density(tfdde.LogUniform(0.2, 4.0)) for _ in range(2))
    dde.compile()
    dde.fit(x[:64], verbose=0)
    dde.network.set_weights([w + 0.01 for w in dde.network.get_weights()])
    adapted_and_loaded(dde, fresh, x, 0.2, tmp_path)
    dde.adapt(light)
    assert not dde.base.heavy_tailed and len(dde.base.weights) == 3
    expected = dde.at(tf.constant(x[:9]), tf.constant(0.2))
    np.testing.assert_allclose(dde.log_density(x[:9], normalized=False), expected, rtol=1e-5)


def test_tflite_has_the_mixture_and_its_gradient(tmp_path):
    dde = density(tfdde.LogUniform(0.2, 4.0))
    dde.adapt(t_rows())
    _, errors = serving.export_tflite(tmp_path / "d.tflite", dde)
    assert max(errors["log_density"], errors["score"]) < 1e-5


def test_one_level_sees_the_scaled_rows_and_is_saved(tmp_path):
    x = t_rows()
    dde = density(tfdde.Constant(0.2))
    dde.adapt(x)
    sigma = tf.constant(0.2)
    expected = dde.network(dde.base.scaled(tf.constant(x[:9]), sigma))[:, 0]
    expected += dde.base(tf.constant(x[:9]), sigma)
    dde.save(tmp_path / "d.keras")
    for each in (dde, keras.models.load_model(tmp_path / "d.keras")):
        values = each.log_density(x[:9], normalized=False)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
