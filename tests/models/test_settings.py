"""Densities and samplers: the steps of all their settings, what is default, kept and refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdde
from tfdde import networks
from tfdde.utils import random
from tfdde.utils.random import Purpose

ONE, FALLING, MANY = tfdde.Constant(0.4), tfdde.Decay(2.0, 0.4, 2), tfdde.LogUniform(0.2, 2.0, 0.4)
LATENT = 3


def density(noise=MANY, conditions=0, **kwargs):
    levels = isinstance(noise, tfdde.LogUniform)
    network = networks.residual_mlp(2, 8, 2, levels=levels, conditions=conditions)
    kwargs = {"time_weight": 0.25, "seed": 1} | kwargs
    return tfdde.DDE(network, noise, **kwargs)


def sampler(noise=MANY, conditions=0, **kwargs):
    network = networks.residual_mlp(LATENT, 8, 1, output_shape=2, conditions=conditions)
    parts = (density(noise, conditions, seed=k) for k in (1, 2))
    kwargs = {"dde_steps": 3, "data_steps": 2, "level_power": 2.0, "seed": 5} | kwargs
    return tfdde.Generator(network, *parts, LATENT, **kwargs)


def data(n=8):
    return np.random.default_rng(0).standard_normal((n, 2)).astype("f4") + 1.0


def losses(dde, x, sigma, epsilon):
    """Of each row, by plain tapes: eq. 10, and with levels time-score matching for 0.25 of it."""
    log_sigma = tf.math.log(sigma * tf.ones(len(x)))
    y = x + sigma[..., None] * epsilon
    with tf.GradientTape() as tape:
        tape.watch([y, log_sigma])
        s = dde.at(y, tf.exp(log_sigma))
    score, slope = tape.gradient(s, [y, log_sigma])
    space = tf.reduce_mean((sigma[..., None] * score + epsilon) ** 2, axis=1)
    if not isinstance(dde.noise, tfdde.LogUniform):
        return space.numpy()
    time = (slope - (tf.reduce_sum(epsilon**2, axis=1) - 2)) ** 2 / 4
    return ((2 * space + 0.25 * time) / 2.25).numpy()


@pytest.mark.parametrize("noise", [ONE, MANY])
@pytest.mark.parametrize("antithetic", [False, True])
def test_losses_of_a_density(noise, antithetic):
    dde, x = density(noise, antithetic=antithetic), data(10)
    dde.compile("sgd", run_eagerly=True)
    expected = []
    for done, rows in ((0, x[:6]), (6, x[6:])):  # the rows done number the batches
        epsilon = random.normal(rows.shape, 1, done, Purpose.EVALUATION_NOISE)
        sigma = tf.constant(0.4)
        if noise is MANY:
            sigma = noise.draw(len(rows), 1, done, Purpose.EVALUATION_LEVEL)
        expected.extend(losses(dde, rows, sigma, epsilon))
    assert dde.evaluate(x, batch_size=6, verbose=0) == pytest.approx(np.mean(expected), rel=1e-4)

    epsilon = random.normal(x.shape, 1, 0, Purpose.DENSITY_NOISE)
    sigma = noise.draw(len(x), 1, 0, Purpose.DENSITY_LEVEL)
    signs = (1, -1) if antithetic else (1,)
    expected = np.mean([losses(dde, x, sigma, sign * epsilon) for sign in signs])
    history = dde.fit(x, batch_size=10, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], [expected], rtol=1e-4)


def test_one_level_for_all_rows_is_that_of_each():
    dde, x = density(), tf.constant(data())
    one, each = tf.constant(0.7), tf.fill([8], 0.7)
    np.testing.assert_allclose(dde.at(x, one), dde.at(x, each), atol=1e-6)


@pytest.mark.parametrize("noise", [ONE, MANY])
def test_evaluation_of_a_sampler(noise):
    model = sampler(noise)
    model.compile(run_eagerly=True)
    for v in model.generated_dde.network.trainable_variables:  # or s_q would be s_p
        v.assign(1.5 * v + 0.1)
    expected = []
    for done, rows in ((0, 6), (6, 4)):
        z = random.normal((rows, LATENT), 5, done, Purpose.SAMPLE)
        epsilon = random.normal((rows, 2), 5, done, Purpose.EVALUATION_NOISE)
        sigma = tf.fill([rows], 0.4)
        if noise is MANY:
            sigma = noise.draw(rows, 5, done, Purpose.EVALUATION_LEVEL)
        y = model.generator(z) + sigma[:, None] * epsilon
        difference = model.generated_dde.at(y, sigma) - model.data_dde.at(y, sigma)
        expected.extend(difference * (sigma / 0.2) ** 2 if noise is MANY else difference)
    loss = model.evaluate(data(10), batch_size=6, verbose=0)
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_levels_of_the_updates_of_a_sampler():
    """A frozen s_p knows the last level only; one trained along is at that of the iteration."""
    model = sampler(FALLING)
    model.compile()
    model.optimizer.iterations.assign(5)
    assert model._level(4, 7, Purpose.GENERATED_LEVEL) == np.float32(0.4)
    model.compile(data_optimizer="sgd")
    model.optimizer.iterations.assign(5)
    level = model._level(4, 7, Purpose.GENERATED_LEVEL)
    np.testing.assert_allclose(level, 2.0 / 1.1**2, rtol=1e-6)
    many = sampler(MANY)
    np.testing.assert_array_equal(
        many._level(4, 7, Purpose.GENERATED_LEVEL), MANY.draw(4, 5, 7, Purpose.GENERATED_LEVEL)
    )


def test_one_step_of_all_three_networks():
    """``data_steps`` updates of s_p on the batch, ``dde_steps`` of s_q, and one of g."""
    model, again, x = sampler(), sampler(), data()
    for a, b in zip(again.weights, model.weights, strict=True):
        a.assign(b)
    model.compile(
        "sgd",
        dde_optimizer=keras.optimizers.SGD(0.1),
        data_optimizer=keras.optimizers.SGD(0.2),
        run_eagerly=True,
    )
    assert [m.name for m in model.metrics] == ["loss", "dde_loss", "data_loss"]
    logs = model.fit(x, batch_size=8, shuffle=False, verbose=0).history
    assert set(logs) == {"loss", "dde_loss", "data_loss"}
    done = [o.iterations for o in (model.data_optimizer, model.dde_optimizer, model.optimizer)]
    assert [int(i) for i in done] == [2, 3, 1]

    def updates(dde, rate, steps, rows, stream):
        optimizer, found = keras.optimizers.SGD(rate), []
        dde.compile(optimizer)
        for k in range(steps):
            loss, count = dde.minimize(
                dde.loss_and_gradients, rows(k), optimizer, MANY.draw(8, 5, k, stream)
            )
            assert count == 8
            found.append(loss / 8)
        return np.mean(found)

    loss = updates(again.data_dde, 0.2, 2, lambda k: tf.constant(x), Purpose.DENSITY_LEVEL)
    np.testing.assert_allclose(logs["data_loss"], [loss], rtol=1e-4)
    latent = lambda k: random.normal((8, LATENT), 5, k, Purpose.LATENT_DENSITY)  # noqa: E731
    loss = updates(
        again.generated_dde, 0.1, 3, lambda k: again.generator(latent(k)), Purpose.GENERATED_LEVEL
    )
    np.testing.assert_allclose(logs["dde_loss"], [loss], rtol=1e-4)
    for name in ("data_dde", "generated_dde"):
        for a, b in zip(getattr(again, name).weights, getattr(model, name).weights, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5)


# Settings.

DENSITY = ("antithetic", "time_weight", "contrast_weight", "seed", "data_shape", "condition_dim")
SAMPLER = ("latent_dim", "dde_steps", "data_steps", "relative", "level_power", "seed")


def settings(model, names):
    return {name: getattr(model, name) for name in names}


def test_defaults():
    assert settings(tfdde.DDE(networks.residual_mlp(2, 4, 1)), DENSITY[:3]) == {
        "antithetic": False,
        "time_weight": 0.5,
        "contrast_weight": 0.0,
    }
    plain = tfdde.DDE(networks.residual_mlp(2, 4, 1))
    assert plain.noise.sigma == 0.2 and plain.base is plain.normalization is None
    assert density().base.row_shape == (2,) and density(ONE).base is None
    network = networks.residual_mlp(16, 4, 1, output_shape=2)
    model = tfdde.Generator(network, density(), density(), seed=3)
    assert tuple(settings(model, SAMPLER).values()) == (16, 10, 1, False, 1.0, 3)
    assert [m.name for m in model.metrics] == ["loss", "dde_loss"]
    for either in (plain, model):
        assert either.get_compile_config() is None
        either.compile()
        assert isinstance(either.optimizer, keras.optimizers.Adam)
        assert either.steps_per_execution == 1
        assert not either.run_eagerly and not either.jit_compile
    assert isinstance(model.dde_optimizer, keras.optimizers.Adam) and model.data_optimizer is None


def test_a_density_comes_back_as_it_was_and_is_copied_so():
    base, normalization = tfdde.GaussianBase(2), keras.layers.Normalization()
    parts = {"base": base, "normalization": normalization, "name": "mine"}
    dde = density(MANY, 3, antithetic=True, seed=7, **parts)
    dde.partition = tfdde.LogPartition(1.0, 0.1, 0.8, 1.2, 900.0, "ladder", 0.4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(dde))
    given = dde.given([0.0, 1.0, 0.5])
    assert again.name == "mine" and again.partition is None  # it has other weights than `dde`
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(dde))
    again.set_weights(dde.get_weights())
    assert again.partition == dde.partition and again.partitions is None
    assert given.noise is MANY
    for part, copy in ((base, given.base), (normalization, given.normalization)):
        assert part is not copy and part.get_config() == copy.get_config()
        for a, b in zip(part.get_weights(), copy.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert again.base.row_shape == (2,) and again.normalization.built
    assert settings(again, DENSITY) == settings(dde, DENSITY)
    assert settings(given, DENSITY) == {**settings(dde, DENSITY), "condition_dim": 0}
    old = dde.get_config()
    del old["log_z"]  # as in files of earlier versions, which have no fingerprint
    old["partition"] = keras.saving.serialize_keras_object(dde.partition)
    again = tfdde.DDE.from_config(old)
    assert again.partitions is None and again.partition == dde.partition
    assert again.noise.get_config() == MANY.get_config()


def test_a_sampler_comes_back_as_it_was_and_is_copied_so():
    model = sampler(MANY, 2, relative=True, name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert settings(again, SAMPLER) == settings(model, SAMPLER) and again.name == "mine"
    assert again.condition_dim == 2 and again.data_shape == (2,)
    given = model.given([0.0, 1.0])
    assert settings(given, SAMPLER) == settings(model, SAMPLER) and given.condition_dim == 0
    assert (given.data_dde.seed, given.generated_dde.seed) == (1, 2)


@pytest.mark.parametrize("make", [density, sampler])
def test_what_compile_was_told_comes_back(make):
    model, again = make(), make()
    more = {}
    if make is sampler:
        more = {
            "dde_optimizer": keras.optimizers.SGD(0.25),
            "data_optimizer": keras.optimizers.SGD(0.125),
        }
    model.compile(
        keras.optimizers.SGD(0.5),
        run_eagerly=True,
        steps_per_execution=3,
        jit_compile=False,
        **more,
    )
    again.compile_from_config(model.get_compile_config())
    assert again.run_eagerly and again.steps_per_execution == 3 and again.jit_compile is False
    for name in ("optimizer", *more):
        found = getattr(again, name)
        assert isinstance(found, keras.optimizers.SGD) and found.built
        assert found.learning_rate == getattr(model, name).learning_rate
    model.compile("adam", jit_compile=True)
    again.compile_from_config(model.get_compile_config())
    assert again.jit_compile is True and not again.run_eagerly


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (density, {"time_weight": -0.5}, "`time_weight` must be a finite number >= 0, got -0.5"),
        (density, {"time_weight": np.nan}, "`time_weight` must be a finite number >= 0, got nan"),
        (
            density,
            {"normalization": "x"},
            "`normalization` must be a tfdde.tables.Schema or a keras.*got 'x'",
        ),
        (density, {"base": tfdde.GaussianBase(3)}, r"GaussianBase\(\(2,\)\).*got \(3,\)"),
        (sampler, {"level_power": np.inf}, "`level_power` must be a finite number, got inf"),
        (sampler, {"data_steps": 0}, "`data_steps` must be an integer >= 1, got 0"),
    ],
)
def test_bad_settings(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_parts_of_a_sampler_that_do_not_fit():
    network = networks.residual_mlp(LATENT, 8, 1, output_shape=2)
    units = density(normalization=keras.layers.Normalization())
    for parts in ((units, density()), (density(), units)):
        with pytest.raises(ValueError, match="_dde` must have no `normalization`"):
            tfdde.Generator(network, *parts, LATENT)
    shared = density()
    parts = shared, tfdde.DDE(shared.network, MANY)
    with pytest.raises(ValueError, match="`generated_dde` must be another DDE"):
        tfdde.Generator(network, *parts, LATENT)
    same_base = density(base=shared.base)
    with pytest.raises(ValueError, match="`generated_dde` must have a `base` of its own"):
        tfdde.Generator(network, shared, same_base, LATENT)
    with pytest.raises(ValueError, match="`generator` must be a built keras.Model"):
        tfdde.Generator(keras.Sequential([keras.layers.Dense(2)]), density(), density(), LATENT)


def test_adapting_and_conditions_are_checked():
    with pytest.raises(ValueError, match="neither a `normalization` nor a `base` to adapt"):
        density(ONE).adapt(data())
    with pytest.raises(ValueError, match="`x` must have shape"):
        density().adapt(np.zeros((5, 3)))
    x, c = tf.zeros((4, 2)), tf.zeros((4, 3))
    with pytest.raises(ValueError, match="`condition` must be none, got "):
        density().at(x, tf.constant(0.4), c)
    with pytest.raises(ValueError, match=r"`condition` must be of shape \(batch, 3\), got None"):
        density(MANY, 3).at(x, tf.constant(0.4))


@pytest.mark.parametrize("parts", ["base", "normalization", "both"])
def test_adapt_takes_the_moments_of_what_each_part_sees(parts):
    x = 3.0 * data(500) + [5.0, -2.0]
    base = None if parts == "normalization" else tfdde.GaussianBase(2)
    normalization = None if parts == "base" else keras.layers.Normalization()
    dde = density(ONE, base=base, normalization=normalization)
    dde.adapt(x)
    inside = dde.inside(tf.constant(x, tf.float32)).numpy()
    if normalization is not None:
        np.testing.assert_allclose(inside.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(inside.std(0), 1, atol=1e-4)
    if base is not None:
        other = tfdde.GaussianBase(2)
        other.adapt(inside)
        for a, b in zip(base.weights, other.weights, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5)
        assert base.weights


def test_networks_may_compute_in_bfloat16(tmp_path):
    exact, x = sampler(), data()
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        model = sampler()
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    model.set_weights(exact.get_weights())
    for a, b in (
        (model.data_dde.score(x), exact.data_dde.score(x)),
        (model.data_dde(x), exact.data_dde(x)),
        (model.sample(8, seed=1), exact.sample(8, seed=1)),
    ):
        assert a.dtype == tf.float32
        error = np.abs(a - b).max() / np.abs(b).max()
        assert 1e-6 < error < 0.03  # bfloat16 has 8 bits
    model.compile("adam", data_optimizer="adam")
    model.fit(x, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.sample(8, seed=1), model.sample(8, seed=1))
