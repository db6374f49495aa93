"""The cap on what a network adds to the base, beside closed forms and sampling in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import logsumexp

import tfdde
from tfdde import networks
from tfdde.models.correction_cap import LEVELS, capped
from tfdde.noise import between_levels

N, SIGMA = 6, 0.1


def rising():
    """A density whose correction is 0 where rows come, and rises steeply far from all of them."""
    x, level = keras.Input((N,)), keras.Input((1,), name="level")
    along = keras.initializers.Constant(4 / np.sqrt(N))
    u = keras.layers.Dense(1, kernel_initializer=along)(x)  # 4 times the deviation of the rows
    shift = keras.initializers.Constant(-20.0)
    u = keras.layers.Dense(1, "softplus", kernel_initializer="ones", bias_initializer=shift)(u)
    steep = keras.initializers.Constant(15.0)
    s = keras.layers.Dense(1, use_bias=False, kernel_initializer=steep)(u)
    network = keras.Model([x, level], s)
    return tfdde.DDE(network, tfdde.LogUniform(SIGMA, 2.0), seed=0)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(4).uniform(0, 1, (5_000, N)).astype("float32")


@pytest.fixture
def dde(x):
    dde = rising()
    dde.adapt(x)
    return dde


def noisy(x, sigma, seed=1):
    return x + np.random.default_rng(seed).normal(0, sigma, x.shape).astype("float32")


def test_the_least_of_both_is_smooth_and_exact_far_below_the_cap():
    c = np.linspace(-50, 50, 401)
    for cap in (tf.constant(3.0, tf.float64), tf.fill((401,), tf.constant(3.0, tf.float64))):
        values = tf.constant(c)
        with tf.GradientTape() as tape:
            tape.watch(values)
            least = capped(values, cap)
        np.testing.assert_allclose(least, -np.logaddexp(-c, -3.0), rtol=1e-12)
        np.testing.assert_allclose(
            tape.gradient(least, values), 1 / (1 + np.exp(c - 3.0)), rtol=1e-12
        )
    below = tf.constant([-40.0, -1e5])
    np.testing.assert_array_equal(capped(below, tf.constant(3.0)), below)


def test_caps_are_interpolated_in_log_sigma_and_constant_outside():
    caps = tuple(np.random.default_rng(0).normal(size=LEVELS).tolist())
    place = np.linspace(-1.5, 1.5, 61).astype("float32")
    expected = np.interp(place, np.linspace(-1, 1, LEVELS), caps)
    np.testing.assert_allclose(between_levels(caps, tf.constant(place)), expected, atol=1e-5)
    np.testing.assert_allclose(between_levels(caps, tf.constant(place[7])), expected[7], atol=1e-5)


def test_mass_where_no_rows_are_is_gone_and_log_z_right(dde, x):
    with pytest.warns(UserWarning, match="mass where no rows are"):
        assert not dde.log_partition(x, samples=2_000, seed=0).trusted
    before = dde.log_density(noisy(x, SIGMA), normalized=False)
    dde.cap_correction(x)
    np.testing.assert_allclose(
        dde.log_density(noisy(x, SIGMA), normalized=False), before, atol=0.01
    )
    estimate = dde.log_partition(x, samples=2_000, seed=0)
    assert estimate.trusted
    # The truth by samples of the base, whose ratio to the capped density is bounded.
    rng = np.random.default_rng(5)
    deviations = np.sqrt(dde.base.variances.numpy() + SIGMA**2)
    y = rng.normal(size=(400_000, N)) * deviations @ dde.base.axes.numpy().T + dde.base.mean
    y = tf.constant(y, tf.float32)
    ratio = dde.log_density(y, normalized=False) - dde.base(y, tf.constant(SIGMA))
    truth = logsumexp(ratio.numpy().astype(np.float64)) - np.log(len(y))
    assert estimate.lower - 0.02 < truth < estimate.upper + 0.02


def test_at_every_level_noisy_rows_stay_as_they_are_and_far_ones_get_the_cap(dde, x):
    far = np.full((1, N), 9.0, "float32")
    sigmas = np.geomspace(SIGMA, 2.0, 5)
    before = [dde.log_density(noisy(x, s), sigma=s, normalized=False) for s in sigmas]
    dde.cap_correction(x)
    assert len(dde.caps) == LEVELS
    for k, sigma in enumerate(sigmas):
        values = dde.log_density(noisy(x, sigma), sigma=sigma, normalized=False)
        np.testing.assert_allclose(values, before[k], atol=0.03)  # log(1 + e^-4) at the largest
        base = dde.base(tf.constant(far), tf.constant(sigma, tf.float32))
        added = dde.log_density(far, sigma=sigma, normalized=False) - base
        np.testing.assert_allclose(added, [dde.caps[4 * k]], atol=2e-3)
        score = dde.score(far, sigma=sigma)  # the base's alone
        widths = dde.base.variances + sigma**2
        axes = dde.base.axes.numpy()
        expected = -((far - dde.base.mean) @ axes / widths) @ axes.T
        np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_caps_survive_saving_and_end_with_the_weights(dde, x, tmp_path):
    dde.cap_correction(x)
    dde.partition = tfdde.LogPartition.around(0.0, 0.01, 900.0, "ladder", SIGMA)
    dde.save(tmp_path / "dde.keras")
    loaded = keras.saving.load_model(tmp_path / "dde.keras")
    far = np.full((1, N), 50.0, "float32")
    assert loaded.caps == dde.caps and loaded.partition.trusted
    capped_value = dde.log_density(far, normalized=False)
    np.testing.assert_array_equal(loaded.log_density(far, normalized=False), capped_value)
    for change in (
        lambda d: d.set_weights(d.get_weights()),
        lambda d: (d.compile("adam"), d.fit(x, batch_size=500, verbose=0)),
    ):
        loaded = keras.saving.load_model(tmp_path / "dde.keras")
        loaded.log_density(far, normalized=False)
        assert np.isclose(loaded.evaluator(far, SIGMA), capped_value, rtol=1e-4)
        change(loaded)
        assert loaded.evaluator(far, SIGMA) > capped_value + 100
        assert loaded.caps is None and loaded.partition is None
        assert loaded.log_density(far, normalized=False) > capped_value + 100


def test_a_cap_discards_what_was_known_of_log_z(dde, x):
    dde.partition = tfdde.LogPartition.around(0.0, 0.01, 900.0, "ladder", SIGMA)
    dde.cap_correction(x)
    assert dde.partition is None


def wide(noise, **network):
    network = networks.residual_mlp(101, 4, 1, activation="silu", **network)
    return tfdde.DDE(network, noise, base=tfdde.GaussianBase(101), seed=0)


def test_rows_of_many_entries_are_capped_for_log_z():
    x = np.random.default_rng(6).normal(size=(500, 101)).astype("float32")
    dde = wide(tfdde.LogUniform(3.0, 4.0), levels=True)
    dde.adapt(x)
    assert dde.log_partition(x, samples=1_000, seed=0).trusted
    caps = dde.caps
    assert len(caps) == LEVELS
    dde.log_partition(x, sigma=3.5, samples=1_000, seed=1)
    assert dde.caps == caps and dde.partition.trusted  # of the same s


def test_many_entries_without_a_cap_are_not_trusted():
    x = np.random.default_rng(6).normal(size=(500, 101)).astype("float32")
    dde = wide(tfdde.Constant(2.0))
    dde.adapt(x)
    with pytest.warns(UserWarning, match="caps need LogUniform noise"):
        assert not dde.log_partition(x, "annealed", samples=500, moves=2, seed=0).trusted
    dde = wide(tfdde.LogUniform(3.0, 4.0), levels=True, conditions=2)
    dde.adapt(x)
    c = np.zeros((500, 2), "float32")
    with pytest.warns(UserWarning, match=r"of a conditional density `given\(condition\)`"):
        dde.log_partition(x, conditions=c, samples=2_000, moves=0, seed=0)
    one = dde.given(c[0])
    assert one.log_partition(x, samples=2_000, moves=40, seed=0).trusted and one.caps is not None


def test_what_it_refuses():
    x = np.zeros((5, 3), "float32")
    one = tfdde.DDE(networks.residual_mlp(3, 8, 1), tfdde.Constant(0.2))
    with pytest.raises(ValueError, match="needs LogUniform noise and no conditions, got Const"):
        one.cap_correction(x)
    network = networks.residual_mlp(3, 8, 1, activation="silu", levels=True, conditions=2)
    with pytest.raises(ValueError, match="got a conditional density"):
        tfdde.DDE(network, tfdde.LogUniform(0.1, 1.0)).cap_correction(x)
    network = networks.residual_mlp(3, 8, 1, activation="silu", levels=True)
    with pytest.raises(ValueError, match="`x`"):
        tfdde.DDE(network, tfdde.LogUniform(0.1, 1.0)).cap_correction(np.full((5, 3), np.nan))
