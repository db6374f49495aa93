import numpy as np
import pytest
import tensorflow as tf

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


@pytest.mark.parametrize("start", [1, 7, 10, 25])
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
