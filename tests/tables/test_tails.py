"""Columns with heavy tails: the choice of their asinh, and densities with it, against the truth."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy import integrate, stats

import tfdde
from tfdde import scoring, serving
from tfdde.sklearn import DDEstimator
from tfdde.tables import Column, Schema
from tfdde.tables.evening import even_out
from tfdde.tables.tails import find_tails

RNG = np.random.default_rng
SIGMA = 0.2
HEAVY = {
    "Cauchy": lambda rng, n: rng.standard_cauchy(n),
    "far from 0": lambda rng, n: 1e-3 * rng.standard_cauchy(n) + 7,
    "log-normal": lambda rng, n: 3e4 * np.exp(rng.normal(size=n)),
    "negative log-normal": lambda rng, n: -np.exp(2 * rng.normal(size=n)),
    "Pareto": lambda rng, n: 1e9 * rng.pareto(1, n),
    "contaminated": lambda rng, n: np.where(rng.random(n) < 0.02, 50, 1) * rng.normal(size=n),
    "Zipf": lambda rng, n: rng.zipf(2, n).astype(float),
}
ORDINARY = {
    "Gaussian": lambda rng, n: rng.normal(5, 2, n),
    "uniform": lambda rng, n: rng.random(n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "bimodal": lambda rng, n: rng.normal(size=n) + 6 * (rng.random(n) < 0.3),
    "narrow modes": lambda rng, n: 0.1 * rng.normal(size=n) + (rng.random(n) < 0.5),
    "arcsine": lambda rng, n: rng.beta(0.5, 0.5, n),
    "counts": lambda rng, n: rng.poisson(3, n),
    "few counts": lambda rng, n: rng.poisson(0.2, n),
    "booleans": lambda rng, n: rng.random(n) < 0.1,
    "one far value": lambda rng, n: np.append(rng.normal(size=n - 1), 1e9),
    "one very far value": lambda rng, n: np.append(rng.normal(size=n - 1), 1e300),
}


@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize("rows", [500, 5_000])
def test_heavy_tails_are_found_and_told(name, rows):
    x = pd.DataFrame({"usual": RNG(1).normal(size=rows), "heavy": HEAVY[name](RNG(0), rows)})
    schema = Schema.learn(x)
    assert schema.tailed.tolist() == [False, True]
    assert schema.columns[0] == Schema.learn(x, tails="keep").columns[0]
    assert not any("far values" in notice for notice in schema.notices)
    assert schema.notices[-1].startswith("Column 'heavy' has heavy tails: asinh((x - ")
    z = schema.inside(schema.rows(x)).numpy()
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-4)
    assert np.abs(z).max() < 9


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("rows", [500, 5_000])
def test_other_columns_stay_as_they_are(name, rows):
    x = ORDINARY[name](RNG(0), rows)[:, None]
    schema, kept = Schema.learn(x), Schema.learn(x, tails="keep")
    assert schema.columns == kept.columns and schema.notices == kept.notices
    assert not schema.tailed.any()


def test_the_choice_can_be_switched_off():
    x = HEAVY["Cauchy"](RNG(0), 500)[:, None]
    schema = Schema.learn(x, tails="keep")
    assert not schema.tailed.any() and "far values" in schema.notices[0]
    with pytest.raises(ValueError, match="`tails` must be None or 'keep', got 'asinh'"):
        Schema.learn(x, tails="asinh")


def test_the_choice_does_not_depend_on_units():
    x = RNG(0).standard_cauchy(2_000)
    found, scaled = find_tails(x), find_tails(1e20 * x + 1e21)
    np.testing.assert_allclose(scaled.centre, 1e20 * found.centre + 1e21, rtol=1e-3)
    np.testing.assert_allclose(scaled.width, 1e20 * found.width, rtol=1e-2)
    np.testing.assert_allclose(scaled.gain, found.gain, rtol=1e-2)


def test_centre_and_width_are_those_of_johnsons_su():
    centre, width, a, b = 3.0, 0.5, 0.4, 0.8
    x = stats.johnsonsu(a, b, centre, width).rvs(10_000, random_state=0)
    found = find_tails(x)
    assert found.centre == pytest.approx(centre, abs=0.05)
    assert found.width == pytest.approx(width, rel=0.1)


def test_weights_gaps_and_ties_count():
    x = RNG(0).standard_cauchy((2_000, 1))
    weights = np.where(np.abs(x[:, 0]) < 3, 1.0, 0.0)
    assert Schema.learn(x).tailed.all()
    assert not Schema.learn(x, sample_weight=weights).tailed.any()
    x[::5] = np.nan
    assert Schema.learn(x, missing="impute").tailed.all()
    # Zeros among normal amounts are a spike, which asinh would only make higher.
    normal = RNG(0).normal(10, 2, 2_000)
    zeros = np.where(RNG(1).random(2_000) < 0.7, 0.0, normal)[:, None]
    assert not Schema.learn(zeros).tailed.any()
    incomes = np.where(RNG(1).random(2_000) < 0.7, 0.0, np.exp(normal))[:, None]
    schema = Schema.learn(incomes)
    assert schema.tailed.all() and "has the value 0" in schema.warnings[0]


def test_asinh_is_exact_with_its_derivative():
    x = np.array([-1e12, -3.0, -1e-3, 0.0, 1e-9, 0.5, 1e12, 1e30])
    for dtype, error in (("float32", 1e-6), ("float64", 1e-14)):
        points = tf.constant(x, dtype)
        with tf.GradientTape() as tape:
            tape.watch(points)
            y = even_out(points[:, None], [[True]], 0.0, 1.0)[:, 0]
        np.testing.assert_allclose(y, np.arcsinh(points.numpy()), rtol=error, atol=error)
        slopes = tape.gradient(y, points)
        np.testing.assert_allclose(slopes, 1 / np.sqrt(1 + x**2), rtol=error)


def density(columns):
    """A network that is 0: in standardised units the density is N(0, 1 + sigma**2)."""
    n = len(columns)
    network = tfdde.networks.residual_mlp(n, 8, 1)
    network.set_weights([0 * w for w in network.get_weights()])
    dde = tfdde.DDE(network, tfdde.Constant(SIGMA), tfdde.GaussianBase(n), Schema(columns), seed=0)
    dde.partition = tfdde.LogPartition(0.0, 0.01, -0.02, 0.02, 1e4, "importance", SIGMA)
    return dde


COLUMNS = [
    Column("income", 2.0, 0.5, 30.0, tail_mean=1.5, tail_deviation=1.2),
    Column("usual", 5.0, 2.0, 5.0),
    Column("change", -1.0, 3.0, -1.0, tail_mean=0.1, tail_deviation=2.0),
]
SECONDS = [Column("seconds", 1.7e9, 0.5, 1.7e9, tail_mean=0.2, tail_deviation=1.1), COLUMNS[0]]


def by_hand(columns, x):
    """Log-density and standardised rows of ``density``, in float64."""
    z, value = np.empty_like(x), np.zeros(len(x))
    for j, c in enumerate(columns):
        u = (x[:, j] - c.location) / c.scale
        slope = 1 / c.scale
        if c.tail_mean is not None:
            slope = slope / (np.sqrt(1 + u**2) * c.tail_deviation)
            u = (np.arcsinh(u) - c.tail_mean) / c.tail_deviation
        z[:, j] = u
        value += stats.norm.logpdf(u, scale=np.sqrt(1 + SIGMA**2)) + np.log(slope)
    return value, z


@pytest.mark.parametrize("columns", [COLUMNS, SECONDS])
def test_density_and_score_are_in_the_units_of_the_table(columns):
    dde = density(columns)
    schema = dde.normalization
    z = 2 * RNG(0).standard_normal((400, len(columns)))
    x = schema.outside(z)
    rows = x.astype(dde.row_dtype)
    value, inside = by_hand(columns, rows.astype(np.float64))
    np.testing.assert_allclose(schema.inside(rows), inside, atol=1e-5)
    np.testing.assert_allclose(dde.log_density(rows), value, rtol=2e-6, atol=2e-6)
    # At a row's own location, where the asinh is 0, too.
    rows[:3, 0] = columns[0].location
    wide = rows.astype(np.float64)
    score = dde.score(rows).numpy()
    for j, column in enumerate(columns):
        step = 1e-4 * np.maximum(np.abs(wide[:, j] - column.location), column.scale)
        up, down = wide.copy(), wide.copy()
        up[:, j] += step
        down[:, j] -= step
        width = up[:, j] - down[:, j]
        slope = (by_hand(columns, up)[0] - by_hand(columns, down)[0]) / width
        np.testing.assert_allclose(score[:, j] * step, slope * step, rtol=1e-4, atol=1e-7)


def test_outside_inverts_inside():
    columns = [*COLUMNS, SECONDS[0]]
    z = 5 * RNG(0).standard_normal((1_000, 4))
    _, back = by_hand(columns, Schema(columns).outside(z))
    np.testing.assert_allclose(back, z, rtol=1e-9, atol=1e-6)  # seconds are rounded to 2e-7
    np.testing.assert_allclose(back[:, :3], z[:, :3], rtol=1e-9, atol=1e-9)


def test_narrow_columns_are_kept_in_float64():
    assert Schema(COLUMNS).row_dtype == "float32" and Schema(SECONDS).row_dtype == "float64"
    wide = Column("seconds", 1.7e9, 0.5, 1.7e9)
    narrow = Column("seconds", 1.7e9, 0.5, 1.7e9, tail_mean=0.2, tail_deviation=0.1)
    message = "`sigma` must be at least"
    Schema([wide]).check_resolution(1e-5, "x")
    with pytest.raises(ValueError, match=message):
        Schema([narrow]).check_resolution(1e-5, "x")


@pytest.mark.parametrize("columns", [COLUMNS, SECONDS])
def test_files_and_artifacts_agree_with_keras(columns, tmp_path):
    dde = density(columns)
    x = dde.normalization.outside(RNG(0).standard_normal((50, len(columns))))
    rows = x.astype(dde.row_dtype)
    dde.save(tmp_path / "density.keras")
    loaded = keras.models.load_model(tmp_path / "density.keras")
    assert loaded.normalization.get_config() == dde.normalization.get_config()
    assert loaded.normalization.columns == dde.normalization.columns
    np.testing.assert_array_equal(loaded.log_density(rows), dde.log_density(rows))
    path, errors = serving.export_savedmodel(tmp_path / "saved", dde)
    assert max(errors[name] for name in errors if name != "log_density_nats") < serving.BOUND
    signatures = tf.saved_model.load(str(path)).signatures
    for name in ("log_density", "score"):
        expected = getattr(dde, name)(rows).numpy()
        near = {"rtol": 1e-5, "atol": 1e-5 * np.abs(expected).max()}
        np.testing.assert_allclose(signatures[name](x=tf.constant(rows))[name], expected, **near)
        wide = signatures[f"{name}_float64"](x=tf.constant(rows.astype("f8")))[name]
        np.testing.assert_allclose(wide, expected, **near)
    frame = pd.DataFrame(rows, columns=[c.name for c in columns])
    frame[reversed(frame.columns)].to_parquet(tmp_path / "rows.parquet")
    for model in (path, tmp_path / "density.keras"):
        output = tmp_path / f"{model.name}.parquet"
        assert scoring.score_file(model, tmp_path / "rows.parquet", output) == 0
        values = pd.read_parquet(output)["log_density"]
        np.testing.assert_allclose(values, dde.log_density(rows), rtol=1e-5, atol=1e-5)
    facts = json.loads((path / "assets.extra/metadata.json").read_text())
    tails = [c.tail_mean and {"mean": c.tail_mean, "deviation": c.tail_deviation} for c in columns]
    assert facts["preprocessing"]["tails"] == tails
    assert "of columns with heavy tails those of their asinh" in facts["sigma_unit"]


def test_tflite_and_onnx_agree_with_keras(tmp_path):
    dde = density(COLUMNS)
    for errors in (
        serving.export_tflite(tmp_path / "model.tflite", dde)[1],
        serving.export_onnx(tmp_path / "onnx", dde)[1],
    ):
        assert max(errors["log_density"], errors["score"]) < serving.BOUND


def test_unnormalised_levels_have_the_jacobian_of_each_row():
    """A density of many levels, as ``select_sigma`` and anomaly scores read it."""
    schema = Schema(COLUMNS[:1])
    rows = schema.outside(RNG(0).standard_normal((2_000, 1))).astype("f4")
    network = tfdde.networks.residual_mlp(1, 8, 1, activation="silu", levels=True)
    network.set_weights([0 * w for w in network.get_weights()])
    dde = tfdde.DDE(network, tfdde.LogUniform(SIGMA, 8.0), None, schema, seed=0)
    curve = tfdde.tuning.select_sigma(dde, rows, samples=500, moves=1)
    exact = by_hand(COLUMNS[:1], rows.astype(np.float64))[0]
    assert curve.log_likelihood[0] == pytest.approx(exact.mean(), abs=0.02)
    scores = tfdde.anomalies.AnomalyScores(dde, rows)
    values = scores.anomaly_score(rows[:50], "density")
    expected = -dde.log_density(rows[:50], normalized=False).numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(dde.log_jacobian(schema.inside(rows[:50]))) > 1
    # Those in closed form have no asinh.
    raw = rows.astype(np.float64)
    by_rows = tfdde.anomalies.RowsDensity((raw - raw.mean()) / raw.std())
    expected = by_rows.log_density((raw[:50] - raw.mean()) / raw.std())
    np.testing.assert_allclose(scores.anomaly_score(rows[:50], "rows"), -expected, rtol=1e-4)


LAWS = {"log-normal": stats.lognorm(1.0, scale=3e4), "Student t": stats.t(2)}


@pytest.mark.parametrize("name", LAWS)
def test_a_learned_density_is_that_of_the_blurred_asinh(name):
    law = LAWS[name]
    x = law.rvs((5_000, 1), random_state=RNG(0))
    settings = {"sigma": SIGMA, "width": 32, "depth": 2, "steps": 1_500, "random_state": 0}
    estimator = DDEstimator(**settings).fit(x)
    (column,) = estimator.schema_.columns
    assert column.tail_mean is not None

    def inside(values):
        y = np.arcsinh((values - column.location) / column.scale)
        return (y - column.tail_mean) / column.tail_deviation

    # The exact density of the asinh on a fine grid, blurred by quadrature, back in units of x.
    grid = np.linspace(-12, 12, 4_801)
    there = estimator.schema_.outside(grid[:, None])[:, 0]
    slope = (
        column.scale
        * column.tail_deviation
        * np.cosh(grid * column.tail_deviation + column.tail_mean)
    )
    clean = law.pdf(there) * slope
    assert integrate.trapezoid(clean, grid) == pytest.approx(1, abs=1e-3)
    at = np.quantile(x, np.linspace(0.005, 0.995, 100))
    kernel = stats.norm.pdf(inside(at)[:, None] - grid, scale=SIGMA)
    exact = np.log(integrate.trapezoid(kernel * clean, grid, axis=1) / np.interp(at, there, slope))
    learned = estimator.score_samples(at[:, None])
    assert np.abs(learned - exact).mean() < 0.06
    assert np.abs(learned - exact).max() < 0.3
    # The mass, in units of x: a grid that is fine where the density is high.
    points = there[(grid > -7) & (grid < 7)]
    values = np.exp(estimator.score_samples(points[:, None]).astype(np.float64))
    log_mass = np.log(integrate.trapezoid(values, points))
    log_z = estimator.log_partition_
    assert log_z.lower - log_z.value - 0.01 < log_mass < log_z.upper - log_z.value + 0.01
    # And held-out rows are likelier than by the density of the column as it is.
    kept = DDEstimator(tails="keep", **settings).fit(x)
    test = law.rvs((5_000, 1), random_state=RNG(1))
    assert estimator.score(test) > kept.score(test)
