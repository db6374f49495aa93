"""Inputs as people have them: dialects of CSV, folders, pipes; and files that stay untouched."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from scored import Gaussian, example, frame, read, rejects, truth, write

from tfdde import scoring
from tfdde.datasets import read_table
from tfdde.datasets.file_batches import stream_files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def score(exact, tmp_path):
    """Score an input to out.csv, and return it."""

    def run(source, **options):
        scoring.score_file(exact / "normalized", source, tmp_path / "out.csv", **options)
        return read(tmp_path / "out.csv")

    return run


@pytest.mark.parametrize(
    ("delimiter", "decimal", "encoding"),
    [
        (";", ".", "utf-8"),
        (";", ",", "latin-1"),
        ("\t", ",", "utf-16"),
        ("|", ".", "cp1252"),
        (",", ".", "utf-8-sig"),
    ],
)
def test_dialects_of_csv(score, tmp_path, capsys, delimiter, decimal, encoding):
    table = frame(40)
    table["id"] = [f"é{delimiter} {i}\x85" for i in range(40)] if encoding != "cp1252" else "é€"
    path = tmp_path / "in.csv"
    table.to_csv(path, sep=delimiter, decimal=decimal, encoding=encoding, index=False)
    encoding = "utf-8" if encoding == "utf-8-sig" else encoding  # the mark is known by itself
    got = score(path, decimal=decimal, encoding=encoding, keep=["id"])
    np.testing.assert_allclose(got["log_density"], truth(table), atol=2e-5)
    assert got["id"].tolist() == table["id"].tolist()
    said = capsys.readouterr().out
    names = {";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
    expected = f"The first line of {path} has {names.get(delimiter)} between its cells.\n"
    # A semicolon is usual beside decimal commas.
    assert (expected in said) == (delimiter not in (",", ";") or (delimiter, decimal) == (";", "."))
    x, columns = read_table(
        path, list("abc"), delimiter=delimiter, decimal=decimal, encoding=encoding
    )
    np.testing.assert_allclose(x, table[list("abc")], rtol=1e-6)


def test_decimal_commas_are_exact_and_points_are_no_numbers(score, tmp_path):
    (tmp_path / "in.csv").write_text("a;b;c\n1,5;-2;3e-1\n1.234,5;2;3\n1_0;2;3\n7,;2;,25\n")
    got = score(tmp_path / "in.csv", decimal=",")
    assert got["row"].tolist() == [0, 3]
    expected = truth(pd.DataFrame({"a": [1.5, 7], "b": [-2, 2], "c": [0.3, 0.25]}))
    np.testing.assert_allclose(got["log_density"], expected, atol=2e-5)
    assert rejects(tmp_path / "out.csv")[1] == (
        "column 'a' must be a number with the decimal point ',', got '1.234,5'"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": "x"}, "`delimiter` must be one of ',', ';', .*, got 'x'"),
        ({"delimiter": ",", "decimal": ","}, "`decimal` must be .* not the delimiter ',', got ','"),
        ({"decimal": "'"}, "`decimal` must be '.' or ','"),
        ({"encoding": "utf-9"}, "`encoding` must be .*, got 'utf-9'"),
    ],
)
def test_bad_dialects(score, tmp_path, options, message):
    path = write(tmp_path / "in.csv", frame(3))
    with pytest.raises(ValueError, match=message):
        score(path, **options)
    with pytest.raises(ValueError, match="must be left out for parquet files"):
        score(write(tmp_path / "in.parquet", frame(3)), delimiter=";")
    np.save(tmp_path / "in.npy", np.eye(2))
    with pytest.raises(ValueError, match="must be left out for .npy files"):
        read_table(tmp_path / "in.npy", decimal=",", delimiter=";")


def test_addresses_of_remote_files_are_refused(exact, tmp_path):
    far, out = "s3://bucket/in.csv", tmp_path / "out.csv"
    near = write(tmp_path / "in.csv", frame(3))
    for name, arguments in (
        ("model", (far, near, out)),
        ("source", (exact / "normalized", far, out)),
        ("output", (exact / "normalized", near, far)),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be a path of this .* got 's3://buck"):
            scoring.score_file(*arguments)
    for call in (read_table, lambda path: stream_files(path, 2, 0)):
        with pytest.raises(ValueError, match="`path` must be a path of this machine, got 's3://b"):
            call(far)


def test_a_row_of_numbers_is_no_header(score, tmp_path):
    path = tmp_path / "in.csv"
    for first in ("1.5,2,3", "1.5,x,3", "1.5,,3"):
        path.write_text(f"{first}\n4,5,6\n")
        for call in (score, read_table):
            with pytest.raises(ValueError, match="must hold the names of the columns, got the num"):
                call(path)
    path.write_text("2019,2020,b\n4,5,6\n")  # but it is one where these columns are asked for
    got = score(path, columns=["b", "2020", "2019"])
    expected = truth(pd.DataFrame({"a": [6], "b": [5], "c": [4]}))
    np.testing.assert_allclose(got["log_density"], expected, atol=2e-5)


def test_folders_are_read_to_all_depths(score, tmp_path, capsys):
    tables = {name: frame(20, seed) for seed, name in enumerate(["1", "2/x/3", "2/y", "10"])}
    for name, table in tables.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "in" / f"{name}.csv", table)
    (tmp_path / "in" / ".git").mkdir()
    write(tmp_path / "in" / ".git" / "z.csv", frame(3))
    write(tmp_path / "in" / "_old.csv", frame(3))
    got = score(tmp_path / "in", columns=list("abc"))
    assert "Skipped 2 files, by their names or folders: _old.csv, z.csv.\n" in (
        capsys.readouterr().out
    )
    order = sorted(tables, key=lambda name: Path(f"{name}.csv"))
    expected = truth(pd.concat([tables[name] for name in order]))
    np.testing.assert_allclose(got["log_density"], expected, atol=2e-5)
    (tmp_path / "out.csv").unlink()
    got = score(tmp_path / "in/**/*.csv", columns=list("abc"))
    np.testing.assert_allclose(got["log_density"], expected, atol=2e-5)


def test_output_in_the_folder_of_the_input_is_refused(exact, tmp_path):
    write(tmp_path / "in.csv", frame(3))
    with pytest.raises(ValueError, match="`output` must not be in the folder of the input"):
        scoring.score_file(exact / "normalized", tmp_path, tmp_path / "out.csv")


@pytest.mark.parametrize("output", ["out.csv", "out.parquet", "out.tfrecord"])
def test_inputs_without_rows(exact, tmp_path, output):
    write(tmp_path / "in.csv", frame(0))
    (tmp_path / "bare.csv").write_text("a,b,c,id")
    write(tmp_path / "in.csv.gz", frame(0))
    pyarrow.parquet.write_table(pa.table({n: pa.nulls(0) for n in "abc"}), tmp_path / "x.parquet")
    write(tmp_path / "in.parquet", frame(0).astype({"id": "string"}))
    write(tmp_path / "in.tfrecord", frame(0))
    write(tmp_path / "in.tfrecord.gz", frame(0))
    for name in ("in.csv", "bare.csv", "in.csv.gz", "in.parquet", "in.tfrecord", "in.tfrecord.gz"):
        out = tmp_path / output
        assert scoring.score_file(exact / "normalized", tmp_path / name, out, keep=["id"]) == 0
        assert len(read(out)) == 0
        out.unlink()


def test_types_of_kept_columns_are_those_of_all_files(exact, tmp_path):
    table = frame(20)
    (tmp_path / "in").mkdir()
    kinds = [pa.null(), pa.int32(), pa.int64()]
    for i, kind in enumerate(kinds):
        values = [None] * 20 if i == 0 else [2 ** (15 * i + 15) + j for j in range(20)]
        values = pa.array(values if i != 1 else range(20), kind)
        columns = {name: pa.array(table[name]) for name in "abc"} | {"id": values}
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / "in" / f"{i}.parquet")
    out = tmp_path / "out.parquet"
    scoring.score_file(exact / "normalized", tmp_path / "in", out, list("abc"), keep=["id"])
    got = pyarrow.parquet.read_table(out).column("id")
    assert got.type == pa.int64()
    assert got.to_pylist() == [None] * 20 + [*range(20)] + [2**45 + j for j in range(20)]

    out.unlink()
    columns["id"] = pa.array([0.5] * 20)
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "in" / "3.parquet")
    with pytest.raises(ValueError, match=r"'id' is .* in '.*' and double in '.*3\.parquet'"):
        scoring.score_file(exact / "normalized", tmp_path / "in", out, list("abc"), keep=["id"])
    assert [p.name for p in tmp_path.glob("out*")] == ["out.parquet.json"]  # of the first call


def test_float64_is_not_rounded_in_tfrecord(exact, tmp_path):
    table = frame(5).assign(id=1e300)
    source = write(tmp_path / "in.parquet", table)
    with pytest.raises(ValueError, match=r"'id' of type double, since \.tfrecord would alter"):
        scoring.score_file(exact / "normalized", source, tmp_path / "o.tfrecord", keep=["id"])
    out = tmp_path / "out.csv"
    scoring.score_file(exact / "normalized", source, out, keep=["id"])
    assert read(out)["id"].tolist() == [1e300] * 5


def test_kept_features_of_two_values_or_another_type_are_rejected(exact, tmp_path):
    feature = tf.train.Feature
    strange = {
        2: feature(bytes_list=tf.train.BytesList(value=[b"a", b"b"])),
        3: feature(int64_list=tf.train.Int64List(value=[7])),
        4: feature(),
    }
    with tf.io.TFRecordWriter(str(tmp_path / "in.tfrecord")) as writer:
        for i in range(6):
            record = tf.train.Example.FromString(example([1, 2, 3], id=b"x"))
            if i in strange:
                record.features.feature["id"].CopyFrom(strange[i])
            writer.write(record.SerializeToString())
    out = tmp_path / "out.parquet"
    scoring.score_file(exact / "normalized", tmp_path / "in.tfrecord", out, keep=["id"])
    start = "feature 'id' must be one text, as in the first record, got "
    assert rejects(out) == {2: start + "2 of type text", 3: start + "1 of type integer"}
    # Where the feature is absent, it is null.
    assert pyarrow.parquet.read_table(out).column("id").to_pylist() == ["x", "x", None, "x"]


@pytest.mark.parametrize(
    "name", ["out.csv.json", "out.csv.rejects.csv", "out.csv.parts", "out.csv.parts/notes.txt"]
)
def test_files_of_the_user_stay(exact, tmp_path, name):
    table = frame(5)
    table.loc[1, "a"] = np.inf
    source, out = write(tmp_path / "in.csv", table), tmp_path / "out.csv"
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(FileExistsError) as caught:
        scoring.score_file(exact / "normalized", source, out, keep=["id"])
    assert str(caught.value).startswith(f"{mine} exists already and tfdde did not write it")
    assert mine.read_text() == "mine" and not out.exists()
    mine.rename(tmp_path / "elsewhere")
    assert scoring.score_file(exact / "normalized", source, out, keep=["id"]) == 1
    # What tfdde wrote it may replace, unless it was changed.
    out.unlink()
    assert scoring.score_file(exact / "normalized", source, out, keep=["id"]) == 1
    out.unlink()
    Path(f"{out}.rejects.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"rejects\.csv exists already and tfdde did not"):
        scoring.score_file(exact / "normalized", source, out, keep=["id"])


def test_a_foreign_savedmodel_is_named(tmp_path):
    module = Gaussian()
    source = write(tmp_path / "in.csv", frame(3))
    for signatures, message in (
        ({"predict": module.log_density}, "has no signature log_density .it has predict"),
        ({}, "has no signature log_density .it has none"),
        ({"log_density": swapped()}, "must take x .* but takes y and returns z"),
    ):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        tf.saved_model.save(module, str(path), signatures=signatures)
        with pytest.raises(ValueError, match=message):
            scoring.score_file(path, source, tmp_path / "out.csv")


def swapped():
    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="y")])
    def function(y):
        return {"z": y}

    return function


def test_pipes(exact, tmp_path, monkeypatch, capfdbinary):
    table = frame(30)
    table.loc[4, "b"] = np.nan
    text = table.to_csv(index=False).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    assert scoring.score_pipe(exact / "normalized", "-", "-", keep=["id"]) == 1
    sys.stdout.seek(0)
    got = pd.read_csv(sys.stdout)
    good = table.drop(4)
    assert got["row"].tolist() == good.index.tolist() and got["id"].tolist() == list(good["id"])
    np.testing.assert_allclose(got["log_density"], truth(good), atol=2e-5)
    assert b"4,\"column 'b' is missing\"" in capfdbinary.readouterr().err


def test_script_in_a_pipe(exact, tmp_path):
    table = frame(30).drop(columns="id")
    done = subprocess.run(
        [sys.executable, ROOT / "export/score.py", exact / "normalized", "--input=-", "--output=-"],
        input=table.to_csv(index=False, sep=";"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    got = pd.read_csv(io.StringIO(done.stdout))
    np.testing.assert_allclose(got["log_density"], truth(table), atol=2e-5)
