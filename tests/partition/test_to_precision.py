"""log Z to a precision: coverage on exact mixtures, where it ends, and what it says meanwhile."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from mixtures import Mixture
from test_partition import LOG_Z, exact

import tfdde
from tfdde import networks
from tfdde.partition.evaluator import Evaluator, Gaussian
from tfdde.partition.ladder import Descent, Sampler, ladder, ladder_levels, score_controls
from tfdde.partition.to_precision import BATCH, ladder_to


def half_width(estimate):
    return 0.5 * (estimate.upper - estimate.lower)


def lopsided(n):
    return Mixture(1.5 * np.eye(3, n), [0.3, 0.5, 1.0], [1, 2, 3])


@pytest.mark.parametrize("n, precision, moves", [(2, 0.1, 2), (8, 0.1, 1), (8, 0.05, 1)])
def test_intervals_of_fifty_runs_hold_log_z(n, precision, moves):
    mixture = lopsided(n)
    evaluate, levels = Evaluator(exact(mixture), (n,)), ladder_levels(0.1, 8.0, n)
    errors, widths, reported = [], [], []
    for seed in range(50):
        data = mixture.sample(2_000, seed=100 + seed)
        found, reason = ladder_to(precision, evaluate, data, levels, moves=moves, seed=seed)
        assert not reason and found.trusted and found.method == "ladder" and found.sigma == 0.1
        errors.append(found.value - LOG_Z)
        widths.append(half_width(found))
        reported.append(found.standard_error)
    assert max(widths) <= precision
    assert (np.abs(errors) <= widths).sum() >= 44  # 95 % of 50 are 47.5 ± 1.5
    z = np.array(errors) / reported
    assert 0.75 < np.sqrt((z**2).mean()) < 1.25 and abs(z.mean()) < 4 / math.sqrt(50)


def test_more_precision_takes_more_samples():
    mixture, n = lopsided(8), 8
    evaluate, levels = Evaluator(exact(mixture), (n,)), ladder_levels(0.1, 8.0, n)
    data = mixture.sample(20_000, seed=1)
    settings = evaluate, data, levels
    coarse, fine = (ladder_to(p, *settings, moves=1)[0] for p in (0.2, 0.05))
    assert half_width(fine) <= 0.05 < half_width(coarse) <= 0.2
    assert fine.effective_sample_size > 2 * coarse.effective_sample_size
    assert fine == ladder_to(0.05, *settings, moves=1)[0]
    assert fine != ladder_to(0.05, *settings, moves=1, seed=1)[0]


def test_score_controls_have_mean_0_and_explain_gaussians():
    """Stein's identity, for a mixture; for a Gaussian little of the error is left."""
    n, sigma = 3, 0.4
    rng = np.random.default_rng(0)
    mixture = lopsided(n)
    y = mixture.sample(50_000, 1) + sigma * rng.standard_normal((50_000, n))
    gaussian = Gaussian(y, 0.0)
    controls = score_controls(y, mixture.score(y, sigma), gaussian)
    error = controls.std(axis=0) / math.sqrt(len(y))
    assert (np.abs(controls.mean(axis=0)) < 4 * error).all() and error.max() < 0.02

    round_one = Mixture(np.zeros((1, 8)), [1.0], [1.0])
    data, levels = round_one.sample(20_000, 1), ladder_levels(0.1, 8.0, 8)
    plain = ladder(exact(round_one), data, levels, BATCH, moves=2, by_score=False)[0]
    found, _ = ladder_to(1.0, exact(round_one), data, levels, moves=2)
    assert abs(found.value - LOG_Z) < 4 * found.standard_error < plain.standard_error


def test_batches_are_one_ladder():
    """Two batches pooled have the value and error of one ladder with all samples, but for chance;
    each alone has an error larger by the square root of 2."""
    mixture, n = lopsided(4), 4
    evaluate, levels = Evaluator(exact(mixture), (n,)), ladder_levels(0.1, 8.0, n)
    data = mixture.sample(20_000, seed=1)
    sampler = Sampler(evaluate, data, levels, by_score=True)
    errors = []
    for samples in (500, 1_000):
        descent = Descent(len(data))
        for links in sampler.links(samples, 1, np.random.default_rng(0)):
            descent.add(links[0])
        errors.append(descent.standard_error)
    precision = 1.96 * errors[0] * 0.99  # just not reached by one batch
    found, _ = ladder_to(precision, evaluate, data, levels, moves=1)
    assert errors[0] / errors[1] == pytest.approx(math.sqrt(2), rel=0.15)
    assert found.standard_error == pytest.approx(errors[1], rel=0.35)


class Counted:
    """s that counts the rows it is asked for, as TensorFlow runs it."""

    def __init__(self, mixture):
        self.s, self.rows = exact(mixture), tf.Variable(0, dtype=tf.int64)

    def __call__(self, x, sigma):
        self.rows.assign_add(tf.shape(x, out_type=tf.int64)[0])
        return self.s(x, sigma)


def test_what_cannot_be_reached_ends_at_once_with_the_need():
    mixture = lopsided(4)
    counted, levels = Counted(mixture), ladder_levels(0.1, 8.0, 4)
    data = mixture.sample(5_000, seed=1)
    found, reason = ladder_to(1e-4, counted, data, levels, most=1_000, moves=1)
    assert abs(found.value - LOG_Z) < 4 * found.standard_error
    assert "half-width is 0.0" in reason and "after 500 samples" in reason
    assert "more than `samples` (1,000) allows" in reason
    # One batch: a gradient at the start and four of a move; with the middle's, four bridges.
    assert int(counted.rows) <= BATCH * len(levels) * 10
    needed = int(reason.split("needs about ")[1].split(" at each")[0].replace(",", ""))
    assert needed == pytest.approx(500 * (half_width(found) / 1e-4) ** 2, rel=0.01)


def test_samples_do_not_make_up_for_moves():
    n = 16
    s_of = Mixture(np.zeros((1, n)), [1.0], [1.0])
    data = Mixture(np.full((1, n), 0.1), [1.15], [1.0]).sample(4_000, seed=1)
    levels = ladder_levels(0.3, 8.0, n)
    found, reason = ladder_to(0.02, exact(s_of), data, levels, moves=1)
    assert half_width(found) > 0.02 and not found.doubt
    assert "the second half of the moves changes log Z by" in reason
    assert "Make more `moves` than 1" in reason
    moved, reason = ladder_to(0.05, exact(s_of), data, levels, moves=16)
    assert moved.lower <= LOG_Z <= moved.upper and not reason


DATA = np.random.default_rng(0).standard_normal((2_000, 2)).astype("f4")


@pytest.fixture(scope="module")
def density():
    keras.utils.set_random_seed(0)
    network = networks.residual_mlp(2, 8, 1, activation="silu", levels=True)
    network.set_weights([0 * w for w in network.get_weights()])  # the base alone
    dde = tfdde.DDE(network, tfdde.LogUniform(0.3, 4.0), tfdde.GaussianBase(2))
    dde.adapt(DATA)
    return dde


def test_a_density_takes_the_precision_and_shows_its_progress(density, capsys):
    density.log_partition(DATA, precision=0.2, moves=1)
    assert not capsys.readouterr().out
    found = density.log_partition(DATA, precision=0.2, moves=1, verbose=2)
    assert half_width(found) <= 0.2 and density.partition is found
    said = capsys.readouterr().out
    levels = len(ladder_levels(0.3, 4.0, 2))
    assert f"log Z: half-width 0.2: first {levels} noise levels, 500 samples at each" in said
    assert f"{levels * 500 * 5:,} evaluations of s and its gradient, about" in said
    assert f"{levels}/{levels}" in said
    plain = density.log_partition(DATA, samples=300, moves=0)
    assert not capsys.readouterr().out
    assert density.log_partition(DATA, samples=300, moves=0, verbose=1) == plain
    assert f"{levels}/{levels}" in capsys.readouterr().out


def test_a_density_warns_of_a_precision_that_it_did_not_reach(density):
    with pytest.warns(UserWarning, match="`precision` was not reached. The 95 % interval"):
        found = density.log_partition(DATA, precision=1e-3, samples=1_000, moves=1)
    assert half_width(found) > 1e-3 and density.partition is found


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"precision": 0.0}, "`precision` must be a finite number > 0, got 0.0"),
        ({"precision": "high"}, "`precision` must be a positive number, got 'high'"),
        ({"precision": 0.1, "samples": 400}, "`samples` must be an integer >= 500, got 400"),
        ({"precision": 0.1, "method": "annealed"}, '`precision` needs the method "ladder"'),
        ({"verbose": 3}, "`verbose` must be 0, 1 or 2, got 3"),
    ],
)
def test_bad_arguments_are_named(density, arguments, message):
    with pytest.raises(ValueError, match=message):
        density.log_partition(DATA, **arguments)
