"""Full disks, damaged and foreign files, data gone bad: one sentence, and nothing is lost."""

import os
import resource
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import worker

import tfdde
from tfdde import networks, runs, serving
from tfdde.runs.checkpoint import Checkpoint, load_checkpoint

# Keras's own saving of weights makes NumPy 2 warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ONE = tf.distribute.get_strategy()
CHECKPOINT = "checkpoint/density.weights.h5"


build = worker.reusable(lambda: worker.build(ONE))


@runs.command
def train(folder, *args, model=None, **kwargs):
    return worker.train(model or build(), folder, *args, **kwargs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder) == 0
    return folder


def error(capsys):
    """The one sentence on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def assert_same_run(folder, whole):
    a, b = (keras.saving.load_model(f / "density.keras") for f in (folder, whole))
    for v, w in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(v.numpy(), w.numpy(), err_msg=v.path)
    assert (folder / "density.csv").read_text() == (whole / "density.csv").read_text()


def no_space(monkeypatch):
    """From the second save on, the disk is full."""
    save, count = keras.Model.save_weights, iter(range(100))

    def full(model, path, **kwargs):
        save(model, path, **kwargs)
        if next(count):
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise OSError(28, "No space left on device\nand more lines")

    monkeypatch.setattr(keras.Model, "save_weights", full)


def file_limit(monkeypatch):
    """Files may have 8 kB: enough for all but the checkpoints."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = Checkpoint.save

    def limited(checkpoint):
        if int(checkpoint.model.optimizer.iterations.numpy()) <= worker.EPOCH:
            return save(checkpoint)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
        try:
            save(checkpoint)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(Checkpoint, "save", limited)


@pytest.mark.parametrize(
    ("fault", "says"), [(no_space, "No space left on device"), (file_limit, "File too large")]
)
def test_full_disk(whole, tmp_path, monkeypatch, capsys, fault, says):
    with monkeypatch.context() as patch:
        fault(patch)
        assert train(tmp_path) == 2
    message = error(capsys)
    assert says in message and message.endswith(f"{CHECKPOINT}'")
    model = build()
    model.load_weights(tmp_path / CHECKPOINT)
    assert int(model.optimizer.iterations) == worker.EPOCH  # of the save that succeeded
    assert os.listdir(tmp_path / "checkpoint") == ["density.weights.h5"]
    assert train(tmp_path, True) == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that no one may fill")
def test_folder_that_takes_no_files(capsys):
    assert train("/proc/run") == 2
    assert "/proc/run" in error(capsys)


def wrong_shape(path):
    network = networks.residual_mlp(2, 9, 1, levels=True)
    model = tfdde.DDE(network, tfdde.LogUniform(0.2, 2.0))
    model.compile("sgd")
    model.save_weights(path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-3000]), "truncated file"),
        (lambda p: p.write_bytes(b""), "damaged"),
        (wrong_shape, "or of another model"),
    ],
)
def test_damaged_checkpoint(whole, tmp_path, capsys, damage, says):
    assert train(tmp_path, steps=3) == 0
    path = tmp_path / CHECKPOINT
    damage(path)
    before = path.read_bytes()
    assert train(tmp_path, True, steps=3) == 2
    message = error(capsys)
    assert says in message and "is damaged, or of another model" in message
    assert str(path) in message and "put back a copy of it, or remove it" in message
    assert path.read_bytes() == before


def test_any_flipped_bit_is_noticed(whole, tmp_path):
    data = (whole / CHECKPOINT).read_bytes()
    path, model = tmp_path / "x.weights.h5", build()
    path.write_bytes(data)
    load_checkpoint(model, path)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data) - 64, 100):
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        with pytest.raises(runs.RunError, match="its checksum is wrong"):
            load_checkpoint(model, path)


def test_flipped_bit_in_a_model_is_noticed(whole, tmp_path):
    data = bytearray((whole / "density.keras").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "density.keras").write_bytes(data)
    with pytest.raises(ValueError, match="density.keras can't be loaded .*checksum of model.weig"):
        serving.load_run(tmp_path)


@pytest.mark.parametrize("nested", [False, True])
def test_loading_runs_no_code(tmp_path, nested):
    proof = tmp_path / "proof"
    source = f"(open({str(proof)!r}, 'w').close(), x)[1]"
    payload = eval(f"lambda x: {source}")
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Lambda(payload)(inputs)))
    if nested:
        model = tfdde.DDE(model)
    path = tmp_path / "density.keras"
    model.save(path)
    proof.unlink()  # making the model ran it
    with pytest.raises(ValueError, match="density.keras can't be loaded .*lambda") as caught:
        serving.load_run(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert not proof.exists()
    keras.saving.load_model(path, safe_mode=False)
    assert proof.exists()  # it would have


@pytest.mark.parametrize(("devices", "group"), [(1, 1), (2, 3)])
def test_nan_in_a_batch(two, tmp_path, capsys, devices, group):
    strategy = two if devices == 2 else ONE
    model = worker.reusable(lambda: worker.build(strategy, steps_per_execution=group))
    assert train(tmp_path / "whole", model=model(), steps=6) == 0
    capsys.readouterr()
    assert train(tmp_path / "run", model=model(), steps=6, bad=4) == 1
    step = 5 if group == 1 else 6  # a group is looked at as a whole
    message = error(capsys)
    assert f"diverged at step {step}: loss = nan. Lower the learning rate" in message
    assert "look for NaN in the data; the last checkpoint" in message
    last = model()
    load_checkpoint(last, tmp_path / "run" / CHECKPOINT)
    assert int(last.optimizer.iterations.numpy()) == worker.EPOCH
    assert train(tmp_path / "run", True, model=model(), steps=6) == 0  # with good data
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_grouped_steps_end_where_single_ones_do(tmp_path):
    assert worker.EPOCH % 2 and worker.STEPS % worker.EPOCH == 2  # epochs of 3, 3 and 2 steps
    assert train(tmp_path / "single") == 0
    model = worker.build(ONE, steps_per_execution=2)
    assert train(tmp_path / "grouped", model=model) == 0
    assert model.steps_per_execution == 2
    assert_same_run(tmp_path / "grouped", tmp_path / "single")


def test_exploding_learning_rate(tmp_path, capsys):
    model = worker.build(ONE, learning_rate=1e12)
    assert train(tmp_path, model=model) == 1
    assert "Training diverged at step" in (message := error(capsys))
    assert "loss = " in message and "Lower the learning rate" in message
    assert not (tmp_path / CHECKPOINT).exists()  # none of a state that is not finite
