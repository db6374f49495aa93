import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdde


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


@pytest.mark.parametrize("noise", [tfdde.Constant(0.3), tfdde.Decay(2.0, 0.5, 7, 1.3)])
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
    ],
)
def test_bad_schedules_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfdde.Decay(*arguments)
