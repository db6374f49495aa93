"""What every generator must do, whatever its noise, its networks and its other settings."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdde
from tfdde import networks
from tfdde.networks import convolutional

LATENT, ROWS = 2, 12
ONE, LEVELS = tfdde.Constant(0.4), tfdde.LogUniform(0.3, 1.2)
IMAGE = (9, 8, 1)


def density(noise, seed, conditions=0, image=False):
    levels = isinstance(noise, tfdde.LogUniform)
    if image:
        network = convolutional.conv_density(IMAGE, 4, 1, 8, levels=levels)
    else:
        network = networks.residual_mlp(3, 8, 2, levels=levels, conditions=conditions)
    return tfdde.DDE(network, noise, seed=seed)


def flat(build, noise=ONE, conditions=0, **kwargs):
    densities = [density(noise, seed, conditions) for seed in (1, 2)]
    network = build(LATENT, 8, 2, output_shape=3, conditions=conditions)
    return tfdde.Generator(network, *densities, LATENT, dde_steps=2, seed=3, **kwargs)


def image():
    densities = [density(ONE, seed, image=True) for seed in (1, 2)]
    network = convolutional.conv_generator(LATENT, IMAGE, 4, modulated=True)
    return tfdde.Generator(network, *densities, LATENT, dde_steps=2, seed=3)


CASES = {
    "residual_mlp": lambda: flat(networks.residual_mlp),
    "dense_block_decay": lambda: flat(networks.dense_block, tfdde.Decay(1.0, 0.4, 1)),
    "levels": lambda: flat(networks.residual_mlp, LEVELS, level_power=2.0),
    "relative": lambda: flat(networks.residual_mlp, LEVELS, relative=True),
    "images": image,
    "conditional": lambda: flat(networks.residual_mlp, conditions=2),
    "given": lambda: flat(networks.residual_mlp, LEVELS, conditions=2).given([0.3, -0.7]),
}


@pytest.fixture(scope="module", params=CASES)
def generator(request):
    """A compiled generator whose s_p is trained, too, except for the one with a decay."""
    keras.utils.set_random_seed(3)
    model = CASES[request.param]()
    frozen = request.param == "dense_block_decay"
    model.compile(
        keras.optimizers.Adam(1e-3, beta_1=0.5), data_optimizer=None if frozen else "adam"
    )
    return model


@pytest.fixture
def data(generator):
    """Rows, and conditions if the generator takes any."""
    rng = np.random.default_rng(7)
    x = rng.random((ROWS, *generator.data_shape)).astype("f4")
    return (x, rng.standard_normal((ROWS, 2)).astype("f4")) if generator.condition_dim else (x,)


def conditions_of(data, rows=slice(None)):
    return data[1][rows] if len(data) == 2 else None


def test_samples(generator, data):
    c = conditions_of(data)
    samples = generator.sample(ROWS, seed=4, conditions=c)
    assert samples.shape == (ROWS, *generator.data_shape) and samples.dtype == tf.float32
    assert np.isfinite(samples).all() and np.std(samples, axis=0).min() > 0
    np.testing.assert_array_equal(samples, generator.sample(ROWS, seed=4, conditions=c))
    first = generator.sample(5, seed=4, conditions=conditions_of(data, slice(5)))
    np.testing.assert_allclose(first, samples[:5], atol=1e-6)
    assert not np.allclose(samples, generator.sample(ROWS, seed=5, conditions=c))
    assert not np.allclose(*(generator.sample(ROWS, conditions=c) for _ in range(2)))
    empty = generator.sample(0, conditions=conditions_of(data, slice(1)))
    assert empty.shape == (0, *generator.data_shape)


def test_rows_do_not_meet(generator, data):
    z = np.random.default_rng(1).standard_normal((ROWS, LATENT)).astype("f4")
    c, order = conditions_of(data), np.random.default_rng(2).permutation(ROWS)
    whole = generator.decode(z, c).numpy()
    shuffled = generator.decode(z[order], conditions_of(data, order))
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-6)
    ends = generator.interpolate(z[0], z[1], 2, conditions_of(data, slice(2)))
    np.testing.assert_allclose(ends, whole[:2], atol=1e-6)


def test_config_makes_the_same_generator(generator, data):
    text = json.dumps(keras.saving.serialize_keras_object(generator))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(again)))["config"]
    assert config == json.loads(text)["config"]
    again.set_weights(generator.get_weights())
    samples = [m.sample(ROWS, seed=4, conditions=conditions_of(data)) for m in (again, generator)]
    np.testing.assert_array_equal(*samples)


def test_file_keeps_every_number_and_all_optimizers(generator, data, tmp_path):
    generator.fit(*data, batch_size=6, verbose=0)
    generator.save(tmp_path / "generator.keras")
    again = keras.saving.load_model(tmp_path / "generator.keras")
    samples = [m.sample(ROWS, seed=4, conditions=conditions_of(data)) for m in (again, generator)]
    np.testing.assert_array_equal(*samples)
    for a, b in zip(again.get_weights(), generator.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("optimizer", "dde_optimizer", "data_optimizer"):
        mine, loaded = getattr(generator, name), getattr(again, name)
        assert type(mine) is type(loaded)
        if mine is not None:
            assert mine.iterations == loaded.iterations > 0
            for a, b in zip(mine.variables, loaded.variables, strict=True):
                np.testing.assert_array_equal(a, b)


def test_evaluation_is_repeatable(generator, data):
    first = generator.evaluate(*data, batch_size=5, verbose=0)
    assert first == generator.evaluate(*data, batch_size=5, verbose=0)
    assert np.isfinite(first)


def test_resumed_training_equals_an_uninterrupted_one(generator, data, tmp_path):
    paths = [tmp_path / f"{name}.weights.h5" for name in ("start", "stopped")]
    frozen = generator.data_dde.get_weights()

    def fit(epochs, initial_epoch=0):
        arguments = {"epochs": epochs, "initial_epoch": initial_epoch, "verbose": 0}
        generator.fit(*data, batch_size=5, **arguments)
        return generator.get_weights()

    generator.save_weights(paths[0])
    whole = fit(2)
    generator.load_weights(paths[0])
    stopped = fit(1)
    generator.save_weights(paths[1])
    generator.load_weights(paths[0])
    generator.load_weights(paths[1])
    resumed = fit(2, initial_epoch=1)
    assert any((a != b).any() for a, b in zip(stopped, resumed, strict=True))
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    pairs = list(zip(frozen, generator.data_dde.get_weights(), strict=True))
    assert all((a == b).all() for a, b in pairs) == (generator.data_optimizer is None)


def test_one_condition_of_it_is_a_generator(generator, data):
    if not generator.condition_dim:
        with pytest.raises(ValueError, match="no `condition` to fix"):
            generator.given([1.0])
        return
    condition = data[1][3]
    one = generator.given(condition)
    assert one.condition_dim == one.data_dde.condition_dim == one.generated_dde.condition_dim == 0
    expected = generator.sample(ROWS, seed=4, conditions=condition[None])
    np.testing.assert_allclose(one.sample(ROWS, seed=4), expected, atol=1e-6)


def test_bad_input_is_refused(generator, data):
    x, shape = data[0], generator.data_shape
    c = conditions_of(data)
    wide = np.zeros((ROWS, *shape[:-1], shape[-1] + 1))
    z = np.zeros((ROWS, LATENT))
    for call, message in [
        (lambda: generator.sample(-1, conditions=c), "`n` must be an integer >= 0, got -1"),
        (lambda: generator.sample(2.5, conditions=c), "`n` must be an integer"),
        (lambda: generator.sample(ROWS, seed=-3, conditions=c), "`seed` must be"),
        (lambda: generator.decode(z[:, :1], c), r"`z` must have shape \(rows, 2\)"),
        (lambda: generator.decode(np.nan * z, c), "`z` must be finite"),
        (lambda: generator.interpolate(z[0], z[1], 1, c), "`steps` must be an integer >= 2"),
        (lambda: generator.interpolate(z[0, :1], z[1], 2, c), "`z0` must have shape"),
        (lambda: generator.fit(wide, c), "`x` must have shape"),
        (lambda: generator.evaluate(wide, c), "`x` must have shape"),
        (lambda: generator.fit(x[:0], c), "`x` is empty"),
        (lambda: generator.fit(np.nan * x, c), "`x` must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    if len(shape) == 3:
        with pytest.raises(ValueError, match=r"`x` must hold pixels scaled to \[0, 1\]"):
            generator.fit(255 * x)
    if c is None:
        with pytest.raises(ValueError, match="`conditions` must be None"):
            generator.sample(ROWS, conditions=np.zeros((ROWS, 2)))
        return
    for conditions, message in [
        (None, r"`conditions` must have shape \(rows, 2\).*got None"),
        (c[:7], "`conditions` must have 12 rows"),
        (c[:, :1], r"`conditions` must have shape \(rows, 2\)"),
    ]:
        for call in (
            lambda conditions=conditions: generator.sample(ROWS, conditions=conditions),
            lambda conditions=conditions: generator.fit(x, conditions),
        ):
            with pytest.raises(ValueError, match=message):
                call()
