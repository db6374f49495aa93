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
import pytest
from scored import frame, read, rejects, truth, write

from tfdde import scoring

ROOT = Path(__file__).parent.parent


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
        scoring.score_file(exact / "normalized" / "9", source, out, keep=["id"])
        assert out.read_bytes() != whole
    else:
        assert scoring.score_file(*arguments) == 0
        assert out.read_bytes() == whole
    assert {p.name for p in tmp_path.iterdir()} == {"in.parquet", "out.parquet"}


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
    with scoring._locked(Path(f"{out}.parts")), pytest.raises(ValueError, match="Another process"):
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
        f"{name}{end}" for name in ("whole.csv", "out.csv") for end in ("", ".rejects.csv")
    }
