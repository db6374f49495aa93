"""The level chosen by held-out likelihood, against exact densities."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import multivariate_normal
from sklearn.neighbors import KernelDensity

import tfdde
from tfdde import networks, tuning
from tfdde.tuning.curve import UNCHECKED


def gaussian_density(x, normalization=None):
    """A DDE that is the Gaussian of ``x`` blurred, exactly, but for a constant of 2 nats."""
    network = networks.residual_mlp(x.shape[1], 4, 1, levels=True)
    network.get_layer("s").kernel.assign(np.zeros((4, 1)))

    class Shifted(tfdde.DDE):
        def at(self, x, sigma):
            return super().at(x, sigma) + 2.0

    dde = Shifted(network, tfdde.LogUniform(0.1, 5.0), normalization=normalization, seed=0)
    dde.adapt(x)
    return dde


@pytest.mark.parametrize("normalized", [False, True])
def test_curve_of_a_gaussian_in_closed_form(normalized):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((4_000, 3)) @ np.diag([0.5, 1.0, 2.0]) + 1).astype("float32")
    train, held_out = x[:2_000], x[2_000:]
    dde = gaussian_density(train, keras.layers.Normalization() if normalized else None)
    curve = tuning.select_sigma(dde, held_out, training=train, samples=2_000, moves=0)
    mean, covariance = train.mean(axis=0), np.cov(train, rowvar=False, bias=True)
    units = np.diag(np.diag(covariance)) if normalized else np.eye(3)
    for sigma, value, error, log_z in zip(
        curve.sigmas, curve.log_likelihood, curve.standard_error, curve.partitions, strict=True
    ):
        exact = multivariate_normal(mean, covariance + sigma**2 * units).logpdf(held_out)
        assert abs(value - exact.mean()) < 4 * log_z.standard_error + 1e-3
        row_error = exact.std(ddof=1) / np.sqrt(2_000)
        assert error == pytest.approx(np.hypot(row_error, log_z.standard_error), rel=1e-3)
    assert curve.best == 0 and curve.sigmas[0] == pytest.approx(0.1)  # blur never helps here
    loss = curve.log_likelihood[0] - curve.log_likelihood
    within = np.flatnonzero(loss <= curve.standard_error[0])
    assert curve.one_standard_error == within.max() > 0
    assert "best" in str(curve).splitlines()[1]
    np.testing.assert_allclose(curve.upper - curve.lower, 3.92 * curve.standard_error)


def kernels(train, noise):
    """A DDE that is the exact blurred density of its training rows: a kernel density."""
    m, n = train.shape

    class Kernels(tfdde.DDE):
        def at(self, x, sigma):
            square = tf.reduce_sum(tf.square(x[:, None] - train), axis=-1)
            variance = tf.reshape(sigma**2, (-1, 1))
            logs = tf.reduce_logsumexp(-square / (2 * variance), axis=1)
            return logs - n * tf.math.log(sigma) - np.log(m * (2 * np.pi) ** (n / 2))

    return Kernels(networks.residual_mlp(n, 4, 1, levels=True), noise, seed=0)


def test_of_a_density_that_knows_its_rows_by_heart_the_kernel_widths_optimum_is_chosen():
    rng = np.random.default_rng(0)
    train, held_out = (rng.standard_normal((m, 2)).astype("float32") for m in (60, 3_000))
    dde = kernels(train, tfdde.LogUniform(0.05, 6.0))
    curve = tuning.select_sigma(dde, held_out, training=train, starts=train, samples=4_000)
    exact = [
        KernelDensity(bandwidth=sigma).fit(train).score(held_out) / len(held_out)
        for sigma in curve.sigmas
    ]
    assert 0 < curve.best < len(exact) - 1
    assert max(exact) - exact[curve.best] < 2 * curve.standard_error[curve.best]
    assert curve.one_standard_error >= curve.best
    for value, truth, log_z in zip(curve.log_likelihood, exact, curve.partitions, strict=True):
        assert abs(value - truth) < 4 * log_z.standard_error + 0.01
    heart = [KernelDensity(bandwidth=s).fit(train).score(train) / 60 for s in curve.sigmas]
    np.testing.assert_allclose(
        curve.training - curve.log_likelihood, np.subtract(heart, exact), atol=1e-3
    )


def test_a_density_that_knows_its_rows_by_heart_is_called_overfitted():
    rng = np.random.default_rng(0)
    train, held_out = (rng.standard_normal((m, 8)).astype("float32") for m in (100, 1_000))
    dde = kernels(train, tfdde.LogUniform(0.3, 6.0))
    with pytest.warns(tuning.OverfittingWarning, match="training rows have a log-likelihood"):
        curve = tuning.select_sigma(dde, held_out, training=train, samples=1_000)
    truth = multivariate_normal(np.zeros(8)).logpdf
    assert curve.training[curve.best] > truth(train).mean()
    assert curve.log_likelihood[curve.best] < truth(held_out).mean()


class WrongAtLowLevels(tfdde.DDE):
    """A density with a mode of e^40 times its mass far from the rows, below sigma = 0.3."""

    def at(self, x, sigma):
        far = 40.0 - 0.5 * tf.reduce_sum((x - 30.0) ** 2, 1)
        far = tf.where(sigma < 0.3, far, -1e4)
        return tf.reduce_logsumexp(tf.stack([super().at(x, sigma), far], 1), 1)


@pytest.mark.parametrize("n", [2, 5])
def test_levels_with_mass_where_no_rows_are_are_not_chosen(n):
    """Of all levels only those that are chosen, or would have been, are checked."""
    x = np.random.default_rng(0).standard_normal((2_000, n)).astype("float32")
    network = networks.residual_mlp(n, 4, 1, levels=True)
    network.get_layer("s").kernel.assign(np.zeros((4, 1)))
    dde = WrongAtLowLevels(network, tfdde.LogUniform(0.1, 5.0), seed=0)
    dde.adapt(x)
    curve = tuning.select_sigma(dde, x[:500], samples=1_000)
    wrong = curve.sigmas < 0.3
    assert (
        curve.best
        == np.count_nonzero(wrong)
        == np.argmax(curve.log_likelihood[~wrong]) + wrong.sum()
    )
    doubts = [z.doubt for z in curve.partitions]
    assert all("mass where no rows are" in d and d != UNCHECKED for d in doubts[: curve.best])
    assert curve.partitions[curve.best].trusted
    assert curve.partitions[curve.one_standard_error].trusted
    assert doubts[-1] == UNCHECKED and not curve.partitions[-1].trusted
    lines = str(curve).splitlines()[1:]
    assert ["NOT" in line for line in lines] == wrong.tolist()
    everywhere = tuning.select_sigma(dde, x[:500], samples=1_000, check_all=True)
    assert [z.trusted for z in everywhere.partitions] == (~wrong).tolist()
    assert (everywhere.best, everywhere.one_standard_error) == (
        curve.best,
        curve.one_standard_error,
    )


def test_overfitting_is_what_chance_does_not_explain():
    rng = np.random.default_rng(0)
    values = rng.normal(-3.0, 1.0, (200, 2, 500))
    warned = [tuning.overfitting(a, b) is not None for a, b in values]
    assert sum(warned) <= 2  # three standard errors of one side
    message = tuning.overfitting(values[0, 0] + 1.0, values[0, 1])
    assert "0.9" in message or "1.0" in message
    assert tuning.overfitting(values[0, 0], values[0, 1] + 1.0) is None
    # Significant, but of no size.
    many = rng.normal(0.0, 0.1, (2, 100_000))
    assert tuning.overfitting(many[0] + 0.05, many[1]) is None


def test_wrong_input():
    x = np.zeros((10, 2), np.float32)
    one = tfdde.DDE(networks.residual_mlp(2, 4, 1), tfdde.Constant(0.1))
    with pytest.raises(ValueError, match=r"`dde` must be a density of many noise levels.*Constant"):
        tuning.select_sigma(one, x)
    many = tfdde.DDE(networks.residual_mlp(2, 4, 1, levels=True), tfdde.LogUniform(0.1, 1.0))
    with pytest.raises(ValueError, match=r"`validation` must have shape \(rows, 2\)"):
        tuning.select_sigma(many, x[:, :1])
    with pytest.raises(ValueError, match="`starts` must have at least 2 rows, got 1"):
        tuning.select_sigma(many, x, starts=x[:1])
    with pytest.raises(ValueError, match="`samples` must be an integer >= 100, got 5"):
        tuning.select_sigma(many, x, samples=5)
