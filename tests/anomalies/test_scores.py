"""Anomaly scores against exact Gaussians and mixtures."""

import keras
import numpy as np
import pytest
from gaussians import gaussian_dde
from mixtures import Mixture, three

import tfdde
from tfdde.anomalies import AnomalyScores, RowsDensity, scores

COVARIANCE = np.array([[1.0, 0.9, 0.0], [0.9, 2.0, 0.0], [0.0, 0.0, 0.5]])
MEAN = np.array([1.0, -2.0, 0.5])


def gaussian(rows=4_000, seed=0):
    return np.random.default_rng(seed).multivariate_normal(
        MEAN, COVARIANCE, rows, method="cholesky"
    )


def brute_force(rows, sigma):
    """Log-densities of the rows, each without itself and its copies, one by one."""
    out = []
    for x in rows:
        square = np.square(rows - x).sum(axis=1)
        others = np.exp(-square[square > 0] / (2 * sigma**2)).sum() / (len(rows) - 1)
        out.append(np.log(others) - rows.shape[1] * np.log(sigma * np.sqrt(2 * np.pi)))
    return np.array(out)


def test_rows_density_is_the_blurred_rows():
    rows, x = three().sample(300, 0), three().sample(50, 1)
    density = RowsDensity(rows, sigma=0.3)
    exact = Mixture(rows, np.zeros(len(rows)), np.ones(len(rows))).log_density(x, 0.3)
    np.testing.assert_allclose(density.log_density(x), exact, rtol=1e-6)
    found = np.sort(density.left_out)
    np.testing.assert_allclose(found, np.sort(brute_force(rows.astype(float), 0.3)), rtol=1e-5)


def test_rows_of_the_density_are_scored_without_themselves():
    rows = three().sample(200, 0).astype(float)
    density = RowsDensity(rows, sigma=0.3)
    alone = density.log_density(rows, leave_one_out=True)
    np.testing.assert_allclose(alone, brute_force(rows, 0.3), rtol=1e-5)
    copied = RowsDensity(np.r_[rows, rows[:1]], sigma=0.3)
    first = copied.log_density(rows[:1], leave_one_out=True)
    np.testing.assert_allclose(first, density.log_density(rows[:1]), rtol=1e-6)


def test_level_is_where_rows_left_out_are_likeliest():
    rows = three().sample(200, 0).astype(float)
    scale = np.sqrt(rows.var(axis=0).mean())
    medians = [np.median(brute_force(rows, level * scale)) for level in scores.LEVELS]
    best = scores.LEVELS[int(np.argmax(medians))] * scale
    assert RowsDensity(rows).sigma == pytest.approx(best, rel=1e-5)
    # Copies of the rows say nothing of the level.
    assert RowsDensity(np.repeat(rows, 3, axis=0)).sigma == pytest.approx(best, rel=1e-5)


def test_scores_of_an_exact_gaussian():
    rows, x = gaussian(), gaussian(100, 1)
    found = AnomalyScores(gaussian_dde(rows), rows)
    covariance = np.cov(rows.T, bias=True) + 0.1**2 * np.eye(3)
    solved = np.linalg.solve(covariance, (x - rows.mean(axis=0)).T).T
    square = (solved * (x - rows.mean(axis=0))).sum(axis=1)
    density = 0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])
    np.testing.assert_allclose(found.anomaly_score(x, "density"), density, rtol=2e-4)
    score = 0.1 * np.linalg.norm(solved, axis=1)
    np.testing.assert_allclose(found.anomaly_score(x, "score"), score, rtol=1e-3)
    time = 0.1**2 * (np.square(solved).sum(axis=1) - np.trace(np.linalg.inv(covariance)))
    np.testing.assert_allclose(found.anomaly_score(x, "time"), time, atol=2e-3)
    exact = -RowsDensity(rows).log_density(x)
    np.testing.assert_allclose(found.anomaly_score(x, "rows"), exact, rtol=1e-5)


def test_joint_score_ranks_outliers_first_and_knows_no_units():
    rows, normal = gaussian(2_000), gaussian(500, 1)
    strange = normal[:50] + [0.0, 0.0, 6.0]
    x = np.r_[normal[50:], strange]
    found = AnomalyScores(gaussian_dde(rows), rows).anomaly_score(x, "joint")
    assert found[:450].max() < np.median(found[450:])
    # Its middle is 0, in the quartile ranges of rows that are left out.
    assert abs(np.median(found[:450])) < 0.15

    scale, layer = np.array([1e-3, 1.0, 50.0]), keras.layers.Normalization()
    plain = AnomalyScores(gaussian_dde(rows, normalization=keras.layers.Normalization()), rows)
    dde = gaussian_dde(rows * scale, normalization=layer)
    scaled = AnomalyScores(dde, rows * scale).anomaly_score(x * scale, "joint")
    np.testing.assert_allclose(scaled, plain.anomaly_score(x, "joint"), atol=2e-3)


def test_one_noise_level_has_all_but_the_time_score():
    rows = gaussian(500)
    found = AnomalyScores(gaussian_dde(rows, tfdde.Constant(0.2)), rows)
    assert found.anomaly_score(rows[:5]).shape == (5,)
    with pytest.raises(ValueError, match="'time' needs LogUniform noise, got Constant"):
        found.anomaly_score(rows[:5], "time")


def test_what_is_wrong_is_named():
    rows = gaussian(100)
    with pytest.raises(ValueError, match="at least two distinct rows, got 4 alike"):
        RowsDensity(np.ones((4, 2)))
    with pytest.raises(ValueError, match="`sigma` must be a finite number > 0, got -1"):
        RowsDensity(rows, sigma=-1)
    found = AnomalyScores(gaussian_dde(rows), rows)
    with pytest.raises(ValueError, match="must be one of rows, joint, .*got 'norm'"):
        found.anomaly_score(rows, "norm")
    with pytest.raises(ValueError, match=r"`x` must have shape \(rows, 3\), got \(100, 2\)"):
        found.anomaly_score(rows[:, :2])
    network = tfdde.networks.residual_mlp(2, 4, 1, conditions=2)
    with pytest.raises(ValueError, match="without conditions, got .* conditions of 2 entries"):
        AnomalyScores(tfdde.DDE(network), rows[:, :2])
