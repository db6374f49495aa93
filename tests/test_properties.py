"""Every network, with every noise, has the same numbers in every artifact."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

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


def log_density(model, x):
    return model.log_density(x, normalized=False).numpy()


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
