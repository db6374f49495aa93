"""Scores of files against the closed form, as a user asks for them."""

import importlib.util
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from scipy.stats import multivariate_normal
from scored import frame, read, rejects, truth, write

import tfdde
from tfdde import scoring

ROOT = Path(__file__).parents[2]
ROWS = 1_000
# Keras's own saving of weights makes NumPy 2 warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("score", ROOT / "export" / "score.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "source", ["a.csv", "a.csv.gz", "a.parquet", "a.tfrecord", "a.tfrecord.gz"]
)
@pytest.mark.parametrize("output", ["out.csv", "out.parquet", "out.tfrecord"])
def test_scores_are_those_of_the_closed_form(exact, tmp_path, small_blocks, source, output):
    table = frame()
    write(tmp_path / source, table)
    done = scoring.score_file(
        exact / "normalized",
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
    assert {p.name for p in tmp_path.iterdir()} == {source, output, f"{output}.json"}


def test_rows_count_through_the_files_of_a_folder(exact, tmp_path, small_blocks):
    tables = [frame(70, seed) for seed in range(3)]
    (tmp_path / "in").mkdir()
    for name, table in zip(["part-0", "part-1", "part-2"], tables, strict=True):
        write(tmp_path / "in" / f"{name}.parquet", table)
    (tmp_path / "in" / "_SUCCESS").touch()
    out = tmp_path / "out.parquet"
    scoring.score_file(exact / "normalized", tmp_path / "in", out, ["a", "b", "c"])
    got = read(out)
    np.testing.assert_array_equal(got["row"], range(210))
    np.testing.assert_allclose(got["log_density"], truth(pd.concat(tables)), atol=2e-5)


def test_input_is_a_pattern(exact, tmp_path):
    tables = {name: frame(20, seed) for seed, name in enumerate(["b-2", "b-1", "a[1]"])}
    for name, table in tables.items():
        write(tmp_path / f"{name}.csv", table)
    out = tmp_path / "out.parquet"
    for pattern, names in (("b-*.csv", ["b-1", "b-2"]), ("a[1].csv", ["a[1]"])):
        scoring.score_file(exact / "normalized", tmp_path / pattern, out, list("abc"))
        expected = truth(pd.concat([tables[name] for name in names]))
        np.testing.assert_allclose(read(out)["log_density"], expected, atol=2e-5)
        out.unlink()
    with pytest.raises(FileNotFoundError, match=r"Input '.*c\*\.csv' does not exist\."):
        scoring.score_file(exact / "normalized", tmp_path / "c*.csv", out)


def test_anomaly_scores(exact, tmp_path):
    """They are as `DDE.anomaly_score` defines them."""
    table = frame(30).drop(columns="id")
    table.loc[4, "a"] = np.nan
    source, out = write(tmp_path / "in.csv", table), tmp_path / "out.csv"
    good = table.drop(4)
    for model, name in (("normalized", "log_density"), ("unknown", "unnormalized_log_density")):
        scoring.score_file(exact / model, source, out, anomaly_score=True)
        got = read(out)
        assert list(got) == ["row", name, "anomaly_score"]
        np.testing.assert_allclose(got["anomaly_score"], -truth(good), atol=2e-5)
        out.unlink()
    assert list(rejects(out)) == [4]
    table.assign(anomaly_score=1.0).to_csv(source, index=False)
    with pytest.raises(ValueError, match="must not name 'anomaly_score'"):
        scoring.score_file(
            exact / "normalized", source, out, keep=["anomaly_score"], anomaly_score=True
        )


def test_conditional_anomaly_scores_need_log_z(exact, tmp_path):
    source = write(tmp_path / "in.csv", frame(3).drop(columns="id").assign(k=1.0))
    model, out = tmp_path / "model", tmp_path / "out.csv"
    arguments = {"conditions": ["k"], "anomaly_score": True}
    shutil.copytree(exact / "conditional" / "10", model)
    scoring.score_file(model, source, out, **arguments)
    assert list(read(out)) == ["row", "log_density", "anomaly_score"]
    (model / "assets.extra" / "metadata.json").unlink()
    with pytest.raises(ValueError, match="must be left out for a conditional density without"):
        scoring.score_file(model, source, tmp_path / "b.csv", **arguments)


def test_columns_are_taken_by_name(exact, tmp_path):
    table = frame(20).assign(extra=1.0)[["extra", "c", "b", "id", "a"]]
    write(tmp_path / "in.csv", table)
    out = tmp_path / "out.csv"
    scoring.score_file(exact / "unknown", tmp_path / "in.csv", out, ["a", "b", "c"], keep=["a"])
    got = read(out)
    # Without metadata nobody knows whether the density is normalised.
    assert list(got) == ["row", "unnormalized_log_density", "a"]
    np.testing.assert_allclose(got["unnormalized_log_density"], truth(table), atol=2e-5)
    np.testing.assert_allclose(got["a"], table["a"])


def test_the_model_tells_its_columns(exact, tmp_path):
    """Whatever their order in the file, and beside others; `columns` overrides."""
    model, out = tmp_path / "model", tmp_path / "out.csv"
    shutil.copytree(exact / "normalized" / "10", model)
    metadata = model / "assets.extra" / "metadata.json"
    metadata.write_text('{"normalized": true, "columns": ["c", "a", "b"]}')
    table = frame(20)
    renamed = table.rename(columns={"a": "c", "b": "a", "c": "b"})  # the model's c is truth's a
    source = write(tmp_path / "in.csv", renamed[["a", "id", "b", "c"]])
    scoring.score_file(model, source, out)
    np.testing.assert_allclose(read(out)["log_density"], truth(table), atol=2e-5)
    out.unlink()
    scoring.score_file(model, source, out, columns=["a", "b", "c"])
    expected = truth(renamed)
    np.testing.assert_allclose(read(out)["log_density"], expected, atol=2e-5)
    out.unlink()
    write(source, table.rename(columns={"a": "d"}))
    with pytest.raises(ValueError, match="`columns` must name columns of .*in.csv', got .*; there"):
        scoring.score_file(model, source, out)
    # Names 0, 1, 2 are those of an array's columns, and tell nothing.
    metadata.write_text('{"normalized": true, "columns": ["0", "1", "2"]}')
    scoring.score_file(model, write(source, table.drop(columns="id")), out)
    np.testing.assert_allclose(read(out)["log_density"], truth(table), atol=2e-5)


@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
def test_kept_columns_keep_their_values(exact, tmp_path, output):
    table = frame(20)
    table.loc[3, "a"] = np.inf
    kept = {
        "text": pa.array(table["id"], pa.string()).cast(pa.string_view()),
        "kind": pa.array(list("xyzxy") * 4).dictionary_encode(),
        "hash": pa.array([2**64 - 1 - i for i in range(20)], pa.uint64()),
        "flag": pa.array([True, False] * 10),
    }
    columns = {name: pa.array(table[name]) for name in "abc"} | kept
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=7)
    out = tmp_path / output
    source = tmp_path / "in.parquet"
    assert scoring.score_file(exact / "normalized", source, out, list("abc"), keep=[*kept]) == 1
    got = read(out).drop(columns=["row", "log_density"])
    expected = pa.table(kept).to_pandas().drop(3).reset_index(drop=True)
    pd.testing.assert_frame_equal(got, expected, check_dtype=False, check_categorical=False)


def test_an_empty_table_gives_an_empty_output(exact, tmp_path):
    for name in ("in.csv", "in.parquet", "in.tfrecord"):
        write(tmp_path / name, frame(0)[["a", "b", "c", "id"]])
        keep = [] if name == "in.tfrecord" else ["id"]
        out = tmp_path / "out.csv"
        assert scoring.score_file(exact / "normalized", tmp_path / name, out, keep=keep) == 0
        assert len(read(out)) == 0
        out.unlink()


def test_conditions(exact, tmp_path):
    table = frame(30).drop(columns="id").assign(k=np.arange(30) % 3 - 1.0)
    write(tmp_path / "in.parquet", table)
    out = tmp_path / "out.parquet"
    with pytest.raises(ValueError, match=r"`conditions` must be 1 of .*, got 0: none\."):
        scoring.score_file(exact / "conditional", tmp_path / "in.parquet", out, list("abc"))
    bad = scoring.score_file(
        exact / "conditional", tmp_path / "in.parquet", out, conditions=["k"], batch_rows=4
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


def test_wrong_arguments(exact, tmp_path):
    table = frame(5)
    csv, parquet = write(tmp_path / "in.csv", table), write(tmp_path / "in.parquet", table)
    record = write(tmp_path / "in.tfrecord", table)
    (tmp_path / "numbers.csv").write_text("1,2,3\n4,5,6\n")
    for name, text in {"old_mac": "a,b,c\r1,2,3\r", "blank": "\na,b,c\n1,2,3\n"}.items():
        (tmp_path / f"{name}.csv").write_bytes(text.encode())
    (tmp_path / "mixed").mkdir()
    write(tmp_path / "mixed" / "a.csv", table), write(tmp_path / "mixed" / "a.parquet", table)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "there.csv").touch()
    nested = tmp_path / "nested.parquet"
    table.assign(id=[[1]] * 5).to_parquet(nested)
    table.assign(id=[b"\xff"] * 5).to_parquet(tmp_path / "bytes.parquet")
    uuid = pa.array([b"\xff" * 16] * 5, pa.binary(16))
    columns = {name: pa.array(table[name]) for name in "abc"} | {"id": uuid}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "uuid.parquet")
    table.assign(id=np.uint64(2**64 - 1)).to_parquet(tmp_path / "hash.parquet")

    def message(source, output="out.csv", model=exact / "normalized", **options):
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
    for name in ("old_mac", "blank"):
        assert "names of the columns and end in a line feed" in message(tmp_path / f"{name}.csv")
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
    assert "'id' of type binary" in message(tmp_path / "bytes.parquet", keep=["id"])
    assert "'id' of type fixed_size_binary[16]" in message(tmp_path / "uuid.parquet", keep=["id"])
    assert "'id' of type uint64" in message(tmp_path / "hash.parquet", "out.tfrecord", keep=["id"])
    assert "does not exist" in message(csv, model=tmp_path / "none")
    assert "there is none in it" in message(csv, model=tmp_path / "empty")
    assert "`batch_rows` must be an integer >= 1" in message(csv, keep=["id"], batch_rows=0)
    assert "`part_rows` must be an integer >= 1" in message(csv, keep=["id"], part_rows=0)


def test_script(exact, tmp_path, script, capsys, monkeypatch):
    table = frame(50)
    source, out = write(tmp_path / "in.csv", table), tmp_path / "out.csv"
    arguments = [str(exact / "normalized"), f"--input={source}", f"--output={out}"]
    options = ["--columns", "a", "b", "c", "--keep", "id", "b", "--batch-size", "7"]
    assert script.main([*arguments, *options]) == 0
    got = read(out)
    assert list(got) == ["row", "log_density", "id", "b"]
    np.testing.assert_allclose(got["log_density"], truth(table), atol=2e-5)
    assert capsys.readouterr().out.endswith(f"Wrote {out}\n")

    # Once more it does nothing, and says so; and another command does not replace it.
    before = out.stat()
    assert script.main([*arguments, *options]) == 0
    assert capsys.readouterr().out == (
        f"{out} is complete already, of the same input, model and options.\n"
    )
    assert out.stat() == before
    assert script.main([*arguments, *options, "--anomaly-score"]) == 2
    assert capsys.readouterr().err == (
        f"error: {out} exists already and has the scores for another anomaly_score (False, not "
        "True): remove it, or choose another output.\n"
    )
    assert out.stat() == before
    Path(f"{out}.json").unlink()
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
    for _ in range(2):
        assert script.main([*arguments, *options]) == 3
        assert "1 rows were rejected" in capsys.readouterr().err
        assert rejects(out) == {3: "column 'c' is missing"}
