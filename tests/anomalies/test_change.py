"""Tests for change: uniform p-values without one, power with one, and the column that changed."""

import numpy as np
import pytest
from scipy.stats import kstest

from tfdde.anomalies import drift

COVARIANCE = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])


def tables(seed, rows=(120, 150)):
    rng = np.random.default_rng(seed)
    return [rng.multivariate_normal(np.zeros(3), COVARIANCE, m, method="cholesky") for m in rows]


def scores(x):
    return np.einsum("ij,jk,ik->i", x, np.linalg.inv(COVARIANCE), x)


def test_p_values_are_uniform_under_no_change():
    """Over 300 pairs of tables with correlated columns; and the columns' are not too small."""
    found = []
    for seed in range(300):
        old, new = tables(seed)
        found.append(drift(old, new, scores(old), scores(new), permutations=99, seed=seed))
    p_values = np.array([f.p_value for f in found])
    assert kstest(p_values, "uniform").pvalue > 0.01
    false = np.mean([(f.by_column <= 0.1).any() for f in found])
    assert false <= 0.1 + 3 * np.sqrt(0.09 / 300)


def test_the_column_that_moved_is_named():
    named = []
    for seed in range(20):
        old, new = tables(seed)
        new[:, 2] += 1.0
        found = drift(old, new, permutations=199)
        assert found.p_value <= 0.01 and found.scores is None
        named.append(np.flatnonzero(found.by_column < 0.05).tolist() == [2])
    assert np.mean(named) >= 0.85


def test_scores_see_a_correlation_that_is_lost():
    old, new = tables(0, (400, 400))
    new[:, 0] = np.random.default_rng(1).permutation(new[:, 0])  # the same column, alone
    found = drift(old, new, scores(old), scores(new))
    assert found.p_value == found.scores == 0.001
    assert (found.by_column > 0.05).all()
    assert drift(old, new).p_value > 0.05  # without scores nothing is seen


def test_distances_are_those_of_scipy_with_ties():
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(0)
    old, new = rng.integers(0, 4, (80, 2)), rng.integers(0, 5, (50, 2))
    expected = [ks_2samp(old[:, j], new[:, j]).statistic for j in range(2)]
    np.testing.assert_allclose(drift(old, new, permutations=9).distances, expected, atol=1e-6)


def test_what_is_wrong_is_named():
    old, new = tables(0)
    with pytest.raises(ValueError, match="must both be given, or none of them"):
        drift(old, new, scores(old))
    with pytest.raises(ValueError, match="must have 120 and 150 values, got 120 and 120"):
        drift(old, new, scores(old), scores(old))
    with pytest.raises(ValueError, match=r"`new` must have shape \(rows, 3\), got \(150, 2\)"):
        drift(old, new[:, :2])


def test_seconds_since_1970_are_compared_in_float64():
    """A shift of 0.3 s, where float32 knows steps of 128 s only."""
    rng = np.random.default_rng(0)
    old, new = 1.7e9 + rng.random((2, 200, 1))
    assert drift(old, new).p_value > 0.01
    assert drift(old, new + 0.3).p_value < 0.01
