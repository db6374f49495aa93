"""Hamiltonian moves: they keep a density, whatever its shape, and soon reach it."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import chi2, kstest

from tfdde.partition import hmc
from tfdde.partition.hmc import Moves, Shape


class Correlated:
    """A Gaussian of mean 3 whose principal deviations run from 0.05 to 5, with random axes."""

    def __init__(self, n, seed=0):
        rng = np.random.default_rng(seed)
        self.deviations = np.geomspace(0.05, 5.0, n)
        self.axes = np.linalg.qr(rng.standard_normal((n, n)))[0]
        self.root = self.axes * self.deviations  # (n, n), of the covariance
        self.precision = (self.axes / self.deviations**2) @ self.axes.T

    def sample(self, count, seed):
        z = np.random.default_rng(seed).standard_normal((count, len(self.root)))
        return (3.0 + z @ self.root.T).astype(np.float32)

    def path(self, y, level):
        c = y - 3.0
        inverse = tf.constant(self.axes / self.deviations, tf.float32)
        return -0.5 * level * tf.reduce_sum(tf.square(tf.matmul(c, inverse)), axis=1)

    def whitened(self, y):
        return (y.astype(np.float64) - 3.0) @ self.axes / self.deviations


def test_few_moves_keep_a_density_in_the_mean_over_many_small_sets_of_rows():
    """In a shape from their own scores, the rows would come to have 9 % too little energy."""
    gaussian, n = Correlated(20), 20
    moves = Moves(gaussian.path, shaped=True)
    squares = []
    for seed in range(60):
        y = moves(gaussian.sample(200, seed), 1.0, 0.05, 4, seed)
        squares.append(np.square(gaussian.whitened(y)).sum(axis=1).mean())
    error = np.std(squares, ddof=1) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - n) < 3.5 * error and error < 0.1


def test_a_correlated_gaussian_is_reached_in_a_few_moves():
    """From rows of a tenth of its deviations: 100 times the finest scale is far for small steps."""
    gaussian, n = Correlated(8), 8
    start = (3.0 + 0.1 * (gaussian.sample(3_000, 1) - 3.0)).astype(np.float32)
    y = Moves(gaussian.path, shaped=True)(start, 1.0, 0.05, 40, 0)
    z = gaussian.whitened(y)
    assert np.abs(z.std(axis=0) - 1.0).max() < 0.08
    assert np.abs(z.mean(axis=0)).max() < 0.1
    assert kstest(np.square(z).sum(axis=1), chi2(n).cdf).pvalue > 1e-3


def test_the_shape_of_a_gaussian_is_its_covariance():
    gaussian, count = Correlated(5), 40_000
    y = gaussian.sample(count, 2)
    score = (-(y - 3.0) @ gaussian.precision).astype(np.float32)
    shape = Shape(tf.constant(score), tf.constant(0.05))
    momentum = np.random.default_rng(3).standard_normal((count, 5)).astype(np.float32)
    z = shape.push(tf.constant(momentum)).numpy() @ gaussian.axes / gaussian.deviations
    # Ways of momenta N(0, 1) are as wide as the density in all directions.
    np.testing.assert_allclose(np.cov(z, rowvar=False), np.eye(5), atol=0.05)
    # pull is the transpose of push, so that a leapfrog keeps volumes.
    pulled = shape.pull(tf.constant(score)).numpy()
    np.testing.assert_allclose(
        (pulled * momentum).sum(axis=1),
        (score * shape.push(tf.constant(momentum)).numpy()).sum(axis=1),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("rows", [1, 2, 7, 61])
def test_too_few_rows_to_show_a_shape_move_by_the_finest_scale(rows):
    gaussian = Correlated(10)
    start = gaussian.sample(rows, 4)
    score = (-(start - 3.0) @ gaussian.precision).astype(np.float32)
    shape = Shape(tf.constant(score), tf.constant(0.05))
    if rows < 60:
        np.testing.assert_allclose(shape.push(tf.constant(start)), 0.05 * start, rtol=1e-3)
    y = Moves(gaussian.path, shaped=True)(start, 1.0, 0.05, 30, 0)
    assert np.isfinite(y).all() and not np.array_equal(y, start)


def test_rows_without_a_finite_score_stay_and_the_others_move():
    def path(y, level):
        log_p = -0.5 * level * tf.reduce_sum(tf.square(y), axis=1)
        return tf.where(y[:, 0] > 50.0, np.float32(np.nan), log_p)

    start = np.random.default_rng(0).standard_normal((2_000, 3)).astype(np.float32)
    start[::100, 0] = 60.0
    y = Moves(path, shaped=True)(start, 1.0, 1.0, 10, 0)
    np.testing.assert_array_equal(y[::100], start[::100])
    moved = np.delete(y, np.s_[::100], axis=0)
    assert np.abs(moved.std(axis=0) - 1.0).max() < 0.08


def test_rows_of_many_entries_move_by_equal_steps(monkeypatch):
    """Their shape would cost more than it gains."""
    monkeypatch.setattr(hmc, "Shape", None)
    n = hmc.MOST_ENTRIES + 1
    start = np.random.default_rng(0).standard_normal((500, n)).astype(np.float32)
    y = Moves(lambda y, level: -0.5 * tf.reduce_sum(y**2, 1) / level, shaped=True)(
        start, 1.0, 1.0, 3, 0
    )
    assert y.std() == pytest.approx(1.0, abs=0.02)
