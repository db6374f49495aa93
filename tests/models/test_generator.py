"""Generator: the two gradients of Algorithm 1, what it learns, saving, input errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from mixtures import Mixture

import tfdde
from tfdde import networks
from tfdde.networks import initial_weights
from tfdde.utils import random
from tfdde.utils.random import Purpose

SIGMA = 0.5
LATENT = 3


def dde(seed, noise=None):
    return tfdde.DDE(networks.residual_mlp(2, 16, 2), noise or tfdde.Constant(SIGMA), seed=seed)


def make(dde_steps=2, noise=None, network=None, **kwargs):
    network = network or networks.residual_mlp(LATENT, 16, 2, output_shape=2)
    return tfdde.Generator(
        network, dde(1, noise), dde(2, noise), LATENT, dde_steps, seed=3, **kwargs
    )


def data(n=256):
    return np.random.default_rng(0).standard_normal((n, 2)).astype("f4")


def test_one_step_is_algorithm_1():
    """Every update of s_q and g, recomputed with plain tapes and SGD."""
    model = make(dde_steps=2)
    model.compile(keras.optimizers.SGD(0.05), dde_optimizer=keras.optimizers.SGD(0.1))
    again = make(dde_steps=2)
    for a, b in zip(again.weights, model.weights, strict=True):
        a.assign(b)
    g, s_p, s_q = again.generator, again.data_dde, again.generated_dde
    frozen = s_p.network.get_weights()
    rows = 8
    for k in range(2):
        y = g(random.normal((rows, LATENT), 3, k, Purpose.LATENT_DENSITY))
        epsilon = random.normal((rows, 2), 2, k, Purpose.DENSITY_NOISE)
        with tf.GradientTape() as outer:
            noisy = y + SIGMA * epsilon
            with tf.GradientTape() as inner:
                inner.watch(noisy)
                s = s_q.network(noisy)
            residual = inner.gradient(s, noisy) + epsilon / SIGMA
            loss = tf.reduce_mean(tf.reduce_sum(residual**2, 1)) * SIGMA**2 / 2
        v = s_q.network.trainable_variables
        for w, d in zip(v, outer.gradient(loss, v), strict=True):
            w.assign_sub(0.1 * d)
    z = random.normal((rows, LATENT), 3, 0, Purpose.LATENT_GENERATOR)
    epsilon = random.normal((rows, 2), 3, 0, Purpose.GENERATOR_NOISE)
    with tf.GradientTape() as tape:
        y = g(z) + SIGMA * epsilon
        kl = tf.reduce_mean(s_q.network(y) - s_p.network(y))
    v = g.trainable_variables
    for w, d in zip(v, tape.gradient(kl, v), strict=True):
        w.assign_sub(0.05 * d)

    history = model.fit(data(rows), batch_size=rows, verbose=0).history
    np.testing.assert_allclose(history["loss"], [kl], rtol=1e-4, atol=1e-5)
    for mine, theirs in ((g, model.generator), (s_q.network, model.generated_dde.network)):
        for a, b in zip(mine.weights, theirs.weights, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5)
    for a, b in zip(frozen, model.data_dde.network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)  # s_p is frozen


@pytest.mark.parametrize("relative", [False, True])
def test_one_step_with_many_levels(relative):
    """Every row has its own sigma, another one in each update; the pull is weighed by sigma."""
    noise = tfdde.LogUniform(0.2, 2.0)

    def many():
        s_p, s_q = (
            tfdde.DDE(networks.residual_mlp(2, 16, 2, levels=True), noise, time_weight=0.0, seed=k)
            for k in (1, 2)
        )
        g = networks.residual_mlp(LATENT, 16, 2, output_shape=2)
        return tfdde.Generator(
            g, s_p, s_q, LATENT, dde_steps=1, relative=relative, level_power=2.0, seed=3
        )

    model, again = many(), many()
    model.compile(keras.optimizers.SGD(0.05), dde_optimizer=keras.optimizers.SGD(0.1))
    for a, b in zip(again.weights, model.weights, strict=True):
        a.assign(b)
    g, s_p, s_q, rows = again.generator, again.data_dde, again.generated_dde, 8

    def s_of_q(y, sigma):
        if not relative:
            return s_q.at(y, sigma)
        place = 2 * tf.math.log(sigma / 0.2) / np.log(10.0) - 1
        f = s_q.network([y / tf.sqrt(1 + sigma[:, None] ** 2), place[:, None]])
        return f[:, 0] + s_p.at(y, sigma)

    y = g(random.normal((rows, LATENT), 3, 0, Purpose.LATENT_DENSITY))
    epsilon = random.normal((rows, 2), 2, 0, Purpose.DENSITY_NOISE)
    sigma = noise.draw(rows, 3, 0, Purpose.GENERATED_LEVEL)
    with tf.GradientTape() as outer:
        noisy = y + sigma[:, None] * epsilon
        with tf.GradientTape() as inner:
            inner.watch(noisy)
            s = s_of_q(noisy, sigma)
        residual = sigma[:, None] * inner.gradient(s, noisy) + epsilon
        loss = tf.reduce_mean(tf.reduce_sum(residual**2, 1)) / 2
    v = s_q.network.trainable_variables
    for w, d in zip(v, outer.gradient(loss, v), strict=True):
        w.assign_sub(0.1 * d)
    z = random.normal((rows, LATENT), 3, 0, Purpose.LATENT_GENERATOR)
    epsilon = random.normal((rows, 2), 3, 0, Purpose.GENERATOR_NOISE)
    sigma = noise.draw(rows, 3, 0, Purpose.GENERATOR_LEVEL)
    assert len(set(sigma.numpy())) == rows
    with tf.GradientTape() as tape:
        y = g(z) + sigma[:, None] * epsilon
        kl = tf.reduce_mean((sigma / 0.2) ** 2 * (s_of_q(y, sigma) - s_p.at(y, sigma)))
    v = g.trainable_variables
    for w, d in zip(v, tape.gradient(kl, v), strict=True):
        w.assign_sub(0.05 * d)

    history = model.fit(data(rows), batch_size=rows, verbose=0).history
    np.testing.assert_allclose(history["loss"], [kl], rtol=1e-4, atol=1e-5)
    for mine, theirs in ((g, model.generator), (s_q.network, model.generated_dde.network)):
        for a, b in zip(mine.weights, theirs.weights, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5)
    assert model.evaluate(data(64), verbose=0) == model.evaluate(data(64), verbose=0)


def test_averages_of_the_weights_are_the_generators():
    """`use_ema`: at the end g has the averages; the densities keep their own weights."""

    def after(steps, **kwargs):
        keras.utils.set_random_seed(1)
        model = make()
        model.compile(keras.optimizers.SGD(0.1, **kwargs), dde_optimizer="sgd")
        model.fit(data(32), batch_size=16, steps_per_epoch=steps, verbose=0)
        return model

    first, plain, averaged = after(1), after(2), after(2, use_ema=True, ema_momentum=0.25)
    for w, one, two in zip(
        *(m.generator.get_weights() for m in (averaged, first, plain)), strict=True
    ):
        np.testing.assert_allclose(w, 0.25 * one + 0.75 * two, atol=1e-6)
    for name in ("data_dde", "generated_dde"):
        for a, b in zip(getattr(averaged, name).weights, getattr(plain, name).weights, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


def test_generator_gradient_descends_the_kl_of_gaussians():
    """With exact s_p and s_q the gradient is that of KL(q~ || p~), in closed form for Gaussians."""
    model = tfdde.Generator(
        affine(mean=[0.7, -0.2], scale=[1.5, 0.4]), dde(1), dde(2), latent_dim=2, seed=3
    )
    total_p = np.array([1.0, 1.0]) + SIGMA**2  # data N(0, I)
    total_q = np.array([1.5, 0.4]) ** 2 + SIGMA**2

    def log_normal(mean, variance):
        return lambda y, _: -tf.reduce_sum((y - mean) ** 2 / (2 * variance), axis=1)

    model.data_dde.at = log_normal([0.0, 0.0], total_p.astype("f4"))
    model.generated_dde.at = log_normal([0.7, -0.2], total_q.astype("f4"))
    n = 400_000
    z = random.normal((n, 2), 5, 0, Purpose.SAMPLE)
    epsilon = random.normal((n, 2), 6, 0, Purpose.SAMPLE)
    _, (kernel, bias) = model._loss_and_gradients(
        z, epsilon, tf.constant(SIGMA), tf.constant(1.0 * n)
    )
    # d/dm and d/da of sum [(a^2 + s^2 + m^2) / v_p - log(a^2 + s^2)] / 2.
    mean, scale = np.array([0.7, -0.2]), np.array([1.5, 0.4])
    np.testing.assert_allclose(bias, mean / total_p, atol=0.01)
    np.testing.assert_allclose(np.diag(kernel), scale / total_p - scale / total_q, atol=0.01)


def affine(mean=(0.0, 0.0), scale=(0.3, 0.3)):
    x = keras.Input((2,), name="z")
    layer = keras.layers.Dense(2)
    network = keras.Model(x, layer(x))
    layer.set_weights([np.diag(scale).astype("f4"), np.array(mean, "f4")])
    return network


@pytest.mark.parametrize("along", [False, True])
def test_learns_a_gaussian_and_deblurs_it(along):
    """Its optimum is q = p and not the blurred p~: the variance without noise comes out."""
    truth = Mixture([[1.0, -0.5]], [0.36], [1.0])
    x = truth.sample(20_000, seed=0)
    bases = tfdde.GaussianBase(2), tfdde.GaussianBase(2)
    for base in bases:
        base.adapt(x)
    noise = tfdde.Decay(1.5, SIGMA, 20) if along else tfdde.Constant(SIGMA)
    s_p = tfdde.DDE(networks.residual_mlp(2, 16, 2), noise, base=bases[0], seed=1)
    s_q = tfdde.DDE(networks.residual_mlp(2, 16, 2), noise, base=bases[1], seed=2)
    if not along:
        s_p.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, 600)))
        s_p.fit(tfdde.datasets.stream(x, 256, 0), steps_per_epoch=600, verbose=0)
    model = tfdde.Generator(affine(), s_p, s_q, latent_dim=2, dde_steps=4, seed=3)
    schedule = keras.optimizers.schedules.CosineDecay(2e-2, 500)
    model.compile(
        keras.optimizers.Adam(schedule, beta_1=0.5),
        dde_optimizer=keras.optimizers.Adam(5e-3, beta_1=0.5),
        data_optimizer=keras.optimizers.Adam(5e-3) if along else None,
    )
    before = s_p.network.get_weights()
    history = model.fit(tfdde.datasets.stream(x, 256, 0), steps_per_epoch=500, verbose=0).history
    changed = any((a != b).any() for a, b in zip(before, s_p.network.get_weights(), strict=True))
    assert changed == along and ("data_loss" in history) == along
    samples = model.sample(20_000, seed=1).numpy()
    np.testing.assert_allclose(samples.mean(0), [1.0, -0.5], atol=0.08)
    np.testing.assert_allclose(np.cov(samples.T), 0.36 * np.eye(2), atol=0.08)


def test_evaluate_estimates_the_loss():
    model = make()
    model.compile("adam")
    x = data(20_000)
    value = model.evaluate(x, batch_size=5000, verbose=0)
    assert value == model.evaluate(x, batch_size=5000, verbose=0)
    y = model.sample(20_000, seed=9) + SIGMA * tf.random.stateless_normal((20_000, 2), (1, 2))
    s_q, s_p = (d.log_density(y, normalized=False) for d in (model.generated_dde, model.data_dde))
    difference = (s_q - s_p).numpy()
    assert abs(value - difference.mean()) < 6 * difference.std() / np.sqrt(len(difference))


def test_principal_start_has_the_datas_mean_and_covariance():
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((4000, 3))
    x = 0.5 + 0.04 * latent @ rng.standard_normal((3, 12))
    network = networks.dense_block(3, 8, 2, 12, output_activation="sigmoid")
    initial_weights.at_principal_components(network, x)
    for layer in network.layers[-1:]:
        kernel, bias = layer.get_weights()
        kernel[3:] = 0  # without the hidden layers it is the linear model, bent by the sigmoid
        layer.set_weights([kernel, bias])
    y = network(rng.standard_normal((20_000, 3)).astype("f4")).numpy()
    np.testing.assert_allclose(y.mean(0), x.mean(0), atol=0.01)
    np.testing.assert_allclose(np.cov(y.T), np.cov(x.T), atol=0.1 * np.var(x, axis=0).max())
    with pytest.raises(ValueError, match="`x` must have more than 3 rows of 12 entries"):
        initial_weights.at_principal_components(network, x[:, :5])
    with pytest.raises(ValueError, match="`network` must be a dense_block"):
        initial_weights.at_principal_components(networks.dense_block(3), x)


# Bad input.


@pytest.mark.parametrize(
    "change, message",
    [
        ({"latent_dim": 4}, r"inputs of shape \(None, latent_dim\) = \(None, 4\)"),
        ({"latent_dim": 0}, "`latent_dim` must be an integer >= 1, got 0"),
        ({"dde_steps": 0}, "`dde_steps` must be an integer >= 1, got 0"),
        ({"data_dde": "p"}, "`data_dde` must be a tfdde.DDE, got 'p'"),
        ({"generator": None}, "`generator` must be a built keras.Model"),
        ({"seed": 1.5}, "`seed` must be"),
    ],
)
def test_bad_arguments(change, message):
    parts = {
        "generator": networks.residual_mlp(LATENT, 4, 1, output_shape=2),
        "data_dde": dde(1),
        "generated_dde": dde(2),
        "latent_dim": LATENT,
    }
    with pytest.raises(ValueError, match=message):
        tfdde.Generator(**{**parts, **change})


def test_parts_that_do_not_fit():
    network = networks.residual_mlp(LATENT, 4, 1, output_shape=2)
    with pytest.raises(ValueError, match=r"same noise level.*sigma=0\.5.*sigma=0\.1"):
        tfdde.Generator(network, dde(1), dde(2, tfdde.Constant(0.1)), LATENT)
    wide = tfdde.DDE(networks.residual_mlp(3, 4, 1), tfdde.Constant(SIGMA))
    with pytest.raises(
        ValueError, match=r"`data_dde` must take rows of the generator's shape \(2,\)"
    ):
        tfdde.Generator(network, wide, dde(2), LATENT)
    one = dde(1)
    with pytest.raises(ValueError, match="`generated_dde` must be another DDE"):
        tfdde.Generator(network, one, one, LATENT)


def test_a_loop_of_updates_is_the_same_as_one_after_the_other(monkeypatch):
    def trained():
        keras.utils.set_random_seed(0)
        ddes = [
            tfdde.DDE(networks.residual_mlp(2, 8, 2), tfdde.Constant(0.3), seed=s) for s in (1, 2)
        ]
        maker = networks.residual_mlp(2, 8, 2, output_shape=2)
        generator = tfdde.Generator(maker, *ddes, latent_dim=2, dde_steps=3, data_steps=2, seed=3)
        generator.compile(data_optimizer="adam")
        x = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
        logs = generator.fit(x, batch_size=16, epochs=2, verbose=0).history
        return [*generator.get_weights(), *logs.values()]

    looped = trained()
    unrolled = lambda update, times: [update() for _ in range(times)]  # noqa: E731
    monkeypatch.setattr("tfdde.models.generator.repeat", unrolled)
    for a, b in zip(looped, trained(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
