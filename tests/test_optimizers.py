"""FusedAdam against Keras's Adam, which has the same formulas in many more operations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdde
from tfdde import networks, optimizers
from tfdde.optimizers import FusedAdam

SETTINGS = {
    "plain": {},
    "momenta": {"beta_1": 0.5, "beta_2": 0.99, "epsilon": 1e-3},
    "averages": {"use_ema": True, "ema_momentum": 0.9},
    "overwritten": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    "clipped": {"global_clipnorm": 0.5},
    "decayed": {"weight_decay": 0.1},
    "accumulated": {"gradient_accumulation_steps": 2},
    "scaled": {"loss_scale_factor": 8.0},
}


def weights(dtype="float32"):
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=shape), dtype=dtype) for shape in [(3, 2), (5,), ()]]


def trained(optimizer, steps=7, dtype="float32"):
    """Weights and averages after some steps of one compiled program."""
    variables = weights(dtype)
    optimizer.build(variables)

    @tf.function
    def step(*gradients):
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    rng = np.random.default_rng(1)
    for _ in range(steps):
        step(*[tf.constant(rng.normal(size=v.shape), dtype) for v in variables])
    return [np.array(v) for v in [*variables, *optimizer.variables[1:]]]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_weights_are_those_of_keras(settings, dtype):
    keras.backend.set_floatx(dtype)  # in which Keras keeps its own numbers
    try:
        rates = [keras.optimizers.schedules.CosineDecay(0.1, 10) for _ in range(2)]
        expected = trained(keras.optimizers.Adam(rates[0], **settings), dtype=dtype)
        found = trained(FusedAdam(rates[1], **settings), dtype=dtype)
    finally:
        keras.backend.set_floatx("float32")
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_sparse_gradients_are_taken_as_dense_ones():
    sparse, dense = (keras.Variable(np.ones((4, 2)), dtype="float32") for _ in range(2))
    two = FusedAdam(0.1), FusedAdam(0.1)
    for row in (1, 2, 1):
        gradient = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([row]), tf.constant([4, 2]))
        two[0].apply_gradients([(gradient, sparse)])
        two[1].apply_gradients([(tf.convert_to_tensor(gradient), dense)])
    np.testing.assert_array_equal(sparse, dense)
    assert np.ptp(sparse) > 0.1


def fit(optimizer, strategy=None):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("f4")
    with strategy.scope() if strategy else tf.device("CPU:0"):
        dde = tfdde.DDE(networks.dense_block(2, 8, 2), noise=tfdde.Constant(0.3), seed=3)
        dde.compile(optimizer())
    dde.fit(x, batch_size=16, epochs=2, verbose=0)
    return dde


def test_replicas_take_the_same_step(two):
    def averaged(kind):
        return lambda: kind(1e-2, use_ema=True, ema_momentum=0.9)

    expected, found = fit(averaged(keras.optimizers.Adam), two), fit(averaged(FusedAdam), two)
    for a, b in zip(found.weights, expected.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for variable in [*found.network.trainable_variables, *found.optimizer.variables]:
        copies = [np.array(v) for v in two.experimental_local_results(variable.value)]
        np.testing.assert_array_equal(copies[0], copies[-1])


def test_a_saved_model_trains_on_as_if_it_had_not_stopped(tmp_path):
    dde = fit(lambda: FusedAdam(1e-2, use_ema=True))
    dde.save(tmp_path / "density.keras")
    loaded = keras.saving.load_model(tmp_path / "density.keras")
    assert type(loaded.optimizer) is FusedAdam
    x = np.random.default_rng(1).normal(size=(64, 2)).astype("f4")
    for model in (dde, loaded):
        model.fit(x, batch_size=16, verbose=0)
    for a, b in zip(loaded.get_weights(), dde.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["adam", "Adam"])
def test_the_name_means_the_fused_one(name):
    assert type(optimizers.get(name)) is FusedAdam
    assert type(fit(lambda: name).optimizer) is FusedAdam


def test_a_step_has_less_than_half_of_the_operations():
    def operations(optimizer):
        variables = weights()
        optimizer.build(variables)
        step = tf.function(lambda *g: optimizer.apply_gradients(zip(g, variables, strict=True)))
        traced = step.get_concrete_function(*[tf.zeros(v.shape) for v in variables])
        return len(traced.graph.get_operations())

    fused, many = (
        operations(FusedAdam(use_ema=True)),
        operations(keras.optimizers.Adam(use_ema=True)),
    )
    assert 2 * fused < many


def test_what_it_lacks_is_refused():
    with pytest.raises(ValueError, match="`amsgrad` must be False for FusedAdam, got True"):
        FusedAdam(amsgrad=True)
