"""Batches from files: every row once an epoch, the same from wherever one begins, little memory."""

import json
import subprocess
import sys

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from scored import frame, write

import tfdde
from tfdde import networks
from tfdde.datasets.file_batches import stream_files

ROWS, BATCH = 1_000, 48
COLUMNS = ["a", "b", "c"]


@pytest.fixture(params=["a.csv", "a.csv.gz", "a.parquet", "a.tfrecord"])
def path(request, tmp_path, small_blocks):
    write(tmp_path / request.param, frame())
    return tmp_path / request.param


def take(batches, path, start=0, **options):
    columns = None if path.name.endswith("tfrecord") else COLUMNS
    options = {"buffer_rows": 130, "columns": columns, **options}
    dataset = stream_files(path, BATCH, seed=3, start=start, **options)
    return np.stack(list(dataset.take(batches).as_numpy_iterator()))


def in_order(x):
    return x[np.lexsort(x.T)]


def test_an_epoch_has_every_row_once_in_another_order_each_time(path):
    rows = take(-(-2 * ROWS // BATCH), path).reshape(-1, 3)
    truth = frame()[COLUMNS].to_numpy(np.float32)
    first, second = rows[:ROWS], rows[ROWS : 2 * ROWS]
    for epoch in (first, second):
        np.testing.assert_array_equal(in_order(epoch), in_order(truth))
        # Each buffer is shuffled, and no row leaves it.
        assert (epoch[:130] != truth[:130]).any(axis=1).mean() > 0.9
        np.testing.assert_array_equal(in_order(epoch[:130]), in_order(truth[:130]))
    assert (first != second).any(axis=1).mean() > 0.9


def test_any_start_goes_on_as_the_whole_does(path):
    whole = take(50, path)
    for start in (1, 20, 21, 41, 47):
        np.testing.assert_array_equal(take(3, path, start), whole[start : start + 3])


@pytest.mark.parametrize("buffer_rows", [1, 7, 5_000, None])
def test_any_buffer(tmp_path, buffer_rows):
    write(tmp_path / "a.parquet", frame())
    rows = take(21, tmp_path / "a.parquet", buffer_rows=buffer_rows).reshape(-1, 3)[:ROWS]
    truth = frame()[COLUMNS].to_numpy(np.float32)
    np.testing.assert_array_equal(in_order(rows), in_order(truth))
    assert (buffer_rows == 1) == np.array_equal(rows, truth)


def test_conditions_stay_with_their_rows(tmp_path):
    write(tmp_path / "a.parquet", frame())
    dataset = stream_files(
        tmp_path / "a.parquet", BATCH, seed=0, columns=["c", "a"], conditions=["b"]
    )
    truth = {tuple(row[[2, 0]]): row[1] for row in frame()[COLUMNS].to_numpy(np.float32)}
    x, condition = next(dataset.as_numpy_iterator())
    assert x.shape == (BATCH, 2) and condition.shape == (BATCH, 1)
    assert [truth[tuple(row)] for row in x] == condition[:, 0].tolist()


def test_trains_as_from_memory(tmp_path):
    """With one batch an epoch their order doesn't matter, so the weights are the same."""
    write(tmp_path / "a.parquet", frame())
    x = frame()[COLUMNS].to_numpy(np.float32)
    results = []
    for data in (
        stream_files(tmp_path / "a.parquet", ROWS, seed=0, columns=COLUMNS, buffer_rows=1),
        tf.data.Dataset.from_tensors(x).repeat(),
    ):
        keras.utils.set_random_seed(1)
        density = tfdde.DDE(networks.residual_mlp(3, 8, 2), tfdde.Constant(0.5), seed=4)
        density.compile(keras.optimizers.Adam(1e-3))
        density.fit(data, steps_per_epoch=3, epochs=2, verbose=0)
        results.append(density.get_weights())
    for got, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_bad_row_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.csv").write_text("a,b\n1,2\n")
    (tmp_path / "in" / "1.csv").write_text("a,b\n1,2\n3,x\n")
    dataset = stream_files(tmp_path / "in", 3, seed=0)
    with pytest.raises(tf.errors.OpError, match=r"Row 1 of '.*1.csv' is bad: column 'b' must be a"):
        next(dataset.as_numpy_iterator())


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("a,b\n", {}, "is empty: expected at least one row"),
        ("a,b\n1,2\n", {"columns": ["d"]}, "`columns` must name columns of .* got 'd'"),
        ("a,b\n1,2\n", {"batch_size": 0}, "`batch_size` must be an integer >= 1, got 0"),
        ("a,b\n1,2\n", {"start": -1}, "`start` must be an integer >= 0, got -1"),
        ("a,b\n1,2\n", {"buffer_rows": 0}, "`buffer_rows` must be an integer >= 1, got 0"),
    ],
)
def test_what_is_wrong_is_told_at_once(tmp_path, text, options, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        stream_files(tmp_path / "a.csv", **{"batch_size": 2, "seed": 0, **options})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        stream_files(tmp_path / "b.csv", 2, seed=0)


ENDED = """
import sys, time
from tfdde.datasets import file_batches as files

checked = files._checked
files._checked = lambda *args: (time.sleep(0.2), checked(*args))[1]
batches = iter(files.stream_files(sys.argv[1], 64, 0, columns=["a", "b", "c"], buffer_rows=64))
for _ in range(3):
    next(batches)
"""


def test_a_program_ends_though_there_is_an_iterator(tmp_path):
    write(tmp_path / "a.csv", frame())
    subprocess.run([sys.executable, "-c", ENDED, tmp_path / "a.csv"], check=True, timeout=60)


MEASURED = """
import json, re, sys
from pathlib import Path
from tfdde.datasets.file_batches import stream_files

def peak():
    return int(re.search("VmHWM:\\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1]) / 1024

batches = iter(stream_files(sys.argv[1], 4096, 0, buffer_rows=2**18))
next(batches)
before = peak()
rows = sum(len(next(batches)) for _ in range(1, int(sys.argv[2]) // 4096))
print(json.dumps([before, peak(), rows]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat(tmp_path):
    """Of a file of 134 MB, read one and a half times, no more than a few blocks stay."""
    schema = pa.schema([(f"x{i}", pa.float32()) for i in range(16)])
    rng = np.random.default_rng(0)
    with pa.parquet.ParquetWriter(tmp_path / "x.parquet", schema, compression="none") as writer:
        for _ in range(8):
            columns = rng.standard_normal((16, 2**18), np.float32)
            writer.write_table(pa.table(list(columns), schema.names))
    assert (tmp_path / "x.parquet").stat().st_size > 1.3e8
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "x.parquet", str(3 * 2**20)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    before, peak, rows = json.loads(done.stdout.splitlines()[-1])
    assert rows == 3 * 2**20 - 4096
    assert peak - before < 64
