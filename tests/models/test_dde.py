"""DDE: the loss it descends, what it learns, saving, input errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from mixtures import three

import tfdde
from tfdde import losses, metrics, networks
from tfdde.utils import random
from tfdde.utils.random import Purpose

SIGMA = 0.3


def small(depth=3, width=16, **kwargs):
    kwargs.setdefault("noise", tfdde.Constant(SIGMA))
    kwargs.setdefault("seed", 1)
    return tfdde.DDE(networks.residual_mlp(2, width, depth), **kwargs)


def data(n=512):
    return three().sample(n, seed=0)


@pytest.fixture(scope="module")
def trained():
    """A DDE of a known mixture, trained for a few seconds."""
    keras.utils.set_random_seed(0)
    x = three().sample(100_000, seed=0)
    base = tfdde.GaussianBase(2)
    base.adapt(x)
    dde = small(depth=4, width=32, base=base, antithetic=True)
    schedule = keras.optimizers.schedules.CosineDecay(5e-3, 1200)
    dde.compile(keras.optimizers.Adam(schedule))
    dde.fit(tfdde.datasets.stream(x, 512, 0), steps_per_epoch=1200, verbose=0)
    return dde


def test_learns_the_exact_smoothed_density(trained):
    grid, cell = metrics.grid(-5, 5, 200)
    exact = three().log_density(grid, SIGMA)
    learned = trained.log_density(grid.astype("f4"), normalized=False).numpy()
    assert metrics.grid_kl(exact, learned, cell) < 0.01
    x = three().sample(2000, seed=5) + SIGMA * np.random.default_rng(6).standard_normal((2000, 2))
    error = trained.score(x).numpy() - three().score(x, SIGMA)
    assert np.mean(error**2) < 0.05 * np.mean(three().score(x, SIGMA) ** 2)


def test_evaluate_is_deterministic_and_near_the_attainable_loss(trained):
    x = data(20_000)
    first, again = (trained.evaluate(x, batch_size=1000, verbose=0) for _ in range(2))
    assert first == again
    noisy = x + SIGMA * np.random.default_rng(3).standard_normal(x.shape)
    # E|sigma score + eps|^2 / n = 1 - sigma^2 E|score|^2 / n at the exact score.
    attainable = 1 - SIGMA**2 / 2 * np.mean(np.sum(three().score(noisy, SIGMA) ** 2, axis=1))
    assert attainable - 0.02 < first < attainable + 0.03


def test_loss_and_gradients_are_those_of_eq_10():
    dde = small()
    dde.compile("sgd")
    x = data(8)
    sigma = tf.constant(SIGMA)
    epsilon = random.normal((8, 2), 1, 0, Purpose.DENSITY_NOISE)
    with tf.GradientTape() as tape:
        noisy = tf.constant(x) + sigma * epsilon
        with tf.GradientTape() as inner:
            inner.watch(noisy)
            s = dde.network(noisy)
        residual = inner.gradient(s, noisy) + epsilon / sigma
        expected = tf.reduce_mean(tf.reduce_sum(residual**2, axis=1)) * SIGMA**2 / 2
    gradients = tape.gradient(expected, dde.network.trainable_variables)
    before = [v.numpy() for v in dde.network.trainable_variables]
    history = dde.fit(x, batch_size=8, shuffle=False, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [expected], rtol=1e-5)
    rate = float(dde.optimizer.learning_rate)
    for old, new, g in zip(before, dde.network.trainable_variables, gradients, strict=True):
        np.testing.assert_allclose(new.numpy(), old - rate * g.numpy(), atol=1e-6)


def test_antithetic_loss_is_the_mean_of_both_signs():
    x = data(8)
    dde = small(antithetic=True)
    dde.compile("sgd")
    epsilon = random.normal((8, 2), 1, 0, Purpose.DENSITY_NOISE)
    both = [
        losses.dde_loss(dde, tf.constant(x), e, tf.constant(SIGMA)) for e in (epsilon, -epsilon)
    ]
    history = dde.fit(x, batch_size=8, shuffle=False, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [np.mean(both)], rtol=1e-5)


def test_decay_trains_at_the_level_of_the_iteration():
    x = data(8)
    seen = []

    class Spy(tfdde.DDE):
        def minimize(self, loss_and_gradients, x, optimizer, sigma):
            seen.append(sigma)
            return super().minimize(loss_and_gradients, x, optimizer, sigma)

    dde = Spy(networks.residual_mlp(2, 4, 1), tfdde.Decay(0.8, 0.1, decay_steps=1, rate=2.0))
    dde.compile("sgd", run_eagerly=True)
    dde.fit(x, batch_size=8, epochs=5, verbose=0)
    np.testing.assert_allclose([float(s) for s in seen], [0.8, 0.4, 0.2, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_resume_at_an_epoch_equals_an_uninterrupted_run(tmp_path, jit):
    x = data(300)

    def fit(epochs, load=None, initial_epoch=0):
        keras.utils.clear_session()
        keras.utils.set_random_seed(4)
        dde = small()
        dde.compile(keras.optimizers.Adam(1e-2), jit_compile=jit)
        if load:
            dde.load_weights(load)
        save = tfdde.Checkpoint(tmp_path / "state.weights.h5")
        dde.fit(
            x,
            batch_size=64,
            epochs=epochs,
            initial_epoch=initial_epoch,
            verbose=0,
            callbacks=[save],
        )
        return dde.network.get_weights()

    whole = fit(4)
    fit(2)
    resumed = fit(4, load=tmp_path / "state.weights.h5", initial_epoch=2)
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("steps", [4, 5, 64])  # of 16 batches
def test_steps_per_execution_changes_nothing(steps):
    found = []
    for each in (1, steps):
        keras.utils.clear_session()
        keras.utils.set_random_seed(4)
        dde = small()
        dde.compile(keras.optimizers.Adam(1e-2), steps_per_execution=each)
        x = data(1_000)
        history = dde.fit(x, batch_size=64, epochs=2, validation_data=x, verbose=0).history
        assert int(dde.optimizer.iterations) == 32
        loss = dde.evaluate(x, batch_size=64, verbose=0)
        assert loss == pytest.approx(history["val_loss"][-1], rel=1e-5)
        found.append([*dde.network.get_weights(), history["loss"], history["val_loss"]])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_set_random_seed_fixes_everything():
    runs = []
    for _ in range(2):
        keras.utils.clear_session()
        keras.utils.set_random_seed(9)
        dde = tfdde.DDE(networks.residual_mlp(2, 8, 2))
        dde.compile("adam")
        dde.fit(data(), verbose=0)
        runs.append(dde.network.get_weights())
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tensors_pass_and_gradients_flow_through_log_density(trained):
    x = tf.constant(data(5))
    with tf.GradientTape() as tape:
        tape.watch(x)
        s = trained.log_density(x, normalized=False)
    np.testing.assert_allclose(tape.gradient(s, x), trained.score(x), atol=1e-5)
    assert trained.log_density(x[:0], normalized=False).shape == (0,) and trained.score(
        x[:0]
    ).shape == (0, 2)


def test_validation_and_datasets():
    dde = small()
    dde.compile("adam")
    history = dde.fit(data(), validation_split=0.25, epochs=2, batch_size=64, verbose=0).history
    assert len(history["val_loss"]) == 2
    dataset = tf.data.Dataset.from_tensor_slices(data()).batch(100)
    again = dde.fit(dataset, validation_data=dataset, verbose=0).history
    assert np.isclose(again["val_loss"][-1], dde.evaluate(dataset, verbose=0))


# Bad input.


@pytest.mark.parametrize(
    "x, message",
    [
        (np.zeros((5, 3)), r"`x` must have shape \(rows, 2\), got \(5, 3\)"),
        (np.zeros(5), r"`x` must have rank 2, .*got rank 1, shape \(5,\)"),
        (np.zeros((5, 2, 1)), "`x` must have rank 2"),
        (np.zeros((0, 2)), "`x` is empty"),
        ([[0.0, np.nan]], "`x` must be finite, got NaN or infinity in 1 of 1 rows.*row 0"),
        ([[0.0, 1.0], [np.inf, 1.0]], "in 1 of 2 rows, the first at row 1"),
        ([["a", "b"]], "`x` must be an array of numbers"),
        ([[1.0, 2.0], [3.0]], "`x` must be an array of numbers"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "evaluate", "log_density", "score"])
def test_bad_arrays(x, message, method):
    dde = small()
    dde.compile("adam")
    if method in ("log_density", "score") and len(x) == 0:
        return  # no rows in, no rows out
    with pytest.raises(ValueError, match=message):
        getattr(dde, method)(x)


@pytest.mark.parametrize(
    "dataset, message",
    [
        (tf.data.Dataset.from_tensor_slices(np.zeros((9, 2), "f4")), "is `.batch"),
        (tf.data.Dataset.from_tensors(np.zeros((9, 3), "f4")), "must yield batches of shape"),
        (tf.data.Dataset.from_tensors(np.zeros((9, 2), "i4")), "floating-point"),
        (
            tf.data.Dataset.from_tensors((np.zeros((9, 2), "f4"), np.zeros(9, int))),
            "without labels",
        ),
        (tf.data.Dataset.from_tensors((np.zeros((9, 2), "f4"),) * 3), "without labels"),
    ],
)
def test_bad_datasets(dataset, message):
    dde = small()
    dde.compile("adam")
    with pytest.raises(ValueError, match=message):
        dde.fit(dataset)


def test_unscaled_pixels():
    dde = tfdde.DDE(networks.dense_block((4, 4, 1), 8, 1))
    dde.compile("adam")
    images = np.full((3, 4, 4, 1), 255, np.uint8)
    for method in (dde.fit, dde.evaluate, dde.log_density, dde.score):
        with pytest.raises(ValueError, match=r"scaled to \[0, 1\], got values in \[255, 255\]"):
            method(images)
    dde.log_density(images / 255 + 0.5, normalized=False)  # noise may leave [0, 1]
    levels = networks.dense_block((4, 4, 1), 8, 1, levels=True)
    dde = tfdde.DDE(levels, tfdde.LogUniform(0.1, 2.0))
    noisy = images / 255 + 8.0  # 4 deviations at sigma = 2, and 80 at 0.1
    dde.log_density(noisy, 2.0, normalized=False), dde.score(noisy, 2.0)
    for method in (dde.log_density, dde.score):
        with pytest.raises(ValueError, match=r"scaled to \[0, 1\], got values in \[9, 9\]"):
            method(noisy)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"noise": 0.2}, r"`noise` must be tfdde.Constant.*got 0.2.*write tfdde.Constant"),
        ({"seed": -1}, "`seed` must be"),
        ({"base": tfdde.GaussianBase}, "`base` must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_bad_networks():
    with pytest.raises(ValueError, match=r"one scalar a row.*got \(None, 3\)"):
        tfdde.DDE(networks.residual_mlp(2, output_shape=3))
    with pytest.raises(ValueError, match="`network` must be a built keras.Model"):
        tfdde.DDE("residual_mlp")
    with pytest.raises(ValueError, match="`base` must be a tfdde.GaussianBase"):
        tfdde.DDE(networks.residual_mlp(2), base=tfdde.GaussianBase(3))


@pytest.mark.parametrize("split", [-0.1, 1.0, 0.0001])
def test_bad_validation_split(split):
    dde = small()
    dde.compile("adam")
    with pytest.raises(ValueError, match="`validation_split`"):
        dde.fit(data(), validation_split=split)


def test_divergence_stops_with_step_loss_and_hint_and_keeps_the_checkpoint(tmp_path):
    path = tmp_path / "state.weights.h5"
    x = np.concatenate([data(256)] * 2)

    def batches():
        for k in range(8):
            yield x[:64] if k < 6 else np.full((64, 2), np.nan, "f4")

    spec = tf.TensorSpec((64, 2), tf.float32)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=spec)
    dde = small()
    dde.compile("adam")
    good = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: good.append(dde.network.get_weights())
    )
    with pytest.raises(tfdde.DivergedError, match="diverged at step 7: loss = nan.*learning rate"):
        dde.fit(
            dataset,
            epochs=4,
            steps_per_epoch=2,
            verbose=0,
            callbacks=[tfdde.Checkpoint(path), keep],
        )
    assert len(good) == 3
    dde.load_weights(path)
    for a, b in zip(good[-1], dde.network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_checkpoint_refuses_weights_that_are_not_finite(tmp_path):
    path = tmp_path / "state.weights.h5"
    dde = small()
    dde.compile("adam")
    save = tfdde.Checkpoint(path)
    save.set_model(dde)
    save.save()
    before = path.read_bytes()
    dde.network.weights[0].assign(np.full(dde.network.weights[0].shape, np.nan))
    with pytest.raises(tfdde.DivergedError):
        save.save()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match=r"`path` must end in '.weights.h5', got"):
        tfdde.Checkpoint(tmp_path / "state.h5")


@pytest.mark.parametrize("noise", [tfdde.LogUniform(0.1, 4.0), tfdde.Constant(0.1)])
def test_start_at_the_independent_components_of_what_the_network_sees(noise):
    levels = isinstance(noise, tfdde.LogUniform)
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    units = np.geomspace(0.01, 100, 6)
    x = (rng.laplace(size=(20_000, 6)) @ rotation.T * units + 5).astype("float32")
    dde = tfdde.DDE(
        networks.residual_mlp(6, 8, 1, levels=levels),
        noise,
        normalization=keras.layers.Normalization(),
        seed=0,
    )
    dde.adapt(x)
    dde.start_at_independent_components(x)
    kernel = dde.network.get_weights()[0][:6]
    cosines = np.abs(rotation.T @ kernel) / np.linalg.norm(kernel, axis=0)
    assert cosines.max(axis=0).min() > 0.98
    assert set(cosines.argmax(axis=0)) == set(range(6))
    # Each unit's scale is one of those meant, for rows as the network sees them, noise included.
    seen = dde.inside(tf.constant(x)).numpy() + 0.1 * rng.standard_normal(x.shape)
    scales = (seen / np.sqrt(1.01 if levels else 1.0) @ kernel).std(axis=0)
    assert scales.min() > 0.69 and scales.max() < 3.05
    with pytest.raises(ValueError, match="`x` must have shape"):
        dde.start_at_independent_components(x[:, :5])
    # Rows of other components, which hardly count.
    others = (rng.laplace(size=x.shape) * units + 5).astype("float32")
    both, weights = np.concatenate([others, x]), np.repeat([0.001, 1.0], len(x))
    dde.start_at_independent_components(both, weights)
    kernel = dde.network.get_weights()[0][:6]
    cosines = np.abs(rotation.T @ kernel) / np.linalg.norm(kernel, axis=0)
    assert cosines.max(axis=0).min() > 0.98
    with pytest.raises(ValueError, match="`sample_weight` must have 20000 weights"):
        dde.start_at_independent_components(x, weights)
