"""One code path under tf.distribute: two logical CPU devices against one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdde
from tfdde import networks
from tfdde.utils import random

ROWS, STEPS = 48, 20


def batches(sizes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((n, 2)).astype("f4") for n in sizes]


def dataset(sizes, conditions=0):
    spec = tf.TensorSpec((None, 2), tf.float32)
    rows = tf.data.Dataset.from_generator(lambda: iter(batches(sizes)), output_signature=spec)
    if conditions:
        rows = rows.map(lambda x: (x, tf.tile(tf.sin(3.0 * x[:, :1]), (1, conditions))))
    return rows.apply(tf.data.experimental.assert_cardinality(len(sizes)))


def shared_noise(shape, seed, iteration, stream):
    """One draw for the global batch, of which each replica takes its rows."""
    context = tf.distribute.get_replica_context()
    key = tf.stack([seed + 1000 * int(stream), tf.cast(iteration, tf.int32)])
    replicas = context.num_replicas_in_sync
    if isinstance(shape, tuple):
        shape = tf.stack([tf.cast(n, tf.int32) for n in shape])
    # tf.distribute gives the first replicas the larger parts.
    counts = context.all_gather(shape[:1], axis=0)
    offset = tf.reduce_sum(counts[: context.replica_id_in_sync_group])
    total = tf.reduce_sum(counts)
    whole = tf.random.stateless_normal(tf.concat([[total], shape[1:]], 0), key)
    assert replicas in (1, 2)
    return whole[offset : offset + shape[0]]


def train_generator(strategy, sizes, conditions=0, **compile_kwargs):
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    noise = tfdde.Decay(0.8, 0.4, 5)
    with strategy.scope():
        s_p, s_q = (networks.residual_mlp(2, 8, 1, conditions=conditions) for _ in range(2))
        p = tfdde.DDE(s_p, noise, seed=1)
        q = tfdde.DDE(s_q, noise, seed=2, antithetic=True)
        g = networks.residual_mlp(3, 8, 1, output_shape=2, conditions=conditions)
        model = tfdde.Generator(g, p, q, latent_dim=3, dde_steps=2, seed=3)
        model.compile(
            keras.optimizers.SGD(1e-3),
            dde_optimizer=keras.optimizers.SGD(1e-3),
            data_optimizer=keras.optimizers.SGD(1e-3),
            **compile_kwargs,
        )
    start = model.get_weights()
    history = model.fit(dataset(sizes, conditions), verbose=0).history
    moved = max(np.abs(a - b).max() for a, b in zip(start, model.get_weights(), strict=True))
    assert moved > 1e-4  # there was something to get wrong
    return model.get_weights(), history


@pytest.mark.parametrize(
    "sizes, compile_kwargs",
    [
        ([ROWS] * STEPS, {}),
        ([ROWS] * STEPS, {"steps_per_execution": 3}),
        ([ROWS] * STEPS, {"jit_compile": True}),
        ([ROWS] * (STEPS - 2) + [7, 1], {}),  # uneven replicas, then an empty one
        ([ROWS] * (STEPS - 2) + [7, 1], {"conditions": 2}),
    ],
)
def test_two_devices_equal_one_given_the_same_noise(monkeypatch, two, sizes, compile_kwargs):
    monkeypatch.setattr(random, "normal", shared_noise)
    assert two.num_replicas_in_sync == 2
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    single, single_logs = train_generator(one, sizes, **compile_kwargs)
    double, double_logs = train_generator(two, sizes, **compile_kwargs)
    for a, b in zip(single, double, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name in ("loss", "dde_loss", "data_loss"):
        np.testing.assert_allclose(single_logs[name], double_logs[name], rtol=1e-4, atol=1e-5)


def test_replicas_draw_different_noise_and_it_is_stateless(two):
    @tf.function
    def draw(iteration):
        return two.run(lambda: random.normal((4,), 5, iteration, random.Purpose.DENSITY_NOISE))

    first, again, later = (two.experimental_local_results(draw(k)) for k in (3, 3, 4))
    assert not np.allclose(first[0], first[1])
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, later)


def test_streams_seeds_and_iterations_do_not_meet():
    keys = {
        tuple(random.key(seed, iteration, stream).numpy())
        for seed in (0, 1, 2**31 - 1)
        for iteration in (0, 1, 2**31, 2**39)
        for stream in random.Purpose
    }
    assert len(keys) == 3 * 4 * len(random.Purpose)


def test_density_trains_and_evaluates_under_a_strategy(tmp_path, two):
    x = np.concatenate(batches([100]))
    with two.scope():
        dde = tfdde.DDE(networks.residual_mlp(2, 8, 2), seed=1)
        dde.compile("adam")
    dde.fit(x, batch_size=32, epochs=2, validation_data=x, verbose=0)
    dde.save(tmp_path / "dde.keras")
    again = keras.saving.load_model(tmp_path / "dde.keras")
    np.testing.assert_allclose(
        again.log_density(x, normalized=False), dde.log_density(x, normalized=False), atol=1e-6
    )
