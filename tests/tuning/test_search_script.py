"""train/sigma_search.py as a user runs it: alone, by folds, and shared by several processes."""

import contextlib
import csv
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import sigma_search
from keras_tuner.src.distribute import oracle_chief
from mixtures import three

from tfdde import serving

ROOT = Path(__file__).parents[2]
pytestmark = [
    # keras-tuner's own threads, and Keras's saving of weights under NumPy 2
    pytest.mark.filterwarnings(
        "ignore:(currentThread|getName)\\(\\) is deprecated:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
TINY = ["--width=16", "--depth=1", "--epochs=2", "--samples=1000", "--no-jit"]
TINY += ["--sigma", "0.3", "0.9"]


def test_script_from_a_toy_to_an_export(tmp_path, capsys):
    arguments = ["--dataset=rings", "--rows=1500", "--trials=2", f"--output={tmp_path}", *TINY]
    assert sigma_search.main(arguments) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert f"Held-out log-likelihood: {result['log_likelihood']:.4f} ± " in out
    with (tmp_path / "trials.csv").open() as f:
        trials = list(csv.DictReader(f))
    assert len(trials) == 2 and float(trials[0]["sigma"]) == pytest.approx(result["sigma"])
    assert float(trials[0]["log_likelihood"]) >= float(trials[1]["log_likelihood"])
    assert (tmp_path / "sigma.png").stat().st_size > 5_000
    dde = keras.models.load_model(tmp_path / "density.keras")
    assert dde.normalized
    assert not serving.export_run(serving.export_savedmodel, tmp_path, tmp_path / "served")
    about = json.loads((tmp_path / "served/1/assets.extra/metadata.json").read_text())
    for name in ("log_likelihood", "standard_error"):
        assert about["held_out"][name] == result[name]
    assert sigma_search.main(arguments) == 2
    assert "add --resume" in capsys.readouterr().err
    assert sigma_search.main([*arguments, "--resume"]) == 0  # only the last training is left
    assert capsys.readouterr().out.count("Epoch 1/") == 1
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_script_says_why_no_trial_succeeds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sigma_search, "FAILURES", 1)
    wrong = [f"--output={tmp_path}", *TINY, "--samples=120", "--dataset=rings", "--rows=500"]
    assert sigma_search.main(wrong) == 2
    assert "trials in a row failed: " in (err := capsys.readouterr().err)
    assert "log Z can't be trusted" in err


def test_script_cross_validates_few_rows(tmp_path, capsys):
    np.save(tmp_path / "x.npy", three().sample(100, 1)[:, :1])
    run = tmp_path / "run"
    arguments = [f"--data={tmp_path / 'x.npy'}", "--trials=1", f"--output={run}", *TINY]
    assert sigma_search.main([*arguments, "--folds=2"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["rows"]["test"] == 10 and np.isfinite(result["log_likelihood"])
    # Other rows are another search.
    np.save(tmp_path / "x.npy", three().sample(100, 2)[:, :1])
    assert sigma_search.main([*arguments, "--folds=2", "--resume"]) == 2
    assert "was started with checksum = " in capsys.readouterr().err
    assert sigma_search.main([*arguments[:2], f"--output={tmp_path / 'b'}", "--folds=60"]) == 2
    assert "at least 120 rows for 60 folds, got 90" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds=1"], "--folds must be at least 2, got 1"),
        (["--sigma", "0.5", "0.1"], "--sigma must be one number or LOW HIGH"),
        (["--sigma-max=0.5"], "--sigma-max 0.5 must exceed --sigma"),
        (["--columns", "a"], "--columns needs --data"),
    ],
)
def test_script_refuses(capsys, arguments, message):
    with pytest.raises(SystemExit):
        sigma_search.main(["--dataset=wine", *arguments])
    assert message in capsys.readouterr().err


def test_a_chief_and_two_workers_share_a_search(tmp_path, capsys, monkeypatch):
    """The workers are commands; the chief runs here, where keras-tuner need not sleep for 20 s."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(port))
    arguments = ["--dataset=rings", "--rows=1000", "--trials=2", "--search=random", *TINY]
    command = [sys.executable, ROOT / "train/sigma_search.py", f"--output={tmp_path}", *arguments]
    processes = {
        name: subprocess.Popen(
            command,
            env=os.environ | {"KERASTUNER_TUNER_ID": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("tuner0", "tuner1")
    }
    end = time.monotonic() + 240

    def sleep(seconds):
        assert time.monotonic() < end
        assert all(p.poll() in (None, 0) for p in processes.values())
        time.sleep(min(seconds, 0.1))

    monkeypatch.setattr(oracle_chief, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    with contextlib.ExitStack() as stack:
        for process in processes.values():
            stack.callback(process.kill)  # which has ended, unless the chief has failed
        assert sigma_search.main([f"--output={tmp_path}", *arguments]) == 0
        out = {name: process.communicate(timeout=60)[0] for name, process in processes.items()}
    assert {name: p.returncode for name, p in processes.items()} == dict.fromkeys(out, 0), out
    out["chief"] = capsys.readouterr().out
    with (tmp_path / "trials.csv").open() as f:
        trials = list(csv.DictReader(f))
    assert [t["status"] for t in trials] == ["COMPLETED"] * 2
    assert len({t["sigma"] for t in trials}) == 2
    trained = {name: out[name].count("Epoch 1/") for name in out}
    assert trained["chief"] == 1  # the best again, on all rows
    assert trained["tuner0"] + trained["tuner1"] == 2
    assert "Held-out log-likelihood" in out["chief"]
    assert keras.models.load_model(tmp_path / "density.keras").normalized
