"""A generator whose second network learns log q~ - log p~ by logistic regression."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit
from scipy.stats import norm

import tfdde
from tfdde import losses, networks
from tfdde.optimizers import FusedAdam
from tfdde.utils import random
from tfdde.utils.random import Purpose

LATENT = 2
MANY = tfdde.LogUniform(0.2, 4.0)


def model_of(network=None, noise=MANY, conditions=0, forward=0.5, one_stage=False):
    levels = isinstance(noise, tfdde.LogUniform)
    settings = {"activation": "silu", "levels": levels, "conditions": conditions}
    s_p, r = (tfdde.DDE(networks.residual_mlp(2, 32, 3, **settings), noise, seed=k) for k in (1, 2))
    network = network or networks.residual_mlp(
        LATENT, 32, 3, output_shape=2, activation="silu", conditions=conditions
    )
    return tfdde.Generator(
        network,
        s_p,
        r,
        LATENT,
        1,
        relative=True,
        ratio="logistic",
        forward=forward,
        one_stage=one_stage,
        seed=3,
    )


def test_loss_and_weights_in_float64():
    rng = np.random.default_rng(0)
    data, samples = 3 * rng.standard_normal((2, 50))
    loss = losses.log_ratio_loss(tf.constant(data), tf.constant(samples)).numpy()
    classified = np.concatenate([-np.log(1 - expit(data)), -np.log(expit(samples))])
    np.testing.assert_allclose(loss, classified / np.log(2), rtol=1e-6)
    np.testing.assert_allclose(losses.log_ratio_loss(tf.zeros(2), tf.zeros(2)), 1.0, rtol=1e-6)
    weights = losses.forward_kl_weights(tf.constant(samples)).numpy()
    ratio = np.exp(np.clip(-samples, -4, 4))
    np.testing.assert_allclose(weights, np.minimum(ratio / ratio.mean(), 4.0), rtol=1e-6)


@pytest.mark.parametrize("noise", [MANY, tfdde.Constant(0.5)], ids=["many levels", "one level"])
def test_one_step_is_the_one_written_out(noise):
    x = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
    model, again = model_of(noise=noise), model_of(noise=noise)
    model.compile(keras.optimizers.SGD(0.05), dde_optimizer=keras.optimizers.SGD(0.1))
    for a, b in zip(again.weights, model.weights, strict=True):
        a.assign(b)
    g, r = again.generator, again.generated_dde

    def levels(stream):
        if noise is not MANY:
            return tf.fill((8,), 0.5)
        return noise.draw(8, 3, 0, stream)

    sigma = levels(Purpose.GENERATED_LEVEL)
    epsilon = random.normal((16, 2), 2, 0, Purpose.DENSITY_NOISE)
    y = g(random.normal((8, LATENT), 3, 0, Purpose.LATENT_DENSITY))
    with tf.GradientTape() as tape:
        at_data = r.correction(x + sigma[:, None] * epsilon[:8], sigma)
        at_samples = r.correction(y + sigma[:, None] * epsilon[8:], sigma)
        loss = tf.reduce_mean(tf.math.log1p(tf.exp(at_data)))
        loss = (loss + tf.reduce_mean(tf.math.log1p(tf.exp(-at_samples)))) / (2 * np.log(2))
    v = r.network.trainable_variables
    for w, d in zip(v, tape.gradient(loss, v), strict=True):
        w.assign_sub(0.1 * d)
    sigma = levels(Purpose.GENERATOR_LEVEL)
    epsilon = random.normal((8, 2), 3, 0, Purpose.GENERATOR_NOISE)
    z = random.normal((8, LATENT), 3, 0, Purpose.LATENT_GENERATOR)
    with tf.GradientTape() as tape:
        value = r.correction(g(z) + sigma[:, None] * epsilon, sigma)
        h = np.exp(-np.clip(value, -4.0, 4.0))
        h = np.minimum(h / h.mean(), 4.0)
        power = sigma / 0.2 if noise is MANY else tf.ones(8)
        kl = tf.reduce_mean(power * (0.5 + 0.5 * h) * value)
    v = g.trainable_variables
    for w, d in zip(v, tape.gradient(kl, v), strict=True):
        w.assign_sub(0.05 * d)

    history = model.fit(tf.data.Dataset.from_tensors(x), verbose=0).history
    np.testing.assert_allclose(history["dde_loss"], [loss], rtol=1e-4)
    np.testing.assert_allclose(history["loss"], [kl], rtol=1e-4, atol=1e-5)
    for mine, theirs in ((g, model.generator), (r.network, model.generated_dde.network)):
        for a, b in zip(mine.weights, theirs.weights, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", [MANY, tfdde.Constant(0.5)], ids=["many levels", "one level"])
@pytest.mark.parametrize("forward", [0.0, 0.5])
def test_a_step_of_one_stage_is_that_of_two_passes(noise, forward):
    """At the same samples and noise: each network's gradient by a tape of its own."""
    x = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
    decay = keras.regularizers.L2(0.01)
    z = keras.Input((LATENT,))
    h = keras.layers.Dense(16, activation="silu", kernel_regularizer=decay)(z)
    network = keras.Model(z, keras.layers.Dense(2)(h))
    model = model_of(network, noise, forward=forward, one_stage=True)
    model.compile(keras.optimizers.SGD(0.05), dde_optimizer=keras.optimizers.SGD(0.1))
    g, r = model.generator, model.generated_dde
    sigma = tf.fill((8,), 0.5)
    if noise is MANY:
        sigma = noise.draw(8, 3, 0, Purpose.GENERATOR_LEVEL)
    epsilon = random.normal((16, 2), 3, 0, Purpose.GENERATOR_NOISE) * tf.tile(sigma, [2])[:, None]
    z = random.normal((8, LATENT), 3, 0, Purpose.LATENT_GENERATOR)
    with tf.GradientTape(persistent=True) as tape:
        at_data, at_samples = (
            r.correction(y + e, sigma) for y, e in ((x, epsilon[:8]), (g(z), epsilon[8:]))
        )
        loss = tf.reduce_mean(tf.math.log1p(tf.exp(at_data)))
        loss = (loss + tf.reduce_mean(tf.math.log1p(tf.exp(-at_samples)))) / (2 * np.log(2))
        h = np.exp(-np.clip(at_samples, -4.0, 4.0))
        h = np.minimum(h / h.mean(), 4.0)
        power = sigma / 0.2 if noise is MANY else tf.ones(8)
        kl = tf.reduce_mean(power * (1 - forward + forward * h) * at_samples)
        kl += 0.01 * tf.reduce_sum(g.trainable_variables[0] ** 2)
    expected = []
    for value, part, rate in ((kl, g, 0.05), (loss, r.network, 0.1)):
        v = part.trainable_variables
        gradients = tape.gradient(value, v)
        expected.append([w - rate * d for w, d in zip(v, gradients, strict=True)])

    history = model.fit(tf.data.Dataset.from_tensors(x), verbose=0).history
    np.testing.assert_allclose(history["dde_loss"], [loss], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], [kl], rtol=1e-5, atol=1e-6)
    for part, after in zip((g, r.network), expected, strict=True):
        for a, b in zip(part.trainable_variables, after, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
    assert int(model.optimizer.iterations) == int(model.dde_optimizer.iterations) == 1


def test_a_sample_that_r_is_sure_of_does_not_make_the_step_infinite():
    """Its logistic loss has no slope in float32, which can't be scaled up to that of r."""
    from tfdde.models import log_ratio

    z = keras.Input((LATENT,))
    g = keras.Model(z, keras.layers.Dense(2)(z))
    x = keras.Input((2,))
    far = keras.Model(x, keras.layers.Dense(1, kernel_initializer="ones")(x))
    shifts = tf.constant([[0.0], [500.0]])  # r of the second sample is 500 nats

    def r_of(y, sigma):
        return (far(y) + tf.concat([tf.zeros((2, 1)), shifts], axis=0))[:, 0]

    zeros, one = tf.zeros((2, 2)), tf.ones(())
    (loss, gradients), _ = log_ratio.one_stage(
        (g, far), lambda: g(tf.ones((2, 2))), r_of, lambda r: one, zeros, tf.zeros((4, 2)), one,
        (2.0, 4.0),
    )  # fmt: skip
    assert np.isfinite(loss)
    assert all(np.isfinite(d).all() for d in gradients)
    np.testing.assert_allclose(gradients[1], [0.5, 0.5], rtol=1e-5)  # of the first sample alone


def test_it_finds_the_exact_log_ratio_with_its_constant():
    """Of two fixed Gaussians, at every level: score matching would leave a constant open."""
    shift, width = np.array([1.0, -0.5]), np.array([0.7, 1.3])
    z = keras.Input((LATENT,))
    layer = keras.layers.Dense(2)
    network = keras.Model(z, layer(z))
    layer.set_weights([np.diag(width).astype("f"), shift.astype("f")])
    model = model_of(network, forward=0.0)
    rate = keras.optimizers.schedules.CosineDecay(5e-3, 2_000)
    model.compile(
        keras.optimizers.SGD(0.0), dde_optimizer=keras.optimizers.Adam(rate), steps_per_execution=50
    )
    x = np.random.default_rng(0).standard_normal((20_000, 2)).astype(np.float32)
    model.fit(tfdde.datasets.stream(x, 512, 0), steps_per_epoch=2_000, verbose=0)
    rng = np.random.default_rng(1)
    data, samples = rng.standard_normal((2, 500, 2))
    samples = shift + width * samples
    for sigma in (0.2, 1.0, 3.0):
        # Where the regression looks: noisy data and noisy samples in equal parts.
        y = np.concatenate([data, samples])
        y = (y + sigma * rng.standard_normal(y.shape)).astype(np.float32)
        r = model.generated_dde.correction(tf.constant(y), tf.constant(sigma)).numpy()
        log_q = norm.logpdf(y, shift, np.sqrt(width**2 + sigma**2)).sum(axis=1)
        log_p = norm.logpdf(y, 0, np.sqrt(1 + sigma**2)).sum(axis=1)
        error = r - (log_q - log_p)
        assert np.sqrt(np.mean(error**2)) < 0.15 * max(np.std(log_q - log_p), 0.5)
        assert abs(error.mean()) < 0.05


@pytest.mark.parametrize("one_stage", [False, True])
def test_far_modes_get_their_weights(one_stage):
    rng = np.random.default_rng(0)
    right = rng.random(20_000) < 0.25
    x = np.where(right, 3.0, -3.0)[:, None] * [1.0, 0.0] + 0.3 * rng.standard_normal((20_000, 2))
    model = model_of(one_stage=one_stage)
    steps = 2_500
    rate = keras.optimizers.schedules.CosineDecay
    model.compile(
        FusedAdam(rate(2e-3, steps), 0.5, 0.9, use_ema=True, ema_momentum=0.99),
        dde_optimizer=FusedAdam(rate(2e-3, steps), 0.5, 0.9),
        steps_per_execution=50,
    )
    model.fit(tfdde.datasets.stream(x.astype("f"), 256, 0), steps_per_epoch=steps, verbose=0)
    samples = model.sample(20_000, seed=1).numpy()
    near = {s: np.linalg.norm(samples - [3.0 * s, 0.0], axis=1) < 1.2 for s in (-1, 1)}
    assert abs(near[1].mean() - 0.25) < 0.04
    assert abs(near[-1].mean() - 0.75) < 0.04
    for s, inside in near.items():
        np.testing.assert_allclose(samples[inside].mean(axis=0), [3.0 * s, 0.0], atol=0.15)


@pytest.mark.parametrize("one_stage", [False, True])
def test_conditions_strategies_and_settings(two, tmp_path, one_stage):
    x = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
    c = keras.utils.to_categorical(np.arange(64) % 3, 3)
    for strategy in (tf.distribute.get_strategy(), two):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            model = model_of(conditions=3, forward=0.0, one_stage=one_stage)
            sgd = keras.optimizers.SGD(1e-4)
            model.compile(sgd, dde_optimizer=keras.optimizers.SGD(1e-3))
        assert np.isfinite(model.fit(x, c, batch_size=16, verbose=0).history["loss"][0])
    assert model.sample(5, conditions=c[:5]).shape == (5, 2)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert (loaded.ratio, loaded.forward, loaded.relative) == ("logistic", 0.0, True)
    assert loaded.one_stage is one_stage
    one = model.given(c[0])
    assert (one.ratio, one.forward, one.one_stage) == ("logistic", 0.0, one_stage)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": "gan"}, '`ratio` must be "denoising" or "logistic", got \'gan\''),
        ({"ratio": "logistic"}, "needs `relative=True`"),
        ({"forward": 0.5, "relative": True}, 'needs `ratio="logistic"`'),
        ({"one_stage": True, "dde_steps": 1}, "`one_stage` needs .*, got 'denoising' and 1"),
        ({"one_stage": True, "relative": True, "ratio": "logistic"}, "got 'logistic' and 10"),
        ({"forward": 1.5, "relative": True, "ratio": "logistic"}, r"`forward` must be .* got 1.5"),
    ],
)
def test_bad_settings(settings, message):
    network = networks.residual_mlp(LATENT, 4, 1, output_shape=2)
    s_p, r = (tfdde.DDE(networks.residual_mlp(2, 4, 1), tfdde.Constant(0.5)) for _ in range(2))
    with pytest.raises(ValueError, match=message):
        tfdde.Generator(network, s_p, r, LATENT, **settings)
