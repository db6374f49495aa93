"""Batches: every row once an epoch, in orders that are uniform, independent and repeatable."""

import math
from itertools import permutations

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfdde.datasets import epoch_batches, stream

ROWS = 103
X = np.arange(ROWS)


def take(dataset, count):
    return np.concatenate([b.numpy() for b in dataset.take(count)])


def test_every_row_once_an_epoch_in_ever_new_order():
    rows = take(stream(X, 10, seed=3), 31)
    first, second, third = rows[:ROWS], rows[ROWS : 2 * ROWS], rows[2 * ROWS : 3 * ROWS]
    for epoch in (first, second, third):
        np.testing.assert_array_equal(np.sort(epoch), X)
    assert not np.array_equal(first, X)
    assert not np.array_equal(first, second) and not np.array_equal(second, third)
    assert not np.array_equal(first, take(stream(X, 10, seed=4), 11)[:ROWS])
    np.testing.assert_array_equal(rows, take(stream(X, 10, seed=3), 31))


def orders(rows, epochs, seed=0, start=0):
    """The orders of so many epochs, (epochs, rows), by one large batch."""
    batch = next(iter(stream(np.arange(rows), rows * epochs, seed, start))).numpy()
    return batch.reshape(epochs, rows)


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_all_orders_of_few_rows_are_equally_likely(rows):
    epochs = 20 * math.factorial(rows) if rows == 5 else 2_000
    number = {order: i for i, order in enumerate(permutations(range(rows)))}
    drawn = [number[tuple(order)] for order in orders(rows, epochs).tolist()]
    counts = np.bincount(drawn, minlength=len(number))
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 1])
def test_every_position_takes_every_row_equally_often(seed):
    epochs = orders(64, 3_000, seed)
    assert len(np.unique(epochs, axis=0)) == 3_000
    counts = np.stack([np.bincount(column, minlength=64) for column in epochs.T])
    # Rows and columns of the table have fixed sums, which leaves 63 * 63 degrees of freedom.
    chi_squared = ((counts - 3_000 / 64) ** 2).sum() / (3_000 / 64)
    assert stats.chi2(63 * 63).sf(chi_squared * 63 / 64) > 1e-3
    # Neighbours, too: the row that follows another is any other one.
    after = np.bincount(((epochs[:, 1:] - epochs[:, :-1]) % 64).ravel(), minlength=64)
    assert after[0] == 0
    assert stats.chisquare(after[1:]).pvalue > 1e-3


def test_batches_of_sorted_rows_are_fair_samples():
    """The share of the first half of the rows in a batch has a hypergeometric law."""
    epochs = orders(64, 2_000)
    first_half = (epochs.reshape(-1, 16) < 32).sum(axis=1)
    expected = stats.hypergeom(64, 32, 16).pmf(np.arange(17)) * len(first_half)
    few = expected < 5
    observed = np.bincount(first_half, minlength=17)
    observed = [*observed[~few], observed[few].sum()]
    assert stats.chisquare(observed, [*expected[~few], expected[few].sum()]).pvalue > 1e-3


def test_orders_of_epochs_and_seeds_are_independent():
    by_epoch = orders(64, 600)
    by_seed = np.concatenate([orders(64, 1, seed) for seed in [*range(1, 9), 256, 2**32]])
    ranks = np.concatenate([by_epoch, by_seed])
    assert len(np.unique(ranks, axis=0)) == len(ranks)
    correlation = np.corrcoef(ranks)[np.triu_indices(len(ranks), 1)]
    # A rank correlation of independent orders has variance 1 / (rows - 1).
    assert np.mean(correlation**2) * 63 == pytest.approx(1, abs=0.03)
    assert np.abs(correlation).max() < 6 / math.sqrt(63)
    # Epochs 256 apart had one order once, and so had seeds equal modulo 256.
    assert np.abs(np.corrcoef(by_epoch)[np.arange(344), np.arange(344) + 256]).max() < 0.6


def test_a_million_rows_are_permuted():
    first, second = orders(10**6, 2, seed=5)
    for order in (first, second):
        assert np.array_equal(np.bincount(order), np.ones(10**6))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5e-3
    assert abs(np.corrcoef(first, np.arange(10**6))[0, 1]) < 5e-3
    resumed = next(iter(stream(np.arange(10**6), 1_000, seed=5, start=1_999))).numpy()
    np.testing.assert_array_equal(resumed, second[-1_000:])


@pytest.mark.parametrize("start", [1, 7, 10, 25, 103])
def test_start_is_a_skip(start):
    expected = take(stream(X, 10, seed=3), start + 5)[10 * start :]
    np.testing.assert_array_equal(take(stream(X, 10, seed=3, start=start), 5), expected)


def test_batch_may_exceed_the_rows():
    rows = take(stream(X[:4], 10, seed=0), 2)
    assert len(rows) == 20
    for k in range(5):
        np.testing.assert_array_equal(np.sort(rows[4 * k : 4 * k + 4]), X[:4])


def test_epoch_batches_follow_the_variable():
    epoch = tf.Variable(0, dtype=tf.int64)
    dataset = epoch_batches(X, 10, 3, epoch)
    assert int(dataset.cardinality()) == 11
    long = take(stream(X, 10, seed=3), 31)
    for k in (0, 2, 1, 1):
        epoch.assign(k)
        batches = [b.numpy() for b in dataset]
        assert [len(b) for b in batches] == [10] * 10 + [3]
        np.testing.assert_array_equal(np.concatenate(batches), long[k * ROWS : (k + 1) * ROWS])


def test_keeps_the_rows_whole():
    x = np.random.default_rng(0).standard_normal((20, 3, 2)).astype("f4")
    batch = next(iter(stream(x, 5, seed=1))).numpy()
    assert batch.shape == (5, 3, 2) and batch.dtype == np.float32
    assert all(any(np.array_equal(row, r) for r in x) for row in batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[:0], 5, 0), "`x` is empty"),
        ((X, 0, 0), "`batch_size` must be an integer >= 1, got 0"),
        ((X, 2.5, 0), "`batch_size` must be an integer"),
        ((X, 5, 0, -1), "`start` must be an integer >= 0, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        stream(*arguments)
