"""Weighted rows: the loss as its definition says, under every way to give the weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdde
from tfdde import networks
from tfdde.utils import random
from tfdde.utils.random import Purpose

SIGMA = 0.4


def density(conditions=0, noise=None, **kwargs):
    keras.utils.set_random_seed(0)
    noise = tfdde.Constant(SIGMA) if noise is None else noise
    levels = isinstance(noise, tfdde.LogUniform)
    network = networks.residual_mlp(2, 8, 2, levels=levels, conditions=conditions)
    dde = tfdde.DDE(network, noise, seed=1, **kwargs)
    dde.compile(keras.optimizers.SGD(0.05))
    return dde


def data(n=12):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 2)).astype("f4")
    weights = rng.exponential(size=n).astype("f4")
    weights[n // 3] = 0.0
    return x, weights, rng.standard_normal((n, 3)).astype("f4")


def eq_10(dde, x, epsilon, c=None):
    """The loss of each row, by plain tapes."""
    noisy = tf.constant(x) + SIGMA * epsilon
    with tf.GradientTape() as tape:
        tape.watch(noisy)
        s = dde.network(noisy if c is None else [noisy, tf.constant(c)])
    return tf.reduce_mean((SIGMA * tape.gradient(s, noisy) + epsilon) ** 2, axis=1)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("conditions", [0, 3])
def test_loss_and_step_are_those_of_the_weighted_mean(antithetic, conditions):
    x, w, c = data()
    c = c if conditions else None
    dde = density(conditions, antithetic=antithetic)
    epsilon = random.normal(x.shape, 1, 0, Purpose.DENSITY_NOISE)
    variables = dde.network.trainable_variables
    with tf.GradientTape() as tape:
        signs = (1.0, -1.0) if antithetic else (1.0,)
        losses = sum(eq_10(dde, x, sign * epsilon, c) for sign in signs) / len(signs)
        expected = tf.reduce_sum(w * losses) / w.sum()
    gradients = tape.gradient(expected, variables)
    before = [v.numpy() for v in variables]
    history = dde.fit(x, c, sample_weight=w, batch_size=12, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], [expected], rtol=1e-5)
    for old, new, g in zip(before, variables, gradients, strict=True):
        np.testing.assert_allclose(new.numpy(), old - 0.05 * g.numpy(), atol=1e-6)


@pytest.mark.parametrize("conditions", [0, 3])
def test_every_way_to_give_weights_is_the_same(conditions):
    x, w, c = data()
    columns = (x, c, w) if conditions else (x, w)
    arrays = (x, c) if conditions else (x,)
    dataset = tf.data.Dataset.from_tensor_slices(columns).batch(5)

    class Batches(keras.utils.PyDataset):
        num_batches = 3

        def __getitem__(self, i):
            return tuple(column[5 * i : 5 * i + 5] for column in columns)

    def generator():
        for i in range(0, 12, 5):
            yield tuple(column[i : i + 5] for column in columns)

    def weights_after(*args, **kwargs):
        dde = density(conditions)
        dde.fit(*args, shuffle=False, steps_per_epoch=3, verbose=0, **kwargs)
        return dde.get_weights()

    expected = weights_after(*arrays, sample_weight=w, batch_size=5)
    for x_like in (dataset, Batches(), generator()):
        for a, b in zip(weights_after(x_like), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    dde = density(conditions)
    values = [
        dde.evaluate(*arrays, sample_weight=w, batch_size=5, verbose=0),
        dde.evaluate(dataset, verbose=0),
        dde.evaluate(Batches(), verbose=0),
        dde.evaluate(generator(), steps=3, verbose=0),
    ]
    assert max(values) - min(values) < 1e-6
    validation = (x, c if conditions else None, w)
    logs = dde.fit(*arrays, validation_data=validation, validation_batch_size=5, verbose=0).history
    again = dde.evaluate(*arrays, sample_weight=w, batch_size=5, verbose=0)
    assert logs["val_loss"] == [pytest.approx(again, rel=1e-6)]


def test_weights_of_one_are_no_weights():
    x, w, _ = data()
    dde, one = density(), np.ones(12)
    assert dde.evaluate(x, batch_size=5, verbose=0) == pytest.approx(
        dde.evaluate(x, sample_weight=one, batch_size=5, verbose=0), rel=1e-6
    )
    other = density()
    dde.fit(x, batch_size=5, epochs=2, verbose=0)
    other.fit(x, sample_weight=one, batch_size=5, epochs=2, verbose=0)
    for a, b in zip(dde.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # The scale of the weights does not matter, only their ratios.
    again, third = density(), density()
    again.fit(x, sample_weight=w, batch_size=5, epochs=2, verbose=0)
    third.fit(x, sample_weight=1000 * w, batch_size=5, epochs=2, verbose=0)
    for a, b in zip(again.get_weights(), third.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_evaluation_by_its_definition():
    x, w, _ = data()
    dde = density()
    losses = [
        eq_10(dde, x[i : i + 5], random.normal(x[i : i + 5].shape, 1, i, Purpose.EVALUATION_NOISE))
        for i in (0, 5, 10)
    ]
    expected = np.sum(w * np.concatenate(losses)) / w.sum()
    value = dde.evaluate(x, sample_weight=w, batch_size=5, verbose=0)
    assert value == pytest.approx(expected, rel=1e-5)


def test_weights_stay_with_their_rows_in_every_order():
    x, w, c = data(50)
    seen = []

    class Spy(tfdde.DDE):
        def minimize(self, loss_and_gradients, x, optimizer, sigma, condition, weights):
            seen.append((x.numpy(), condition.numpy(), weights.numpy()))
            return super().minimize(
                loss_and_gradients, x, optimizer, sigma, condition, weights=weights
            )

    dde = Spy(networks.residual_mlp(2, 4, 1, conditions=3), tfdde.Constant(SIGMA))
    dde.compile("sgd", run_eagerly=True)
    dde.fit(x, c, sample_weight=w, batch_size=8, validation_split=0.2, epochs=2, verbose=0)
    rows, conditions, weights = (np.concatenate(part) for part in zip(*seen, strict=True))
    assert len(rows) == 80
    for row, condition, weight in zip(rows, conditions, weights, strict=True):
        (i,) = np.flatnonzero((x == row).all(axis=1))
        assert i < 40 and (c[i] == condition).all() and w[i] == weight


def test_a_weight_of_zero_is_a_row_less(tmp_path):
    """Rows that are far from all others change nothing if they have no weight."""
    x = np.random.default_rng(0).standard_normal((400, 2)).astype("f4")
    far = np.concatenate([x, x + 50.0])
    weights = np.repeat([2.0, 0.0], 400)
    dde, expected = (density(base=tfdde.GaussianBase(2)) for _ in range(2))
    dde.adapt(far, weights)
    expected.adapt(x)
    for a, b in zip(dde.base.weights, expected.base.weights, strict=True):
        np.testing.assert_allclose(np.abs(a), np.abs(b), atol=1e-4)


def test_two_devices_equal_one(two, monkeypatch):
    from test_distribution import shared_noise

    monkeypatch.setattr(random, "normal", shared_noise)
    x, w, _ = data(43)

    def train(strategy):
        with strategy.scope():
            dde = density()
        batches = tf.data.Dataset.from_tensor_slices((x, w)).batch(6)  # the last one of 1 row
        logs = dde.fit(batches, verbose=0).history
        return [*dde.get_weights(), logs["loss"]]

    one = train(tf.distribute.OneDeviceStrategy("CPU:0"))
    for a, b in zip(one, train(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bad_weights_are_refused():
    x, w, _ = data()
    dde = density()
    for call in (dde.fit, dde.evaluate):
        with pytest.raises(ValueError, match="`sample_weight` must have 12 weights.*got 5"):
            call(x, sample_weight=w[:5])
        with pytest.raises(ValueError, match="`sample_weight` must be >= 0 and not all zero"):
            call(x, sample_weight=-w)
        dataset = tf.data.Dataset.from_tensor_slices((x, -w)).batch(4)
        with pytest.raises(ValueError, match="Batches must have sample weights >= 0, got -"):
            call(dataset)
        with pytest.raises(ValueError, match="`sample_weight` must not be given with a dataset"):
            call(dataset, sample_weight=w)
        dataset = tf.data.Dataset.from_tensor_slices((x, w[:, None])).batch(4)
        with pytest.raises(ValueError, match=r"batches of shape \(rows,\), got \(None, 1\)"):
            call(dataset)
    with pytest.raises(ValueError, match=r"`validation_data\[2\]` must have 12 weights"):
        dde.fit(x, validation_data=(x, None, w[:5]))
    network = networks.residual_mlp(3, 8, 1, output_shape=2)
    generator = tfdde.Generator(network, density(), density(), latent_dim=3)
    generator.compile()
    with pytest.raises(ValueError, match="`sample_weight` must be None: the rows"):
        generator.fit(x, sample_weight=w)
    with pytest.raises(ValueError, match="without labels"):
        generator.fit(tf.data.Dataset.from_tensors((x, w)))


def test_log_z_takes_weighted_rows():
    """Rows that are uniform, but normal with their weights: log Z of the normal density is 0."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-5, 5, (4_000, 2)).astype("f4")
    weights = np.exp(-0.5 * np.square(x).sum(axis=1))
    x, weights = np.concatenate([x, x[:500] + 1e3]), np.concatenate([weights, np.zeros(500)])
    for conditions in (0, 3):
        dde = density(conditions, noise=tfdde.LogUniform(0.2, 4.0))
        for v in dde.network.weights:
            v.assign(0 * v)  # what is left is the base, N(0, 1)
        c = np.float32([[1.0, 0.0, 0.0]]) if conditions else None
        found = dde.log_partition(
            x, sample_weight=weights, conditions=c, samples=4_000, moves=1, seed=1
        )
        estimate = found.estimates[0] if conditions else found
        assert estimate.trusted and dde.normalized
        assert abs(estimate.value) < 4 * estimate.standard_error + 0.01
    with pytest.raises(ValueError, match="`sample_weight` must have 4500 weights"):
        dde.log_partition(x, conditions=c, sample_weight=weights[:5])
