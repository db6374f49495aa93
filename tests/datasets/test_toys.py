"""Toys against brute-force quadrature, their own samples and finite tails."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tfdde import datasets, metrics

SIGMAS = (0.0, 0.05, 0.3)
WITHIN = [name for name in datasets.TOYS if name != "distant_gaussians"]  # the grids used here


@pytest.mark.parametrize("name", WITHIN)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_density_integrates_to_one(name, sigma):
    side = 120 if name == "two_spirals" else 240
    grid, cell = metrics.grid(-6.5, 6.5, side)
    log_density = datasets.toy_log_density(name, grid, sigma)
    assert log_density.dtype == np.float64 and log_density.shape == (side**2,)
    # The midpoint rule is off where the density jumps, at sigma = 0 on the checkerboard.
    bound = 0.02 if name == "checkerboard" and sigma == 0 else 2e-3
    assert abs(metrics.grid_log_partition(log_density, cell)) < bound


@pytest.mark.parametrize("name", WITHIN)
def test_samples_have_the_entropy_of_the_density(name):
    sigma, n = 0.2, 15_000
    noise = sigma * np.random.default_rng(7).standard_normal((n, 2))
    x = datasets.sample_toy(name, n, seed=3) + noise
    values = datasets.toy_log_density(name, x, sigma)
    grid, cell = metrics.grid(-6, 6, 120)
    on_grid = datasets.toy_log_density(name, grid, sigma)
    minus_entropy = np.sum(np.exp(on_grid) * on_grid) * cell
    assert abs(values.mean() - minus_entropy) < 4 * values.std() / np.sqrt(n) + 1e-3


@pytest.mark.parametrize("name", WITHIN)
def test_samples_fill_the_density_cell_by_cell(name):
    """Chi-square of counts in cells against the blurred density."""
    sigma, n, side = 0.3, 50_000, 24
    x = datasets.sample_toy(name, n, seed=4)
    x = x + sigma * np.random.default_rng(8).standard_normal((n, 2))
    edges = np.linspace(-6, 6, side + 1)
    counts = np.histogram2d(x[:, 1], x[:, 0], bins=[edges, edges])[0].ravel()
    fine, cell = metrics.grid(-6, 6, side * 6)
    density = np.exp(datasets.toy_log_density(name, fine, sigma)) * cell
    expected = n * density.reshape(side, 6, side, 6).sum(axis=(1, 3)).ravel()
    some = expected > 10
    chi = np.sum((counts[some] - expected[some]) ** 2 / expected[some])
    assert chi < some.sum() + 5 * np.sqrt(2 * some.sum())


@pytest.mark.parametrize("name", WITHIN)
def test_blurring_is_convolution(name):
    """Against the unblurred density summed over the noise, at points of high density."""
    sigma = 0.4
    points = datasets.sample_toy(name, 1 if name == "two_spirals" else 5, seed=0).astype(float)
    step = np.linspace(-6, 6, 121 if name == "two_spirals" else 401) * sigma
    noise = np.stack(np.meshgrid(step, step), -1).reshape(-1, 2)
    weight = np.exp(-np.sum(noise**2, 1) / (2 * sigma**2))
    weight /= weight.sum()
    for point in points:
        brute = np.sum(weight * np.exp(datasets.toy_log_density(name, point - noise, 0.0)))
        exact = np.exp(datasets.toy_log_density(name, point[None], sigma))[0]
        # The sum is off by a few cells where the checkerboard's density jumps.
        assert abs(brute / exact - 1) < (0.01 if name == "checkerboard" else 1e-4)


@pytest.mark.parametrize("name", datasets.TOYS)
def test_tails_stay_finite(name):
    far = np.array([[30.0, 0.0], [0.0, -25.0], [20.0, 20.0]])
    value = datasets.toy_log_density(name, far, 0.2)
    assert np.isfinite(value).all() and (value < -1000).all()


@pytest.mark.parametrize("name", ["eight_gaussians", "gaussian_grid", "distant_gaussians"])
def test_mixtures_against_scipy(name):
    modes, std, sigma, n = datasets.toy_modes(name), datasets.toy_std(name), 0.15, 20_000
    x = datasets.sample_toy(name, n, seed=1)
    covariance = (std**2 + sigma**2) * np.eye(2)
    parts = [multivariate_normal(mode, covariance).pdf(x[:200].astype(float)) for mode in modes]
    np.testing.assert_allclose(
        datasets.toy_log_density(name, x[:200], sigma), np.log(np.mean(parts, axis=0)), rtol=1e-9
    )
    shares, errors = metrics.mode_shares(x, modes, 6 * std)
    assert np.abs(shares - 1 / len(modes)).max() < 4 * errors.max()
    off = x - modes[np.linalg.norm(x[:, None] - modes, axis=-1).argmin(axis=1)]
    assert off.std() == pytest.approx(std, rel=0.02)
    assert np.abs(x).max() < datasets.toy_scale(name)


def test_checkerboard_without_noise_is_its_squares():
    grid, _ = metrics.grid(-5, 5, 100)
    inside = datasets.inside_checkerboard(grid)
    density = datasets.toy_log_density("checkerboard", grid, 0.0)
    np.testing.assert_array_equal(inside, np.isfinite(density))
    assert np.isclose(inside.mean(), 32 / 100)
    assert datasets.inside_checkerboard(datasets.sample_toy("checkerboard", 5000, 0)).all()


def test_samples_are_seeded_float32():
    for name in datasets.TOYS:
        x = datasets.sample_toy(name, 10, seed=1)
        assert x.shape == (10, 2) and x.dtype == np.float32
        np.testing.assert_array_equal(x, datasets.sample_toy(name, 10, seed=1))
        assert not np.array_equal(x, datasets.sample_toy(name, 10, seed=2))
    same = datasets.sample_toy("8gaussians", 10, seed=1)
    np.testing.assert_array_equal(same, datasets.sample_toy("eight_gaussians", 10, seed=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: datasets.sample_toy("checkerbord", 5, 0), "Did you mean 'checkerboard'"),
        (lambda: datasets.sample_toy("xyz", 5, 0), "must be one of eight_gaussians.*got 'xyz'"),
        (lambda: datasets.toy_log_density("rings", np.zeros((3, 3)), 0.1), r"got \(3, 3\)"),
        (lambda: datasets.toy_log_density("rings", np.zeros((3, 2)), -0.1), "`sigma` must be"),
        (lambda: datasets.toy_log_density("rings", np.zeros((3, 2)), np.nan), "`sigma` must be"),
        (lambda: datasets.toy_std("rings"), "a toy of Gaussians, got 'rings'"),
        (lambda: datasets.toy_modes("rings"), "a toy with modes, got 'rings'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
