"""What every density must do, whatever its noise, its network and its other parts."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfdde
from tfdde import networks

ROWS = 12
ONE, FALLING = tfdde.Constant(0.4), tfdde.Decay(1.0, 0.4, 1, rate=3.0)
LEVELS = tfdde.LogUniform(0.3, 1.2, 0.4)
IMAGE = (9, 8, 1)
MEAN, VARIANCE = [1.0, -2.0, 0.5], [4.0, 0.25, 1.0]


@dataclasses.dataclass
class Case:
    """A density with rows to evaluate it at, and their conditions, if it takes any."""

    dde: tfdde.DDE
    x: np.ndarray
    conditions: np.ndarray | None

    def log_density(self, x=None, rows=slice(None), dde=None):
        dde = self.dde if dde is None else dde
        x = self.x[rows] if x is None else x
        return dde.log_density(x, normalized=False, **self.at(rows)).numpy()

    def score(self, x=None, rows=slice(None), dde=None):
        dde = self.dde if dde is None else dde
        x = self.x[rows] if x is None else x
        return dde.score(x, **self.at(rows)).numpy()

    def at(self, rows=slice(None)):
        return {} if self.conditions is None else {"conditions": self.conditions[rows]}

    @property
    def data(self):
        return (self.x,) if self.conditions is None else (self.x, self.conditions)


def residual(levels, **kwargs):
    return networks.residual_mlp(3, 8, 2, levels=levels, **kwargs)


def dense(levels):
    return networks.dense_block(3, 8, 2, levels=levels)


def images(levels, **kwargs):
    return networks.conv_density(IMAGE, 4, 1, 8, levels=levels, **kwargs)


def density(build, noise, base=True, **parts):
    """A density whose weights, also those of the last layer, are not small."""
    network = build(isinstance(noise, tfdde.LogUniform))
    rng = np.random.default_rng(5)
    network.set_weights([w + 0.2 * rng.standard_normal(w.shape) for w in network.get_weights()])
    shape = network.inputs[0].shape[1:]
    parts["base"] = tfdde.GaussianBase(shape) if base else None
    dde = tfdde.DDE(network, noise, seed=1, **parts)
    if base:
        dde.base.adapt(rng.random((300, *shape)))
    dde.compile(keras.optimizers.Adam(1e-3))
    return dde


def fixed_condition(noise):
    conditional = density(lambda levels: residual(levels, conditions=2), noise)
    dde = conditional.given([0.3, -0.7])
    dde.compile(keras.optimizers.Adam(1e-3))
    return dde


CASES = {
    "constant": lambda: density(residual, ONE, base=False),
    "decay": lambda: density(residual, FALLING),
    "levels": lambda: density(residual, LEVELS, antithetic=True),
    "mixtures": lambda: density(lambda levels: residual(levels, experts=2), LEVELS),
    "dense_block": lambda: density(dense, ONE, antithetic=True),
    "dense_block_levels": lambda: density(dense, LEVELS, time_weight=0.0),
    "images": lambda: density(images, ONE),
    "images_levels": lambda: density(images, LEVELS),
    "adapted_normalization": lambda: density(
        residual, ONE, normalization=keras.layers.Normalization()
    ),
    "given_normalization": lambda: density(
        residual, LEVELS, normalization=keras.layers.Normalization(mean=MEAN, variance=VARIANCE)
    ),
    "conditional": lambda: density(lambda levels: residual(levels, conditions=2), ONE),
    "conditional_images": lambda: density(lambda levels: images(levels, conditions=2), LEVELS),
    "given": lambda: fixed_condition(LEVELS),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    keras.utils.set_random_seed(3)
    dde = CASES[request.param]()
    rng = np.random.default_rng(7)
    shape = (ROWS, *dde.data_shape)
    x = rng.random(shape) if len(shape) == 4 else 2.0 * rng.standard_normal(shape) + 0.5
    if request.param == "adapted_normalization":
        dde.adapt(4.0 * rng.standard_normal((200, 3)) * [1.0, 0.1, 10.0] + 1.0)
    conditions = rng.standard_normal((ROWS, 2)) if dde.condition_dim else None
    if conditions is not None:
        conditions = conditions.astype("f4")
    return Case(dde, x.astype("f4"), conditions)


def test_one_finite_float32_a_row(case):
    s, score = case.log_density(), case.score()
    assert s.shape == (ROWS,) and score.shape == case.x.shape
    assert s.dtype == score.dtype == np.float32
    assert np.isfinite(s).all() and np.isfinite(score).all()
    assert np.ptp(s) > 0.1 and np.abs(score).max() > 0.1
    assert case.log_density(rows=slice(0)).shape == (0,)
    assert case.score(rows=slice(0)).shape == (0, *case.dde.data_shape)
    np.testing.assert_allclose(case.log_density(tf.constant(case.x)), s, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(case.log_density(case.x.astype(float)), s)


def test_score_is_the_gradient_of_log_density(case):
    """By GradientTape, and by central differences along each row's own direction."""
    inputs = tf.constant(case.x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        s = case.dde.log_density(inputs, normalized=False, **case.at())
    score = case.score()
    largest = np.abs(score).max()
    np.testing.assert_allclose(score, tape.gradient(s, inputs), atol=1e-5 * largest)
    direction = np.random.default_rng(8).standard_normal(case.x.shape).astype("f4")
    axes = tuple(range(1, case.x.ndim))
    direction /= np.sqrt((direction**2).sum(axis=axes, keepdims=True))

    def slope(h):
        ends = [case.log_density(case.x + sign * h * direction) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * h)

    h = np.float32(0.02)  # Richardson's extrapolation: the error is of fourth order in h
    expected = (4 * slope(h) - slope(2 * h)) / 3
    along = (score * direction).sum(axis=axes)
    tolerance = 1e-4 * max(1, np.abs(case.log_density()).max())
    np.testing.assert_allclose(along, expected, atol=tolerance)


def test_rows_do_not_meet(case):
    """Their order, and how they are split into batches, changes nothing."""
    s, score = case.log_density(), case.score()

    @settings(max_examples=5, deadline=None)
    @given(order=st.permutations(range(ROWS)), cut=st.integers(0, ROWS))
    def check(order, cut):
        parts = order[:cut], order[cut:]
        tolerance = {"rtol": 1e-5, "atol": 1e-5}
        values = np.concatenate([case.log_density(rows=part) for part in parts])
        np.testing.assert_allclose(values, s[order], **tolerance)
        values = np.concatenate([case.score(rows=part) for part in parts])
        np.testing.assert_allclose(values, score[order], **tolerance)

    check()


def test_log_z_is_subtracted(case):
    dde = case.dde
    assert not dde.normalized
    log_z = tfdde.LogPartition(2.5, 0.01, 2.48, 2.52, 900.0, "annealed", dde.noise.sigma)
    if dde.condition_dim:
        every = tuple(tuple(c) for c in case.conditions.tolist())
        dde.partitions = tfdde.LogPartitions(every, (log_z,) * ROWS)
    else:
        dde.partition = log_z
    assert dde.normalized
    values = dde.log_density(case.x, normalized=True, **case.at())
    np.testing.assert_allclose(values, case.log_density() - 2.5, atol=1e-5)
    np.testing.assert_array_equal(dde.anomaly_score(case.x, **case.at()), -values)
    dde.partition = dde.partitions = None
    with pytest.raises(ValueError, match="no trusted log Z at sigma = 0.4"):
        dde.log_density(case.x, normalized=True, **case.at())
    with pytest.warns(tfdde.UnnormalizedWarning, match=r"unnormalised.*`log_partition\(data"):
        dde.log_density(case.x, **case.at())


def test_config_makes_the_same_density(case):
    dde = case.dde
    text = json.dumps(keras.saving.serialize_keras_object(dde))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(again)))["config"]
    assert config == json.loads(text)["config"]
    again.set_weights(dde.get_weights())
    np.testing.assert_array_equal(case.log_density(dde=again), case.log_density())


def test_file_keeps_every_number_and_the_optimizer(case, tmp_path):
    dde = case.dde
    dde.fit(*case.data, batch_size=6, verbose=0)
    dde.save(tmp_path / "density.keras")
    again = keras.saving.load_model(tmp_path / "density.keras")
    np.testing.assert_array_equal(case.log_density(dde=again), case.log_density())
    np.testing.assert_array_equal(case.score(dde=again), case.score())
    for a, b in zip(again.optimizer.variables, dde.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.noise.get_config() == dde.noise.get_config()
    assert (again.antithetic, again.seed, again.name) == (dde.antithetic, dde.seed, dde.name)


def test_evaluation_is_repeatable(case):
    first = case.dde.evaluate(*case.data, batch_size=5, verbose=0)
    assert first == case.dde.evaluate(*case.data, batch_size=5, verbose=0)
    assert np.isfinite(first)


def test_resumed_training_equals_an_uninterrupted_one(case, tmp_path):
    dde, paths = case.dde, [tmp_path / f"{name}.weights.h5" for name in ("start", "stopped")]

    def fit(epochs, initial_epoch=0):
        dde.fit(*case.data, batch_size=5, epochs=epochs, initial_epoch=initial_epoch, verbose=0)
        return dde.get_weights()

    dde.save_weights(paths[0])
    whole = fit(2)
    dde.load_weights(paths[0])
    stopped = fit(1)
    dde.save_weights(paths[1])
    dde.load_weights(paths[0])
    dde.load_weights(paths[1])
    resumed = fit(2, initial_epoch=1)
    assert any((a != b).any() for a, b in zip(stopped, resumed, strict=True))
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_condition_of_it_is_a_density(case):
    if not case.dde.condition_dim:
        with pytest.raises(ValueError, match="no `condition` to fix"):
            case.dde.given([1.0])
        return
    condition = case.conditions[3]
    one = case.dde.given(condition)
    assert one.condition_dim == 0 and one.data_shape == case.dde.data_shape
    expected = case.dde.log_density(case.x, conditions=condition[None], normalized=False)
    np.testing.assert_allclose(one.log_density(case.x, normalized=False), expected, atol=1e-5)
    expected = case.dde.score(case.x, conditions=condition[None])
    np.testing.assert_allclose(one.score(case.x), expected, atol=1e-5)
    before = case.log_density()
    if one.base is not None:
        one.adapt(0.5 * case.x)
    np.testing.assert_array_equal(case.log_density(), before)


@pytest.mark.parametrize("method", ["fit", "evaluate", "log_density", "score", "log_partition"])
def test_bad_input_is_refused(case, method):
    dde, x, shape = case.dde, case.x, case.dde.data_shape
    name = "data" if method == "log_partition" else "x"

    def call(x, conditions=case.conditions):
        if conditions is None:
            return getattr(dde, method)(x)
        return getattr(dde, method)(x, conditions=conditions)

    holes = x.copy()
    holes[4].flat[0] = np.nan
    for bad, message in [
        (holes, f"`{name}` must be finite, got NaN or infinity in 1 of 12 rows.*row 4"),
        (x[0], f"`{name}` must have rank {x.ndim}"),
        (np.zeros((4, *shape[:-1], shape[-1] + 1)), f"`{name}` must have shape"),
        (np.full(x.shape, "a"), f"`{name}` must be an array of numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(bad)
    if len(shape) == 3:
        images = (
            [255 * x, tf.constant(255 * x)] if method in ("log_density", "score") else [255 * x]
        )
        for bad in images:
            with pytest.raises(ValueError, match=rf"`{name}` must hold pixels scaled to \[0, 1\]"):
                call(bad)
    if case.conditions is None:
        with pytest.raises(ValueError, match="`conditions` must be None"):
            call(x, np.zeros((ROWS, 2)))
        return
    for bad, message in [
        (None, "`conditions` must have shape .*got None"),
        (case.conditions[:, :1], "`conditions` must have shape"),
        (case.conditions[:7], "`conditions` must have 12 rows"),
        (np.full((ROWS, 2), np.nan), "`conditions` must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(x, bad)


def test_levels_that_were_not_trained_are_refused(case):
    lowest, highest = case.dde.noise.levels
    for sigma in (lowest, highest):
        assert np.isfinite(case.dde.score(case.x, sigma, **case.at())).all()
    for sigma in (0.99 * lowest, 1.01 * highest, -1.0, "a"):
        for method in (case.dde.log_density, case.dde.score):
            with pytest.raises(ValueError, match="`sigma` must be"):
                method(case.x, sigma, **case.at())
