"""Rows drawn from densities of tables: a classifier should hardly tell them from new rows."""

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import cross_val_score

import tfdde
from tfdde.sklearn import DDEstimator
from tfdde.tables import Column, Schema

RNG = np.random.default_rng
ROWS = 4_000


def table(rows, seed):
    """An integer, a boolean, a price in steps of a quarter, and an income, all dependent."""
    rng = RNG(seed)
    age = rng.normal(size=rows)
    income = 3e4 * np.exp(age + 0.5 * rng.normal(size=rows))
    member = rng.random(rows) < 1 / (1 + np.exp(-3 * age))
    visits = rng.poisson(np.where(member, 12, 4))
    price = np.rint(4 * (20 + 5 * age + 3 * rng.normal(size=rows))) / 4
    return pd.DataFrame({"visits": visits, "member": member, "price": price, "income": income})


def accuracy(first, second):
    """Cross-validated accuracy of a classifier that tells two tables of equal size apart."""
    x = np.concatenate([np.asarray(first, float), np.asarray(second, float)])
    labels = np.repeat([0, 1], len(first))
    order = RNG(0).permutation(len(x))
    model = HistGradientBoostingClassifier(max_iter=50, random_state=0)
    return cross_val_score(model, x[order], labels[order], cv=3).mean()


@pytest.fixture(scope="module")
def fitted():
    settings = {"sigma": 0.05, "width": 64, "depth": 2, "steps": 1_500, "random_state": 0}
    return DDEstimator(**settings).fit(table(ROWS, 0))


def test_samples_are_rows_of_the_table(fitted):
    drawn = fitted.sample(ROWS, random_state=0)
    assert drawn.shape == (ROWS, 4) and drawn.dtype == np.float64
    visits, member, price, income = drawn.T
    x = table(ROWS, 0)
    assert (visits == np.rint(visits)).all() and visits.min() >= 0
    assert visits.max() <= x["visits"].max()
    assert set(member) == {0.0, 1.0}
    assert (4 * price == np.rint(4 * price)).all()
    assert len(np.unique(income)) == ROWS
    assert np.median(income) == pytest.approx(x["income"].median(), rel=0.1)
    assert member.mean() == pytest.approx(x["member"].mean(), abs=0.03)


def test_a_classifier_hardly_tells_samples_from_new_rows(fitted):
    drawn, new = fitted.sample(ROWS, random_state=0), table(ROWS, 1)
    assert accuracy(table(ROWS, 2), new) < 0.52
    assert accuracy(drawn, new) < 0.56
    # It can tell wrong samples: of independent columns, off the grids, and of a shifted income.
    rng = RNG(0)
    independent = np.stack([rng.permutation(column) for column in drawn.T], axis=1)
    assert accuracy(independent, new) > 0.7
    assert accuracy(drawn + [0.1, 0, 0, 0], new) > 0.9
    assert accuracy(drawn * [1, 1, 1, 1.5], new) > 0.58


def test_a_density_is_sampled_without_the_estimator(fitted):
    x = table(ROWS, 0)
    drawn = tfdde.sample_rows(fitted.dde_, x, 500, seed=1)
    assert drawn.shape == (500, 4)
    np.testing.assert_array_equal(drawn[:, :2], np.rint(drawn[:, :2]))
    mixed = x[["income", "price", "visits", "member"]]
    np.testing.assert_array_equal(tfdde.sample_rows(fitted.dde_, mixed, 500, seed=1), drawn)
    rows = fitted.schema_.rows(x)
    np.testing.assert_array_equal(tfdde.sample_rows(fitted.dde_, rows, 500, seed=1), drawn)
    assert not np.array_equal(tfdde.sample_rows(fitted.dde_, rows, 500, seed=2), drawn)
    members = x["member"].to_numpy(float)
    weighted = tfdde.sample_rows(fitted.dde_, rows, 500, sample_weight=members, seed=1)
    others = tfdde.sample_rows(fitted.dde_, rows, 500, sample_weight=1.0 - members, seed=1)
    # The samples start at members only, or at others only; some moves cross to the other value.
    assert weighted[:, 1].mean() > drawn[:, 1].mean() + 0.15
    assert weighted[:, 1].mean() > others[:, 1].mean() + 0.4


def test_samples_of_an_exact_gaussian():
    """With and without a normalization: mean and covariance of the blurred rows."""
    mean, scale = np.array([3.0, -2.0]), np.array([2.0, 0.5])
    x = mean + scale * RNG(0).standard_normal((4_000, 2))
    for schema in (None, Schema.learn(x)):
        network = tfdde.networks.residual_mlp(2, 8, 1)
        network.set_weights([0 * w for w in network.get_weights()])
        dde = tfdde.DDE(network, tfdde.Constant(0.5), tfdde.GaussianBase(2), schema, seed=0)
        dde.adapt(x)
        drawn = tfdde.sample_rows(dde, x, 4_000)
        variance = x.var(axis=0) + 0.5**2 * (1.0 if schema is None else x.var(axis=0))
        np.testing.assert_allclose(drawn.mean(axis=0), x.mean(axis=0), atol=0.2)
        np.testing.assert_allclose(drawn.var(axis=0), variance, rtol=0.1)


def test_grids_of_any_kind():
    x = {"a": [5.0, 7.5, 0.0, 2.5, 2.5], "b": [0.1, 0.25, 0.9, 0.7, 0.2]}
    schema = Schema.learn(pd.DataFrame(x))
    assert schema.columns[0].step == 2.5 and schema.columns[1].step is None
    drawn = np.array([[3.7, 0.123], [3.8, 0.5], [-9.0, -1.0], [99.0, 2.0]])
    put = [[2.5, 0.123], [5.0, 0.5], [0.0, -1.0], [7.5, 2.0]]
    np.testing.assert_array_equal(schema.on_grids(drawn), put)
    early = Schema([Column("a", 0.0, 1.0, 0.0, step=1.0)])
    with pytest.raises(ValueError, match="Column 'a' lies on a grid, but its range is not known"):
        early.on_grids(drawn[:, :1])


def test_wrong_arguments():
    network = tfdde.networks.residual_mlp(2, 4, 1, conditions=1)
    with pytest.raises(ValueError, match="without conditions, got rows of shape .* dde.given"):
        tfdde.sample_rows(tfdde.DDE(network, tfdde.Constant(0.2)), np.zeros((3, 2)), 3)
    dde = tfdde.DDE(tfdde.networks.residual_mlp(2, 4, 1), tfdde.Constant(0.2))
    with pytest.raises(ValueError, match="`count` must be an integer >= 1, got 0"):
        tfdde.sample_rows(dde, np.zeros((3, 2)), 0)
    with pytest.raises(ValueError, match="`data`"):
        tfdde.sample_rows(dde, np.zeros((3, 5)), 3)
