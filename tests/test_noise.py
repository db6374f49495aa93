import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import kstest

import tfdde
from tfdde.noise import check_level
from tfdde.utils.random import Purpose


def test_constant_is_constant():
    noise = tfdde.Constant(0.2)
    assert noise.sigma == 0.2
    assert noise.at(tf.constant(0)) == noise.at(tf.constant(10**6)) == np.float32(0.2)


def test_decay_follows_the_papers_schedule():
    noise = tfdde.Decay(0.1, 0.05, decay_steps=10, rate=1.1)
    expected = [max(0.1 / 1.1 ** (k // 10), 0.05) for k in range(120)]
    got = [float(noise.at(tf.constant(k))) for k in range(120)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert noise.sigma == 0.05
    np.testing.assert_allclose(noise.at(tf.constant(10**9, tf.int64)), 0.05, rtol=1e-6)


def test_levels_of_a_batch_are_log_uniform_and_stratified():
    noise = tfdde.LogUniform(0.1, 8.0)
    batches = [noise.draw(64, 5, k, Purpose.DENSITY_LEVEL).numpy() for k in range(2000)]
    share = np.log(np.array(batches) / 0.1) / np.log(80.0)
    assert share.min() >= -1e-6 and share.max() <= 1 + 1e-6
    # One level in each of 64 equal parts of the range, from a start that is uniform too.
    np.testing.assert_allclose(np.diff(np.sort(share, axis=1), axis=1), 1 / 64, atol=1e-5)
    assert kstest(share.ravel(), "uniform").pvalue > 0.01
    # A row's place in the batch says nothing of its level.
    assert kstest(share[:, 0], "uniform").pvalue > 0.01
    np.testing.assert_array_equal(batches[3], noise.draw(64, 5, 3, Purpose.DENSITY_LEVEL))
    assert not np.array_equal(batches[3], noise.draw(64, 6, 3, Purpose.DENSITY_LEVEL))


def test_place_runs_from_minus_one_to_one():
    noise = tfdde.LogUniform(0.1, 10.0)
    places = noise.place(tf.constant([0.1, 1.0, 10.0]))
    np.testing.assert_allclose(places, [-1, 0, 1], atol=1e-6)
    assert noise.sigma == 0.1 and noise.levels == (0.1, 10.0)
    assert tfdde.LogUniform(0.1, 10.0, sigma=0.4).sigma == 0.4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0.0, 1.0), "`minimum` must be a finite number > 0"),
        ((0.1, float("inf")), "`maximum` must be a finite number > 0"),
        ((0.1, 2.0, 3.0), r"`sigma` must be in \[0.1, 2.0\]"),
        ((0.5, 0.5), r"`maximum` must exceed `minimum` \(0.5\), got 0.5"),
    ],
)
def test_bad_ranges_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfdde.LogUniform(*arguments)


@pytest.mark.parametrize(
    "noise", [tfdde.Constant(0.3), tfdde.Decay(2.0, 0.5, 7, 1.3), tfdde.LogUniform(0.1, 4.0, 0.3)]
)
def test_round_trip_of_the_config(noise):
    config = keras.saving.serialize_keras_object(noise)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(noise) and again.get_config() == noise.get_config()


@pytest.mark.parametrize("sigma", [0, -0.1, float("nan"), float("inf"), "0.2", None, True])
def test_bad_sigma_is_named(sigma):
    with pytest.raises(ValueError, match=r"`sigma` must be .*got"):
        tfdde.Constant(sigma)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0.0, 0.1, 5), "`initial`"),
        ((0.1, 0.2, 5), "`final` must not exceed"),
        ((0.2, 0.1, 0), "`decay_steps`"),
        ((0.2, 0.1, 1.5), "`decay_steps`"),
        ((0.2, 0.1, 5, 1.0), "`rate`"),
        ((0.2, 0.1, 5, float("inf")), "`rate`"),
    ],
)
def test_bad_schedules_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfdde.Decay(*arguments)


def test_the_ends_of_every_range_count():
    """A schedule may rest at one level, or change at each step; a density be read at the ends."""
    resting = tfdde.Decay(0.1, 0.1, 1)
    np.testing.assert_allclose([resting.at(tf.constant(k)) for k in (0, 5)], 0.1, rtol=1e-6)
    np.testing.assert_allclose(tfdde.Decay(0.1, 0.01, 1).at(tf.constant(1)), 0.1 / 1.1, rtol=1e-6)
    for noise, levels in (
        (tfdde.Constant(0.3), [0.3]),
        (tfdde.Decay(2.0, 0.5, 7), [0.5]),
        (tfdde.LogUniform(0.1, 2.0, 0.4), [0.1, 0.4, 2.0]),
    ):
        assert [check_level(noise, level) for level in levels] == levels
        assert check_level(noise, None) == noise.sigma
        for level in (0.999 * levels[0], 1.001 * levels[-1]):
            with pytest.raises(ValueError, match="`sigma` must be .*, where this density was"):
                check_level(noise, level)
    with pytest.raises(ValueError, match=r"`sigma` must be 0\.5, where"):
        check_level(tfdde.Decay(2.0, 0.5, 7), 2.0)
