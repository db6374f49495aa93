import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal, norm

import tfdde
from tfdde import networks
from tfdde.networks import initial_weights

BUILDERS = [networks.residual_mlp, networks.dense_block]


def numpy_softplus(x):
    return np.logaddexp(0.0, x)


def weights_of(model):
    return [w.numpy().astype(float) for w in model.weights]


def test_residual_mlp_against_numpy():
    model = networks.residual_mlp(3, width=5, depth=4)
    x = np.random.default_rng(0).standard_normal((6, 3))
    (w, b), *blocks, (out,) = [layer.get_weights() for layer in model.layers if layer.get_weights()]
    h = x @ w + b
    for v, c in blocks:
        h = h + numpy_softplus(h @ v + c)
    assert len(blocks) == 4
    np.testing.assert_allclose(model(x.astype("float32")), h @ out, rtol=2e-4, atol=1e-5)


def test_dense_block_against_numpy():
    model = networks.dense_block((2, 2, 1), width=5, depth=3, output_shape=(2, 3))
    x = np.random.default_rng(0).standard_normal((6, 2, 2, 1))
    *hidden, (out, bias) = [layer.get_weights() for layer in model.layers if layer.get_weights()]
    h = x.reshape(6, 4)
    for v, c in hidden:
        h = np.concatenate([h, numpy_softplus(h @ v + c)], axis=1)
    expected = (h @ out + bias).reshape(6, 2, 3)
    np.testing.assert_allclose(model(x.astype("float32")), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", BUILDERS)
def test_paper_sizes(build):
    assert networks.residual_mlp(2).output_shape == (None, 1)
    dense = networks.dense_block((28, 28, 1), depth=15)
    sizes = [784 + 256 * i for i in range(15)]
    assert dense.count_params() == sum((n + 1) * 256 for n in sizes) + 784 + 256 * 15
    assert build(4, output_shape=3).output_shape == (None, 3)
    assert build(2).layers[-1].use_bias is False  # the score loss can't see it


@pytest.mark.parametrize("build", BUILDERS)
def test_layers_start_with_weights_of_their_own(build):
    kernels = [w.numpy() for w in build(4, width=4, depth=3).weights if w.name == "kernel"]
    corners = [k[:4, :1] for k in kernels[:4]]
    for i, a in enumerate(corners):
        for b in corners[:i]:
            assert not np.allclose(a, b)


@pytest.mark.parametrize("build", BUILDERS)
def test_save_and_load(build, tmp_path):
    model = build(3, width=6, depth=3, output_shape=(2, 2), output_activation="sigmoid")
    model.save(tmp_path / "net.keras")
    x = np.random.default_rng(0).standard_normal((5, 3)).astype("float32")
    again = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(again(x), model(x))


def test_softplus_with_both_derivatives_against_numpy():
    x = np.concatenate([np.linspace(-200, 200, 801), [0.0, 1e-9, -1e-9]])
    t = tf.constant(x)
    with tf.GradientTape() as outer:
        outer.watch(t)
        with tf.GradientTape() as inner:
            inner.watch(t)
            y = networks.softplus(t)
        first = inner.gradient(y, t)
    second = outer.gradient(first, t)
    sigmoid = np.exp(-np.logaddexp(0.0, -x))
    np.testing.assert_allclose(y, np.logaddexp(0.0, x), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(first, sigmoid, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(second, sigmoid * np.exp(-np.logaddexp(0.0, x)), atol=1e-12)


def test_product_of_mixtures_with_both_derivatives_against_numpy():
    rng = np.random.default_rng(0)
    u = np.concatenate([rng.standard_normal((5, 12)) * 3, np.full((1, 12), 800.0)])
    layer = networks.ProductOfMixtures(3, dtype="float64")
    t, direction = tf.constant(u), tf.constant(rng.standard_normal(u.shape))
    with tf.GradientTape() as outer:
        outer.watch(t)
        with tf.GradientTape() as inner:
            inner.watch(t)
            s = layer(t)
        first = inner.gradient(s, t)
        along = tf.reduce_sum(first * direction)
    second = outer.gradient(along, t)
    groups = u.reshape(6, 3, 4)
    expected = (logsumexp(groups, axis=-1) - np.log(4)).sum(1, keepdims=True)
    np.testing.assert_allclose(s, expected, rtol=1e-12)
    p = softmax(groups, axis=-1)
    np.testing.assert_allclose(first, p.reshape(6, 12), rtol=1e-12)
    v = direction.numpy().reshape(6, 3, 4)
    hessian_v = p * (v - (p * v).sum(-1, keepdims=True))
    np.testing.assert_allclose(second, hessian_v.reshape(6, 12), atol=1e-12)


def test_spread_is_the_scale_of_the_first_layer():
    x = np.random.default_rng(0).standard_normal((2000, 6)).astype("f4")
    for spread in (0.5, 3.0):
        first = networks.residual_mlp(6, 400, 1, spread=spread).layers[1]
        kernel, offsets = first.get_weights()
        assert np.std(x @ kernel) == pytest.approx(spread, rel=0.1)
        assert 1.9 * spread < np.abs(offsets).max() <= 2 * spread


def test_network_of_mixtures_with_a_level(tmp_path):
    model = networks.residual_mlp(3, 8, 2, levels=True, experts=2, components=5)
    assert model.output_shape == (None, 1) and model.input_shape == [(None, 3), (None, 1)]
    inputs = [np.ones((4, 3), "f4"), np.linspace(-1, 1, 4, dtype="f4")[:, None]]
    assert len(set(model(inputs).numpy().ravel())) == 4  # the level counts
    model.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(again(inputs), model(inputs))
    for arguments in ({"experts": -1}, {"components": 0}, {"spread": 0.0}):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"`{name}` must be a"):
            networks.residual_mlp(3, **arguments)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(
    "arguments", [{"width": 0}, {"depth": -1}, {"depth": 2.5}, {"width": True}]
)
def test_bad_sizes_are_named(build, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1, got"):
        build(2, **arguments)


@pytest.mark.parametrize("shape", [0, (), (3, -1), "ab", 2.5])
def test_bad_shapes_are_named(shape):
    with pytest.raises(ValueError, match="`input_shape` must be a positive int"):
        networks.residual_mlp(shape)


class TestGaussianBase:
    def test_against_numpy(self):
        rng = np.random.default_rng(0)
        x = (rng.standard_normal((5000, 3)) @ rng.standard_normal((3, 3)) + [5, 0, -3]).astype("f4")
        base = tfdde.GaussianBase(3)
        base.adapt(x)
        sigma = 0.7
        covariance = np.cov(x.T, bias=True) + sigma**2 * np.eye(3)
        expected = multivariate_normal.logpdf(x[:50], x.mean(0), covariance)
        np.testing.assert_allclose(base(x[:50], tf.constant(sigma)), expected, rtol=1e-3)
        levels = tf.fill((50,), sigma)
        np.testing.assert_allclose(base(x[:50], levels), expected, rtol=1e-3)

    def test_constant_column_needs_no_variance(self):
        x = np.zeros((100, 2), "f4")
        x[:, 0] = np.arange(100)
        base = tfdde.GaussianBase(2)
        base.adapt(x)
        value = base(tf.constant([[49.5, 0.3]]), tf.constant(0.1)).numpy()
        expected = norm.logpdf(0.0, scale=np.sqrt(x[:, 0].var() + 0.01)) + norm.logpdf(
            0.3, scale=0.1
        )
        np.testing.assert_allclose(value, [expected], rtol=1e-4)

    @pytest.mark.parametrize("x", [np.zeros((4, 3)), np.zeros((1, 2)), [[np.nan, 0.0]] * 3])
    def test_bad_data(self, x):
        with pytest.raises(ValueError, match="`x` must"):
            tfdde.GaussianBase(2).adapt(x)


def independent_rows(n, rows=20_000):
    """Two-sided exponential and two-valued sources under a rotation, of unit variance."""
    rng = np.random.default_rng(0)
    sources = rng.laplace(size=(rows, n)) / np.sqrt(2)
    sources[:, ::2] = rng.choice([-1.0, 1.0], (rows, (n + 1) // 2)) * 0.95
    sources[:, ::2] += np.sqrt(1 - 0.95**2) * rng.standard_normal((rows, (n + 1) // 2))
    rotation = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (sources @ rotation.T).astype("float32"), rotation


@pytest.mark.parametrize("levels", [False, True])
def test_independent_components_are_the_first_layers_directions(levels):
    x, rotation = independent_rows(12)
    network = networks.residual_mlp(12, width=40, depth=1, levels=levels, spread=1.5)
    before, _ = first_layer(network)
    initial_weights.at_independent_components(network, x)
    kernel, offsets = first_layer(network)
    np.testing.assert_array_equal(kernel[12:], before[12:])  # the noise level's row
    cosines = np.abs(rotation.T @ kernel[:12]) / np.linalg.norm(kernel[:12], axis=0)
    assert cosines.max(axis=0).min() > 0.98  # each unit sees one source ...
    assert set(cosines.argmax(axis=0)) == set(range(12))  # ... and each source is seen
    scales = (x @ kernel[:12]).std(axis=0)
    assert 0.69 < scales.min() < 1 and 2 < scales.max() < 3.1
    assert (np.abs(offsets) <= 2.05 * scales).all() and np.abs(offsets / scales).max() > 1


def first_layer(network):
    return next(d for d in network.layers if isinstance(d, keras.layers.Dense)).get_weights()


def test_independent_components_of_what_they_cannot_serve():
    x = independent_rows(3, rows=50)[0]
    with pytest.raises(ValueError, match=r"at least as many units as entries.* 2 units"):
        initial_weights.at_independent_components(networks.residual_mlp(3, width=2, depth=1), x)
    with pytest.raises(ValueError, match=r"flat rows"):
        initial_weights.at_independent_components(networks.residual_mlp((3, 1), width=4), x)
    with pytest.raises(ValueError, match=r"`x` must have shape \(rows, 4\)"):
        initial_weights.at_independent_components(networks.residual_mlp(4, depth=1), x)


@pytest.mark.parametrize("levels", [False, True])
def test_units_look_along_the_data_that_stand_out_of_the_noise(levels):
    rng = np.random.default_rng(0)
    base = tfdde.GaussianBase((4, 5))
    axes = np.linalg.qr(rng.standard_normal((20, 20)))[0][:, :3]
    x = rng.standard_normal((1_000, 3)) * [3.0, 2.0, 1.0] @ axes.T
    base.adapt(x.reshape(-1, 4, 5))
    network = networks.dense_block((4, 5), 400, 3, levels=levels)
    before = network.get_weights()
    initial_weights.along_covariance(network, base, 1.0, seed=1)
    after = network.get_weights()
    for w, v in zip(before, after, strict=True):
        if w.ndim == 1 or w.shape[1] == 1:
            np.testing.assert_array_equal(v, w)
            continue
        np.testing.assert_array_equal(v[20:], w[20:])
        norms = np.linalg.norm(w[:20], axis=0)
        np.testing.assert_allclose(np.linalg.norm(v[:20], axis=0), norms, rtol=1e-4)
        assert np.abs(v[:20] - axes @ (axes.T @ v[:20])).max() < 1e-4  # none in pure noise
        # In mean logarithms the norms cancel.
        share = np.exp(np.log(np.abs(axes.T @ v[:20])).mean(axis=1))
        gain = np.array([9 / 10, 4 / 5, 1 / 2])
        np.testing.assert_allclose(share / share[0], gain / gain[0], rtol=0.25)


def test_units_that_cannot_look_along_the_data():
    base = tfdde.GaussianBase(4)
    for network in (networks.residual_mlp(4, depth=2), networks.dense_block(3, 4, 2)):
        with pytest.raises(ValueError, match="`network` must be a dense_block of 4 entries"):
            initial_weights.along_covariance(network, base, 1.0)
    with pytest.raises(ValueError, match="`sigma` must be a finite number > 0"):
        initial_weights.along_covariance(networks.dense_block(4, 4, 2), base, -1.0)
