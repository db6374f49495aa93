"""Moments in float64 of many rows, against exact rational sums."""

import math

import numpy as np
import pytest

import tfdde
from tfdde import networks
from tfdde.networks import normalization
from tfdde.utils.statistics import mean_and_covariance, mean_and_variance

RNG = np.random.default_rng


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_against_exact_sums(weighted):
    x = (RNG(0).standard_normal((10_000, 3)) * [1.0, 0.01, 100.0] + [1000, -7, 3e4]).astype("f4")
    weights = RNG(1).exponential(size=len(x)).astype("f4") if weighted else None
    w = np.ones(len(x)) if weights is None else weights.astype(float)
    mean, variance = mean_and_variance(x, weights=weights)
    also_mean, covariance = mean_and_covariance(x, weights)
    total = math.fsum(w)
    y = x.astype(float)
    exact = [math.fsum(w * y[:, i]) / total for i in range(3)]
    np.testing.assert_allclose(mean, exact, rtol=1e-13)
    np.testing.assert_array_equal(also_mean, mean)
    for i in range(3):
        for j in range(3):
            products = w * (y[:, i] - exact[i]) * (y[:, j] - exact[j])
            expected = math.fsum(products) / total
            scale = math.sqrt(variance[i] * variance[j])
            np.testing.assert_allclose(covariance[i, j], expected, atol=1e-6 * scale)
            if i == j:
                np.testing.assert_allclose(variance[i], expected, rtol=1e-12)


def test_moments_over_several_axes():
    x = RNG(0).random((5_000, 4, 3, 2)).astype("f4")
    mean, variance = mean_and_variance(x, (0, 1, 2))
    np.testing.assert_allclose(mean, x.mean(axis=(0, 1, 2), dtype=float), rtol=1e-12)
    np.testing.assert_allclose(variance, x.var(axis=(0, 1, 2), dtype=float), rtol=1e-12)


def test_a_weight_of_two_is_a_row_twice():
    x, weights = RNG(0).random((100, 2)).astype("f4"), RNG(1).integers(0, 3, 100)
    twice = np.repeat(x, weights, axis=0)
    for moments in (mean_and_variance, mean_and_covariance):
        for a, b in zip(moments(x, weights=weights), moments(twice), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.fixture(scope="module")
def many():
    """2,000,000 rows of N(1000, 1), whose float32 sum is off by 1.6 %."""
    x = RNG(0).standard_normal((2_000_000, 2), np.float32)
    x += np.float32(1000.0)
    return x


def test_scales_of_many_rows_far_from_zero(many):
    import keras

    x = many.copy()
    x[:, 1] = 10.0 * (x[:, 1] - 1000.0)
    dde = tfdde.DDE(
        networks.residual_mlp(2, 4, 1),
        tfdde.Constant(0.2),
        tfdde.GaussianBase(2),
        keras.layers.Normalization(),
    )
    dde.adapt(x)
    mean, variance = (v.numpy()[0] for v in normalization.statistics(dde.normalization))
    np.testing.assert_allclose(mean, [1000.0, 0.0], atol=0.05)
    np.testing.assert_allclose(np.sqrt(variance), [1.0, 10.0], rtol=2e-3)
    np.testing.assert_allclose(dde.base.mean, [0.0, 0.0], atol=2e-3)
    np.testing.assert_allclose(np.sort(dde.base.variances), [1.0, 1.0], rtol=4e-3)


def test_a_gaussian_base_of_many_rows_far_from_zero(many):
    base = tfdde.GaussianBase(2)
    base.adapt(many)
    np.testing.assert_allclose(base.mean, [1000.0, 1000.0], atol=0.003)
    np.testing.assert_allclose(base.variances, [1.0, 1.0], rtol=4e-3)
