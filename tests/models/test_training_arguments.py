"""Arguments of compile and fit: each is heeded, or refused in one sentence; none is ignored."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdde
from tfdde import networks
from tfdde.utils import random
from tfdde.utils.random import Purpose

SIGMA, RATE = 0.4, 0.05
L2 = keras.regularizers.L2(0.1)


def network(*middle, regularizer=None, conditions=0):
    x = keras.Input((2,), name="x")
    inputs = [x, keras.Input((conditions,), name="condition")] if conditions else [x]
    h = keras.layers.Concatenate()(inputs) if conditions else x
    h = keras.layers.Dense(8, activation="tanh", kernel_regularizer=regularizer)(h)
    for layer in middle:
        h = keras.layers.Activation("tanh")(layer(h))
    s = keras.layers.Dense(1, use_bias=False)(h)
    return keras.Model(inputs if conditions else x, s)


def density(*middle, optimizer=None, noise=None, seed=1, compiled=True, **kwargs):
    keras.utils.set_random_seed(0)
    dde = tfdde.DDE(network(*middle, **kwargs), noise or tfdde.Constant(SIGMA), seed=seed)
    if compiled:
        dde.compile(keras.optimizers.SGD(RATE) if optimizer is None else optimizer)
    return dde


def generator(*middle, regularizer=None, **kwargs):
    keras.utils.set_random_seed(0)
    z = keras.Input((3,), name="z")
    h = keras.layers.Dense(8, activation="tanh", kernel_regularizer=regularizer)(z)
    for layer in middle:
        h = layer(h)
    g = keras.Model(z, keras.layers.Dense(2)(h))
    parts = (density(seed=k, compiled=False, regularizer=regularizer) for k in (1, 2))
    return tfdde.Generator(g, *parts, latent_dim=3, dde_steps=1, seed=3, **kwargs)


def data(n=64):
    return np.random.default_rng(0).standard_normal((n, 2)).astype("f4")


def assert_equal_weights(a, b, atol=0.0):
    for v, w in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(v, w, atol=atol, rtol=0)


# Regularizers.


def test_regularizers_are_in_the_loss_and_in_the_step():
    x = data(8)
    plain, regularized = density(), density(regularizer=L2)
    penalties, slopes = [], []
    for dde in (plain, regularized):
        kernel = dde.network.layers[1].kernel
        penalties.append(0.1 * float(np.sum(np.square(kernel))))
        slopes.append(0.2 * kernel.numpy())
    start = plain.get_weights()
    evaluated = [dde.evaluate(x, verbose=0) for dde in (plain, regularized)]
    assert evaluated[1] - evaluated[0] == pytest.approx(penalties[1], rel=1e-5)
    logs = [dde.fit(x, shuffle=False, verbose=0).history for dde in (plain, regularized)]
    assert logs[1]["loss"][0] - logs[0]["loss"][0] == pytest.approx(penalties[1], rel=1e-5)
    for i, (old, a, b) in enumerate(
        zip(start, plain.get_weights(), regularized.get_weights(), strict=True)
    ):
        expected = a - RATE * (slopes[0] if i == 0 else 0 * old)
        np.testing.assert_allclose(b, expected, atol=1e-6)


def test_regularizers_of_a_generators_networks():
    x = data(8)
    plain, regularized = generator(), generator(regularizer=L2)
    logs = []
    for model in (plain, regularized):
        model.compile(
            keras.optimizers.SGD(RATE),
            dde_optimizer=keras.optimizers.SGD(0.0),
            data_optimizer=keras.optimizers.SGD(0.0),
        )
        logs.append(model.fit(x, shuffle=False, verbose=0).history)
    for name, part in (("dde_loss", "generated_dde"), ("data_loss", "data_dde")):
        kernel = getattr(plain, part).network.layers[1].kernel
        penalty = 0.1 * float(np.sum(np.square(kernel)))
        assert logs[1][name][0] - logs[0][name][0] == pytest.approx(penalty, rel=1e-4)
    start = generator().generator.get_weights()
    penalty = 0.1 * float(np.sum(np.square(start[0])))
    assert logs[1]["loss"][0] - logs[0]["loss"][0] == pytest.approx(penalty, rel=1e-4)
    for i, (old, a, b) in enumerate(
        zip(start, plain.generator.get_weights(), regularized.generator.get_weights(), strict=True)
    ):
        np.testing.assert_allclose(b, a - RATE * 0.2 * old * (i == 0), atol=1e-6)


def test_regularizers_on_two_devices(two):
    def train(strategy):
        with strategy.scope():
            dde = density(regularizer=L2, noise=tfdde.Constant(1e-3))  # noise that hardly counts
        x = data(7)
        dde.fit(x, batch_size=7, epochs=5, shuffle=False, verbose=0)
        return dde

    before = np.square(density(regularizer=L2).network.layers[1].kernel).sum()
    one, both = train(tf.distribute.OneDeviceStrategy("CPU:0")), train(two)
    sizes = [float(np.square(dde.network.layers[1].kernel).sum()) for dde in (one, both)]
    assert sizes[0] < 0.95 * before and sizes[1] == pytest.approx(sizes[0], rel=1e-3)


# Layers that compute something else in training.


@pytest.mark.parametrize(
    "layer, message",
    [
        (lambda: keras.layers.Dropout(0.1), r"compute the same in training.*\(Dropout\)"),
        (lambda: keras.layers.BatchNormalization(), r"in training.*\(BatchNormalization\)"),
        (lambda: keras.layers.GaussianNoise(0.1), r"in training.*\(GaussianNoise\)"),
        (lambda: keras.Sequential([keras.layers.Dropout(0.1)]), r"in training.*\(Dropout\)"),
        (
            lambda: keras.layers.SpectralNormalization(keras.layers.Dense(3)),
            r"in training.*\(SpectralNormalization\)",
        ),
        (
            lambda: keras.layers.Dense(3, activity_regularizer="l2"),
            r"no activity regularizer.*\(Dense\) has one",
        ),
    ],
)
def test_layers_that_training_would_not_heed_are_refused(layer, message):
    dde = density(layer())
    dde.score(data())  # a trained one can be read
    for train in (lambda: dde.fit(data(), verbose=0), lambda: dde.train_on_batch(data())):
        with pytest.raises(ValueError, match=f"`network` must.*{message}"):
            train()
    model = generator(layer())
    model.compile()
    with pytest.raises(ValueError, match=f"`generator` must.*{message}"):
        model.fit(data(), verbose=0)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.Dropout(0.0),
        lambda: keras.layers.BatchNormalization(trainable=False),
        lambda: keras.layers.LayerNormalization(),
        lambda: keras.layers.Dense(3, kernel_regularizer="l2", kernel_constraint="max_norm"),
    ],
)
def test_layers_that_are_alike_in_training_pass(layer):
    density(layer()).fit(data(), verbose=0)


def test_a_subclassed_network_is_refused_with_the_way_to_wrap_it():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    net = Net()
    net(tf.zeros((1, 2)))
    with pytest.raises(
        ValueError, match=r"`network` must be a Functional.*got Net.*keras\.Model\("
    ):
        tfdde.DDE(net)
    inputs = keras.Input((2,), name="x")
    tfdde.DDE(keras.Model(inputs, net(inputs))).score(data())
    with pytest.raises(ValueError, match="`generator` must be a Functional.*got Net"):
        tfdde.Generator(net, density(), density(), latent_dim=2)


# Optimizers.


@pytest.mark.parametrize(
    "scaled",
    [
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(RATE), initial_scale=8.0),
        lambda: keras.optimizers.SGD(RATE, loss_scale_factor=8.0),
    ],
)
def test_scaled_losses_make_the_same_steps(scaled):
    plain, other = density(), density(optimizer=scaled())
    for dde in (plain, other):
        dde.fit(data(), batch_size=16, epochs=2, verbose=0)
    assert int(other.optimizer.iterations) == 8
    assert_equal_weights(plain, other, atol=1e-6)

    models = [generator(), generator()]
    for model, make in zip(models, (lambda: keras.optimizers.SGD(RATE), scaled), strict=True):
        model.compile(make(), dde_optimizer=make(), data_optimizer=make())
        model.fit(data(), batch_size=16, verbose=0)
    assert_equal_weights(*models, atol=1e-6)


def test_the_scale_keeps_small_gradients_from_underflow():
    """In float16 they are 0 without it."""
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        scales = 1.0, 2.0**15
        models = [
            density(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), s))
            for s in scales
        ]
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    still = []
    for dde in models:
        for v in dde.network.trainable_variables:
            v.assign(1e-6 * v)  # a flat s, whose gradients are less than float16 can hold
        before = dde.network.layers[1].kernel.numpy()
        dde.fit(data(), batch_size=64, verbose=0)
        still.append(np.mean(dde.network.layers[1].kernel.numpy() == before))
    assert still[0] > 0.5 and still[1] < 0.1


def test_float16_without_a_scale_is_warned_about():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        dde, model = density(compiled=False), generator()
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    sgd = keras.optimizers.SGD
    with pytest.warns(UserWarning, match="`network` computes in float16.*LossScaleOptimizer"):
        dde.compile(sgd())
    with pytest.warns(UserWarning, match=r"`generated_dde\.network` computes in float16"):
        model.compile(sgd(loss_scale_factor=8.0), dde_optimizer=sgd())
    dde.compile(keras.optimizers.LossScaleOptimizer(sgd()))
    model.compile(sgd(loss_scale_factor=8.0), dde_optimizer=sgd(loss_scale_factor=8.0))


def test_averages_of_all_three_optimizers_are_used():
    def after(steps, **kwargs):
        model = generator()
        model.compile(
            *[keras.optimizers.SGD(RATE, **kwargs)],
            dde_optimizer=keras.optimizers.SGD(RATE, **kwargs),
            data_optimizer=keras.optimizers.SGD(RATE, **kwargs),
        )
        model.fit(data(32), batch_size=16, steps_per_epoch=steps, verbose=0)
        return model

    first, plain, averaged = after(1), after(2), after(2, use_ema=True, ema_momentum=0.25)
    for w, one, two in zip(*(m.get_weights() for m in (averaged, first, plain)), strict=True):
        np.testing.assert_allclose(w, 0.25 * one + 0.75 * two, atol=1e-6)
    for name in ("generator", "data_dde", "generated_dde"):
        pairs = zip(getattr(averaged, name).weights, getattr(plain, name).weights, strict=True)
        assert any(np.abs(a.numpy() - b.numpy()).max() > 1e-5 for a, b in pairs)


def test_averages_of_no_steps_do_not_replace_the_weights():
    for arguments in ({"epochs": 0}, {"epochs": 3, "initial_epoch": 3}):
        dde = density(optimizer=keras.optimizers.SGD(RATE, use_ema=True))
        before = dde.get_weights()
        dde.fit(data(), verbose=0, **arguments)
        for a, b in zip(before, dde.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_best_weights_that_a_callback_restores_are_not_averaged():
    model = generator()
    model.compile(
        keras.optimizers.SGD(RATE),
        dde_optimizer=keras.optimizers.SGD(RATE, use_ema=True),
    )
    kept = []

    class Restore(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept.append(self.model.get_weights())

        def on_train_end(self, logs=None):
            self.model.set_weights(kept[0])

    model.fit(data(), batch_size=16, epochs=2, callbacks=Restore(), verbose=0)
    for a, b in zip(kept[0], model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# The order of the rows.


def orders(*fits):
    """The rows that each epoch of some calls of `fit` has seen, in order."""
    seen = []

    class Spy(tfdde.DDE):
        def minimize(self, loss_and_gradients, x, optimizer, sigma):
            seen[-1].extend(x.numpy()[:, 0].tolist())
            return super().minimize(loss_and_gradients, x, optimizer, sigma)

    keras.utils.set_random_seed(0)
    dde = Spy(network(), tfdde.Constant(SIGMA), seed=1)
    dde.compile("sgd", run_eagerly=True)
    begin = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append([]))
    for arguments in fits:
        dde.fit(data(40), batch_size=16, callbacks=begin, verbose=0, **arguments)
    return seen


def test_each_call_of_fit_continues_with_other_orders():
    whole = orders({"epochs": 4})
    one_by_one = orders(*[{"epochs": 1}] * 4)
    assert whole == one_by_one
    assert len({tuple(order) for order in whole}) == 4
    assert all(sorted(order) == sorted(data(40)[:, 0].tolist()) for order in whole)


# Data.


class Batches(keras.utils.PyDataset):
    def __init__(self, x, c=None):
        super().__init__()
        self.x, self.c = x, c

    def __len__(self):
        return 4

    def __getitem__(self, i):
        part = slice(16 * i, 16 * i + 16)
        return self.x[part] if self.c is None else (self.x[part], self.c[part])


@pytest.mark.parametrize("conditions", [0, 2])
def test_generators_and_py_datasets_train_as_arrays_do(conditions):
    x, c = data(), data()[:, ::-1].copy() if conditions else None

    def batches(epochs=1, tuples=True):
        for i in range(4 * epochs):
            batch = Batches(x, c)[i % 4]
            yield batch if conditions or not tuples else (batch,)

    def train(*args, **kwargs):
        dde = density(conditions=conditions)
        history = dde.fit(*args, epochs=2, shuffle=False, verbose=0, **kwargs).history
        return dde, history

    arrays = (x, c) if conditions else (x,)
    validation = (x, c) if conditions else (x,)
    expected, logs = train(*arrays, batch_size=16, validation_data=validation)
    for given in (
        lambda: Batches(x, c),
        lambda: batches(2),
        lambda: batches(2, tuples=False),
        lambda: batches(2, tuples=False),
    ):
        dde, found = train(given(), steps_per_epoch=4, validation_data=Batches(x, c))
        assert_equal_weights(dde, expected, atol=1e-6)
        np.testing.assert_allclose(found["loss"], logs["loss"], rtol=1e-5)
        np.testing.assert_allclose(found["val_loss"], logs["val_loss"], rtol=1e-2)
    value = expected.evaluate(*arrays, batch_size=16, verbose=0)
    assert expected.evaluate(Batches(x, c), verbose=0) == pytest.approx(value, rel=1e-5)


def test_bad_batches_of_generators_are_named():
    dde = density()
    holes = data()
    holes[3, 0] = np.nan
    for given, message in [
        ((part for part in [np.zeros((4, 3))]), r"`x: first batch` must have shape \(rows, 2\)"),
        ((part for part in [holes]), "`x: first batch` must be finite, .* row 3"),
        ((part for part in ()), "`x` is a generator that yields no batch"),
        ((part for part in [(data(), data())]), "without labels|must have rank 1"),
        (Batches(np.zeros((64, 3))), r"`x: first batch` must have shape \(rows, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            dde.fit(given, verbose=0)
    with pytest.raises(ValueError, match="`validation_split` must be in"):
        dde.fit(Batches(data()), validation_split=0.5, verbose=0)


@pytest.mark.parametrize("model", ["density", "generator"])
@pytest.mark.parametrize("call", ["fit", "evaluate"])
def test_unscaled_pixels_of_a_dataset_are_refused(model, call):
    keras.utils.set_random_seed(0)

    def image_density():
        return tfdde.DDE(networks.dense_block((4, 4, 1), 8, 1), tfdde.Constant(0.2))

    model = (
        image_density()
        if model == "density"
        else tfdde.Generator(
            networks.dense_block(3, 8, 1, output_shape=(4, 4, 1)),
            image_density(),
            image_density(),
            latent_dim=3,
            dde_steps=1,
        )
    )
    model.compile(steps_per_execution=2)
    before = model.get_weights()
    good = np.random.default_rng(0).random((12, 4, 4, 1)).astype("f4")
    bad = good.copy()
    bad[9] *= 255  # in the last of three batches
    dataset = tf.data.Dataset.from_tensor_slices(bad)
    message = r"^Batches of images must hold pixels scaled to \[0, 1\], got values in \[0\.\d*, 2"
    with pytest.raises(ValueError, match=message):
        getattr(model, call)(dataset.batch(4), verbose=0)
    first = tf.data.Dataset.from_tensor_slices(255 * good).batch(4)
    if call == "fit":
        model.set_weights(before)
    with pytest.raises(ValueError, match="divide 8-bit pixels by 255"):
        getattr(model, call)(first, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    getattr(model, call)(tf.data.Dataset.from_tensor_slices(good).batch(4), verbose=0)


@pytest.mark.parametrize("form", [lambda x: (x,), lambda x: (x, None), lambda x: (x, None, None)])
def test_validation_data_in_the_forms_of_keras(form):
    x = data()
    dde = density()
    logs = dde.fit(x, validation_data=form(x), verbose=0).history
    assert logs["val_loss"] == [pytest.approx(dde.evaluate(x, verbose=0))]
    with pytest.raises(ValueError, match="`validation_data` must have 1 to 3 parts.*got 4"):
        dde.fit(x, validation_data=(x, None, None, None), verbose=0)
    with pytest.raises(ValueError, match=r"`validation_data\[1\]` must be None"):
        dde.fit(x, validation_data=(x, x), verbose=0)


def test_batches_of_no_arrays_are_not_sized():
    x, dde = data(), density()
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(16)
    for arguments in ({}, {"validation_data": dataset}):
        with pytest.raises(ValueError, match="`validation_batch_size` must not be given"):
            dde.fit(x, validation_batch_size=8, verbose=0, **arguments)
    for call in (dde.fit, dde.evaluate):
        with pytest.raises(ValueError, match="`batch_size` must not be given with a dataset"):
            call(dataset, batch_size=8, verbose=0)
    with pytest.raises(ValueError, match="`validation_batch_size` must be an integer >= 1, got 0"):
        dde.fit(x, validation_data=x, validation_batch_size=0, verbose=0)


def test_one_callback_without_a_list():
    epochs = []
    count = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    dde = density()
    for callbacks in (count, [count], [[count], None], keras.callbacks.CallbackList([count])):
        history = dde.fit(data(), epochs=2, callbacks=callbacks, verbose=0)
        assert len(history.history["loss"]) == 2
    assert epochs == [0, 1] * 4


@pytest.mark.parametrize("steps", [0, -1, 1.5, "auto", True])
def test_steps_per_execution_is_checked(steps):
    for model in (density(), generator()):
        with pytest.raises(ValueError, match="`steps_per_execution` must be an integer >= 1, got"):
            model.compile(steps_per_execution=steps)


# Predicting, saving, exporting.


def test_predict_of_conditional_models():
    x, c = data(), data()[:, ::-1].copy()
    dde = density(conditions=2)
    expected = dde.log_density(x, conditions=c, normalized=False)
    np.testing.assert_allclose(dde.predict([x, c], verbose=0), expected, atol=1e-6)
    np.testing.assert_allclose(dde([x, c]), expected, atol=1e-6)
    np.testing.assert_allclose(density().predict(x, verbose=0), density()(x), atol=1e-6)
    noise = tfdde.Constant(SIGMA)
    parts = (tfdde.DDE(network(conditions=2), noise) for _ in range(2))
    g = networks.residual_mlp(3, 8, 1, output_shape=2, conditions=2)
    model = tfdde.Generator(g, *parts, latent_dim=3)
    z = np.random.default_rng(1).standard_normal((64, 3)).astype("f4")
    np.testing.assert_allclose(model.predict([z, c], verbose=0), model.decode(z, c), atol=1e-6)


@pytest.mark.parametrize("make", [density, generator])
def test_keras_formats_that_do_not_suit(make, tmp_path):
    model = make()
    model.compile()
    model.fit(data(), verbose=0)
    for name in ("m.h5", "m.hdf5"):
        with pytest.raises(ValueError, match=rf"`filepath` must end in \.keras, got '.*{name}'"):
            model.save(tmp_path / name)
    with pytest.raises(NotImplementedError, match=r"Export by tfdde\.serving\.export_savedmodel"):
        model.export(tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_noise_of_a_resumed_loop_is_new():
    """The loss of one step is that of the noise of its iteration, also in another call of fit."""
    x = data(8)
    dde = density(optimizer=keras.optimizers.SGD(0.0))
    losses = [dde.fit(x, shuffle=False, verbose=0).history["loss"][0] for _ in range(2)]
    for iteration, loss in enumerate(losses):
        epsilon = random.normal(x.shape, 1, iteration, Purpose.DENSITY_NOISE)
        y = tf.constant(x) + SIGMA * epsilon
        with tf.GradientTape() as tape:
            tape.watch(y)
            s = dde.network(y)
        expected = tf.reduce_mean((SIGMA * tape.gradient(s, y) + epsilon) ** 2)
        assert loss == pytest.approx(float(expected), rel=1e-5)
