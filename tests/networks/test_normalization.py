"""Standardisation by a Keras layer whose numbers change after a function was traced."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import norm

import tfdde
from tfdde import networks
from tfdde.networks import normalization

RNG = np.random.default_rng


def density(layer=None):
    """With a network that is 0 and a base N(0, 1) it is the normal density of the statistics."""
    layer = keras.layers.Normalization() if layer is None else layer
    network = networks.residual_mlp(2, 4, 1)
    network.set_weights([0 * w for w in network.get_weights()])
    base = tfdde.GaussianBase(2)
    return tfdde.DDE(network, tfdde.Constant(0.2), base, layer, seed=0)


def expected(x, mean, deviation):
    """Blurred by 0.2 standard deviations."""
    return norm.logpdf(x, mean, np.multiply(deviation, np.sqrt(1 + 0.2**2))).sum(axis=1)


def data(mean=(100.0, -3.0), deviation=(20.0, 0.1), n=500):
    x = RNG(0).standard_normal((n, 2))
    x = (x - x.mean(0)) / x.std(0)
    return (x * deviation + mean).astype("f4")


FIXED = {"mean": [1.0, -2.0], "variance": [4.0, 0.25]}
ONE_FOR_ALL = {"axis": None, "mean": 1.5, "variance": 4.0}


@pytest.mark.parametrize("shape", [(2,), (3, 2)])
@pytest.mark.parametrize(
    "arguments", [FIXED, ONE_FOR_ALL, {"axis": -1}, {"axis": None}, {"axis": 1}]
)
def test_it_is_what_keras_computes(arguments, shape):
    layer = keras.layers.Normalization(**arguments)
    x = RNG(0).standard_normal((50, *shape)).astype("f4") * 3 + 1
    layer.build((None, *shape))
    if layer.input_mean is None:
        layer.adapt(x)
    values = normalization.standardize(layer, tf.constant(x))
    np.testing.assert_allclose(values, layer(x), rtol=1e-6, atol=1e-6)
    one = tf.constant(x[:1])
    with tf.GradientTape() as tape:
        tape.watch(one)
        standardized = normalization.standardize(layer, one)
    slopes = tf.linalg.diag_part(
        tf.reshape(tape.jacobian(standardized, one), (one.numpy().size, one.numpy().size))
    )
    log_scale = normalization.log_scale(layer, shape)
    np.testing.assert_allclose(log_scale, np.log(slopes).sum(), rtol=1e-5)


def change_by_adapt(dde, x):
    dde.adapt(x)
    dde.base.set_weights(tfdde.GaussianBase(2).get_weights())


def change_by_layer(dde, x):
    dde.normalization.adapt(x)


def change_by_weights(dde, x):
    other = density()
    other.normalization.adapt(x)
    dde.set_weights(other.get_weights())


def change_by_variables(dde, x):
    dde.normalization.adapt_mean.assign(x.mean(axis=0))
    dde.normalization.adapt_variance.assign(x.var(axis=0))


@pytest.mark.parametrize(
    "change", [change_by_adapt, change_by_layer, change_by_weights, change_by_variables]
)
def test_statistics_that_change_after_tracing_are_seen(change):
    dde, y = density(), data()
    before = dde.log_density(y, normalized=False)
    np.testing.assert_allclose(before, expected(y, 0.0, 1.0), rtol=1e-4)
    dde.score(y)
    change(dde, y)
    after = dde.log_density(y, normalized=False)
    np.testing.assert_allclose(after, expected(y, [100.0, -3.0], [20.0, 0.1]), rtol=1e-3)
    z = (y - [100.0, -3.0]) / [20.0, 0.1]
    np.testing.assert_allclose(dde.score(y), -z / 1.04 / [20.0, 0.1], rtol=1e-2, atol=1e-3)


def test_loaded_weights_bring_their_statistics(tmp_path):
    other, y = density(), data()
    other.normalization.adapt(y)
    other.save_weights(tmp_path / "density.weights.h5")
    dde = density()
    dde.log_density(y, normalized=False)
    dde.load_weights(tmp_path / "density.weights.h5")
    values = dde.log_density(y, normalized=False)
    np.testing.assert_array_equal(values, other.log_density(y, normalized=False))


def test_training_goes_on_by_the_new_statistics():
    """After `fit; adapt; fit` both the training and the validation loss are those of new rows."""
    dde, x = density(), data((0.0, 0.0), (1.0, 1.0))
    dde.compile(keras.optimizers.SGD(0.0))
    first = dde.fit(x, batch_size=500, validation_data=x, verbose=0).history
    moved = x * np.float32([50.0, 0.02]) + np.float32([7.0, 5.0])
    dde.normalization.adapt(moved)
    again = dde.fit(moved, batch_size=500, validation_data=moved, verbose=0).history
    assert again["val_loss"][0] == pytest.approx(first["val_loss"][0], rel=1e-3)
    assert again["loss"][0] == pytest.approx(first["loss"][0], rel=0.1)
