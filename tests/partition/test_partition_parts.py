"""What the estimators of log Z are made of: sizes and errors by quadrature, ways, bounds."""

import math

import numpy as np
import pytest
from mixtures import Mixture, three
from test_partition import LOG_Z, exact

import tfdde
from tfdde import metrics
from tfdde.partition import annealed as annealed_module
from tfdde.partition import estimate as estimate_module
from tfdde.partition.annealed import annealed
from tfdde.partition.evaluator import Evaluator, Gaussian
from tfdde.partition.importance import importance
from tfdde.partition.ladder import ladder_levels
from tfdde.partition.result import LogPartition


def test_importance_has_the_size_and_error_of_its_weights():
    """Of weights w under q with E w = 1, E w**2 = c: N / c, and the error sqrt((c - 1) / N)."""
    sigma, samples = 0.3, 5_000
    data = three().sample(20_000, seed=1)
    flat = exact(three())

    def s(x, level):  # of rows of shape (1, 2)
        return flat(x[:, 0], level)

    found = importance(s, data[:, None], sigma, samples)
    grid, cell = metrics.grid(-7, 7, 500)
    log_q = Gaussian(data, sigma).log_density(grid)
    c = np.exp(2 * three().log_density(grid, sigma) - log_q).sum() * cell
    assert c > 1.5
    assert found.effective_sample_size == pytest.approx(samples / c, rel=0.05)
    assert found.standard_error == pytest.approx(math.sqrt((c - 1) / samples), rel=0.05)
    assert abs(found.value - LOG_Z) < 3 * found.standard_error
    assert (found.method, found.sigma) == ("importance", sigma)
    assert found == importance(s, data[:, None], sigma, samples, seed=0)
    assert found != importance(s, data[:, None], sigma, samples, seed=1)


def test_importance_sees_in_the_data_what_its_draws_miss():
    sigma, samples = 1e-3, 100
    mixture = Mixture([[0.0], [3.0]], [1.0, 1e-6], [0.5, 0.5])
    data = mixture.sample(5_000, seed=1)
    found = importance(exact(mixture), data, sigma, samples)
    assert found.value < LOG_Z - 0.5  # half of the mass was missed
    x = np.linspace(-7, 9, 1_000_001)[:, None]
    square = np.exp(2 * mixture.log_density(x, sigma) - Gaussian(data, sigma).log_density(x))
    weight = math.exp(LOG_Z - found.value) * square.sum() * 16e-6  # mean over data of w / Z
    assert found.effective_sample_size == pytest.approx(samples / weight, rel=0.1)


class Recorded:
    """Stands in for ``anneal``: keeps its arguments, and returns what it was made with."""

    def __init__(self, monkeypatch, *log_z):
        self.log_z, self.calls = [np.array(v) for v in log_z], []
        monkeypatch.setattr(annealed_module, "anneal", self)

    def __call__(self, increments, moves, rows, populations, rng):
        self.calls.append((increments, moves, rows))
        assert populations == 4
        return self.log_z[len(self.calls) - 1], (70.0, 50.0)[len(self.calls) - 1], rows


def apart(n):
    """Rows so far from each other that noise does not mix them up."""
    return 100 * np.eye(5, n, dtype="f4") + 20 * np.arange(5, dtype="f4")[:, None]


@pytest.mark.parametrize("n, levels", [(2, [0.3, 0.6, 2.0]), (2, [0.3, 2.0]), (16, [0.3])])
def test_annealing_goes_all_the_way_down_and_up(monkeypatch, n, levels):
    s, data = exact(Mixture(np.eye(3, n), [0.3, 0.5, 1.0], [1, 2, 3])), apart(n)
    moved = []

    class Moves:
        def __call__(self, y, level, scale, count, seed):
            moved.append((level, scale, count, seed))
            return y

    evaluator = Evaluator(s, (n,))
    evaluator.moves, moves_along = Moves(), evaluator.moves_along
    monkeypatch.setattr(evaluator, "moves_along", lambda path: Moves())
    recorded = Recorded(monkeypatch, np.zeros(4), np.zeros(4))
    annealed(evaluator, data, levels, 20_002, moves=3, seed=1, populations=4)
    (down, down_moves, first), (up, up_moves, start) = recorded.calls
    assert first.shape == start.shape == (20_000, n)

    # Both ends: the Gaussian of the data at the last level, and the data at the first.
    gaussian = Gaussian(data, levels[-1])
    np.testing.assert_allclose(first.mean(0), gaussian.mean, atol=2)
    covariance = np.linalg.inv(gaussian.precision)
    np.testing.assert_allclose(np.cov(first.T), covariance, atol=0.05 * covariance.max())
    nearest = np.square(start[:, None] - data).sum(-1).argmin(1)
    assert (np.bincount(nearest) == 4_000).all()
    noise = (start - data[nearest]) / levels[0]
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(1.0, abs=0.02)
    assert np.abs(np.diff(nearest)).max() > 0 and not (nearest[:5] == range(5)).all()

    # The ways: increments that add up to s less the Gaussian, and are the same upwards.
    y = np.random.default_rng(0).standard_normal((6, n)).astype("f4")
    whole = evaluator(y, levels[0]) - gaussian.log_density(y)
    np.testing.assert_allclose(sum(step(y) for step in down), whole, rtol=1e-5)
    for one, other in zip(down, reversed(up), strict=True):
        np.testing.assert_allclose(one(y), -other(y), rtol=1e-6)
    level, *others = moved.pop(0)
    assert (level[0] if n == 16 else level) == (1.0 if n == 16 else 0.3) and others[:2] == [0.3, 30]
    assert up_moves[-1](y, 7) is y and not moved
    for move in (*down_moves, *up_moves[:-1]):
        move(y, 7)
    if len(levels) > 1:
        way = levels[::-1]
        np.testing.assert_allclose(
            down[0](y), evaluator(y, way[0]) - gaussian.log_density(y), rtol=1e-6
        )
        np.testing.assert_allclose(
            down[1](y), evaluator(y, way[1]) - evaluator(y, way[0]), rtol=1e-5
        )
        assert moved == [(level, level, 3, 7) for level in (*way, *levels[1:])]
        return
    shares = (np.arange(1, 41) / 40) ** 2  # 10 sqrt(16) steps
    there = [*shares, *shares[-2::-1]]
    np.testing.assert_allclose([m[0][0] for m in moved], there)
    assert all(m[0][1] == 0.3 for m in moved)
    assert {m[1:] for m in moved} == {(0.3, 3, 7)}
    np.testing.assert_allclose(down[7](y), (shares[7] - shares[6]) * whole, rtol=1e-5)
    height = gaussian.log_density(gaussian.mean[None])
    expected = 0.3 * evaluator(y, 0.3) + 0.7 * (gaussian.log_density(y) - height)
    level = (0.3, *moved[0][0][1:])
    _, values = moves_along(annealed_module.from_gaussian).with_values(y, level, 0.3, 0, seed=0)
    np.testing.assert_allclose(values, expected, rtol=1e-4)


@pytest.mark.parametrize("crossed", [False, True])
def test_bounds_of_annealing(monkeypatch, crossed):
    down, up = [4.0, 4.5, 5.0, 4.1], [-5.5, -5.1, -5.2, -6.0]
    if crossed:
        down, up = np.add(down, 3.0), np.array(up)
    recorded = Recorded(monkeypatch, down, up)
    s = exact(Mixture(np.eye(3, 2), [0.3, 0.5, 1.0], [1, 2, 3]))
    found = annealed(s, apart(2), [0.3], 8, 1, populations=4)
    assert len(recorded.calls) == 2 and len(recorded.calls[0][0]) == 30
    low = np.mean(down) - 1.96 * np.std(down, ddof=1) / 2
    high = -np.mean(up) + 1.96 * np.std(up, ddof=1) / 2
    low, high = sorted([low, high])
    assert (found.lower, found.upper) == pytest.approx((low, high))
    assert found.value == pytest.approx((low + high) / 2)
    assert found.standard_error == pytest.approx((high - low) / 3.92)
    assert found.effective_sample_size == 50.0
    assert (found.method, found.sigma) == ("annealed", 0.3)


ONE, MANY = tfdde.Constant(0.5), tfdde.LogUniform(0.1, 8.0, 0.2)


@pytest.mark.parametrize(
    "noise, method, sigma, samples, moves, expected",
    [
        (ONE, None, None, None, 0, ("importance", 0.5, 50_000, 9)),
        (ONE, "annealed", None, None, 0, ("annealed", [0.5], 5_000, 1, 9)),
        (MANY, None, None, None, 0, ("ladder", (0.2, 8.0), 10_000, 0, 9)),
        (MANY, None, 0.1, 100, 2, ("ladder", (0.1, 8.0), 100, 2, 9)),
        (MANY, "ladder", 8.0, None, 1, ("ladder", [8.0], 10_000, 1, 9)),
        (MANY, "annealed", 0.4, 700, 3, ("annealed", (0.4, 8.0), 700, 3, 9)),
        (MANY, "importance", None, 800, 3, ("importance", 0.2, 800, 9)),
    ],
)
def test_the_noise_chooses_the_method_and_its_levels(
    monkeypatch, noise, method, sigma, samples, moves, expected
):
    data = np.zeros((2, 2, 3), "f4")
    got = []
    evaluator = Evaluator(lambda x, sigma: x[:, 0, 0], (2, 3))
    found = LogPartition.around(0.0, 0.1, 500, "found", 0.5)
    doubted = LogPartition.around(0.0, 0.1, 500, "doubted", 0.5)

    def checked(estimates, evaluate, rows, seed):
        assert estimates == [found] and evaluate is evaluator and rows is data and seed == 9
        return [doubted]

    def confirmed(estimate, evaluate, rows, sigmas, minimum, *settings):
        assert estimate is found and evaluate is evaluator and rows is data
        assert minimum == 0.1 and settings == (moves, 9, weights, None, 0)
        confirmations.append(sigmas)
        return estimate

    confirmations = []
    monkeypatch.setattr(estimate_module, "checked", checked)
    monkeypatch.setattr(estimate_module, "confirmed_at_one_level", confirmed)

    def stand_in(name):
        def call(log_density, rows, *rest, **weights):
            assert log_density is evaluator and rows is data
            rest = [*rest, weights["weights"]] if weights else rest
            got.append((name, *rest))
            return [found] if name == "ladder" else found

        return call

    for name in ("ladder", "importance", "annealed"):
        monkeypatch.setattr(estimate_module, name, stand_in(name))
    weights = np.array([1.0, 2.0])
    settings = noise, method, sigma, samples, moves, 9, weights
    assert estimate_module.estimate(evaluator, data, *settings) is doubted
    name, levels, *rest = expected
    rest = [*rest, weights, 0] if name == "ladder" else [*rest, weights]  # 0: not verbose
    if isinstance(levels, tuple):
        levels = ladder_levels(*levels, 6)
    assert got[0][0] == name and len(got) == 1
    assert all(a is b or a == b for a, b in zip(got[0][2:], rest, strict=True))
    np.testing.assert_array_equal(got[0][1], levels)
    # A ladder without moves is for densities which the rows are known to follow.
    assert len(confirmations) == (noise is MANY and (moves > 0 or name != "ladder"))
