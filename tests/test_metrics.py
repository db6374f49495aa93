import numpy as np
import pytest

from tfdde import metrics


def log_normal(x, mean, std):
    return -np.sum((x - mean) ** 2, 1) / (2 * std**2) - np.log(2 * np.pi * std**2)


def test_partition_and_kl_of_gaussians_in_closed_form():
    grid, cell = metrics.grid(-8, 8, 400)
    p, q = log_normal(grid, [0.5, 0.0], 0.8), log_normal(grid, [-0.3, 0.4], 1.1)
    assert abs(metrics.grid_log_partition(q + 3.7, cell) - 3.7) < 1e-6
    kl = 2 * np.log(1.1 / 0.8) + (2 * 0.8**2 + 0.8**2 + 0.4**2) / (2 * 1.1**2) - 1
    assert abs(metrics.grid_kl(p, q - 20, cell) - kl) < 1e-6
    assert abs(metrics.grid_kl(p, p + 5, cell)) < 1e-9


def test_kl_ignores_where_p_is_zero():
    p = np.log(np.array([0.5, 0.5, 0.0]), where=[True, True, False], out=np.full(3, -np.inf))
    q = np.log(np.array([0.25, 0.25, 0.5]))
    assert abs(metrics.grid_kl(p, q, 1.0) - np.log(2)) < 1e-12


def test_grid_layout():
    points, cell = metrics.grid(0, 4, 2)
    np.testing.assert_array_equal(points, [[1, 1], [3, 1], [1, 3], [3, 3]])
    assert cell == 4


def test_grid_that_misses_mass_is_refused():
    grid, cell = metrics.grid(-1, 1, 50)
    p = log_normal(grid, [0, 0], 1.0)
    with pytest.raises(ValueError, match=r"holds a mass of 0\.46.*widen or refine"):
        metrics.grid_kl(p, p, cell)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.grid(1, 1, 5), "low < high"),
        (lambda: metrics.grid_log_partition([[0.0]], 1.0), r"shape \(points,\)"),
        (lambda: metrics.grid_log_partition([np.nan], 1.0), "NaN or \\+inf"),
        (lambda: metrics.grid_kl([0.0], [0.0, 0.0], 1.0), "must have one shape"),
        (lambda: metrics.mode_shares(np.zeros((3, 2)), np.zeros((4, 3)), 1.0), "`modes`"),
        (lambda: metrics.mode_shares(np.zeros((3, 2)), np.zeros((4, 2)), 0.0), "`radius`"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mode_shares_with_strays_and_errors():
    modes = np.array([[0.0, 0.0], [10.0, 0.0]])
    x = np.concatenate([np.zeros((60, 2)), np.full((30, 2), [10.0, 0.5]), np.full((10, 2), 5.0)])
    shares, errors = metrics.mode_shares(x, modes, radius=1.0)
    np.testing.assert_allclose(shares, [0.6, 0.3])
    np.testing.assert_allclose(errors, np.sqrt([0.6 * 0.4 / 100, 0.3 * 0.7 / 100]))


def test_mode_coverage_against_its_expectation():
    rng = np.random.default_rng(0)
    uniform = [metrics.mode_coverage(rng.integers(0, 50, 2_000), 50) for _ in range(200)]
    assert all(covered == 50 for covered, _ in uniform)
    # Under uniform shares 2 n KL has a chi-squared law of 49 degrees of freedom.
    assert np.mean([kl.value for _, kl in uniform]) == pytest.approx(49 / 4_000, rel=0.05)
    # Half of the modes twice as often as they should be: log 2 exactly, whatever the counts' noise.
    labels = np.repeat(np.arange(0, 50, 2), 40)
    covered, kl = metrics.mode_coverage(labels, 50)
    assert covered == 25 and kl.value == pytest.approx(np.log(2)) and kl.standard_error < 1e-9
    # The error is that of repetitions.
    shares = rng.dirichlet(np.ones(20))
    found = [metrics.mode_coverage(rng.choice(20, 5_000, p=shares), 20)[1] for _ in range(300)]
    spread = np.std([kl.value for kl in found])
    assert np.mean([kl.standard_error for kl in found]) == pytest.approx(spread, rel=0.15)
    exact = np.sum(shares * np.log(20 * shares))
    assert np.mean([kl.value for kl in found]) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("labels", [[], [[1]], [0.5], [3], [-1]])
def test_mode_coverage_refuses(labels):
    with pytest.raises(ValueError, match="`labels` must be"):
        metrics.mode_coverage(labels, 3)
