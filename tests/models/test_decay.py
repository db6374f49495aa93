"""A density whose noise is still decaying is not the density that it is read as."""

import warnings

import keras
import numpy as np
import pytest

import tfdde
from tfdde import networks

STEPS = 12  # of three divisions by 2, from 1.6 to 0.2, after 4 steps each


def density(seed=1):
    dde = tfdde.DDE(networks.residual_mlp(2, 4, 1), tfdde.Decay(1.6, 0.2, 4, rate=2.0), seed=seed)
    dde.compile(keras.optimizers.SGD(1e-3))
    return dde


def data(n=STEPS):
    return np.random.default_rng(0).standard_normal((n, 2)).astype("f4")


def train(dde, steps):
    dde.fit(data(steps), batch_size=1, verbose=0)


def readings(dde):
    yield lambda: dde.log_density(data(), normalized=False)
    yield lambda: dde.score(data())
    yield lambda: dde.anomaly_score(data())
    yield lambda: dde.log_partition(data(), samples=100)


def warnings_of(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if "only come down" in str(w.message)]


def test_it_warns_until_the_decay_has_ended(tmp_path):
    dde = density()
    assert dde.level_reached == 0.2  # untrained it claims nothing
    train(dde, 6)
    assert dde.level_reached == pytest.approx(0.8) and dde.decaying
    for call in readings(dde):
        (message,) = warnings_of(call)
        assert "read at sigma = 0.2, but training has only come down to 0.8" in message
        assert "Decay(initial=1.6, final=0.2" in message
    dde.save(tmp_path / "d.keras")
    for again in (
        keras.saving.load_model(tmp_path / "d.keras"),
        keras.saving.load_model(tmp_path / "d.keras", compile=False),
    ):
        assert again.level_reached == pytest.approx(0.8) and again.decaying
    again.compile("adam")  # another optimizer does not change what the weights have seen
    assert again.decaying
    train(dde, STEPS - 6 + 1)
    assert not dde.decaying and not any(warnings_of(call) for call in readings(dde))
    dde.save(tmp_path / "d.keras")
    assert not keras.saving.load_model(tmp_path / "d.keras", compile=False).decaying


def test_a_checkpoint_brings_the_level_of_its_steps(tmp_path):
    dde = density()
    train(dde, 6)
    dde.save_weights(tmp_path / "6.weights.h5")
    train(dde, STEPS)
    assert not dde.decaying
    for model in (dde, density()):
        model.load_weights(tmp_path / "6.weights.h5")
        assert model.decaying and model.level_reached == pytest.approx(0.8)


def test_densities_that_a_generator_trains():
    g = networks.residual_mlp(3, 4, 1, output_shape=2)
    model = tfdde.Generator(g, density(1), density(2), latent_dim=3, dde_steps=1)
    model.compile("sgd", dde_optimizer="sgd", data_optimizer="sgd")
    model.fit(data(6), batch_size=1, verbose=0)
    assert model.data_dde.decaying and model.generated_dde.decaying
    assert model.data_dde.level_reached == pytest.approx(0.8)
    with pytest.warns(UserWarning, match="`data_dde` stays frozen at sigma = 0.2.*down to 0.8"):
        model.compile("sgd")
    model.compile("sgd", data_optimizer="sgd")
    model.fit(data(STEPS + 1), batch_size=1, verbose=0)
    assert not model.data_dde.decaying


def test_other_noises_never_decay():
    for noise in (tfdde.Constant(0.2), tfdde.LogUniform(0.2, 2.0)):
        levels = isinstance(noise, tfdde.LogUniform)
        dde = tfdde.DDE(networks.residual_mlp(2, 4, 1, levels=levels), noise)
        dde.compile()
        dde.fit(data(), verbose=0)
        assert dde.level_reached == 0.2 and not dde.decaying
