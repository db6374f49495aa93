"""Contrast with samples of the density itself: against exact Gaussians, NumPy, and resumed runs."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from scipy.special import logsumexp

import tfdde
from tfdde import networks
from tfdde.models import contrast
from tfdde.partition.evaluator import reference

LEVELS = tfdde.LogUniform(0.2, 4.0)
N = 5


def density(seed=0, **kwargs):
    keras.utils.set_random_seed(seed)
    network = networks.residual_mlp(N, 16, 1, activation="silu", levels=True)
    dde = tfdde.DDE(network, LEVELS, antithetic=True, seed=seed, **kwargs)
    dde.adapt(rows())
    dde.compile(tfdde.optimizers.FusedAdam(1e-2, use_ema=True))
    return dde


def rows(count=300):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(count, N)) @ rng.normal(size=(N, N)) + 1.0).astype("f4")


def draw(dde, iteration=contrast.STEPS):
    dde.own_samples.draw(dde, iteration)
    return dde.own_samples


@pytest.mark.parametrize("iteration", [0, contrast.STEPS])
def test_samples_of_a_gaussian(iteration):
    """With a network of zeros s is the base: log Z is 0, and the samples have its moments."""
    dde = density(contrast_weight=1.0)
    dde.network.set_weights([0.0 * w for w in dde.network.get_weights()])
    own = draw(dde, iteration)
    # Each of some 8 steps is between Gaussians whose widths differ by a factor of 1.45.
    per_step = N * np.log(own.levels[1] / own.levels[0]) ** 2 / contrast.SAMPLES
    np.testing.assert_allclose(own.log_z.numpy(), 0.0, atol=4 * np.sqrt(2 * 8 * per_step))
    places = np.repeat(own.log_z.numpy(), contrast.SAMPLES)
    np.testing.assert_allclose(own.corrections.numpy(), -places, atol=1e-4)
    mean = rows().mean(axis=0)
    covariance = np.cov(rows().T, bias=True)
    samples = own.samples.numpy().reshape(len(own.levels), contrast.SAMPLES, N)
    distances = []
    for y, sigma in zip(samples, own.levels, strict=True):
        exact = covariance + sigma**2 * np.eye(N)
        white = np.linalg.solve(np.linalg.cholesky(exact), (y - mean).T)
        distances += [np.square(white).sum(axis=0).mean() / N, *white.mean(axis=1) ** 2]
    count = len(own.levels)
    assert np.mean(distances[:: N + 1]) == pytest.approx(1.0, abs=5 * np.sqrt(2 / N / 1_000))
    assert count == len(distances) // (N + 1)
    assert max(np.delete(distances, np.s_[:: N + 1])) < 25 / contrast.SAMPLES


def test_samples_follow_the_mass_of_the_density():
    """s = base plus a linear tilt: its mean is moved, and log Z is known."""
    tilt = np.array([0.15, -0.1, 0.05, 0.0, 0.1], "f4")
    dde = density(contrast_weight=1.0)
    dde.correction = lambda x, sigma, network=None: tf.linalg.matvec(x, tilt)
    own = draw(dde)
    np.testing.assert_allclose(
        own.corrections.numpy() + np.repeat(own.log_z.numpy(), contrast.SAMPLES),
        own.samples.numpy() @ tilt,
        atol=2e-4,
    )
    mean, covariance = rows().mean(axis=0), np.cov(rows().T, bias=True)
    for k in (0, len(own.levels) - 1):
        exact = covariance + own.levels[k] ** 2 * np.eye(N)
        assert own.log_z.numpy()[k] == pytest.approx(
            tilt @ mean + 0.5 * tilt @ exact @ tilt, abs=0.25
        )
        y = own.samples.numpy()[k * contrast.SAMPLES :][: contrast.SAMPLES]
        moved = np.sqrt(tilt @ exact @ tilt)
        along = (y - mean) @ tilt / moved
        assert along.mean() == pytest.approx(moved, abs=0.25)


def test_loss_and_gradient_by_numpy():
    dde = density(contrast_weight=2.0)
    own = draw(dde)
    keras.utils.set_random_seed(1)
    network = dde.network
    network.set_weights([w + 0.1 * np.random.normal(size=w.shape) for w in network.get_weights()])
    rng, count = np.random.default_rng(2), 7
    x, epsilon = rows(count), rng.normal(size=(count, N)).astype("f4")
    sigma = tf.constant(np.geomspace(0.21, 3.9, count), tf.float32)
    weights = tf.constant(rng.random(count), tf.float32)
    drawn = own.take(count, 0, 3)
    arguments = tf.constant(x), tf.constant(epsilon), sigma, tf.constant(4.0), drawn, weights
    loss, gradients = dde.contrast_and_gradients(*arguments)

    def expected():
        y = x + sigma.numpy()[:, None] * epsilon
        log_z = np.interp(np.log(sigma), np.log(own.levels), own.log_z.numpy())
        now = dde.correction(tf.constant(y), sigma).numpy().astype(float)
        former = dde.correction(tf.constant(y), sigma, network=own.network).numpy()
        at_rows = now - former + log_z
        at_samples = dde.correction(*drawn[:2]).numpy() - drawn[2].numpy()
        both = np.logaddexp(0.0, -at_rows) + np.logaddexp(0.0, at_samples)
        return (both / 2 / np.log(2.0)) @ weights.numpy()

    assert float(loss) == pytest.approx(expected(), rel=1e-4)
    # Along its own direction, by differences, of the share of the loss.
    length = np.sqrt(sum(float(tf.reduce_sum(g**2)) for g in gradients))
    start, values = network.get_weights(), []
    for step in (1e-2, -1e-2):
        for v, g in zip(network.trainable_variables, gradients, strict=True):
            v.assign_add(step / length * g)
        values.append(expected())
        network.set_weights(start)
    slope = (values[0] - values[1]) / 2e-2 * 2.0 / (N + dde.time_weight) / 4.0
    assert slope == pytest.approx(length, rel=2e-2)


def test_mass_far_from_few_rows_is_found_and_removed():
    """60 rows in 8 columns, noise of 0.1: most of e^s is not where the rows are, or it is all 1."""
    x = np.random.default_rng(0).normal(size=(60, 8)).astype("f4")
    wide = scipy.stats.multivariate_normal(x.mean(axis=0), 1.5 * np.cov(x.T) + 0.1 * np.eye(8))
    y = wide.rvs(100_000, random_state=1).astype("f4")
    log_z = {}
    for weight in (0.0, 3.5):
        keras.utils.set_random_seed(0)
        noise = tfdde.LogUniform(0.1, 8.0)
        dde = tfdde.recipes.table_density(x, noise, 32, 2, seed=0, contrast_weight=weight)
        rate = keras.optimizers.schedules.CosineDecay(5e-3, 400)
        dde.compile(tfdde.optimizers.FusedAdam(rate), steps_per_execution=5)
        batches = tfdde.datasets.stream(x, 60, 0)
        history = dde.fit(batches, steps_per_epoch=100, epochs=4, verbose=0).history
        # The truth, by importance sampling.
        log_w = dde.log_density(y, 0.2, normalized=False).numpy().astype(float) - wide.logpdf(y)
        log_z[weight] = logsumexp(log_w) - np.log(len(y))
    assert log_z[0.0] > 1.0 and abs(log_z[3.5]) < 0.3
    assert 0.9 < history["contrast"][-1] < 1.1  # neither tells the other


def near_and_far(x, sigma, count, seed):
    """Rows half of which are near those of ``x`` and half far around, and their log-density."""
    rng, n, width = np.random.default_rng(seed), x.shape[1], 1.4 * sigma
    far = reference(x, 2 * sigma)
    near = x[rng.integers(len(x), size=count)] + width * rng.standard_normal((count, n))
    y = np.where(rng.random((count, 1)) < 0.5, near, far.sample(count, rng)).astype("f4")
    log_near = [
        logsumexp(-0.5 * np.square((part[:, None] - x) / width).sum(axis=2), axis=1)
        for part in np.array_split(y, count // 2_000)
    ]
    log_near = np.concatenate(log_near) - np.log(len(x)) - n * np.log(width * np.sqrt(2 * np.pi))
    return y, np.logaddexp(log_near, far.log_density(y)) - np.log(2)


@pytest.mark.parametrize("kind", ["t, 2 degrees", "log-normal", "clusters", "one outlier"])
def test_log_z_of_few_rows_is_right(kind):
    """By importance sampling from near and far rows, with the recipe's defaults."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, N))
    x = {
        "t, 2 degrees": rng.standard_t(2, size=x.shape),
        "log-normal": np.exp(x),
        "clusters": 0.05 * x + 3.0 * rng.integers(3, size=(200, 1)),
        "one outlier": np.concatenate([x, np.full((1, N), 1e3)]),
    }[kind]
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype("f4")
    dde = tfdde.recipes.table_density(x, tfdde.LogUniform(0.1, 8.0), 32, 1, seed=0)
    assert dde.contrast_weight == 3.5
    dde.compile(tfdde.optimizers.FusedAdam(3e-3), steps_per_execution=5)
    batches = tfdde.datasets.stream(x, len(x), 0)
    dde.fit(batches, steps_per_epoch=200, verbose=0)
    found = dde.log_partition(x, sigma=0.2)
    y, log_q = near_and_far(x, 0.2, 40_000, 1)
    log_w = dde.log_density(y, 0.2, normalized=False).numpy().astype(float) - log_q
    w = np.exp(log_w - log_w.max())
    error = w.std() / w.mean() / np.sqrt(len(w))
    truth = logsumexp(log_w) - np.log(len(w))
    assert error < 0.1 and found.trusted
    assert found.lower - 3 * error < truth < found.upper + 3 * error


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    x = rows()
    kwargs = {"steps_per_epoch": 100, "verbose": 0}

    def batches(start):
        return tfdde.datasets.stream(x, 64, 0, start)

    whole = density(contrast_weight=3.0)
    whole.fit(batches(0), epochs=2, **kwargs)
    first = density(contrast_weight=3.0)
    first.fit(
        batches(0), epochs=1, callbacks=[tfdde.Checkpoint(tmp_path / "a.weights.h5")], **kwargs
    )
    assert int(first.own_samples.drawn_at.numpy()) == contrast.STEPS
    again = density(seed=0, contrast_weight=3.0)
    again.load_weights(tmp_path / "a.weights.h5")
    for name, value in first.own_samples.state().items():
        np.testing.assert_array_equal(again.own_samples.state()[name], value)
    again.fit(batches(100), initial_epoch=1, epochs=2, **kwargs)
    for a, b in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_file_holds_no_samples(tmp_path):
    """They are the training's: a density that is served needs none."""
    dde = density(contrast_weight=3.0)
    draw(dde)
    dde.save(tmp_path / "dde.keras")
    own = dde.own_samples.samples.numpy()
    assert (tmp_path / "dde.keras").stat().st_size < own.nbytes
    again = keras.models.load_model(tmp_path / "dde.keras")
    assert again.contrast_weight == 3.0 and int(again.own_samples.drawn_at.numpy()) == -1
    x = rows(9)
    np.testing.assert_array_equal(
        again.log_density(x, normalized=False), dde.log_density(x, normalized=False)
    )


def test_replicas_draw_and_learn(two, monkeypatch):
    """Samples are drawn anew while a strategy trains; rows and samples are alike to begin with."""
    monkeypatch.setattr(contrast, "STEPS", 4)
    with two.scope():
        dde = density(contrast_weight=3.0)
    batches = tfdde.datasets.stream(rows(), 300, 0)
    history = dde.fit(batches, steps_per_epoch=6, epochs=1, verbose=0).history
    assert int(dde.own_samples.drawn_at.numpy()) == 4 and dde.own_samples.trained.numpy() == 1
    assert 0.8 < history["contrast"][-1] < 1.2


@pytest.mark.parametrize(
    "weight, noise, conditions, message",
    [
        (-1.0, LEVELS, 0, "`contrast_weight` must be a finite number >= 0, got -1.0"),
        (np.nan, LEVELS, 0, "`contrast_weight` must be a finite number >= 0, got nan"),
        (1.0, tfdde.Constant(0.2), 0, r"`contrast_weight` .* got 1.0 for Constant\(sigma=0.2\)"),
        (1.0, LEVELS, 2, "`contrast_weight` .* got 1.0 for a conditional density"),
    ],
)
def test_refusals(weight, noise, conditions, message):
    network = networks.residual_mlp(2, 8, 1, levels=noise is LEVELS, conditions=conditions)
    with pytest.raises(ValueError, match=message):
        tfdde.DDE(network, noise, contrast_weight=weight)


def test_a_generator_refuses_what_it_would_not_heed():
    def part(**kwargs):
        return tfdde.DDE(networks.residual_mlp(2, 8, 1, levels=True), LEVELS, **kwargs)

    network = networks.residual_mlp(2, 8, 1, output_shape=2)
    with pytest.raises(ValueError, match="`generated_dde` must have a `contrast_weight` of 0"):
        tfdde.Generator(network, part(), part(contrast_weight=1.0), 2)
    generator = tfdde.Generator(network, part(contrast_weight=1.0), part(), 2)
    generator.compile()  # a frozen s_p was trained beforehand
    with pytest.raises(ValueError, match="`data_optimizer` .* `contrast_weight`"):
        generator.compile(data_optimizer="adam")


def test_recipe_contrasts_few_rows_of_many_columns():
    for count, columns, expected in ((9_999, 5, 3.5), (300, 3, 0.0), (10_000, 5, 0.0)):
        x = np.random.default_rng(0).normal(size=(count, columns))
        dde = tfdde.recipes.table_density(x, LEVELS, 8, 1, seed=0)
        assert dde.contrast_weight == expected
    x = np.random.default_rng(0).normal(size=(300, 5))
    assert tfdde.recipes.table_density(x, tfdde.Constant(0.2), 8, 1).contrast_weight == 0.0


@pytest.mark.parametrize("kind", ["gaussian", "clusters", "heavy tails"])
def test_samples_of_the_base(kind):
    """Their density is what the base says: E[q / p] over samples of p is 1, and moments agree."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3_000, 3)) @ rng.normal(size=(3, 3)) + 2.0
    if kind == "clusters":
        x += 12.0 * rng.integers(2, size=(3_000, 1))
    if kind == "heavy tails":
        x = rng.standard_t(2, size=(3_000, 3))
    base = tfdde.GaussianBase(3, most_components=4)
    base.adapt(x)
    assert (base.components, base.heavy_tailed) == {
        "gaussian": (1, False),
        "clusters": (2, False),
        "heavy tails": (base.components, True),
    }[kind]
    y = base.sample(200_000, 0.5, rng)
    log_p = base(tf.constant(y), tf.constant(0.5)).numpy().astype(float)
    inner = scipy.stats.multivariate_normal(x[0], 0.3 * np.eye(3))
    z = inner.rvs(200_000, random_state=1).astype("f4")
    for box in (0.5, 1.0):  # the share of samples in a box, and its integral
        inside = (np.abs(y - x[0]) < box).all(axis=1)
        log_q = inner.logpdf(z)
        at_z = base(tf.constant(z), tf.constant(0.5)).numpy().astype(float)
        terms = np.exp(at_z - log_q) * (np.abs(z - x[0]) < box).all(axis=1)
        error = np.hypot(inside.std(), terms.std()) / np.sqrt(len(y))
        assert inside.mean() == pytest.approx(terms.mean(), abs=4 * error)
    assert np.isfinite(log_p).all()
