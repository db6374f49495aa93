"""What holds for every network with every noise: scores, rows that don't meet, round trips."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

import tfdde
from tfdde import networks, serving
from tfdde.networks import convolutional

ROWS = 12
NETWORKS = {
    "residual_mlp": lambda levels: networks.residual_mlp(3, 8, 2, levels=levels),
    "mixtures": lambda levels: networks.residual_mlp(3, 8, 2, levels=levels, experts=2),
    "dense_block": lambda levels: networks.dense_block(3, 8, 2, levels=levels),
    "conv_density": lambda levels: convolutional.conv_density((9, 8, 1), 4, 1, 8, levels=levels),
}
NOISES = {
    "constant": tfdde.Constant(0.4),
    "decay": tfdde.Decay(1.0, 0.4, 100),
    "levels": tfdde.LogUniform(0.3, 1.2, 0.4),
}
PAIRS = [(network, noise) for network in NETWORKS for noise in NOISES]


def density_of(network, noise):
    """A density whose weights, also of the last layer, are no small ones."""
    keras.utils.set_random_seed(3)
    noise = NOISES[noise]
    model = NETWORKS[network](isinstance(noise, tfdde.LogUniform))
    rng = np.random.default_rng(5)
    model.set_weights(
        [w + 0.2 * rng.standard_normal(w.shape).astype("f4") for w in model.get_weights()]
    )
    shape = model.inputs[0].shape[1:]
    base = tfdde.GaussianBase(shape)
    base.adapt(rng.standard_normal((300, *shape)).astype("f4"))
    return tfdde.DDE(model, noise, base)


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def density(request):
    return density_of(*request.param)


@pytest.fixture
def x(density):
    return np.random.default_rng(7).standard_normal((ROWS, *density.data_shape)).astype("f4")


def log_density(model, x):
    return model.log_density(x, normalized=False).numpy()


def test_score_is_the_gradient_of_log_density(density, x):
    """By GradientTape, and by central differences along each row's own direction."""
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = tf.reduce_sum(density.log_density(inputs, normalized=False))
    score = density.score(x).numpy()
    largest = np.abs(score).max()
    assert largest > 0.1
    np.testing.assert_allclose(score, tape.gradient(total, inputs), atol=1e-5 * largest)
    direction = np.random.default_rng(8).standard_normal(x.shape).astype("f4")
    axes = tuple(range(1, x.ndim))
    direction /= np.sqrt((direction**2).sum(axis=axes, keepdims=True))

    def slope(h):
        return (
            log_density(density, x + h * direction) - log_density(density, x - h * direction)
        ) / (2 * h)

    h = np.float32(0.02)  # Richardson's extrapolation: the error is of fourth order in h
    expected = (4 * slope(h) - slope(2 * h)) / 3
    along = (score * direction).sum(axis=axes)
    np.testing.assert_allclose(
        along, expected, atol=1e-4 * max(1, np.abs(log_density(density, x)).max())
    )


def test_rows_do_not_meet(density, x):
    """Their order, and how they are split into batches, changes nothing."""
    whole, score = log_density(density, x), density.score(x).numpy()

    @settings(max_examples=5, deadline=None)
    @given(order=st.permutations(range(ROWS)), cut=st.integers(0, ROWS))
    def check(order, cut):
        parts = [x[order[:cut]], x[order[cut:]]]
        tolerance = {"rtol": 1e-5, "atol": 1e-5}
        got = np.concatenate([log_density(density, part) for part in parts])
        np.testing.assert_allclose(got, whole[order], **tolerance)
        got = np.concatenate([density.score(part).numpy() for part in parts])
        np.testing.assert_allclose(got, score[order], **tolerance)

    check()


def test_keras_file_keeps_every_number(density, x, tmp_path):
    density.save(tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    np.testing.assert_array_equal(log_density(loaded, x), log_density(density, x))
    np.testing.assert_array_equal(loaded.score(x), density.score(x))
    assert loaded.noise.get_config() == density.noise.get_config()


# Exporting takes seconds: each network, and each noise, once.
@pytest.mark.parametrize(
    "network, noise",
    [
        ("residual_mlp", "decay"),
        ("mixtures", "levels"),
        ("dense_block", "levels"),
        ("conv_density", "constant"),
    ],
)
def test_artifacts_have_the_same_numbers(network, noise, tmp_path):
    density = density_of(network, noise)
    x = np.random.default_rng(7).standard_normal((ROWS, *density.data_shape)).astype("f4")
    expected = log_density(density, x), density.score(x).numpy()
    path, _ = serving.export_savedmodel(tmp_path / "saved", density)
    signatures = tf.saved_model.load(str(path)).signatures
    serving.export_tflite(tmp_path / "x.tflite", density)
    runner = Interpreter(model_path=str(tmp_path / "x.tflite")).get_signature_runner
    for name, value in zip(("log_density", "score"), expected, strict=True):
        tolerance = {"rtol": 0, "atol": 5e-6 * np.abs(value).max()}
        np.testing.assert_allclose(signatures[name](x=tf.constant(x))[name], value, **tolerance)
        np.testing.assert_allclose(runner(name)(x=x)[name], value, **tolerance)


@pytest.mark.parametrize("network", ["residual_mlp", "dense_block", "conv_generator"])
def test_generator_keeps_its_samples(network, tmp_path):
    kind = "conv_density" if network == "conv_generator" else "residual_mlp"
    data, generated = (density_of(kind, "constant") for _ in range(2))
    decoder = {
        "residual_mlp": lambda: networks.residual_mlp(2, 8, 2, output_shape=3),
        "dense_block": lambda: networks.dense_block(2, 8, 2, output_shape=3),
        "conv_generator": lambda: convolutional.conv_generator(2, (9, 8, 1), 4),
    }[network]()
    model = tfdde.Generator(decoder, data, generated, latent_dim=2)
    model.save(tmp_path / "g.keras")
    loaded = keras.saving.load_model(tmp_path / "g.keras")
    np.testing.assert_array_equal(loaded.sample(ROWS, seed=4), model.sample(ROWS, seed=4))
    z = np.random.default_rng(1).standard_normal((ROWS, 2)).astype("f4")
    whole = model.decode(z).numpy()
    order = np.random.default_rng(2).permutation(ROWS)
    np.testing.assert_allclose(model.decode(z[order]), whole[order], atol=1e-6)
