"""Conditional densities and samplers against exact conditional mixtures."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from mixtures import Mixture, three

import tfdde
from tfdde import metrics, networks, serving
from tfdde.partition.result import LogPartitions
from tfdde.utils import random
from tfdde.utils.random import Purpose

SIGMA = 0.2
CLASSES = [
    three(),
    Mixture([[1.5, 1.5]], [0.2], [1.0]),
    Mixture([[0.0, 1.0], [0.0, -1.0]], [0.05, 0.05], [0.8, 0.2]),
]
GRID, CELL = metrics.grid(-6, 6, 200)


def one_hot(k):
    return keras.utils.to_categorical([k], 3)


def labelled(rows, seed):
    """``rows`` of each class, and their one-hot labels."""
    x = np.concatenate([m.sample(rows, [seed, k]) for k, m in enumerate(CLASSES)])
    return x, keras.utils.to_categorical(np.repeat(range(3), rows), 3)


def moving(c):
    """A mixture whose means and weights move with the condition c in [-1, 1]."""
    return Mixture([[1.5 * c, -1.0], [-c, 1.0 + c]], [0.1, 0.2], [2.0 + c, 2.0 - c])


def moved(rows, seed, low=-1.0, high=1.0):
    """Rows of ``moving`` and their conditions, uniform between ``low`` and ``high``."""
    rng = np.random.default_rng(seed)
    c = rng.uniform(low, high, rows)
    first = rng.uniform(size=rows) < (2.0 + c) / 4.0
    means = np.where(
        first[:, None], np.stack([1.5 * c, -np.ones(rows)], 1), np.stack([-c, 1 + c], 1)
    )
    noise = rng.standard_normal((rows, 2)) * np.sqrt(np.where(first, 0.1, 0.2))[:, None]
    return (means + noise).astype("f4"), c[:, None].astype("f4")


def train(x, conditions, steps):
    keras.utils.set_random_seed(0)
    network = networks.residual_mlp(
        2, 64, 3, activation="silu", levels=True, experts=2, conditions=conditions.shape[1]
    )
    dde = tfdde.DDE(network, tfdde.LogUniform(SIGMA, 5.0), antithetic=True, seed=1)
    dde.adapt(x)
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, steps)
    dde.compile(keras.optimizers.Adam(schedule))
    batches = tfdde.datasets.stream(x, 512, 0, conditions=conditions)
    dde.fit(batches, steps_per_epoch=steps, verbose=0)
    return dde


@pytest.fixture(scope="module")
def labels():
    """A density of labelled rows, with the log Z of each label."""
    dde = train(*labelled(20_000, 0), steps=800)
    x, c = labelled(2_000, 1)
    found = dde.log_partition(x, conditions=c, samples=4_000, moves=2)
    assert found == dde.partitions and found.trusted and dde.normalized
    return dde


@pytest.fixture(scope="module")
def continuous():
    return train(*moved(50_000, 0), steps=800)


def assert_is(density, truth, **given):
    """Of a normalised density: that it is ``truth``, on a grid and at its own rows."""
    learned = density.log_density(GRID, **given, normalized=True).numpy()
    mass = np.exp(learned.astype(float)).sum() * CELL
    assert mass == pytest.approx(1.0, abs=0.05)  # two standard errors of log Z
    assert metrics.grid_kl(truth.log_density(GRID, SIGMA), learned, CELL) < 0.01
    x = truth.sample(2_000, 5) + SIGMA * np.random.default_rng(6).standard_normal((2_000, 2))
    score = truth.score(x, SIGMA)
    error = density.score(x, **given) - score
    assert np.mean(np.square(error)) < 0.03 * np.mean(score**2)


@pytest.mark.parametrize("k", range(3))
def test_each_label_has_its_own_exact_density(labels, k):
    assert_is(labels, CLASSES[k], conditions=one_hot(k))


def test_labels_are_told_apart_as_bayes_does(labels):
    """The posterior of the label needs the log Z of each to be right."""
    x, c = labelled(1_000, 2)
    x += SIGMA * np.random.default_rng(3).standard_normal(x.shape).astype("f4")

    def posterior(log_densities):
        return tf.nn.softmax(np.stack(log_densities, axis=1)).numpy()

    learned = [labels.log_density(x, conditions=one_hot(k)).numpy() for k in range(3)]
    exact = posterior([m.log_density(x, SIGMA) for m in CLASSES])
    assert np.abs(posterior(learned) - exact).mean() < 0.01
    # With s alone, whose constants differ from label to label, it is not.
    s = [labels.log_density(x, conditions=one_hot(k), normalized=False) for k in range(3)]
    assert np.abs(posterior(s) - exact).mean() > 0.01
    mixed = labels.log_density(x, conditions=c).numpy()
    np.testing.assert_allclose(mixed, np.stack(learned, 1)[c.astype(bool)], atol=1e-4)


@pytest.mark.parametrize("c", [-0.7, 0.15, 0.6])
def test_at_a_continuous_condition_rows_nearby_give_log_z(continuous, c):
    given = continuous.given(np.float32([c]))
    near, _ = moved(2_000, 7, c - 0.1, c + 0.1)
    found = given.log_partition(near, samples=4_000, moves=5)
    s = given.log_density(GRID, normalized=False).numpy()
    assert abs(found.value - metrics.grid_log_partition(s, CELL)) < 3.5 * found.standard_error
    assert_is(given, moving(c))
    assert continuous.partitions is None and not continuous.normalized


def small(conditions=3, noise=None, **kwargs):
    network = networks.residual_mlp(
        2, 8, 2, levels=isinstance(noise, tfdde.LogUniform), conditions=conditions
    )
    return tfdde.DDE(network, noise or tfdde.Constant(SIGMA), seed=1, **kwargs)


@pytest.mark.parametrize("antithetic", [False, True])
def test_loss_is_that_of_eq_10_at_the_rows_own_conditions(antithetic):
    x, c = labelled(4, 0)
    dde = small(antithetic=antithetic)
    dde.compile("sgd")
    expected = []
    for sign in (1.0, -1.0) if antithetic else (1.0,):
        epsilon = sign * random.normal(x.shape, 1, 0, Purpose.DENSITY_NOISE)
        noisy = tf.constant(x) + SIGMA * epsilon
        with tf.GradientTape() as tape:
            tape.watch(noisy)
            s = dde.network([noisy, tf.constant(c, tf.float32)])
        residual = tape.gradient(s, noisy) + epsilon / SIGMA
        expected.append(tf.reduce_mean(residual**2) * SIGMA**2)
    history = dde.fit(x, c, batch_size=len(x), shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], [np.mean(expected)], rtol=1e-5)


def test_conditions_stay_with_their_rows():
    x = np.arange(20, dtype="f4").reshape(10, 2)
    for rows, conditions in tfdde.datasets.stream(x, 7, 3, conditions=-x).take(5):
        np.testing.assert_array_equal(rows, -conditions)
    later = next(iter(tfdde.datasets.stream(x, 7, 3, start=4, conditions=-x)))
    np.testing.assert_array_equal(later[0], rows)

    seen = []

    class Spy(tfdde.DDE):
        def minimize(self, loss_and_gradients, x, optimizer, sigma, condition):
            seen.append((x.numpy(), condition.numpy()))
            return super().minimize(loss_and_gradients, x, optimizer, sigma, condition)

    dde = Spy(networks.residual_mlp(2, 4, 1, conditions=2))
    dde.compile("sgd", run_eagerly=True)
    dde.fit(x, -x, batch_size=3, validation_split=0.2, verbose=0)
    rows, conditions = (np.concatenate(part) for part in zip(*seen, strict=True))
    np.testing.assert_array_equal(rows, -conditions)
    np.testing.assert_array_equal(np.sort(rows[:, 0]), x[:8, 0])


def test_validation_of_arrays_and_datasets():
    x, c = labelled(60, 0)
    dde = small()
    dde.compile("adam")
    dataset = tf.data.Dataset.from_tensor_slices((x, c)).batch(32)
    logs = dde.fit(dataset, validation_data=(x, c), verbose=0).history
    same = dde.evaluate(x, c, verbose=0)
    assert logs["val_loss"] == [same] == [dde.evaluate(dataset, verbose=0)]
    assert same != dde.evaluate(x, c[::-1], verbose=0)  # the conditions count
    assert len(dde.fit(x, c, validation_split=0.25, epochs=2, verbose=0).history["val_loss"]) == 2


# log Z, of some conditions and not of others.


def log_z(value, trusted=True, sigma=SIGMA):
    return tfdde.LogPartition(value, 0.01 if trusted else 9.0, 0.0, 0.0, 900.0, "ladder", sigma)


@pytest.fixture
def partly():
    """log Z is trusted at the first condition, not at the second, and unknown at the third."""
    dde = small()
    conditions = tuple(tuple(one_hot(k)[0].tolist()) for k in range(2))
    dde.partitions = LogPartitions(conditions, (log_z(1.5), log_z(2.5, trusted=False)))
    return dde


def test_only_a_trusted_log_z_normalises(partly):
    x = three().sample(4, 0)
    known, rest = one_hot(0), (one_hot(1), one_hot(2))
    s = partly.log_density(x, conditions=known, normalized=False).numpy()
    np.testing.assert_allclose(partly.log_density(x, conditions=known), s - 1.5, atol=1e-6)
    assert not partly.normalized
    for c in (*rest, np.repeat(np.concatenate([known, *rest]), [2, 1, 1], axis=0)):
        message = r"no trusted log Z at sigma = 0\.2 and condition \[0\.0, "
        with pytest.raises(ValueError, match=message):
            partly.log_density(x, conditions=c, normalized=True)
        with pytest.raises(ValueError, match=message):
            partly.anomaly_score(x, conditions=c)
        with pytest.warns(tfdde.UnnormalizedWarning, match=message):
            mixed = partly.log_density(x, conditions=c)  # all rows or none
        s = partly.log_density(x, conditions=c, normalized=False)
        np.testing.assert_array_equal(mixed, s)

    traced = tf.function(lambda x, c: partly.log_density(x, conditions=c))
    got = traced(tf.constant(x), tf.constant(c)).numpy()
    np.testing.assert_array_equal(np.isnan(got), [False, False, True, True])
    scores = partly.anomaly_score(x, conditions=known)
    np.testing.assert_allclose(scores, -partly.log_density(x, conditions=known))
    assert partly.anomaly_threshold(x, 0.5, conditions=known) == pytest.approx(np.median(scores))
    fresh = small()
    with pytest.raises(ValueError, match="no trusted log Z at sigma = 0.2 and any condition"):
        fresh.log_density(x, conditions=known, normalized=True)


def test_log_z_of_another_level_does_not_normalise():
    dde = small(noise=tfdde.LogUniform(SIGMA, 3.0))
    condition = (1.0, 0.0, 0.0)
    dde.partitions = LogPartitions((condition,), (log_z(1.0, sigma=0.5),))
    x, c = np.zeros((1, 2)), np.array([condition])
    assert not dde.normalized
    with pytest.raises(ValueError, match="no trusted log Z at sigma = 0.2"):
        dde.log_density(x, conditions=c, normalized=True)
    s = dde.log_density(x, 0.5, conditions=c, normalized=False)
    np.testing.assert_allclose(dde.log_density(x, 0.5, conditions=c), s - 1.0, atol=1e-6)


def test_untrusted_estimates_warn_and_training_discards():
    x, c = labelled(100, 0)
    dde = small()  # without a base e^s is not integrable, and importance sampling says so
    dde.compile("adam")
    for v in dde.network.trainable_variables:
        v.assign(3.0 * v)
    with pytest.warns(UserWarning, match=r"can't be trusted.*\[0\.0, 0\.0, 1\.0\]: log Z"):
        found = dde.log_partition(x, conditions=c, samples=1_000)
    assert len(found.conditions) == 3 and not dde.normalized
    dde.partition = log_z(1.0)
    dde.fit(x, c, verbose=0)
    assert dde.partitions is None and dde.partition is None


@pytest.mark.parametrize(
    "conditions, message",
    [
        (
            np.repeat(np.eye(3), [150, 99, 51], axis=0),
            r"at least 100 rows of each condition, got 51 of \[0\.0, 0\.0, 1\.0\]; dde\.given",
        ),
        (np.random.default_rng(0).normal(size=(300, 3)), r"100 distinct rows.*got 300; dde\.given"),
        (None, r"`conditions` must have shape \(rows, 3\).*got None"),
    ],
)
def test_conditions_that_log_z_cannot_be_found_for(conditions, message):
    x, _ = labelled(100, 0)
    with pytest.raises(ValueError, match=message):
        small().log_partition(x, conditions=conditions)


# One condition, files, export.


def test_save_and_load_whole(tmp_path, labels):
    x, c = labelled(50, 0)
    labels.save(tmp_path / "density.keras")
    again = keras.saving.load_model(tmp_path / "density.keras")
    assert again.partitions == labels.partitions and again.condition_dim == 3
    np.testing.assert_array_equal(
        again.log_density(x, conditions=c, normalized=True), labels.log_density(x, conditions=c)
    )
    np.testing.assert_array_equal(again.score(x, conditions=c), labels.score(x, conditions=c))


def test_given_is_an_unconditional_density(tmp_path, labels):
    x = three().sample(50, 0)
    given = labels.given([0, 1, 0])
    assert given.condition_dim == 0 and given.partition == labels.partitions.estimates[1]
    np.testing.assert_allclose(
        given.log_density(x, normalized=True),
        labels.log_density(x, conditions=one_hot(1)),
        atol=1e-5,
    )
    for sigma in (SIGMA, 1.0):
        np.testing.assert_allclose(
            given.score(x, sigma), labels.score(x, sigma, conditions=one_hot(1)), atol=1e-5
        )
    given.save(tmp_path / "given.keras")
    again = keras.saving.load_model(tmp_path / "given.keras")
    np.testing.assert_array_equal(again.log_density(x), given.log_density(x))
    held_out = CLASSES[1].sample(500, 1)
    curve = tfdde.tuning.select_sigma(given, held_out, samples=500, moves=0)
    exact = [CLASSES[1].log_density(held_out, s).mean() for s in curve.sigmas]
    assert np.abs(curve.log_likelihood - exact)[:3].max() < 0.15
    with pytest.raises(ValueError, match="must be a density without conditions.*given"):
        tfdde.tuning.select_sigma(labels, held_out)


def test_training_does_not_change_what_given_returned():
    """Otherwise its log Z would no longer be that of its weights, and pass for it."""
    x, c = labelled(20, 0)
    dde = small()
    dde.partitions = LogPartitions(((1.0, 0.0, 0.0),), (log_z(1.0),))
    given = dde.given([1, 0, 0])
    before = given.log_density(x).numpy()
    for model, data in ((dde, (x, c)), (given, (x,))):
        weights = dde.get_weights()
        model.compile(keras.optimizers.SGD(0.1))
        model.fit(*data, verbose=0)
        same = all((a == b).all() for a, b in zip(weights, dde.get_weights(), strict=True))
        assert same == (model is given)
        if model is dde:
            np.testing.assert_array_equal(given.log_density(x, normalized=True), before)
    assert given.partition is None


def test_arrays_are_evaluated_in_chunks():
    x, c = labelled(4_000, 0)
    dde = small()
    sizes = []
    at = dde.at
    dde.at = lambda x, *args: sizes.append(x.shape[0]) or at(x, *args)
    tf.config.run_functions_eagerly(True)
    try:
        s = dde.log_density(x, conditions=c, normalized=False)
        score = dde.score(x, conditions=c)
        assert max(sizes) <= 5_000 and sum(sizes) == 24_000
        whole = dde.log_density(tf.constant(x), conditions=c, normalized=False)
        assert sizes[-1] == 12_000
    finally:
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(s, whole, atol=1e-5)
    np.testing.assert_allclose(score, dde.score(tf.constant(x), conditions=c), atol=1e-5)


def exported(folder, density, generator=None):
    """Both artifacts, as functions of a signature's name and inputs, and their metadata."""
    saved, _ = serving.export_savedmodel(folder / "saved", density, generator)
    lite, _ = serving.export_tflite(folder / "model.tflite", density, generator)
    loaded = tf.saved_model.load(str(saved))
    runner = Interpreter(model_path=str(lite)).get_signature_runner

    def of_saved(name, **inputs):
        inputs = {k: tf.constant(v) for k, v in inputs.items()}
        (output,) = loaded.signatures[name](**inputs).values()
        return output.numpy()

    def of_lite(name, **inputs):
        (output,) = runner(name)(**inputs).values()
        return output

    files = saved / "assets.extra" / "metadata.json", lite.with_name("model.tflite.json")
    return [of_saved, of_lite], [json.loads(path.read_text()) for path in files]


def test_export_takes_conditions(tmp_path, labels):
    x, c = (np.float32(part) for part in labelled(5, 0))
    strange = c.copy()
    strange[3] = 0.5
    calls, files = exported(tmp_path, labels)
    expected = labels.log_density(x, conditions=c, normalized=True)
    for call in calls:
        got = call("log_density", x=x, condition=c)
        np.testing.assert_allclose(got, expected, atol=1e-4)
        got = call("score", x=x, condition=strange)
        np.testing.assert_allclose(got, labels.score(x, conditions=strange), atol=1e-4)
        # Never a likelihood where log Z is not known.
        got = call("log_density", x=x, condition=strange)
        np.testing.assert_array_equal(np.isnan(got), np.arange(15) == 3)
    for about in files:
        assert about["normalized"] is True and about["condition_dim"] == 3
        again = json.loads(json.dumps(labels.partitions.get_config()))
        assert about["log_partition"] == again


def test_export_of_an_unnormalised_density_and_a_sampler(tmp_path):
    model = make_generator(tfdde.Constant(SIGMA))
    x, z, c = np.random.default_rng(0).standard_normal((3, 7, 2)).astype("f4")
    (saved, lite), files = exported(tmp_path, model.data_dde, model)
    s = model.data_dde.log_density(x, conditions=c, normalized=False)
    for call in (saved, lite):
        np.testing.assert_allclose(call("log_density", x=x, condition=c), s, atol=1e-5)
        np.testing.assert_allclose(call("decode", z=z, condition=c), model.decode(z, c), atol=1e-5)
    got = saved("sample", num=np.int32(7), seed=np.int64(5), condition=c)
    np.testing.assert_allclose(got, model.sample(7, seed=5, conditions=c), atol=1e-5)
    strange = c.copy()
    strange[2] = np.nan
    got = saved("sample_rows", seed=np.arange(7), condition=strange)
    np.testing.assert_array_equal(np.isnan(got).any(axis=1), np.arange(7) == 2)
    for i in (0, 1, 3, 4, 5, 6):
        row = model.sample(1, seed=i, conditions=c[i : i + 1])[0]
        np.testing.assert_allclose(got[i], row, atol=1e-5)
    assert lite("sample", num=np.int32(7), seed=np.int32(5), condition=c).shape == (7, 2)
    assert [about["normalized"] for about in files] == [False, False]
    with pytest.raises(ValueError, match="`generator` must take conditions of 0 entries.*got 2"):
        serving.export_savedmodel(tmp_path / "other", small(conditions=0), model)


def test_export_of_given(tmp_path, labels):
    x = three().sample(9, 0)
    calls, files = exported(tmp_path, labels.given([0, 1, 0]))
    for call in calls:
        expected = labels.log_density(x, conditions=one_hot(1), normalized=True)
        np.testing.assert_allclose(call("log_density", x=x), expected, atol=1e-4)
        np.testing.assert_allclose(
            call("score", x=x), labels.score(x, conditions=one_hot(1)), atol=1e-4
        )
    for about in files:
        assert about["log_partition"] == labels.partitions.estimates[1].get_config()
    sampler = make_generator(tfdde.Constant(SIGMA))
    z = np.random.default_rng(0).standard_normal((7, 2)).astype("f4")
    given = sampler.given([0.3, 0.7])
    calls, _ = exported(tmp_path / "sampler", given.data_dde, given)
    for call in calls:
        expected = sampler.decode(z, [[0.3, 0.7]])
        np.testing.assert_allclose(call("decode", z=z), expected, atol=1e-5)


# The sampler.


def make_generator(noise, width=8, dde_steps=1, **kwargs):
    many = isinstance(noise, tfdde.LogUniform)

    def dde(seed):
        network = networks.residual_mlp(
            2, width, 2, activation="silu", levels=many, conditions=kwargs.get("conditions", 2)
        )
        return tfdde.DDE(network, noise, antithetic=many, seed=seed)

    g = networks.residual_mlp(2, width, 2, activation="silu", output_shape=2, conditions=2)
    return tfdde.Generator(g, dde(1), dde(2), 2, dde_steps, seed=3)


def test_sampler_learns_mean_variance_and_shares_of_each_condition():
    truth = [
        Mixture([[1.0, -0.5]], [0.1], [1.0]),
        Mixture([[-1.0, 0.5], [1.0, 1.0]], [0.05, 0.05], [0.7, 0.3]),
    ]
    x = np.concatenate([m.sample(10_000, k) for k, m in enumerate(truth)])
    c = np.repeat(np.eye(2), 10_000, axis=0)
    model = make_generator(tfdde.LogUniform(0.2, 3.0), width=32, dde_steps=2)
    model.data_dde.adapt(x)
    model.generated_dde.adapt(x)
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 700)
    model.compile(
        keras.optimizers.Adam(schedule, beta_1=0.5),
        dde_optimizer=keras.optimizers.Adam(1e-2, beta_1=0.5),
        data_optimizer=keras.optimizers.Adam(1e-2),
    )
    model.fit(tfdde.datasets.stream(x, 256, 0, conditions=c), steps_per_epoch=700, verbose=0)
    first, second = (
        model.sample(20_000, seed=1, conditions=np.eye(2)[[k]]).numpy() for k in range(2)
    )
    np.testing.assert_allclose(first.mean(0), [1.0, -0.5], atol=0.05)
    np.testing.assert_allclose(np.cov(first.T), 0.1 * np.eye(2), atol=0.03)
    assert np.mean(second[:, 0] < 0) == pytest.approx(0.7, abs=0.04)
    for side, mean in ((second[:, 0] < 0, [-1.0, 0.5]), (second[:, 0] > 0, [1.0, 1.0])):
        # Of the median: a continuous map leaves a few samples between the modes.
        np.testing.assert_allclose(np.median(second[side], axis=0), mean, atol=0.1)
    mixed = model.sample(20_000, seed=1, conditions=np.tile(np.eye(2), (10_000, 1))).numpy()
    np.testing.assert_allclose(mixed[::2], first[::2], atol=1e-5)
    np.testing.assert_allclose(mixed[1::2], second[1::2], atol=1e-5)


def test_the_three_networks_see_the_same_conditions():
    """With a resting s_q the loss of one step can be recomputed with the rows' conditions."""
    x = three().sample(6, 0)
    c = tf.random.stateless_normal((6, 2), (0, 1))
    model = make_generator(tfdde.Constant(SIGMA))
    model.compile(keras.optimizers.SGD(0.1), dde_optimizer=keras.optimizers.SGD(0.0))
    g, s_p, s_q = model.generator, model.data_dde.network, model.generated_dde.network
    y = g([random.normal((6, 2), 3, 0, Purpose.LATENT_DENSITY), c])
    epsilon = random.normal((6, 2), 2, 0, Purpose.DENSITY_NOISE)
    noisy = y + SIGMA * epsilon
    with tf.GradientTape() as tape:
        tape.watch(noisy)
        s = s_q([noisy, c])
    dde_loss = tf.reduce_mean((SIGMA * tape.gradient(s, noisy) + epsilon) ** 2)
    z = random.normal((6, 2), 3, 0, Purpose.LATENT_GENERATOR)
    noisy = g([z, c]) + SIGMA * random.normal((6, 2), 3, 0, Purpose.GENERATOR_NOISE)
    loss = tf.reduce_mean(s_q([noisy, c]) - s_p([noisy, c]))
    history = model.fit(x, c, batch_size=6, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["dde_loss"], [dde_loss], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], [loss], rtol=1e-4, atol=1e-6)
    assert model.evaluate(x, c, verbose=0) == model.evaluate(x, c, verbose=0)


def test_sample_decode_interpolate_save_given(tmp_path):
    model = make_generator(tfdde.Constant(SIGMA))
    c = np.float32([[1, 0], [0, 1], [0.5, 0.5]])
    z = np.random.default_rng(0).standard_normal((3, 2)).astype("f4")
    expected = model.generator([tf.constant(z), tf.constant(c)])
    np.testing.assert_allclose(model.decode(z, c), expected, atol=1e-6)
    np.testing.assert_allclose(model(tf.constant(z), tf.constant(c)), expected, atol=1e-6)
    line = model.interpolate(z[0], z[2], 3, conditions=c)
    np.testing.assert_allclose(line[::2], expected[::2], atol=1e-6)
    samples = model.sample(5, seed=1, conditions=c[1:2])
    assert samples.shape == (5, 2) and model.sample(0, conditions=c[1:2]).shape == (0, 2)
    np.testing.assert_allclose(model.given(c[1]).sample(5, seed=1), samples, atol=1e-6)
    model.compile("adam")
    model.save(tmp_path / "generator.keras")
    again = keras.saving.load_model(tmp_path / "generator.keras")
    np.testing.assert_array_equal(again.sample(5, seed=1, conditions=c[1:2]), samples)


# Bad input.


@pytest.mark.parametrize(
    "conditions, message",
    [
        (np.zeros(4, int), r"rank 2, shape \(rows, 3\), got shape \(4,\); for labels use keras"),
        ([["a"] * 3] * 4, "`conditions` must be an array of numbers"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda m, x, c: m.fit(x, c),
        lambda m, x, c: m.evaluate(x, c),
        lambda m, x, c: m.log_density(x, conditions=c),
        lambda m, x, c: m.log_density(tf.constant(x), conditions=c),
        lambda m, x, c: m.score(x, conditions=c),
        lambda m, x, c: m.log_partition(x, conditions=c),
    ],
)
def test_bad_conditions(call, conditions, message):
    dde = small()
    dde.compile("adam")
    with pytest.raises(ValueError, match=message):
        call(dde, np.zeros((4, 2), "f4"), conditions)


def test_bad_condition_tensors_and_datasets():
    x, c = labelled(4, 0)
    dde = small()
    dde.compile("adam")
    for bad in (c[:, :2], c[:5]):
        with pytest.raises(
            ValueError, match=r"`conditions` must have shape \(12, 3\), or \(1, 3\)"
        ):
            dde.score(x, conditions=tf.constant(bad))
    dataset = tf.data.Dataset.from_tensors
    for bad, message in (
        (dataset(x), r"must yield pairs of rows \(rows, 2\) and conditions \(rows, 3\), perhaps"),
        (dataset((x, c[:, :2])), r"must yield batches of shape \(rows, 3\), got \(12, 2\)"),
        (dataset((x, c.astype(int))), "floating-point batches, without labels, got int64"),
    ):
        with pytest.raises(ValueError, match=message):
            dde.fit(bad)
    with pytest.raises(ValueError, match="`conditions` must not be given with a dataset"):
        dde.fit(dataset((x, c)), c)
    with pytest.raises(ValueError, match=r"`validation_data` must be a pair \(x, conditions\)"):
        dde.fit(x, c, validation_data=x)
    with pytest.raises(ValueError, match=r"`validation_data\[1\]` must have 12 rows"):
        dde.fit(x, c, validation_data=(x, c[:5]))
    with pytest.raises(ValueError, match="`conditions` must have 12 rows, as `x` has, got 5"):
        tfdde.datasets.stream(x, 4, 0, conditions=c[:5])


def test_parts_that_do_not_fit():
    noise = tfdde.Constant(SIGMA)
    with pytest.raises(ValueError, match="`data_dde` must take conditions of 2.*takes 0"):
        make_generator(noise, conditions=0)
    with pytest.raises(ValueError, match="`conditions` must be an integer >= 0, got -1"):
        networks.residual_mlp(2, conditions=-1)
    with pytest.raises(ValueError, match=r"`condition` must be one condition, shape \(3,\), got"):
        small().given(one_hot(0))
    with pytest.raises(ValueError, match="no `condition` to fix"):
        small(conditions=0).given([1.0])
    model = make_generator(noise)
    with pytest.raises(ValueError, match=r"`conditions` must have shape \(rows, 2\).*got None"):
        model.sample(3)
    with pytest.raises(ValueError, match="`conditions` must have 3 rows"):
        model.sample(3, conditions=np.eye(2))
    x = keras.Input((2,), name="x")
    image = keras.Input((2, 2), name="condition")
    flat = keras.layers.Concatenate()([x, keras.layers.Flatten()(image)])
    network = keras.Model([x, image], keras.layers.Dense(1)(flat))
    with pytest.raises(
        ValueError, match=r"input `condition` of shape \(None, k\), got \(None, 2, 2\)"
    ):
        tfdde.DDE(network)
