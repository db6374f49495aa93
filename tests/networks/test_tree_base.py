"""The tree of Gaussian mixtures that can be the base of a density."""

import keras
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
from tfdde.networks import TreeBase, mixture_tree
from tfdde.networks.blurred_rows import blur
from tfdde.networks.mixture_tree import MixtureTree

SIGMA = 0.1


class Pairs:
    """Three coordinates along turned axes: a root, its child, and the child's child.

    Each pair of a coordinate and its parent has a mixture of two Gaussians.
    """

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        self.centre, self.parents = rng.standard_normal(3), [None, 0, 1]
        self.weights = rng.dirichlet([3, 3], 3)
        self.means = rng.normal(0, 1.5, (3, 2, 2))  # of node, component, coordinate and parent
        turned = rng.normal(0, 0.7, (3, 2, 2, 2))
        self.covariances = turned @ np.moveaxis(turned, -1, -2) + 0.02 * np.eye(2)

    def log_density(self, x, sigma):
        """By SciPy: of each pair, over that of the parent alone."""
        u = (np.float64(x) - self.centre) @ self.axes
        total = 0.0
        for k, parent in enumerate(self.parents):
            these = [k] if parent is None else [k, parent]
            count = len(these)
            parts = self.weights[k], self.means[k][:, :count], self.covariances[k]
            total += log_mixture(u[:, these], *parts, sigma)
            if parent is not None:
                parts = self.weights[k], self.means[k][:, 1:], self.covariances[k][:, 1:, 1:]
                total -= log_mixture(u[:, [parent]], *parts, sigma)
        return total

    def tree(self):
        none = np.zeros(2)
        means, covariances = [], []
        for mean, c, parent in zip(self.means, self.covariances, self.parents, strict=True):
            own = c[:, 0, 0]
            if parent is None:
                means.append([mean[:, 0], none])
                covariances.append([own, none + 1, none, own])
            else:
                means.append(mean.T)
                covariances.append([own, c[:, 1, 1], c[:, 0, 1], np.linalg.det(c)])
        parents, sizes = np.eye(3, k=1), np.array([2, 2, 2])
        parts = self.weights.reshape(-1), np.hstack(means), np.hstack(covariances)
        return MixtureTree(self.centre, self.axes, parents, sizes, *parts)


def log_mixture(u, weights, means, covariances, sigma):
    d = u.shape[1]
    parts = [
        np.log(w) + multivariate_normal(m, c[:d, :d] + sigma**2 * np.eye(d)).logpdf(u)
        for w, m, c in zip(weights, means, covariances, strict=True)
    ]
    return logsumexp(parts, axis=0)


def fitted(blurred, axes, most):
    """A tree along the axes, and log-densities of the held-out rows before it has seen them."""
    grown = mixture_tree.grow(blurred, axes, most)
    return mixture_tree.finish(blurred, grown), grown.held_out


def base_of(tree):
    """A base that has the tree, as if fitted."""
    base = TreeBase(len(tree.centre), most_components=8)
    base._use(tree)
    return base


def curves(rows, seed=0, n=4):
    """Two circles, turned so that no column is independent of another."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 2 * np.pi, (rows, n // 2))
    x = np.stack([np.cos(t), np.sin(t)], axis=-1).reshape(rows, n)
    turn = np.linalg.qr(np.random.default_rng(7).standard_normal((n, n)))[0]
    return ((x + 0.1 * rng.standard_normal(x.shape)) @ turn).astype("f4")


@pytest.mark.parametrize("sigma", [0.05, 0.5, 8.0])
def test_tree_and_base_are_products_of_conditional_densities(sigma):
    pairs = Pairs()
    x = (pairs.centre + 2.0 * np.random.default_rng(1).standard_normal((200, 3))).astype("f4")
    truth = pairs.log_density(x, sigma)
    np.testing.assert_allclose(pairs.tree().log_density(x, sigma), truth, rtol=1e-9)
    base = base_of(pairs.tree())
    one = base(tf.constant(x), tf.constant(sigma))
    each = base(tf.constant(x), tf.fill((len(x),), sigma))
    np.testing.assert_allclose(one, truth, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(each, truth, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_samples_have_the_density_which_is_normalised(sigma):
    """Importance weights of a wide normal average to 1, and moments agree with the samples'."""
    pairs, rng = Pairs(), np.random.default_rng(2)
    base = base_of(pairs.tree())
    samples = base.sample(100_000, sigma, rng).astype(float)
    wide = multivariate_normal(samples.mean(axis=0), 3 * np.cov(samples.T))
    x = wide.rvs(300_000, random_state=rng)
    weights = np.exp(pairs.log_density(x, sigma) - wide.logpdf(x))
    assert weights.mean() == pytest.approx(1.0, abs=4 * weights.std() / np.sqrt(len(x)))
    functions = [lambda y: y, np.square, lambda y: y * np.roll(y, 1, axis=1), np.cos]
    for f in functions:
        found, drawn = weights[:, None] * f(x), f(samples)
        error = np.hypot(found.std(axis=0) / len(x) ** 0.5, drawn.std(axis=0) / 100_000**0.5)
        assert (abs(found.mean(axis=0) - drawn.mean(axis=0)) < 5 * error).all()


def test_thin_components_are_exact_in_float32():
    """Two columns a thousandth of a deviation apart."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((4_000, 1))
    x = np.hstack([first, first + 1e-3 * rng.standard_normal((4_000, 1))])
    tree, _ = fitted(blur(x, 1e-3), np.eye(2), most=1)
    y = (x[:100] + 1e-3 * rng.standard_normal((100, 2))).astype("f4")
    covariance = np.cov(x.T) + 1e-6 * np.eye(2)
    truth = multivariate_normal(x.mean(axis=0), covariance).logpdf(y.astype(float))
    base = base_of(tree)
    for sigma in (tf.constant(1e-3), tf.fill((100,), 1e-3)):
        np.testing.assert_allclose(base(tf.constant(y), sigma), truth, atol=0.15)


def test_the_tree_of_a_chain_is_found():
    rng = np.random.default_rng(0)
    u = rng.standard_normal((4_000, 5)).astype("f4")
    for k in (1, 2, 3):
        u[:, k] = np.sin(3 * u[:, k - 1]) + 0.3 * u[:, k]  # the last column depends on none
    ones = np.ones(len(u))
    parents = mixture_tree.parents_of(u, ones)
    edges = {frozenset((k, p)) for k, p in enumerate(parents) if p >= 0}
    assert edges == {frozenset((0, 1)), frozenset((1, 2)), frozenset((2, 3))} and parents[4] == -1
    # Rows without weight do not count.
    noise = rng.permuted(u, axis=0)
    both, weights = np.concatenate([u, noise]), np.concatenate([ones, 0 * ones])
    np.testing.assert_array_equal(mixture_tree.parents_of(both, weights) >= 0, parents >= 0)


@pytest.mark.parametrize("rows", [60, 500, 20_000])
def test_independent_columns_have_no_parents(rows):
    for seed in range(3):
        u = np.random.default_rng(seed).standard_normal((rows, 12)).astype("f4")
        assert (mixture_tree.parents_of(u, np.ones(rows)) < 0).all()


@pytest.mark.parametrize("columns", [[0], [0, 1]])
def test_the_em_algorithm_is_that_of_scikit_learn(monkeypatch, columns):
    monkeypatch.setattr(mixture_tree, "ENOUGH", -np.inf)  # all steps
    u = curves(4_000)[:, columns]
    labels = np.argsort(np.argsort(u[:, 0])) // 1_000
    shares = np.eye(4, dtype=np.float32)[labels]
    weights, means, covariances = mixture_tree._fit(u, np.ones(len(u)), shares, 1e-9, 20)
    widths = [np.atleast_2d(np.cov(u[labels == k].T, bias=True)) for k in range(4)]
    theirs = GaussianMixture(
        4,
        max_iter=19,
        tol=0,
        weights_init=shares.mean(axis=0),
        means_init=[u[labels == k].mean(axis=0) for k in range(4)],
        precisions_init=np.linalg.inv(widths),
    )
    with pytest.warns(UserWarning, match="did not converge"):
        theirs.fit(u.astype(float))
    np.testing.assert_allclose(weights, theirs.weights_, atol=1e-3)
    np.testing.assert_allclose(means, theirs.means_, atol=2e-3)
    np.testing.assert_allclose(covariances, theirs.covariances_, atol=2e-3)


def test_more_components_follow_a_curve():
    """A circle: the gap to the truth, by the angle's average, is small."""
    x = curves(12_000, n=2)
    tree, held_out = fitted(blur(x, SIGMA), np.eye(2), most=32)
    fresh = blur(curves(4_000, seed=3, n=2), SIGMA).noisy
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    turn = np.linalg.qr(np.random.default_rng(7).standard_normal((2, 2)))[0]
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ turn
    square = np.square(fresh[:, None] - ring).sum(axis=-1)
    variance = 0.1**2 + SIGMA**2
    truth = logsumexp(-0.5 * square / variance, axis=1) - np.log(400 * 2 * np.pi * variance)
    gap = np.mean(truth - tree.log_density(fresh, SIGMA))
    assert 0 < gap < 0.03  # of one Gaussian: 0.9
    assert held_out.mean() == pytest.approx(truth.mean() - gap, abs=0.06)


def test_the_axes_are_those_along_which_rows_are_independent():
    x = curves(8_000)
    blurred = blur(x, SIGMA)
    nothing = np.full(blurred.first, -99.0)
    tree = mixture_tree.fit_likeliest(blurred, 16, nothing)
    np.testing.assert_allclose(tree.axes.T @ tree.axes, np.eye(4), atol=1e-6)
    assert np.abs(tree.axes).max() < 0.99  # not the columns
    along_columns, _ = fitted(blurred, np.eye(4), 16)
    fresh = blur(curves(2_000, seed=1), SIGMA).noisy
    gain = tree.log_density(fresh, SIGMA) - along_columns.log_density(fresh, SIGMA)
    assert gain.mean() > 0.5
    assert mixture_tree.fit_likeliest(blurred, 16, np.full(blurred.first, 9.0)) is None


def test_weights_count_rows():
    x = np.concatenate([curves(3_000), 3 + 0.3 * curves(3_000, seed=1)])
    weights = np.repeat([1.0, 0.0], 3_000)
    base, of_some = TreeBase(4, most_components=16), TreeBase(4, most_components=16)
    base.adapt(x, weights, SIGMA)
    of_some.adapt(x[:3_000], sigma=SIGMA)
    assert sum(base.tree_sizes) >= 16 and sum(of_some.tree_sizes) >= 16
    y = curves(1_000, seed=2)
    values = [b(tf.constant(y), tf.constant(SIGMA)).numpy().mean() for b in (base, of_some)]
    assert values[0] == pytest.approx(values[1], abs=0.1)


@pytest.mark.parametrize("kind", ["gaussian", "clusters", "heavy tails", "few rows"])
def test_other_bases_stay(kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3_000, 4)) @ rng.standard_normal((4, 4))
    if kind == "clusters":  # of all columns at once, which pairs do not tell
        x = rng.normal(0, 4, (8, 4))[rng.integers(8, size=3_000)] + rng.standard_normal((3_000, 4))
    elif kind == "heavy tails":
        x = rng.standard_t(2, (3_000, 4))
    elif kind == "few rows":
        x = curves(60)
    base, plain = TreeBase(4, most_components=16), tfdde.GaussianBase(4, most_components=16)
    base.adapt(x, sigma=SIGMA)
    plain.adapt(x, sigma=SIGMA)
    assert base.tree is None and base.kind == plain.kind
    assert base.one_gaussian == plain.one_gaussian == (kind in ("gaussian", "few rows"))
    y = tf.constant(x[:50].astype("f4"))
    np.testing.assert_array_equal(base(y, tf.constant(SIGMA)), plain(y, tf.constant(SIGMA)))
    np.testing.assert_array_equal(
        base.sample(9, 1.0, np.random.default_rng(1)),
        plain.sample(9, 1.0, np.random.default_rng(1)),
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match="`tree_sizes` must be an integer >= 1, got 0"):
        TreeBase(2, tree_sizes=(1, 0))


def density(n=4):
    network = networks.residual_mlp(n, 8, 1, levels=True, experts=2)
    network.set_weights([w + 0.01 for w in network.get_weights()])
    return tfdde.DDE(network, tfdde.LogUniform(SIGMA, 8.0), TreeBase(n, most_components=16), seed=0)


def test_what_was_traced_before_follows_the_base(tmp_path):
    x = curves(3_000)
    dde, fresh = density(), density()
    dde.compile()
    dde.fit(x[:64], verbose=0)
    for other in adapted_and_loaded(dde, fresh, x, SIGMA, tmp_path):
        assert other.base.kind == dde.base.kind and other.base.tree
    copied = copy_of(dde.base)
    y, sigma = tf.constant(x[:50]), tf.constant(0.5)
    np.testing.assert_array_equal(copied(y, sigma), dde.base(y, sigma))
    variables = len(dde.base.weights)
    dde.adapt(np.random.default_rng(0).standard_normal((3_000, 4)))
    assert dde.base.one_gaussian and len(dde.base.weights) == variables - 6 == 3
    expected = dde.at(tf.constant(x[:9]), tf.constant(SIGMA))
    np.testing.assert_allclose(dde.log_density(x[:9], normalized=False), expected, rtol=1e-5)
    fresh.save(tmp_path / "tree.keras")  # from a tree to one Gaussian, and back
    dde.save_weights(tmp_path / "one.weights.h5")
    fresh.load_weights(tmp_path / "one.weights.h5")
    assert fresh.base.one_gaussian
    assert keras.models.load_model(tmp_path / "tree.keras").base.tree


def test_the_score_is_that_of_finite_differences():
    x, h = curves(3_000), 1e-2
    dde = density()
    dde.adapt(x)
    tree = dde.base.tree
    network_only = lambda y: dde.correction(tf.constant(y), tf.constant(SIGMA)).numpy()  # noqa: E731
    y = x[:20]
    for column in range(4):
        step = np.float32(h * np.eye(4)[column])
        up, down = (tree.log_density(y + s, SIGMA) + network_only(y + s) for s in (step, -step))
        slope = (up - down) / (2 * h)
        np.testing.assert_allclose(dde.score(y)[:, column], slope, rtol=0.02, atol=0.05)


def test_log_z_of_the_base_is_zero():
    x = curves(5_000)
    dde = density()
    dde.network.set_weights([0 * w for w in dde.network.get_weights()])  # s is the base
    dde.adapt(x)
    assert dde.base.tree
    found = dde.log_partition(x, samples=2_000, seed=1)
    assert found.trusted and found.method == "importance"
    assert abs(found.value) < 3 * found.standard_error + 0.01
    by_ladder = dde.log_partition(x, samples=2_000, seed=1, method="ladder")
    assert by_ladder.trusted
    assert abs(by_ladder.value) < 4 * by_ladder.standard_error + 0.01


def test_the_recipe_takes_a_tree_where_rows_lie_along_curves():
    noise = tfdde.LogUniform(SIGMA, 8.0)
    x = curves(3_000)
    assert tfdde.recipes.table_density(x, noise, 8, 1).base.tree
    other = tfdde.recipes.table_density(x, noise, 8, 1, base="gaussian").base
    assert other.one_gaussian


def test_all_artifacts_have_the_tree_and_its_gradient(tmp_path):
    x = curves(3_000)
    dde = density()
    dde.adapt(x)
    dde.partition = tfdde.LogPartition.around(0.5, 0.01, 900.0, "ladder", SIGMA)
    folder, errors = exported(dde, tmp_path)
    assert errors.pop("log_density_nats") < 1e-4
    assert max(errors.values()) < 1e-5
    session = onnxruntime.InferenceSession(folder / "log_density/1/model.onnx")
    (values,) = session.run(None, {"x": x[:9]})
    tree = dde.base.tree
    own = tree.log_density(x[:9], SIGMA) - 0.5
    own += dde.correction(tf.constant(x[:9]), tf.constant(SIGMA))
    np.testing.assert_allclose(values, own, atol=1e-3)
    openvino = pytest.importorskip("openvino")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    for path in (str(tmp_path / "savedmodel/1"), str(tmp_path / "d.tflite")):
        model = openvino.Core().compile_model(path, "CPU", exact)
        np.testing.assert_allclose(model(x[:9])[0], own, atol=1e-3)


def test_without_the_network_the_density_is_its_base():
    x = curves(3_000)
    dde = density()
    dde.adapt(x)
    dde.compile()
    dde.fit(x[:64], verbose=0)
    with_network = dde.log_density(x[:50], normalized=False)
    dde.drop_correction()
    found = dde.log_partition(x, samples=2_000, seed=1)
    assert found.trusted and abs(found.value) < 1e-4
    values = dde.log_density(x[:50])
    np.testing.assert_allclose(values, dde.base.tree.log_density(x[:50], SIGMA), atol=2e-3)
    assert np.abs(values - with_network).max() > 1e-3


def test_a_network_that_can_not_be_left_out_stays():
    x = keras.Input((4,))
    level = keras.Input((1,))
    s = keras.layers.Dense(1)(keras.layers.Concatenate()([x, level]))
    network = keras.Model([x, level], keras.layers.Rescaling(1.0, offset=3.0)(s))
    dde = tfdde.DDE(network, tfdde.LogUniform(SIGMA, 8.0))
    weights = network.get_weights()
    with pytest.raises(ValueError, match="The network must be 0 if the weights of its last layer"):
        dde.drop_correction()
    for after, before in zip(network.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(after, before)
    plain = tfdde.DDE(networks.residual_mlp(2, 8, 1), tfdde.Constant(0.3))
    with pytest.raises(ValueError, match="There is no `base`"):
        plain.drop_correction()
