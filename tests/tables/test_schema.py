"""Schemas: centres, scales and names of columns, and the density in the columns' own units."""

import keras
import numpy as np
import pandas as pd
import pyarrow
import pytest
import tensorflow as tf
from scipy.stats import norm

import tfdde
from tfdde.tables import Column, Schema

RNG = np.random.default_rng
ROWS = 500
NAMES = ["small", "large", "seconds", "plain"]
SCALES = np.array([1e-12, 1e12, 1.0, 2.0])
SHIFTS = np.array([0.0, -3e12, 1.7e9, 5.0])


def table(rows=ROWS, seed=0):
    return RNG(seed).standard_normal((rows, 4)) * SCALES + SHIFTS


def frame(x=None):
    return pd.DataFrame(table() if x is None else x, columns=NAMES)


def gaussian(schema):
    """A density whose network is 0: the standard normal, blurred, in units of the schema."""
    n = len(schema.names)
    network = tfdde.networks.residual_mlp(n, 4, 1)
    network.set_weights([0 * w for w in network.get_weights()])
    return tfdde.DDE(network, tfdde.Constant(0.2), tfdde.GaussianBase(n), schema, seed=0)


def exact(x):
    """Log-density of ``gaussian``, by hand in float64."""
    scales = x.std(axis=0)
    return norm.logpdf(x, x.mean(axis=0), scales * np.sqrt(1 + 0.2**2)).sum(axis=1)


def test_any_scale_is_standardised_in_float64():
    x = table()
    schema = Schema.learn(frame(x))
    assert schema.row_dtype == "float64" and schema.names == tuple(NAMES)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    np.testing.assert_allclose(schema.inside(schema.rows(x)), z, atol=2e-6)
    np.testing.assert_allclose(schema.outside(z) / SCALES, x / SCALES, rtol=1e-15, atol=1e-9)
    assert schema.log_scale() == pytest.approx(-np.log(x.std(axis=0)).sum(), abs=1e-6)


def test_the_density_is_in_the_units_of_the_table():
    x = table()
    dde = gaussian(Schema.learn(frame(x)))
    np.testing.assert_allclose(dde.log_density(x, normalized=False), exact(x), rtol=2e-6)
    slope = -(x - x.mean(axis=0)) / (x.var(axis=0) * (1 + 0.2**2))
    score = dde.score(x).numpy()
    assert score.dtype == np.float32
    np.testing.assert_allclose(score * SCALES, slope * SCALES, atol=1e-5)
    # A tensor of float64, in a graph, and by calling the model.
    expected = dde.log_density(x, normalized=False).numpy()
    graph = tf.function(lambda x: dde.log_density(x, normalized=False), autograph=False)
    np.testing.assert_allclose(graph(tf.constant(x)), expected, rtol=1e-6)
    np.testing.assert_allclose(dde(tf.constant(x)), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="`x` must be of float64, .* got .*float32.*`log_density`"):
        dde(tf.constant(x, tf.float32))


def test_training_sees_the_rows_in_float64():
    x = table()
    schema = Schema.learn(x, NAMES)
    dde = tfdde.recipes.table_density(
        x, tfdde.LogUniform(0.2, 4.0), width=8, depth=1, normalization=schema, seed=0
    )
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    by_hand = tfdde.recipes.table_density(z, tfdde.LogUniform(0.2, 4.0), width=8, depth=1, seed=0)
    by_hand.set_weights(dde.get_weights())
    losses = []
    for model, rows in ((dde, x), (by_hand, z)):
        model.compile("adam")
        history = model.fit(rows, batch_size=100, epochs=2, verbose=0)
        losses.append([*history.history["loss"], model.evaluate(rows, verbose=0)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    values = (
        dde.log_partition(x, samples=500, moves=1),
        by_hand.log_partition(z, samples=500, moves=1),
    )
    assert values[0].value == pytest.approx(values[1].value, abs=1e-2)


def test_ordinary_columns_stay_in_float32():
    x = RNG(0).standard_normal((ROWS, 2)) * [3.0, 0.01] + [20.0, 0.1]
    schema = Schema.learn(x)
    assert schema.row_dtype == "float32" and schema.names == ("0", "1") and not schema.notices
    layer = keras.layers.Normalization()
    ours, kerass = gaussian(schema), gaussian(schema)
    kerass = tfdde.DDE(ours.network, ours.noise, ours.base, layer)
    kerass.adapt(x)
    kerass.base.set_weights(tfdde.GaussianBase(2).get_weights())
    np.testing.assert_allclose(
        ours.log_density(x, normalized=False), kerass.log_density(x, normalized=False), rtol=1e-4
    )


def test_it_is_saved_with_the_density(tmp_path):
    x = table()
    x[3, 0] = np.nan
    dde = gaussian(Schema.learn(frame(x), missing="impute"))
    dde.save(tmp_path / "density.keras")
    loaded = keras.models.load_model(tmp_path / "density.keras")
    schema, before = loaded.normalization, dde.normalization
    assert schema.get_config() == before.get_config()
    assert schema.columns == before.columns and schema.notices == before.notices
    rows = schema.rows(frame(x))
    np.testing.assert_array_equal(rows, before.rows(frame(x)))
    np.testing.assert_array_equal(
        loaded.log_density(rows, normalized=False), dde.log_density(rows, normalized=False)
    )


def test_one_far_value_does_not_move_centre_and_scale():
    x = RNG(0).standard_normal((ROWS, 2))
    with_far = x.copy()
    with_far[3, 0] = 1e9
    schema, without = Schema.learn(with_far), Schema.learn(x)
    np.testing.assert_allclose(schema.location, without.location, atol=0.1)
    np.testing.assert_allclose(schema.scale, without.scale, rtol=0.1)
    assert schema.columns[1] == without.columns[1]
    assert schema.notices == (
        "Column '0' has far values: it is standardised by its median and inner quantiles.",
    )


@pytest.mark.parametrize(
    "draw", [RNG(0).standard_normal, RNG(0).random, RNG(0).standard_exponential]
)
def test_ordinary_columns_have_their_mean_and_deviation(draw):
    x = draw((2_000, 1))
    schema = Schema.learn(x)
    np.testing.assert_allclose(schema.location, x.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(schema.scale, x.std(axis=0), rtol=1e-9)


def test_weights_count_rows():
    x = RNG(0).standard_normal((200, 1))
    counts = RNG(1).integers(1, 4, 200)
    weighted = Schema.learn(x, sample_weight=counts.astype(np.float32))
    repeated = Schema.learn(np.repeat(x, counts, axis=0))
    np.testing.assert_allclose(weighted.scale, repeated.scale)
    np.testing.assert_allclose(weighted.location, repeated.location, atol=1e-12)
    x[0] = 1e9
    weighted = Schema.learn(x, sample_weight=counts.astype(np.float32))
    repeated = Schema.learn(np.repeat(x, counts, axis=0))
    np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=0.05)


def test_columns_are_taken_by_name():
    x = frame()
    schema = Schema.learn(x)
    want = schema.rows(x)
    mixed = x[["plain", "small", "seconds", "large"]].assign(more="text")
    np.testing.assert_array_equal(schema.rows(mixed), want)
    np.testing.assert_array_equal(schema.rows(pyarrow.Table.from_pandas(mixed)), want)
    np.testing.assert_array_equal(schema.rows(x.to_records(index=False)), want)
    np.testing.assert_array_equal(schema.rows(x.to_numpy()), want)
    with pytest.raises(ValueError, match="must have the columns 'large', got 'small', 'seconds'"):
        schema.rows(x.drop(columns="large"))
    with pytest.raises(ValueError, match=r"must have 4 columns, 'small', .*, got shape \(500, 3\)"):
        schema.rows(x.to_numpy()[:, :3])
    twice = pd.DataFrame(np.eye(4), columns=["small", "small", "seconds", "plain"])
    with pytest.raises(ValueError, match="name each column once, got 'small' twice"):
        schema.rows(twice)


@pytest.mark.parametrize("kind", ["frame", "arrow", "records", "array"])
def test_it_is_learned_from_any_table(kind):
    x = frame()
    forms = {
        "frame": x,
        "arrow": pyarrow.Table.from_pandas(x),
        "records": x.to_records(index=False),
        "array": x.to_numpy(),
    }
    schema = Schema.learn(forms[kind], NAMES)
    assert schema.columns == Schema.learn(x).columns
    if kind != "array":
        assert Schema.learn(forms[kind], ["plain", "small"]).names == ("plain", "small")


def test_constant_columns_are_refused_by_name():
    for value in (3.5, 1.7e9, 0.0):
        with pytest.raises(ValueError, match=r"Column 'plain' is constant \(.*\): .* Leave it out"):
            Schema.learn(frame().assign(plain=value))
    nearly = 1.0 + np.arange(ROWS) % 3 * 2e-16
    with pytest.raises(
        ValueError, match="Column 'plain' is nearly constant, .* Centre and rescale"
    ):
        Schema.learn(frame().assign(plain=nearly))
    with pytest.raises(ValueError, match="Column 'plain' has no values"):
        Schema.learn(frame().assign(plain=np.nan), missing="impute")


@pytest.mark.parametrize("scale", [1.0, 1e9])
def test_dependent_columns_are_named(scale):
    x = RNG(0).standard_normal((ROWS, 3))
    data = pd.DataFrame(x, columns=["a", "b", "c"]).assign(d=2 * x[:, 0] * scale + scale)
    message = (
        r"Columns 'a' and 'd' are linearly dependent: no density in 4 dimensions. Leave one of "
        'them out, or pass dependent="drop"'
    )
    with pytest.raises(ValueError, match=message):
        Schema.learn(data)
    data = data.assign(e=data.b - data.c)
    with pytest.raises(ValueError, match="Columns 'a' and 'd'; 'b', 'c' and 'e' are linearly dep"):
        Schema.learn(data)
    schema = Schema.learn(data, dependent="drop")
    assert schema.names == ("a", "b", "c") and schema.given == ("a", "b", "c", "d", "e")
    assert schema.notices == (
        "Column 'd' is left out: it is a combination of 'a'.",
        "Column 'e' is left out: it is a combination of 'b', 'c'.",
    )
    np.testing.assert_array_equal(schema.rows(data), x.astype("f4"))
    np.testing.assert_array_equal(schema.rows(data.to_numpy()), x.astype("f4"))
    np.testing.assert_array_equal(schema.rows(data[["c", "b", "a"]]), x.astype("f4"))


def test_columns_that_are_nearly_dependent_are_not():
    x = RNG(0).standard_normal((ROWS, 2))
    near = x[:, 0] + 1e-3 * RNG(1).standard_normal(ROWS)
    assert len(Schema.learn(np.column_stack([x, near])).names) == 3
    # In a table of float32 the sum is rounded; it is dependent all the same.
    single = x.astype("f4")
    with pytest.raises(ValueError, match="Columns '0', '1' and '2' are linearly dependent"):
        Schema.learn(np.column_stack([single, single.sum(axis=1)]))
    # Far values in one row do not make columns dependent, nor hide that they are.
    far = np.column_stack([x, RNG(2).standard_normal(ROWS)])
    far[7] = 1e9
    assert len(Schema.learn(far).names) == 3
    with pytest.raises(ValueError, match="Columns '0' and '3' are linearly dependent"):
        Schema.learn(np.column_stack([far, far[:, 0]]))
    # Few rows of many columns always are, by chance.
    assert len(Schema.learn(RNG(0).standard_normal((5, 10))).names) == 10


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pd.Categorical(["x", "y"] * 250), r"categories such as 'x' .*get_dummies"),
        (pd.date_range("2020", periods=ROWS), r"dates such as '2020-01-01.*total_seconds"),
        (pd.to_timedelta(np.arange(ROWS), "s"), "durations such as .*total_seconds"),
        (np.array(["x", "y"] * 250, object), "text or other objects such as 'x' .*to_numeric"),
        (pd.array(["x", None] * 250, "string"), "text or other objects such as 'x'"),
        ([1.0, "2"] * 250, "text or other objects such as '2'"),
        (np.ones(ROWS) * 1j, "complex numbers"),
    ],
)
def test_columns_that_are_no_numbers_are_named_with_what_to_do(column, what):
    data = frame().assign(odd=column)
    with pytest.raises(ValueError, match=f"Column 'odd' must hold numbers, got {what}.*leave the"):
        Schema.learn(data)
    assert Schema.learn(data, NAMES).names == tuple(NAMES)


def test_missing_values_are_counted_or_imputed():
    x = frame()
    x.loc[:29, "plain"] = np.nan
    x.loc[4, "small"] = np.nan
    message = "missing .NaN. in 'small' in 1 of 500 rows, 'plain' in 30 of 500 rows: .*impute"
    with pytest.raises(ValueError, match=message):
        Schema.learn(x)
    schema = Schema.learn(x, missing="impute")
    assert len(schema.notices) == 2
    assert schema.notices[1] == (
        "Column 'plain' misses 30 of 500 values: draws of the others stand for them in training, "
        "the median in rows to score."
    )
    known = x["plain"][30:]
    rows = schema.rows(x)
    np.testing.assert_array_equal(rows[:30, 3], known.median())
    np.testing.assert_array_equal(rows[30:, 3], known)
    trained = schema.training_rows(x, seed=0)
    assert set(trained[:30, 3]) < set(known) and len(set(trained[:30, 3])) > 20
    np.testing.assert_array_equal(trained[30:, 3], known)
    np.testing.assert_array_equal(schema.training_rows(x, seed=0), trained)
    assert not np.array_equal(schema.training_rows(x, seed=1), trained)
    nullable = x.assign(plain=x["plain"].astype("Float64"))
    np.testing.assert_array_equal(schema.rows(nullable), rows)
    with pytest.raises(ValueError, match="'plain' in 30 of 500 rows"):
        Schema.learn(frame()).rows(x)
    with pytest.raises(ValueError, match="Column 'large' must be finite, got infinity in 1 of 500"):
        schema.rows(x.assign(large=np.where(np.arange(ROWS) == 9, np.inf, x["large"])))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`missing` must be None or 'impute', got 'mean'"):
        Schema.learn(frame(), missing="mean")
    with pytest.raises(ValueError, match="`dependent` must be None or 'drop', got True"):
        Schema.learn(frame(), dependent=True)
    for data in (np.zeros(3), [["a", "b"]]):
        with pytest.raises(ValueError, match="`data` must be a table, or numbers of shape"):
            Schema.learn(data)
    with pytest.raises(ValueError, match="at least 2 rows and a column"):
        Schema.learn(np.zeros((1, 2)))
    schema = Schema([Column("a", 0.0, 1.0, 0.0)])
    network = tfdde.networks.residual_mlp(2, 4, 1)
    with pytest.raises(
        ValueError, match="`normalization` must have as many columns as .* Schema of 1"
    ):
        tfdde.DDE(network, tfdde.Constant(0.2), normalization=schema)
    dde = tfdde.DDE(
        tfdde.networks.residual_mlp(1, 4, 1), tfdde.Constant(1e-7), normalization=schema
    )
    dde.compile("adam")
    with pytest.raises(
        ValueError, match="`sigma` must be at least .* column 'a' of `x` to float32"
    ):
        dde.fit(np.zeros((3, 1)))
