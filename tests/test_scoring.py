"""Scores of files against the closed form, also past bad rows and after kills."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy.stats import multivariate_normal

import tfdde
from tfdde import scoring
from tfdde.datasets import blocks, tfrecords

ROOT = Path(__file__).parent.parent
MEAN = np.array([1.0, -2.0, 0.5])
ROWS = 1_000
# Keras's own saving of weights makes NumPy 2 warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Gaussian(tf.Module):
    """log N(x; mean, I); conditional: the condition is the mean, and must not be negative."""

    def __init__(self):
        super().__init__()
        self.mean = tf.Variable(MEAN, dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")])
    def log_density(self, x):
        constant = 1.5 * np.log(2 * np.pi).astype(np.float32)
        return {"log_density": -0.5 * tf.reduce_sum((x - self.mean) ** 2, axis=1) - constant}

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 3), tf.float32, name="x"),
            tf.TensorSpec((None, 1), tf.float32, name="condition"),
        ]
    )
    def conditional(self, x, condition):
        values = self.log_density(x - condition + self.mean)["log_density"]
        return {"log_density": tf.where(condition[:, 0] < 0, np.nan, values)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders: "normalized", "unknown" (without metadata) and "conditional", two versions each."""
    folder, module = tmp_path_factory.mktemp("models"), Gaussian()
    for name in ("normalized", "unknown", "conditional"):
        function = module.conditional if name == "conditional" else module.log_density
        for version in ("9", "10"):
            module.mean.assign(MEAN if version == "10" else MEAN + 1)
            path = folder / name / version
            tf.saved_model.save(module, str(path), signatures={"log_density": function})
            if name != "unknown":
                (path / "assets.extra").mkdir()
                (path / "assets.extra" / "metadata.json").write_text('{"normalized": true}')
    return folder


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("score", ROOT / "export" / "score.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(monkeypatch):
    """Blocks of few rows, so that the tests' files have many."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 64)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 3_000)


def frame(rows=ROWS, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    table = pd.DataFrame(x, columns=["a", "b", "c"])
    table["id"] = [f"row {i}, {seed}" for i in range(rows)]
    return table


def truth(table):
    return multivariate_normal(MEAN).logpdf(table[["a", "b", "c"]].to_numpy(np.float64))


def example(x, **features):
    made = {"x": tf.train.Feature(float_list=tf.train.FloatList(value=x))} if x is not None else {}
    for name, value in features.items():
        made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def write(path, table):
    if path.suffix == ".parquet":
        table.to_parquet(path, row_group_size=300)
    elif ".csv" in path.name:
        table.to_csv(path, index=False)
    else:
        options = "GZIP" if path.suffix == ".gz" else None
        with tf.io.TFRecordWriter(str(path), options) as writer:
            for *x, name in table.itertuples(index=False):
                writer.write(example(x, id=name.encode()))
    return path


def read(path):
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".csv":
        return pd.read_csv(path)
    rows = []
    for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        features = tf.train.Example.FromString(raw).features.feature
        assert set(features) == {"row", "log_density", "id"}
        (row,) = features["row"].int64_list.value
        (value,) = features["log_density"].float_list.value
        (name,) = features["id"].bytes_list.value
        rows.append((row, value, name.decode()))
    return pd.DataFrame(rows, columns=["row", "log_density", "id"])


@pytest.mark.parametrize(
    "source", ["a.csv", "a.csv.gz", "a.parquet", "a.tfrecord", "a.tfrecord.gz"]
)
@pytest.mark.parametrize("output", ["out.csv", "out.parquet", "out.tfrecord"])
def test_scores_are_those_of_the_closed_form(models, tmp_path, small, source, output):
    table = frame()
    write(tmp_path / source, table)
    done = scoring.score_file(
        models / "normalized",
        tmp_path / source,
        tmp_path / output,
        keep=["id"],
        batch_rows=17,
        part_rows=130,
    )
    assert done == 0
    got = read(tmp_path / output)
    assert list(got) == ["row", "log_density", "id"]
    np.testing.assert_array_equal(got["row"], range(ROWS))
    np.testing.assert_array_equal(got["id"], table["id"])
    np.testing.assert_allclose(got["log_density"], truth(table), atol=2e-5)
    assert {p.name for p in tmp_path.iterdir()} == {source, output}


def test_rows_count_through_the_files_of_a_folder(models, tmp_path, small):
    tables = [frame(70, seed) for seed in range(3)]
    (tmp_path / "in").mkdir()
    for name, table in zip(["part-0", "part-1", "part-2"], tables, strict=True):
        write(tmp_path / "in" / f"{name}.parquet", table)
    (tmp_path / "in" / "_SUCCESS").touch()
    out = tmp_path / "out.parquet"
    scoring.score_file(models / "normalized", tmp_path / "in", out, ["a", "b", "c"])
    got = read(out)
    np.testing.assert_array_equal(got["row"], range(210))
    np.testing.assert_allclose(got["log_density"], truth(pd.concat(tables)), atol=2e-5)


def test_columns_are_taken_by_name(models, tmp_path):
    table = frame(20).assign(extra=1.0)[["extra", "c", "b", "id", "a"]]
    write(tmp_path / "in.csv", table)
    out = tmp_path / "out.csv"
    scoring.score_file(models / "unknown", tmp_path / "in.csv", out, ["a", "b", "c"], keep=["a"])
    got = read(out)
    # Without metadata nobody knows whether the density is normalised.
    assert list(got) == ["row", "unnormalized_log_density", "a"]
    np.testing.assert_allclose(got["unnormalized_log_density"], truth(table), atol=2e-5)
    np.testing.assert_allclose(got["a"], table["a"])


def test_an_empty_table_gives_an_empty_output(models, tmp_path):
    for name in ("in.csv", "in.parquet", "in.tfrecord"):
        write(tmp_path / name, frame(0)[["a", "b", "c", "id"]])
        keep = [] if name == "in.tfrecord" else ["id"]
        out = tmp_path / "out.csv"
        assert scoring.score_file(models / "normalized", tmp_path / name, out, keep=keep) == 0
        assert len(read(out)) == 0
        out.unlink()


BAD_CSV = {
    "1,2": "line must have 3 fields, got 2",
    "1,2,3,4": "line must have 3 fields, got 4",
    '1,"2,3': "line has an open quote",
    "1,x,3": "column 'b' must be a number, got 'x'",
    "1,2_0,3": "column 'b' must be a number, got '2_0'",
    "1, ,3": "column 'b' is missing",
    ",nan,3": "column 'a' is missing",
    "1,2,nan": "column 'c' must be finite in float32, got nan",
    "1,2,-inf": "column 'c' must be finite in float32, got -inf",
    "1,2,1e39": "column 'c' must be finite in float32, got 1e+39",
    "\udcff,2,3": "line is not UTF-8",
}


def rejects(out):
    table = pd.read_csv(f"{out}.rejects.csv")
    assert list(table) == ["row", "reason"]
    return dict(zip(table["row"], table["reason"], strict=True))


@pytest.mark.parametrize("size", [1, 20, 3_000, 10**6])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_bad_lines_of_csv_are_rejected_and_no_others(models, tmp_path, monkeypatch, size, end):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
    table = frame(200)[["a", "b", "c"]]
    lines = [f'{a!r},"{b!r}", {c!r}' for a, b, c in table.astype(float).itertuples(index=False)]
    places = dict(zip([0, 1, 2, 50, 60, 70, 80, 90, 100, 198, 199], BAD_CSV, strict=True))
    for row, line in places.items():
        lines[row] = line
    lines.insert(150, "")  # a blank line is no row
    text = end.join(["a,b,c", *lines])
    (tmp_path / "in.csv").write_bytes(text.encode(errors="surrogateescape"))
    out = tmp_path / "out.csv"
    bad = scoring.score_file(models / "normalized", tmp_path / "in.csv", out, part_rows=75)
    assert bad == len(BAD_CSV)
    assert rejects(out) == {row: BAD_CSV[line] for row, line in places.items()}
    good = np.setdiff1d(np.arange(200), list(places))
    got = read(out)
    np.testing.assert_array_equal(got["row"], good)
    np.testing.assert_allclose(got["log_density"], truth(table.iloc[good]), atol=2e-5)


def test_a_file_of_bad_lines_only(models, tmp_path):
    for line in BAD_CSV:
        text = "a,b,c\n" + f"{line}\n" * 3
        (tmp_path / "in.csv").write_bytes(text.encode(errors="surrogateescape"))
        out = tmp_path / "out.csv"
        bad = scoring.score_file(models / "normalized", tmp_path / "in.csv", out)
        assert (bad, len(read(out))) == (3, 0)
        assert rejects(out) == dict.fromkeys(range(3), BAD_CSV[line])
        out.unlink()


@pytest.mark.parametrize("neighbour", ["1", "x", "", "1e400"])
def test_a_value_is_read_alike_whatever_its_neighbours(neighbour):
    texts = ["1.5", " +2 ", "-3e-2", ".5", "7.", "0x10", "1_0", "nan", "Infinity", "", "1e-46"]
    table = blocks.pa.table({"a": [neighbour, *texts]})
    values, reasons = blocks.numbers(table, ["a"])
    expected = [1.5, 2.0, np.float32(-0.03), 0.5, 7.0]
    np.testing.assert_array_equal(values[1:6, 0], expected)
    assert values[-1, 0] == 0
    assert [r is None for r in reasons[1:]] == [True] * 5 + [False] * 5 + [True]


def test_bad_values_of_parquet_are_rejected(models, tmp_path):
    table = frame(30).astype({"a": float})
    table["b"] = pd.array([*range(29), None], "Int64")
    table.loc[3, "a"], table.loc[4, "c"], table.loc[5, "a"] = np.nan, np.inf, -1e300
    write(tmp_path / "in.parquet", table)
    out = tmp_path / "out.parquet"
    bad = scoring.score_file(models / "normalized", tmp_path / "in.parquet", out, keep=["id"])
    assert bad == 4
    assert rejects(out) == {
        3: "column 'a' is missing",  # as pandas writes NaN
        4: "column 'c' must be finite in float32, got inf",
        5: "column 'a' must be finite in float32, got -1e+300",
        29: "column 'b' is missing",
    }
    good = table.drop([3, 4, 5, 29])
    got = read(out)
    np.testing.assert_array_equal(got["row"], good.index)
    np.testing.assert_array_equal(got["id"], good["id"])
    np.testing.assert_allclose(got["log_density"], truth(good), rtol=1e-6, atol=2e-5)


def frames(path):
    """Offsets of the records of a file, and its end."""
    data, offsets = path.read_bytes(), [0]
    while offsets[-1] < len(data):
        length = int.from_bytes(data[offsets[-1] : offsets[-1] + 8], "little")
        offsets.append(offsets[-1] + length + 16)
    return offsets


@pytest.mark.parametrize("keep", [[], ["id"]])
def test_bad_records_are_rejected(models, tmp_path, small, keep):
    table = frame(200)
    records = [example(x, id=name.encode()) for *x, name in table.itertuples(index=False)]
    records[70] = b"no example"
    records[71] = example(None, id=b"no x")
    records[72] = example([1, 2, 3, 4], id=b"long")
    records[73] = example([1, np.nan, 3], id=b"nan")
    records[74] = example(table.loc[74, ["a", "b", "c"]])  # without an id, which is then missing
    path = tmp_path / "in.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    data, at = bytearray(path.read_bytes()), frames(path)
    data[at[0] + 20] ^= 1  # in a record, and in a checksum of one
    data[at[130] - 1] ^= 128
    data = data[: at[199] + 30]  # in the middle of the last
    path.write_bytes(data)
    out = tmp_path / "out.parquet"
    # The types of kept features are those of the first record, which is whole.
    if keep:
        with pytest.raises(ValueError, match=r"in\.tfrecord' cannot be read: record is corrupt"):
            scoring.score_file(models / "normalized", path, out, keep=keep)
        data[at[0] + 20] ^= 1
        path.write_bytes(data)
    scoring.score_file(models / "normalized", path, out, keep=keep)
    corrupt = "record is corrupt: it has another checksum"
    expected = {
        70: "record is not a tf.Example",
        71: "feature 'x' must have 3 floats, got 0",
        72: "feature 'x' must have 3 floats, got 4",
        73: "`x` or `condition` must be finite, got NaN or infinity",
        129: corrupt,
        199: "record has a corrupt length or is cut off: the file ends",
    }
    assert rejects(out) == (expected if keep else expected | {0: corrupt})
    got = read(out)
    good = table.drop(list(rejects(out)))
    np.testing.assert_array_equal(got["row"], good.index)
    np.testing.assert_allclose(got["log_density"], truth(good), atol=2e-5)
    if keep:
        good.loc[74, "id"] = None
        assert got["id"].fillna("").tolist() == good["id"].fillna("").tolist()


def test_a_corrupt_length_ends_a_file_but_not_the_folder(models, tmp_path):
    tables = [frame(50, seed) for seed in (0, 1)]
    (tmp_path / "in").mkdir()
    first, _ = (
        write(tmp_path / "in" / f"x.tfrecord-0000{i}-of-00002", table)
        for i, table in enumerate(tables)
    )
    data, at = bytearray(first.read_bytes()), frames(first)
    data[at[20] + 1] ^= 1
    first.write_bytes(data)
    out = tmp_path / "out.parquet"
    assert scoring.score_file(models / "normalized", tmp_path / "in", out) == 1
    assert list(rejects(out)) == [20]
    got = read(out)
    np.testing.assert_array_equal(got["row"], [*range(20), *range(21, 71)])
    np.testing.assert_allclose(
        got["log_density"], truth(pd.concat([tables[0][:20], tables[1]])), atol=2e-5
    )


def test_checksum_is_crc_32c():
    # The check value of CRC-32C is that of the digits 1 to 9: e3069283.
    crc = 0xE3069283
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    digits = np.frombuffer(b"123456789", np.uint8)
    assert tfrecords.masked_crc(digits[None]).tolist() == [masked]


def test_conditions(models, tmp_path):
    table = frame(30).drop(columns="id").assign(k=np.arange(30) % 3 - 1.0)
    write(tmp_path / "in.parquet", table)
    out = tmp_path / "out.parquet"
    with pytest.raises(ValueError, match=r"`conditions` must be 1 of .*, got 0: none\."):
        scoring.score_file(models / "conditional", tmp_path / "in.parquet", out, list("abc"))
    bad = scoring.score_file(
        models / "conditional", tmp_path / "in.parquet", out, conditions=["k"], batch_rows=4
    )
    assert bad == 10
    assert rejects(out) == dict.fromkeys(range(0, 30, 3), "log-density is nan")
    good = table[table["k"] >= 0]
    x = good[["a", "b", "c"]].to_numpy(np.float64) - good[["k"]].to_numpy()
    expected = multivariate_normal(np.zeros(3)).logpdf(x)
    np.testing.assert_allclose(read(out)["log_density"], expected, atol=2e-5)


def test_run_folder(tmp_path):
    keras.utils.set_random_seed(1)
    density = tfdde.DDE(tfdde.networks.residual_mlp(3, width=8, depth=2))
    density.save(tmp_path / "density.keras")
    table = frame(50)
    write(tmp_path / "in.parquet", table)
    expected = density.log_density(table[["a", "b", "c"]].to_numpy(), normalized=False)
    for model, name in ((tmp_path, "1.csv"), (tmp_path / "density.keras", "2.csv")):
        scoring.score_file(model, tmp_path / "in.parquet", tmp_path / name, list("abc"))
        got = read(tmp_path / name)["unnormalized_log_density"]
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)


def test_wrong_arguments(models, tmp_path):
    table = frame(5)
    csv, parquet = write(tmp_path / "in.csv", table), write(tmp_path / "in.parquet", table)
    record = write(tmp_path / "in.tfrecord", table)
    (tmp_path / "numbers.csv").write_text("1,2,3\n4,5,6\n")
    (tmp_path / "mixed").mkdir()
    write(tmp_path / "mixed" / "a.csv", table), write(tmp_path / "mixed" / "a.parquet", table)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "there.csv").touch()
    nested = tmp_path / "nested.parquet"
    table.assign(id=[[1]] * 5).to_parquet(nested)

    def message(source, output="out.csv", model=models / "normalized", **options):
        with pytest.raises((OSError, ValueError)) as info:
            scoring.score_file(model, source, tmp_path / output, **options)
        assert "\n" not in str(info.value)
        assert not (tmp_path / "out.csv.parts").exists()
        return str(info.value)

    assert "must be 3 of" in message(csv) and "got 4: a, b, c, id." in message(csv)
    assert "did you mean 'id'" in message(csv, keep=["ids"])
    assert "got 'z'; there are a, b, c, id" in message(parquet, columns=["a", "b", "z"])
    assert "must be 0 of" in message(csv, columns=list("abc"), conditions=["id"])
    assert "'id' of" in message(parquet, columns=["a", "b", "id"])
    assert "must be numeric, got type" in message(parquet, columns=["a", "b", "id"])
    assert "must name features" in message(record, keep=["ids"])
    assert "must be left out for TFRecord" in message(record, columns=["x"])
    assert "first line" in message(tmp_path / "numbers.csv")
    assert "must end in" in message(tmp_path / "mixed")
    assert "got 0 files, none" in message(tmp_path / "empty")
    assert "does not exist" in message(tmp_path / "none.csv")
    assert "cannot be read" in message(tmp_path / "broken.parquet")
    assert "`output` must end in" in message(csv, "out.npy")
    assert "`output` must end in" in message(csv, "out.csv.gz")
    assert "there.csv exists already" in message(csv, "there.csv", keep=["id"])
    assert "must not name 'log_density'" in message(
        write(tmp_path / "log.parquet", table.rename(columns={"id": "log_density"})),
        keep=["log_density"],
    )
    assert "must name columns of single values" in message(nested, keep=["id"])
    assert "does not exist" in message(csv, model=tmp_path / "none")
    assert "there is none in it" in message(csv, model=tmp_path / "empty")
    assert "`batch_rows` must be an integer >= 1" in message(csv, keep=["id"], batch_rows=0)
    assert "`part_rows` must be an integer >= 1" in message(csv, keep=["id"], part_rows=0)


@pytest.mark.parametrize("name", ["in.csv", "in.parquet", "in.tfrecord"])
def test_blocks_do_not_stay_in_memory(tmp_path, small, name):
    """Of arrow; a file of many blocks takes no more of it than one of few."""
    most = []
    for rows in (1_000, 10_000):
        source = blocks.Source(write(tmp_path / name, frame(rows)), None, None, ["id"], 3)
        before, used = blocks.pa.total_allocated_bytes(), [0]
        count = 0
        for block in source:
            count += len(block)
            used.append(blocks.pa.total_allocated_bytes() - before)
        assert count == rows
        most.append(max(used))
    assert most[1] < 1.5 * most[0] + 20_000


class Killed(BaseException):
    pass


def interrupted(monkeypatch, step):
    """Raise instead of renaming file number ``step``."""
    replace, count = os.replace, iter(range(1_000))

    def stop(*args):
        if next(count) == step:
            raise Killed
        replace(*args)

    monkeypatch.setattr(os, "replace", stop)


def watched(monkeypatch):
    """A list that gets the rows that are scored from here on."""
    score, rows = scoring.Scorer.score, []
    monkeypatch.setattr(scoring.Scorer, "score", lambda s, b: rows.extend(b.rows) or score(s, b))
    return rows


def test_goes_on_after_an_end_at_any_file(models, tmp_path, small, monkeypatch):
    table = frame(300)
    table.loc[7, "b"] = np.inf
    source = write(tmp_path / "in.parquet", table)
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    options = {"keep": ["id"], "part_rows": 100}
    scoring.score_file(models / "normalized", source, whole, **options)
    for step in range(6):  # the manifest, three parts, rejects, output
        with monkeypatch.context() as patch:
            interrupted(patch, step)
            with pytest.raises(Killed):
                scoring.score_file(models / "normalized", source, out, **options)
        assert not out.exists()
        with monkeypatch.context() as patch:
            scored = watched(patch)
            assert scoring.score_file(models / "normalized", source, out, **options) == 1
        # Parts that are there are not scored again.
        assert scored == list(range(100 * min(max(step - 1, 0), 3), 300))
        assert out.read_bytes() == whole.read_bytes()
        assert rejects(out) == {7: "column 'b' must be finite in float32, got inf"}
        assert not (tmp_path / "out.parquet.parts").exists()
        out.unlink()
        Path(f"{out}.rejects.csv").unlink()


@pytest.mark.parametrize("when", ["before the manifest goes", "before the parts go"])
def test_goes_on_after_an_end_behind_the_output(models, tmp_path, monkeypatch, when):
    source, out = write(tmp_path / "in.parquet", frame(300)), tmp_path / "out.parquet"
    arguments = models / "normalized", source, out, None, None, ["id"]

    unlink = Path.unlink

    def stop(path, **options):
        if path == Path(f"{out}.parts") or path.name == "manifest.json":
            raise Killed
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(*((scoring.shutil, "rmtree") if "parts" in when else (Path, "unlink")), stop)
        with pytest.raises(Killed):
            scoring.score_file(*arguments)
    whole = out.read_bytes()
    if "parts" in when:
        # It is complete; and what is left counts for no other call.
        with pytest.raises(FileExistsError, match="exists already"):
            scoring.score_file(*arguments)
        out.unlink()
        scoring.score_file(models / "normalized" / "9", source, out, keep=["id"])
        assert out.read_bytes() != whole
    else:
        assert scoring.score_file(*arguments) == 0
        assert out.read_bytes() == whole
    assert {p.name for p in tmp_path.iterdir()} == {"in.parquet", "out.parquet"}


def test_another_input_model_or_option_is_refused(models, tmp_path, monkeypatch):
    table = frame(300).drop(columns="id")
    source, out = write(tmp_path / "in.csv", table), tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        with pytest.raises(Killed):
            scoring.score_file(models / "normalized", source, out, part_rows=100)

    def message(model="normalized", **options):
        with pytest.raises(ValueError) as info:
            scoring.score_file(models / model, source, out, **{"part_rows": 100} | options)
        assert "remove the folder to begin again" in str(info.value)
        return str(info.value)

    assert "for another model:" in message("normalized/9")
    assert "for another columns (['a', 'b', 'c'], not ['c', 'b', 'a'])" in message(
        columns=["c", "b", "a"]
    )
    assert "another part_rows (100, not 99)" in message(part_rows=99)
    assert "another batch_rows" in message(batch_rows=5)
    assert "another keep" in message(columns=["a", "b", "c"], keep=["a"])
    before = source.stat()
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert "another input:" in message()
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    text = source.read_text()
    source.write_text(text[:-2] + "9\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "another input:" in message()
    source.write_text(text)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    with scoring._locked(Path(f"{out}.parts")), pytest.raises(ValueError, match="Another process"):
        scoring.score_file(models / "normalized", source, out, part_rows=100)
    assert scoring.score_file(models / "normalized", source, out, part_rows=100) == 0
    np.testing.assert_allclose(read(out)["log_density"], truth(table), atol=2e-5)


def test_goes_on_after_sigkill(models, tmp_path):
    """The script, killed at random moments, ends with the very bytes of an uninterrupted run."""
    table = frame(60_000)
    table.loc[[5, 59_999], "a"] = np.inf
    source = write(tmp_path / "in.parquet", table)
    options = {"keep": ["id"], "part_rows": 1_000}
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    scoring.score_file(models / "normalized", source, whole, **options)
    code = (
        "import sys; from tfdde import scoring\n"
        "model, source, out = sys.argv[1:]\n"
        f"scoring.score_file(model, source, out, **{options})"
    )
    moments, parts = random.Random(0), Path(f"{out}.parts")
    for kill in (True, True, True, False):
        before = len(list(parts.glob("part-*")))
        process = subprocess.Popen(
            [sys.executable, "-c", code, models / "normalized", source, out],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        if kill:
            limit = time.monotonic() + 120
            while len(list(parts.glob("part-*"))) < before + 3 and process.poll() is None:
                assert time.monotonic() < limit
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            assert process.wait(60) == -signal.SIGKILL
            assert not out.exists()
            assert before + 3 <= len(list(parts.glob("part-*"))) < 60
        else:
            assert process.wait(120) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert len(pd.read_csv(out)) == 59_998
    assert list(rejects(out)) == [5, 59_999] == list(rejects(whole))
    assert {p.name for p in tmp_path.iterdir()} == {"in.parquet"} | {
        f"{name}{end}" for name in ("whole.csv", "out.csv") for end in ("", ".rejects.csv")
    }


def test_script(models, tmp_path, script, capsys, monkeypatch):
    table = frame(50)
    source, out = write(tmp_path / "in.csv", table), tmp_path / "out.csv"
    arguments = [str(models / "normalized"), f"--input={source}", f"--output={out}"]
    options = ["--columns", "a", "b", "c", "--keep", "id", "b", "--batch-size", "7"]
    assert script.main([*arguments, *options]) == 0
    got = read(out)
    assert list(got) == ["row", "log_density", "id", "b"]
    np.testing.assert_allclose(got["log_density"], truth(table), atol=2e-5)
    assert capsys.readouterr().out.endswith(f"Wrote {out}\n")

    assert script.main([*arguments, *options]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {out} exists already: remove it, or choose another output.\n"
    out.unlink()
    assert script.main([*arguments, "--columns", "a"]) == 2
    assert capsys.readouterr().err.startswith("error: `columns` must be 3 of ")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert script.main([*arguments, *options]) == 130
    assert capsys.readouterr().err == "\nTo continue, run the same command again.\n"
    assert script.main([*arguments, *options]) == 0
    out.unlink()

    table.loc[3, "c"] = np.nan
    write(source, table)
    assert script.main([*arguments, *options]) == 3
    assert "1 rows were rejected" in capsys.readouterr().err
    assert rejects(out) == {3: "column 'c' is missing"}


@pytest.fixture
def transform(tmp_path):
    """Score with Beam the table in.parquet, and return the two outputs by id."""
    pytest.importorskip("apache_beam")
    import apache_beam as beam

    from tfdde.beam import Score

    def run(*args, **kwargs):
        types = {"scores": ("log_density", "float"), "rejects": ("reason", "string")}
        kept = blocks.pa.parquet.read_schema(tmp_path / "in.parquet").field("id")
        with beam.Pipeline("DirectRunner") as pipeline:
            tables = pipeline | beam.io.ReadFromParquetBatched(str(tmp_path / "in.parquet"))
            scored = tables | Score(*args, **kwargs)
            for name, (column, kind) in types.items():
                schema = blocks.pa.schema([kept, (column, kind)])
                scored[name] | name >> beam.io.WriteToParquetBatched(str(tmp_path / name), schema)
        return [
            pd.concat(map(pd.read_parquet, tmp_path.glob(f"{name}-*"))).set_index("id").sort_index()
            for name in types
        ]

    return run


def test_beam_scores_tables(models, tmp_path, transform):
    table = frame(1_000)  # in several row groups
    table.loc[417, "b"] = np.inf
    write(tmp_path / "in.parquet", table)
    scores, rejected = transform(models / "normalized", list("abc"), keep=["id"], batch_rows=64)
    good = table.drop(417).set_index("id").sort_index()
    assert list(scores) == ["log_density"]
    assert scores.index.equals(good.index)
    np.testing.assert_allclose(scores["log_density"], truth(good), atol=2e-5)
    reason = "column 'b' must be finite in float32, got inf"
    assert rejected["reason"].to_dict() == {table["id"][417]: reason}


def test_beam_refuses_tables_that_do_not_fit(models, tmp_path, transform):
    write(tmp_path / "in.parquet", frame(5))
    with pytest.raises(Exception, match="`columns` must be 3 of 'the table'.* got 4: a, b, c, id"):
        transform(models / "normalized")
