"""log Z belongs to the weights that it was found with, and is kept with them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdde
from tfdde import networks
from tfdde.partition.result import LogPartitions

SIGMA = 0.4


def log_z(value=1.0, sigma=SIGMA):
    return tfdde.LogPartition(value, 0.01, value - 0.02, value + 0.02, 900.0, "ladder", sigma)


def density(noise=None, conditions=0, seed=0, **parts):
    keras.utils.set_random_seed(seed)
    noise = tfdde.Constant(SIGMA) if noise is None else noise
    levels = isinstance(noise, tfdde.LogUniform)
    network = networks.residual_mlp(2, 8, 1, levels=levels, conditions=conditions)
    parts = {"base": tfdde.GaussianBase(2), "normalization": keras.layers.Normalization()} | parts
    dde = tfdde.DDE(network, noise, seed=1, **parts)
    dde.compile("adam")
    return dde


def data(n=200):
    return np.random.default_rng(0).standard_normal((n, 2)).astype("f4")


def load(dde, tmp_path):
    other = density(seed=1)
    other.save_weights(tmp_path / "other.weights.h5")
    dde.load_weights(tmp_path / "other.weights.h5")


def train_along(dde):
    """A generator that trains its data density along."""
    g = networks.residual_mlp(3, 8, 1, output_shape=2)
    model = tfdde.Generator(g, dde, density(seed=1, normalization=None), latent_dim=3, dde_steps=1)
    model.compile("adam", data_optimizer="adam")
    model.fit(data(64), verbose=0)


CHANGES = {
    "fit": lambda dde, path: dde.fit(data(), verbose=0),
    "train_on_batch": lambda dde, path: dde.train_on_batch(data(16)),
    "load_weights": load,
    "set_weights": lambda dde, path: dde.set_weights(density(seed=1).get_weights()),
    "network.set_weights": lambda dde, path: dde.network.set_weights(
        density(seed=1).network.get_weights()
    ),
    "assign": lambda dde, path: dde.network.weights[0].assign(dde.network.weights[0] + 1e-6),
    "adapt": lambda dde, path: dde.adapt(data() + 1),
    "base.adapt": lambda dde, path: dde.base.adapt(data() + 1),
    "normalization.adapt": lambda dde, path: dde.normalization.adapt(data() + 1),
    "components": lambda dde, path: dde.start_at_independent_components(data()),
    "generator": lambda dde, path: train_along(dde),
}


WITH_FILES = ("fit", "train_on_batch", "load_weights", "set_weights", "adapt", "generator")


@pytest.mark.parametrize(
    "change, loaded_from",
    [(change, "memory") for change in CHANGES]
    + [(change, file) for change in WITH_FILES for file in ("file", "earlier file")],
)
def test_weights_that_change_lose_their_log_z(change, loaded_from, tmp_path):
    parts = {"normalization": None} if change == "generator" else {}
    dde = density(**parts)
    dde.log_density(data(2), normalized=False)  # traced before
    dde.partition = log_z()
    if loaded_from == "file":
        dde.save(tmp_path / "d.keras")
        dde = keras.saving.load_model(tmp_path / "d.keras")
    elif loaded_from == "earlier file":  # without a fingerprint; its first use is the change
        config = dde.get_config()
        del config["log_z"]
        config["partition"] = keras.saving.serialize_keras_object(log_z())
        again = tfdde.DDE.from_config(config)
        for a, b in zip(again.weights, dde.weights, strict=True):
            a.assign(b)
        again.compile("adam")
        dde = again
    if loaded_from != "earlier file":
        assert dde.normalized and dde.partition == log_z()
    CHANGES[change](dde, tmp_path)
    assert not dde.normalized and dde.partition is None
    with pytest.raises(ValueError, match="no trusted log Z"):
        dde.log_density(data(2), normalized=True)
    assert dde.get_config()["log_z"] == {"weights": None, "estimates": []}


def test_what_leaves_the_weights_keeps_log_z(tmp_path):
    dde = density()
    dde.partition = log_z()
    x = data()
    with pytest.raises(ValueError, match="`x` must have shape"):
        dde.fit(x[:, :1])
    dde.fit(x, epochs=0, verbose=0)
    dde.evaluate(x, verbose=0)
    dde.score(x)
    assert dde.normalized
    weights = dde.get_weights()
    dde.fit(x, verbose=0)
    assert not dde.normalized
    dde.set_weights(weights)  # as by a callback that restores the best weights
    assert dde.normalized and dde.partition == log_z()
    again = tfdde.DDE.from_config(dde.get_config())
    assert not again.normalized  # it has other weights until they are loaded
    dde.save_weights(tmp_path / "d.weights.h5")
    again.compile("adam")
    again.load_weights(tmp_path / "d.weights.h5")
    assert again.normalized


def test_a_frozen_density_of_a_generator_keeps_log_z():
    dde = density(normalization=None)
    dde.partition = log_z()
    g = networks.residual_mlp(3, 8, 1, output_shape=2)
    model = tfdde.Generator(g, dde, density(seed=1, normalization=None), latent_dim=3, dde_steps=1)
    model.compile("adam")
    model.fit(data(64), verbose=0)
    assert dde.normalized


def test_estimates_of_other_levels_and_conditions_are_kept(tmp_path):
    many = tfdde.LogUniform(0.2, 4.0, SIGMA)

    def near_the_base(conditions=0):
        """An untrained network would be far from the rows' density, and log Z not trusted."""
        dde = density(many, conditions)
        for v in dde.network.weights:
            v.assign(0.1 * v)
        dde.adapt(data())
        return dde

    dde = near_the_base()
    dde.partition = log_z(1.0)
    found = dde.log_partition(data(), sigma=1.0, samples=1_000, moves=1)
    assert dde.partition == log_z(1.0)  # of the density's own level
    dde.save(tmp_path / "d.keras")
    for model in (dde, keras.saving.load_model(tmp_path / "d.keras")):
        for sigma, value in ((SIGMA, 1.0), (1.0, found.value)):
            s = model.log_density(data(3), sigma, normalized=False)
            p = model.log_density(data(3), sigma, normalized=True)
            np.testing.assert_allclose(s - p, value, atol=1e-5)

    dde = near_the_base(conditions=2)
    x, c0, c1 = data(), np.float32([[1.0, 0.0]]), np.float32([[0.25, -1.0]])
    first = dde.log_partition(x, conditions=c0, samples=1_000, moves=1)
    second = dde.log_partition(x, conditions=c1, samples=1_000, moves=1)
    third = dde.log_partition(x, conditions=c1, sigma=1.0, samples=1_000, moves=1)
    assert dde.partitions == LogPartitions(
        first.conditions + second.conditions, first.estimates + second.estimates
    )
    dde.save(tmp_path / "c.keras")
    again = keras.saving.load_model(tmp_path / "c.keras")
    for model in (dde, again):
        assert model.normalized
        for c, sigma, z in ((c0, None, first), (c1, None, second), (c1, 1.0, third)):
            s = model.log_density(x[:3], sigma, conditions=c, normalized=False)
            p = model.log_density(x[:3], sigma, conditions=c, normalized=True)
            np.testing.assert_allclose(s - p, z.estimates[0].value, atol=1e-5)
    given = dde.given(c1[0])
    assert given.partition == second.estimates[0]
    s = given.log_density(x[:3], 1.0, normalized=False)
    p = given.log_density(x[:3], 1.0, normalized=True)
    np.testing.assert_allclose(s - p, third.estimates[0].value, atol=1e-5)


def test_inside_a_tf_function_the_weights_of_the_trace_count():
    dde = density()
    dde.partition = log_z(3.0)
    x = tf.constant(data(4))
    traced = tf.function(lambda x: dde.log_density(x, normalized=True))
    s = dde.log_density(x, normalized=False)
    np.testing.assert_allclose(s - traced(x), 3.0, atol=1e-5)
    dde.adapt(data() + 1)
    with pytest.raises(ValueError, match="no trusted log Z"):
        tf.function(lambda x: dde.log_density(x, normalized=True))(x)
