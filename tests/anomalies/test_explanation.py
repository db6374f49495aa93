"""Explanations against the closed form of a Gaussian, and on planted anomalies."""

import numpy as np
import pytest
from gaussians import gaussian_dde

from tfdde.anomalies import Range, explain, ranges

N = 8


def correlated(seed=0):
    """A covariance with strong correlations, its precision matrix, and 5,000 rows."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((N, 3))
    covariance = mixing @ mixing.T + 0.3 * np.eye(N)
    return (
        covariance,
        np.linalg.inv(covariance),
        rng.multivariate_normal(np.zeros(N), covariance, 5_000),
    )


def log_density(precision):
    return lambda x: -0.5 * np.einsum("ij,jk,ik->i", x.astype(float), precision, x.astype(float))


def test_shares_and_usual_values_of_a_gaussian():
    """The best value is the conditional mean; the gain is half its squared z-score."""
    _, precision, rows = correlated()
    x = rows[:40]
    found = explain(log_density(precision), x, rows)
    solved = x @ precision
    usual = x - solved / np.diag(precision)
    np.testing.assert_allclose(found.usual, usual, atol=2e-3)
    np.testing.assert_allclose(found.shares, solved**2 / (2 * np.diag(precision)), atol=1e-4)


def test_planted_column_ranks_first():
    """Values that are usual alone and strange beside the others: four conditional deviations."""
    _, precision, rows = correlated(1)
    rng = np.random.default_rng(2)
    dde = gaussian_dde(rows)  # mean and covariance from the rows
    x, planted = rows[:200].copy(), rng.integers(0, N, 200)
    each = np.arange(200)
    shift = 4 / np.sqrt(np.diag(precision)[planted]) * rng.choice([-1, 1], 200)
    x[each, planted] = (x - (x @ precision) / np.diag(precision))[each, planted] + shift
    found = explain(lambda x: dde.log_density(x, normalized=False), x, rows)
    assert (found.ranking()[:, 0] == planted).mean() >= 0.9
    # Ranking by the distance from the mean, in standard deviations, would not do.
    assert (np.abs(x / rows.std(axis=0)).argmax(axis=1) == planted).mean() < 0.85
    error = (found.usual - (x - (x @ precision) / np.diag(precision)))[each, planted]
    assert np.abs(error).max() < 0.1


def test_usual_value_of_two_modes_is_the_nearer_by_the_other_column():
    rows = np.r_[np.full((50, 2), -3.0), np.full((50, 2), 3.0)]
    rows += np.random.default_rng(0).normal(0, 0.2, rows.shape)

    def two_modes(x):
        squares = [np.square(x - centre).sum(axis=1) / 0.08 for centre in (-3.0, 3.0)]
        return np.logaddexp(-squares[0], -squares[1])

    found = explain(two_modes, [[3.0, -2.0], [-3.0, 2.0]], rows)
    np.testing.assert_allclose(found.usual[:, 1], [3.0, -3.0], atol=0.01)


def test_a_column_of_few_values_takes_one_of_them():
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.integers(0, 3, 200), rng.standard_normal(200)]).astype(float)

    def density(x):
        return -np.square(x[:, 0] - 1.2) - np.square(x[:, 1])

    found = explain(density, [[2.0, 0.5], [1.0, 0.0]], rows)
    assert found.usual[:, 0].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(found.shares[:, 0], [0.8**2 - 0.2**2, 0.0], atol=1e-6)


def test_ranges_stand_for_the_rows():
    """Nothing else is taken from the rows: neither their number nor their order."""
    _, precision, rows = correlated()
    rows[:, 3] = np.rint(rows[:, 3])
    found = explain(log_density(precision), rows[:20], rows)
    known = ranges(rows)
    assert known[3].values == tuple(np.unique(rows[:, 3])) and known[0].values is None
    again = explain(log_density(precision), rows[:20], known)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_wrong_is_named():
    rows = correlated()[2][:100]
    with pytest.raises(ValueError, match=r"`x` must have shape \(rows, 8\), got \(2, 3\)"):
        explain(log_density(np.eye(N)), rows[:2, :3], rows)
    with pytest.raises(ValueError, match=r"`x` must have shape \(rows, 1\), got \(2, 8\)"):
        explain(log_density(np.eye(N)), rows[:2], [Range(0.0, 1.0)])
    with pytest.raises(ValueError, match="`points` must be an integer >= 5, got 2"):
        explain(log_density(np.eye(N)), rows[:2], rows, points=2)


def test_seconds_since_1970_are_explained_in_float64():
    start, rng = 1.7e9, np.random.default_rng(0)
    rows = np.column_stack([start + rng.random(500), rng.random(500)])
    centre = np.array([start + 0.5, 0.5])
    found = explain(lambda x: -0.5 * np.square(x - centre).sum(axis=1), rows[:9], rows)
    np.testing.assert_allclose(found.usual, np.tile(centre, (9, 1)), atol=1e-3)
    np.testing.assert_allclose(found.shares, 0.5 * np.square(rows[:9] - centre), atol=1e-5)
