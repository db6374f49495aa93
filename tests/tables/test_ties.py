"""Grids and ties of columns, and the noise that gives them a density."""

import numpy as np
import pytest
from scipy.stats import norm, poisson

from tfdde.tables import Schema
from tfdde.tables.ties import grid_step

RNG = np.random.default_rng


@pytest.mark.parametrize(
    ("values", "step"),
    [
        (RNG(0).poisson(2, 500), 1.0),
        (RNG(0).poisson(0.1, 500), 1.0),
        (2.0 * RNG(0).poisson(2, 500) + 7, 2.0),
        (np.round(RNG(0).standard_normal(500), 1), 0.1),
        (1e-9 * RNG(0).poisson(2, 500), 1e-9),
        (1e12 + 1e11 * RNG(0).poisson(2, 500), 1e11),
        (np.round(RNG(0).standard_normal(500), 1).astype("f4"), 0.1),
        (RNG(0).standard_normal(500).round(1).astype("f4") + np.float32(20.0), 0.1),
        (6.0 * RNG(0).integers(0, 5, 500) + 9.0 * RNG(1).integers(0, 5, 500), 3.0),
        (RNG(0).integers(0, 2, 500), 1.0),
        (np.arange(20), 1.0),
        (RNG(0).standard_normal(500).round(1) / 3, 0.0333333),
    ],
)
def test_the_step_of_a_grid(values, step):
    values = np.asarray(values, np.float64)
    assert grid_step(values, values.std()) == pytest.approx(step, rel=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        RNG(0).standard_normal(500),
        RNG(0).standard_normal(500).astype("f4"),
        RNG(0).choice(RNG(0).standard_normal(500), 500),  # a bootstrap has ties
        np.where(RNG(0).random(500) < 0.3, 0.0, RNG(1).standard_normal(500)),
        1.7e9 + RNG(0).random(500),
        RNG(0).integers(0, 10_000, 500),  # a step too small to matter
        np.array([1.5, 2.5, 4.5]),  # which rows without ties don't show
    ],
)
def test_no_grid(values):
    values = np.asarray(values, np.float64)
    assert grid_step(values, values.std()) is None


def test_grids_are_named_and_get_noise():
    x = np.column_stack(
        [RNG(0).poisson(2, 2_000), RNG(1).standard_normal(2_000), RNG(2).random(2_000).round(1)]
    )
    schema = Schema.learn(x, ["visits", "plain", "share"])
    assert schema.dequantised == ("visits", "share") and not schema.warnings
    assert schema.notices == (
        "Column 'visits' holds integers, 1 apart: uniform noise between -0.5 and 0.5 is added in "
        "training, and its density is that of the sum.",
        "Column 'share' holds multiples of a step, 0.1 apart: uniform noise between -0.05 and 0.05 "
        "is added in training, and its density is that of the sum.",
    )
    np.testing.assert_array_equal(schema.rows(x), x.astype("f4"))
    noise = (schema.training_rows(x, seed=3) - x) / [1.0, 1.0, 0.1]
    np.testing.assert_allclose(noise[:, 1], 0, atol=1e-6)
    for column in (0, 2):
        assert np.abs(noise[:, column]).max() < 0.5 + 1e-5
        # Mean and variance of a uniform variable, each within four standard errors.
        assert abs(noise[:, column].mean()) < 4 / np.sqrt(12 * 2_000)
        assert noise[:, column].var() == pytest.approx(1 / 12, rel=4 * np.sqrt(0.8 / 2_000))
    np.testing.assert_array_equal(schema.training_rows(x, 3), schema.training_rows(x, 3))
    assert not np.array_equal(schema.training_rows(x, 3), schema.training_rows(x, 4))
    again = Schema.from_config(schema.get_config())
    np.testing.assert_array_equal(again.training_rows(x, 3), schema.training_rows(x, 3))


def test_noise_makes_a_density_of_probabilities():
    """With noise that reaches half a step, the likelihood is that of the probabilities."""
    x = RNG(0).poisson(2, (100_000, 1))
    y = Schema.learn(x).training_rows(x, 0)
    counts, edges = np.histogram(y, np.arange(-0.5, 12.0))
    at_zero = counts[0] / len(y)
    assert at_zero == pytest.approx(poisson.pmf(0, 2), abs=4e-3)
    # Within a cell the density is flat: halves have half of the rows each.
    assert (y[y < 0.5] < 0).mean() == pytest.approx(0.5, abs=0.02)
    assert edges[1] - edges[0] == 1.0


def test_zeros_among_other_values_are_warned_about():
    zeros = RNG(0).random(500) < 0.3
    x = np.where(zeros, 0.0, RNG(1).standard_exponential(500))
    schema = Schema.learn(x[:, None], ["income"])
    share = round(100 * zeros.mean())
    assert schema.warnings == (
        f"Column 'income' has the value 0 in {share} % of the rows: there the log-density rises "
        "without bound as sigma falls. Learn these rows apart, or compare densities at one sigma "
        "only.",
    )
    assert not schema.dequantised
    assert not Schema.learn(RNG(0).standard_normal((500, 1))).warnings


def test_a_zero_inflated_count_has_a_bounded_density():
    """Blurred by less and less noise, the dequantised column keeps its likelihood."""
    x = np.where(RNG(0).random((4_000, 1)) < 0.8, 0, RNG(1).poisson(5, (4_000, 1)))
    schema = Schema.learn(x, ["visits"])
    assert schema.dequantised == ("visits",)
    values = {}
    for name, rows in (("raw", schema.rows(x)), ("noisy", schema.training_rows(x, 0))):
        z = schema.inside(rows).numpy()[:, 0].astype(float)
        at = z[:400, None]
        values[name] = [
            np.log(norm.pdf(at, z, sigma).mean(axis=1)).mean() for sigma in (0.1, 0.03, 0.01)
        ]
    raw, noisy = np.diff(values["raw"]), np.diff(values["noisy"])
    assert (raw > 0.9).all()  # log 3 for each third of sigma
    assert (np.abs(noisy) < 0.2).all()
