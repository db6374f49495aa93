"""Scoring that was interrupted goes on, and ends as if it had not been."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scored import frame, read, rejects, truth, write

from tfdde import scoring
from tfdde.datasets.readers import blocks, tfrecords
from tfdde.scoring import file_scores

ROOT = Path(__file__).parents[2]


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
    monkeypatch.setattr(
        scoring.Scorer, "score", lambda s, b, *more: rows.extend(b.rows) or score(s, b, *more)
    )
    return rows


def test_goes_on_after_an_end_at_any_file(exact, tmp_path, small_blocks, monkeypatch):
    table = frame(300)
    table.loc[7, "b"] = np.inf
    source = write(tmp_path / "in.parquet", table)
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    options = {"keep": ["id"], "part_rows": 100}
    scoring.score_file(exact / "normalized", source, whole, **options)
    for step in range(6):  # the manifest, three parts, rejects, output
        with monkeypatch.context() as patch:
            interrupted(patch, step)
            with pytest.raises(Killed):
                scoring.score_file(exact / "normalized", source, out, **options)
        assert not out.exists()
        with monkeypatch.context() as patch:
            scored = watched(patch)
            assert scoring.score_file(exact / "normalized", source, out, **options) == 1
        # Parts that are there are not scored again.
        assert scored == list(range(100 * min(max(step - 1, 0), 3), 300))
        assert out.read_bytes() == whole.read_bytes()
        assert rejects(out) == {7: "column 'b' must be finite in float32, got inf"}
        assert not (tmp_path / "out.parquet.parts").exists()
        out.unlink()
        Path(f"{out}.rejects.csv").unlink()


@pytest.mark.parametrize("when", ["before the manifest goes", "before the parts go"])
def test_goes_on_after_an_end_behind_the_output(exact, tmp_path, monkeypatch, when):
    source, out = write(tmp_path / "in.parquet", frame(300)), tmp_path / "out.parquet"
    arguments = exact / "normalized", source, out, None, None, ["id"]

    unlink = Path.unlink

    def stop(path, **options):
        if "parts" in when or path.name == "manifest.json":
            raise Killed
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(Killed):
            scoring.score_file(*arguments)
    whole = out.read_bytes()
    if "parts" in when:
        # It is complete; and what is left counts for no other call.
        with pytest.raises(FileExistsError, match="has the scores for another model: remove it"):
            scoring.score_file(exact / "normalized" / "9", *arguments[1:])
        out.unlink()
        scoring.score_file(exact / "normalized" / "9", source, out, keep=["id"])
        assert out.read_bytes() != whole
    else:
        assert scoring.score_file(*arguments) == 0
        assert out.read_bytes() == whole
    made = {"in.parquet", "out.parquet", "out.parquet.json"}
    assert {p.name for p in tmp_path.iterdir()} == made


def test_a_finished_call_is_not_repeated_nor_another_taken_for_it(exact, tmp_path, monkeypatch):
    table = frame(300)
    table.loc[7, "b"] = np.inf
    source, out = write(tmp_path / "in.parquet", table), tmp_path / "out.csv"
    arguments = exact / "normalized", source, out, list("abc"), None, ["id"]
    with monkeypatch.context() as patch:
        patch.setattr(file_scores, "_remove", lambda folder: None)
        assert scoring.score_file(*arguments) == 1
    before, scored = out.stat(), watched(monkeypatch)
    assert scoring.score_file(*arguments) == 1
    assert scored == [] and out.stat() == before
    assert not (tmp_path / "out.csv.parts").exists()

    def refused(*arguments, **options):
        with pytest.raises(FileExistsError, match="remove it, or choose another output") as info:
            scoring.score_file(*arguments, **options)
        assert not (tmp_path / "out.csv.parts").exists()
        return str(info.value)

    assert "another batch_rows" in refused(*arguments, batch_rows=5)
    assert "another keep (['id'], not ['id', 'a'])" in refused(*arguments[:-1], ["id", "a"])
    write(source, table.assign(b=0.0))
    assert "another input:" in refused(*arguments)
    for changed in (Path(f"{out}.rejects.csv"), out):
        text = changed.read_text()
        changed.write_text(text + "1\n")
        assert "exists already and was changed since it was written" in refused(*arguments)
    Path(f"{out}.json").write_text("[]")
    with pytest.raises(ValueError, match="can't be read as a JSON object: it holds no object"):
        scoring.score_file(*arguments)


@pytest.mark.parametrize("end", ["csv", "parquet", "tfrecord"])
def test_what_is_done_is_not_read_again(exact, tmp_path, small_blocks, monkeypatch, end):
    """Files, row groups of Parquet; and of others no row is parsed again."""
    folder = tmp_path / "in"
    folder.mkdir()
    table = frame(1_000)
    for i, start in enumerate(range(0, 1_000, 500)):  # row groups of 300 and 200
        write(folder / f"{i}.{end}", table[start : start + 500])
    out, whole = tmp_path / "out.parquet", tmp_path / "whole.parquet"
    options = {"keep": ["id"], "part_rows": 150}
    scoring.score_file(exact / "normalized", folder, whole, **options)
    with monkeypatch.context() as patch:
        interrupted(patch, 7)  # 6 parts are done, 900 rows
        with pytest.raises(Killed):
            scoring.score_file(exact / "normalized", folder, out, **options)
    parsed = []
    block = blocks.Source.blocks
    monkeypatch.setattr(
        blocks.Source,
        "blocks",
        lambda *a: (parsed.extend(b.rows) or b for b in block(*a)),
    )
    opened = []
    for where, name in ((pq, "ParquetFile"), (tfrecords, "open_bytes"), (blocks, "open_csv")):
        function = getattr(where, name)
        monkeypatch.setattr(
            where, name, lambda f, *a, _=function, **b: opened.append(Path(f).name) or _(f, *a, **b)
        )
    scored = watched(monkeypatch)
    assert scoring.score_file(exact / "normalized", folder, out, **options) == 0
    assert scored == list(range(900, 1_000))
    # The row group that holds row 900 begins at row 800; a block of the others has up to 64 rows.
    assert parsed == list(range(parsed[0], 1_000))
    assert parsed[0] == 800 if end == "parquet" else 900 - 64 < parsed[0] <= 900
    inputs = [name for name in opened if name.endswith(end) and name[0] in "01"]
    first = ["0.tfrecord"] if end == "tfrecord" else []  # where the types are found
    assert inputs == [*first, f"1.{end}"]
    assert out.read_bytes() == whole.read_bytes()


def test_another_input_model_or_option_is_refused(exact, tmp_path, monkeypatch):
    table = frame(300).drop(columns="id")
    source, out = write(tmp_path / "in.csv", table), tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        with pytest.raises(Killed):
            scoring.score_file(exact / "normalized", source, out, part_rows=100)

    def message(model="normalized", **options):
        with pytest.raises(ValueError) as info:
            scoring.score_file(exact / model, source, out, **{"part_rows": 100} | options)
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
    with (
        file_scores._locked(Path(f"{out}.parts")),
        pytest.raises(ValueError, match="Another process"),
    ):
        scoring.score_file(exact / "normalized", source, out, part_rows=100)
    assert scoring.score_file(exact / "normalized", source, out, part_rows=100) == 0
    np.testing.assert_allclose(read(out)["log_density"], truth(table), atol=2e-5)


def test_goes_on_after_sigkill(exact, tmp_path):
    """The script, killed at random moments, ends with the very bytes of an uninterrupted run."""
    table = frame(60_000)
    table.loc[[5, 59_999], "a"] = np.inf
    source = write(tmp_path / "in.parquet", table)
    options = {"keep": ["id"], "part_rows": 1_000}
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    scoring.score_file(exact / "normalized", source, whole, **options)
    code = (
        "import sys, time; from tfdde import scoring\n"
        "score = scoring.Scorer.score\n"
        "def slowly(*block):  # or all might be done before the kill\n"
        "    time.sleep(0.03)\n"
        "    return score(*block)\n"
        "scoring.Scorer.score = slowly\n"
        "model, source, out = sys.argv[1:]\n"
        f"scoring.score_file(model, source, out, **{options})"
    )
    moments, parts = random.Random(0), Path(f"{out}.parts")
    for kill in (True, True, True, False):
        before = len(list(parts.glob("part-*")))
        process = subprocess.Popen(
            [sys.executable, "-c", code, exact / "normalized", source, out],
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
        f"{name}{end}" for name in ("whole.csv", "out.csv") for end in ("", ".json", ".rejects.csv")
    }
