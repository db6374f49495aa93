"""Measures on a grid, of modes and of samples, against closed forms and brute force."""

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

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


def standard(n, d, seed):
    """Rows whose mean and covariance are 0 and 1 exactly."""
    x = np.random.default_rng(seed).standard_normal((n, d))
    x -= x.mean(axis=0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False)))).T


def test_frechet_distance_of_known_moments():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4, 4))
    m = np.array([1.0, 2.0, 0.0, -1.0])
    x, y = standard(300, 4, 1) @ a.T, standard(500, 4, 2) @ b.T + m
    c, d = a @ a.T, b @ b.T
    expected = m @ m + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert metrics.frechet_distance(x, y).value == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(x, x).value == pytest.approx(0, abs=1e-9)
    one = metrics.frechet_distance(standard(50, 1, 1), 3 * standard(50, 1, 2) + 2).value
    assert one == pytest.approx(2**2 + (3 - 1) ** 2)


@pytest.mark.parametrize("bandwidth", [None, 0.7])
def test_kernel_distance_against_loops(bandwidth):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3)), rng.standard_normal((9, 3)) + 1

    def kernel(a, b):
        if bandwidth:
            return math.exp(-((a - b) ** 2).sum() / (2 * bandwidth**2))
        return (a @ b / 3 + 1) ** 3

    order = np.random.default_rng(5)
    xs, ys = x[order.permutation(8)], y[order.permutation(9)]
    values = []
    for a, b in ((xs[:4], ys[:4]), (xs[4:8], ys[4:8])):
        aa = np.mean([kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j])
        bb = np.mean([kernel(p, q) for i, p in enumerate(b) for j, q in enumerate(b) if i != j])
        values.append(aa + bb - 2 * np.mean([kernel(p, q) for p in a for q in b]))
    found = metrics.kernel_distance(x, y, bandwidth, seed=5)
    assert found.value == pytest.approx(np.mean(values))
    assert found.standard_error == pytest.approx(abs(values[0] - values[1]) / 2)


def test_kernel_distance_of_equals_is_zero_in_the_mean_and_its_interval_holds():
    rng = np.random.default_rng(0)
    found = []
    for seed in range(60):
        x, y = rng.standard_normal((2, 2_000, 2))
        found.append(metrics.kernel_distance(x, y, 1.0, block=100, seed=seed))
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(60)
    assert np.mean([f.lower <= 0 <= f.upper for f in found]) >= 0.85
    x, y = rng.standard_normal((2, 2_000, 2))
    # Gaussian kernel of bandwidth 1 and a shift m of unit normals: 2/3 (1 - exp(-m**2 / 6)).
    apart = metrics.kernel_distance(x, y + [1.0, 0.0], 1.0, block=100)
    truth = 2 / 3 * (1 - math.exp(-1 / 6))
    assert abs(apart.value - truth) < 3.5 * apart.standard_error
    assert apart.standard_error < 0.02


def test_sliced_wasserstein_of_a_shift():
    x = np.random.default_rng(0).standard_normal((400, 2))
    found = metrics.sliced_wasserstein(x, x + [3.0, 4.0], directions=4_000, repeats=10)
    assert found.value == pytest.approx(5 * 2 / math.pi, rel=0.03)  # mean of |cos| is 2 / pi
    assert 0 < found.standard_error < 0.3
    assert metrics.sliced_wasserstein(x, x[::-1]).value == 0


def test_density_and_coverage_of_one_distribution():
    rng = np.random.default_rng(0)
    n, k = 60, 5
    pairs = [rng.standard_normal((2, n, 3)) for _ in range(150)]
    density = np.array([metrics.density(x, y, k).value for x, y in pairs])
    coverage = np.array([metrics.coverage(x, y, k).value for x, y in pairs])
    # Lemma 2 of Naeem et al.: 1 - (n-1)...(n-k) / ((2n-1)...(2n-k)), whatever the distribution.
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    for values, truth in ((density, 1.0), (coverage, expected)):
        assert abs(values.mean() - truth) < 3.5 * values.std() / math.sqrt(150)


def test_precision_and_recall_of_half_the_truth():
    rng = np.random.default_rng(0)
    real = rng.uniform(-1, 1, (2_500, 2))
    made = rng.uniform(-1, 1, (2_500, 2))
    made[:, 0] = np.abs(made[:, 0])  # the right half only
    assert metrics.precision(real, made).value > 0.97
    recall = metrics.precision(made, real)
    assert recall.value == pytest.approx(0.5, abs=0.05)
    assert recall.standard_error == pytest.approx(0.01, rel=0.05)
    assert metrics.precision(real, made + 10).value == 0
    assert metrics.coverage(real, made).value == pytest.approx(0.5, abs=0.05)


def test_neighbourhoods_by_hand():
    real = np.array([[0.0], [1.0], [3.0]])
    made = np.array([[0.5], [2.0], [9.0]])
    # k = 1: radii 1, 1, 2 hold [-1, 1], [0, 2], [1, 5].
    assert metrics.precision(real, made, k=1).value == pytest.approx(2 / 3)
    assert metrics.density(real, made, k=1).value == pytest.approx(4 / 3)
    assert metrics.coverage(real, made, k=1).value == 1.0
    np.testing.assert_allclose(metrics.nearest_distances(made, real), [0.5, 1.0, 6.0])


def test_text_and_interval():
    found = metrics.Measured(1.23456, 0.1)
    assert str(found) == "1.235 ± 0.1"
    assert found.lower == pytest.approx(1.23456 - 0.196)
    assert found.upper == pytest.approx(1.23456 + 0.196)


X = np.zeros((10, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.frechet_distance(X[0], X), r"`x` must have shape \(rows, features\)"),
        (lambda: metrics.frechet_distance(X, X[:1]), "`y` must have .* at least 2 rows"),
        (lambda: metrics.frechet_distance(X, X + np.nan), "`y` must be finite"),
        (lambda: metrics.frechet_distance(X, X[:, :1]), "equal numbers of features, got 2 and 1"),
        (lambda: metrics.frechet_distance(X, X, repeats=1), "`repeats` must be an integer >= 2"),
        (lambda: metrics.kernel_distance(X[:3], X), "at least 4 rows, got 3 and 10"),
        (lambda: metrics.kernel_distance(X, X, 0.0), "`bandwidth` must be a finite number > 0"),
        (lambda: metrics.sliced_wasserstein(X, X[1:]), "equal numbers of rows, got 10 and 9"),
        (lambda: metrics.precision(X, X, k=10), "`k` must be below the number of real rows, 10"),
        (lambda: metrics.coverage(X[None], X), "`real` must have shape"),
        (lambda: metrics.nearest_distances(X, X[:0]), "`train` must have .* at least 1 rows"),
    ],
)
def test_bad_samples(call, message):
    with pytest.raises(ValueError, match=message):
        call()
