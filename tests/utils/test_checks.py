"""Columns that float32 can't hold: one rule, whichever way the rows come in."""

import re

import keras
import numpy as np
import pytest

import tfdde
from tfdde import networks, recipes
from tfdde.sklearn import DDEstimator
from tfdde.tuning.search import Densities
from tfdde.utils.checks import check_spread, check_weights

SIGMA = 0.1


def good(n=300):
    return np.random.default_rng(0).standard_normal((n, 3)).astype("f4")


def changed(column):
    x = good()
    x[:, 1] = column
    return x


BAD = {
    "constant": changed(5.0),
    "zeros": changed(0.0),
    "times 1e-9": good() * np.float32([1.0, 1e-9, 1.0]),
    "times 1e-21": good() * np.float32([1.0, 1e-21, 1.0]),
    "times 1e20": good() * np.float32([1.0, 1e20, 1.0]),
    "0 or 1e-30": changed(np.arange(300) % 2 * np.float32(1e-30)),
    "seconds since 1970": changed(1.7e9 + np.random.default_rng(1).uniform(0, 100, 300)),
}


def standardised(x):
    density = tfdde.DDE(
        networks.residual_mlp(3, 4, 1),
        tfdde.Constant(SIGMA),
        normalization=keras.layers.Normalization(),
    )
    density.adapt(x)


def adapted_by_the_layer(x):
    layer = keras.layers.Normalization()
    with np.errstate(over="ignore"):
        layer.adapt(x)
    density = tfdde.DDE(networks.residual_mlp(3, 4, 1), tfdde.Constant(SIGMA), normalization=layer)
    density.compile()
    density.fit(x, verbose=0)


DOORS = {
    "DDE.adapt": standardised,
    "DDE.fit": adapted_by_the_layer,
    "table_density": lambda x: recipes.table_density(
        x, tfdde.LogUniform(SIGMA, 4.0), 8, 1, keras.layers.Normalization()
    ),
    "Densities": lambda x: Densities(x, sigma=(SIGMA, 0.5)),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("bad", BAD)
def test_columns_without_a_spread_that_float32_holds_are_refused(door, bad):
    with pytest.raises(ValueError, match=r"Columns \[1\] of `x` are constant, or .*float32"):
        DOORS[door](BAD[bad])


@pytest.mark.parametrize("bad", ["constant", "zeros"])
def test_an_estimator_refuses_constant_columns(bad):
    with pytest.raises(ValueError, match="Column '1' is constant"):
        DDEstimator(sigma=SIGMA, steps=1).fit(BAD[bad])


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**-70, 2.0**66])  # exact in float32
def test_an_estimator_takes_columns_of_any_scale(factor):
    """Its schema standardises in float64: the densities differ by the log of the factor."""
    factors = np.float32([1.0, factor, 1.0])
    usual, scaled = (
        DDEstimator(SIGMA, width=8, depth=1, steps=1, random_state=0).fit(x).dde_
        for x in (good(), good() * factors)
    )
    expected = usual.log_density(good(), normalized=False).numpy() - np.log(factor)
    found = scaled.log_density(good() * factors, normalized=False).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_rows_that_are_not_standardised_need_room_for_the_noise():
    """Noise of 0.1 vanishes beside 1.7e9, whose float32 neighbours are 128 apart."""
    density = tfdde.DDE(networks.residual_mlp(3, 4, 1), tfdde.Constant(SIGMA))
    density.compile()
    for call, name in (
        (density.fit, "x"),
        (density.evaluate, "x"),
        (density.log_partition, "data"),
    ):
        with pytest.raises(ValueError, match=rf"Columns \[1\] of `{name}` .*sigma = 0\.1"):
            call(BAD["seconds since 1970"])
    base = tfdde.GaussianBase(3)
    base.adapt(BAD["constant"])
    density = tfdde.DDE(networks.residual_mlp(3, 4, 1), tfdde.Constant(SIGMA), base)
    density.compile()
    density.fit(BAD["constant"], verbose=0)  # with noise in units of the data it has a density


def test_the_rule_is_as_strict_as_the_noise_is_fine():
    x = changed(1000.0 + np.random.default_rng(1).standard_normal(300))
    deviation = x.std(axis=0, dtype=float)
    check_spread(x, deviation, 1e-3, "x")
    message = r"`sigma` must be at least (\S+), got 0\.0001: .* columns \[1\] of `x`"
    with pytest.raises(ValueError, match=message) as error:
        check_spread(x, deviation, 1e-4, "x")
    check_spread(x, deviation, float(re.search(message, str(error.value))[1]), "x")
    rounding = np.spacing(np.float32(1000.0)) / 2
    noise = np.float32(1000.0) + np.float32(1e-3) * good(100_000)[:, 0] - np.float32(1000.0)
    assert np.std(noise) == pytest.approx(1e-3, rel=0.01) and rounding < 1e-4


@pytest.mark.parametrize("variance", [1e-20, 0.0, np.inf, 1e40, np.nan])
def test_a_given_normalization_is_checked(variance):
    layer = keras.layers.Normalization(mean=[0.0, 0.0], variance=[1.0, variance])
    with pytest.raises(ValueError, match="`normalization` must have variances of standard dev"):
        tfdde.DDE(networks.residual_mlp(2, 4, 1), normalization=layer)


def test_a_normalization_that_inverts_is_refused():
    layer = keras.layers.Normalization(invert=True)
    with pytest.raises(ValueError, match="`normalization` must standardise.*invert=True"):
        tfdde.DDE(networks.residual_mlp(2, 4, 1), normalization=layer)


def test_a_given_normalization_stays_when_the_base_is_adapted():
    layer = keras.layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 1.0, 1.0])
    density = tfdde.DDE(
        networks.residual_mlp(3, 4, 1), base=tfdde.GaussianBase(3), normalization=layer
    )
    density.adapt(good())
    expected = (good() - [1.0, 2.0, 3.0]) / [2.0, 1.0, 1.0]
    np.testing.assert_allclose(density.base.mean, expected.mean(axis=0), atol=1e-5)
    density = tfdde.DDE(networks.residual_mlp(3, 4, 1), normalization=layer)
    with pytest.raises(ValueError, match="neither a `normalization` nor a `base` to adapt"):
        density.adapt(good())


@pytest.mark.parametrize(
    "weights, message",
    [
        (np.ones(2), "must have 3 weights, one for each row, got 2"),
        (np.ones((3, 1)), "must have rank 1"),
        ([1.0, -0.5, 1.0], r"must be >= 0 and not all zero, got values in \[-0.5, 1\]"),
        ([0.0, 0.0, 0.0], r"must be >= 0 and not all zero, got values in \[0, 0\]"),
        ([1.0, np.nan, 1.0], "must be finite, got NaN or infinity in 1 of 3 rows"),
        (["a", "b", "c"], "must be an array of numbers"),
    ],
)
def test_bad_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=f"`sample_weight` {message}"):
        check_weights(weights, 3)
