"""Two workers on the loopback train, stop and end together; see worker.py."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import worker

from tfdde import runs
from tfdde.runs import cluster

# Keras's own saving of weights makes NumPy 2 warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
HOSTS = ["a:1", "b:1"]


def run(top, *arguments):
    """Run two workers: exit codes, what they printed, how long the chief outlived the other."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = ",".join(str(s.getsockname()[1]) for s in sockets)
    for s in sockets:
        s.close()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    outputs = [(top / f"{rank}.txt").open("w+") for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "tests/worker.py", top, str(rank), ports, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        lost_or_frozen(processes[1])
        end = time.monotonic()
        processes[0].wait(timeout=60)
        seconds = time.monotonic() - end
    finally:
        for process in processes:
            process.kill()
            process.wait()
        texts = []
        for output in outputs:
            with output:
                output.seek(0)
                texts.append(output.read())
    return [p.returncode for p in processes], texts, seconds


def lost_or_frozen(process, seconds=300):
    """Wait for a worker's end, or until it is stopped."""
    how = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT
    for _ in range(10 * seconds):
        if os.waitid(os.P_PID, process.pid, how):
            return
        time.sleep(0.1)
    raise TimeoutError


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder, the results of the two workers, and how long the chief outlived the other."""
    top = tmp_path_factory.mktemp("cluster")
    return top, *run(top)


def arrays(path):
    """The arrays of an HDF5 file by name."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as f:
        f.visititems(visit)
    assert found
    return found


def test_two_workers_equal_two_devices(pair, two, tmp_path):
    top, _, texts, _ = pair
    assert '{"codes": [0, 143, 0]}' in texts[0], texts[0]
    assert '{"codes": [0, 143, 0]}' in texts[1], texts[1]
    model = worker.build(two)
    start = model.get_weights()
    assert worker.train(model, tmp_path / "run")
    assert max(np.abs(a - b).max() for a, b in zip(start, model.get_weights(), strict=True)) > 1e-3
    saved = keras.saving.load_model(top / "whole/density.keras")
    for a, b in zip(model.weights, saved.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6, err_msg=a.path)
    logs = [
        np.loadtxt(f / "density.csv", delimiter=",", skiprows=1)
        for f in (top / "whole", tmp_path / "run")
    ]
    np.testing.assert_allclose(*logs, rtol=1e-4)


def test_sigterm_to_one_stops_both_and_resumes_to_the_bit(pair):
    top, _, texts, _ = pair
    for text in texts:
        assert f"Interrupted at step 4 of {worker.STEPS} (density)." in text
    name = "checkpoint/density.weights.h5"
    whole, resumed = arrays(top / "whole" / name), arrays(top / "stopped" / name)
    assert whole.keys() == resumed.keys()
    for key in whole:
        np.testing.assert_array_equal(whole[key], resumed[key], err_msg=key)


def test_only_the_chief_writes(pair):
    top, *_ = pair
    names = {p.name for p in (top / "whole").rglob("*") if p.is_file()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert names - events == {"config.json", "density.csv", "density.keras", "density.weights.h5"}
    assert len({name.split(".")[-3] for name in events}) == 1  # the process


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. .finalize:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.parametrize("resume", [False, True])
def test_a_worker_may_come_before_the_chief(tmp_path, monkeypatch, resume):
    if resume:
        runs.Run(tmp_path, {"a": 1})
    monkeypatch.setattr(cluster, "this_cluster", lambda: cluster.Cluster(workers=2, rank=1))
    before = set(tmp_path.rglob("*"))
    second = runs.Run(tmp_path, {"a": 1}, resume)
    assert set(tmp_path.rglob("*")) == before
    assert (second / "config.json").exists()
    monkeypatch.undo()
    runs.Run(tmp_path, {"a": 1}, resume)


def check_lost(top, codes, texts, seconds):
    assert codes == [runs.LOST, -9]
    assert seconds < 30
    errors = [line for line in texts[0].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "another worker was lost; the last checkpoint is whole: start all" in errors[0]
    assert "Traceback" not in texts[0]
    arrays(top / "lost/checkpoint/density.weights.h5")


def test_lost_worker_ends_the_other_in_a_sentence(pair):
    check_lost(*pair)


def test_frozen_worker_counts_as_lost(tmp_path):
    check_lost(tmp_path, *run(tmp_path, "SIGSTOP"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, cluster.Cluster(1, 0)),
        ({"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}, cluster.Cluster()),
        ({"cluster": {"worker": HOSTS}, "task": {"type": "worker", "index": "1"}}, (2, 1)),
        (
            {"cluster": {"chief": ["c:1"], "worker": HOSTS}, "task": {"type": "chief", "index": 0}},
            (3, 0),
        ),
        (
            {
                "cluster": {"chief": ["c:1"], "worker": HOSTS},
                "task": {"type": "worker", "index": 0},
            },
            (3, 1),
        ),
    ],
)
def test_rank_of_the_worker(monkeypatch, config, expected):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    if isinstance(expected, tuple):
        expected = cluster.Cluster(*expected)
    assert cluster.this_cluster() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "TF_CONFIG must be JSON like .*, got '{' "),
        ("[]", "TF_CONFIG must be JSON like"),
        (json.dumps({"cluster": {"worker": HOSTS}}), "TF_CONFIG must be JSON like .*'task'"),
        (
            json.dumps(
                {"cluster": {"worker": HOSTS, "ps": ["c:1"]}, "task": {"type": "ps", "index": 0}}
            ),
            "at most one chief, and workers, got {'worker': 2, 'ps': 1}",
        ),
        (
            json.dumps({"cluster": {"worker": HOSTS}, "task": {"type": "worker", "index": 2}}),
            "task is worker 2, which its cluster does not have",
        ),
    ],
)
def test_wrong_config_is_one_sentence(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(runs.RunError, match=message):
        runs.strategy_for(None)


def test_devices_and_several_workers_exclude_each_other(monkeypatch):
    config = {"cluster": {"worker": HOSTS}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(runs.RunError, match="--devices must be left out .* got \\['GPU:0'\\]"):
        runs.strategy_for(["GPU:0"])
