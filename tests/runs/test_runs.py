"""A run stopped anywhere and resumed ends with the very weights of an uninterrupted one."""

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from worker import At, reusable

import tfdde
from tfdde import plots, runs
from tfdde.datasets import stream
from tfdde.networks.dense import residual_mlp

# Keras's own saving of weights makes NumPy 2 warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
EPOCH, STEPS = 5, 17  # the last epoch is shorter


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((200, 2)).astype("float32")


def density_of(strategy):
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = tfdde.DDE(residual_mlp(2, 8, 2), tfdde.Constant(0.3), seed=1)
        schedule = keras.optimizers.schedules.CosineDecay(1e-2, STEPS)
        model.compile(keras.optimizers.Adam(schedule, use_ema=True, ema_momentum=0.9))
    return model


build_density = reusable(lambda: density_of(tf.distribute.get_strategy()))


@reusable
def build_generator():
    density = density_of(tf.distribute.get_strategy())
    model = tfdde.Generator(
        residual_mlp(2, 8, 2, output_shape=2),
        data_dde=density,
        generated_dde=tfdde.DDE(residual_mlp(2, 8, 2), tfdde.Constant(0.3), seed=5),
        latent_dim=2,
        dde_steps=2,
        seed=7,
    )
    adam = keras.optimizers.Adam
    model.compile(adam(1e-3), dde_optimizer=adam(1e-3))
    return model


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def power_cut():
    raise SystemError("power cut")


def weights_of(model):
    return [w.numpy() for w in model.weights]


def train(folder, build, x, resume=False, steps=STEPS, callbacks=()):
    """The weights at the end, the steps made, and whether no interrupt ended the training."""
    model = build()
    run = runs.Run(folder, {"steps": steps}, resume)
    done = run.train("phase", model, lambda k: stream(x, 16, 2, k), steps, EPOCH, callbacks)
    return weights_of(model), int(model.optimizer.iterations), done


def saved(folder, name="phase"):
    return weights_of(keras.saving.load_model(folder / f"{name}.keras"))


@pytest.fixture(
    scope="module", params=[build_density, build_generator], ids=["density", "generator"]
)
def whole(request, x, tmp_path_factory):
    """The folder and weights of an uninterrupted run, and what builds its model."""
    folder = tmp_path_factory.mktemp("whole")
    weights, steps, done = train(folder, request.param, x)
    assert done and steps == STEPS
    return folder, weights, request.param


def test_interrupted_anywhere_equals_uninterrupted(whole, x, tmp_path, capsys):
    folder, weights, build = whole
    # In the middle of an epoch, again in its rest, at the end of one, in the short last one.
    steps = (3, 4, 10, 16) if build is build_density else (4, 16)
    for i, step in enumerate(steps):
        stopped, made, done = train(tmp_path, build, x, i > 0, callbacks=[At(step, ctrl_c)])
        assert not done and made == step
        assert f"Interrupted at step {step} of {STEPS}" in capsys.readouterr().out
        np.testing.assert_equal(saved(tmp_path), stopped)
    resumed, _, done = train(tmp_path, build, x, resume=True)
    assert done
    np.testing.assert_equal(resumed, weights)
    np.testing.assert_equal(saved(tmp_path), weights)
    a, b = (plots.read_log(f / "phase.csv") for f in (folder, tmp_path))
    assert list(a) == list(b)
    np.testing.assert_array_equal(a["epoch"], [0, 1, 2, 3])
    np.testing.assert_array_equal(b["epoch"], [0, 1, 2, 3])
    np.testing.assert_array_equal(a["loss"][1:3], b["loss"][1:3])  # epochs not interrupted
    # A complete run resumed has nothing to do, and gives the same.
    np.testing.assert_equal(train(tmp_path, build, x, resume=True)[0], weights)


def test_killed_run_goes_on_from_its_last_checkpoint(whole, x, tmp_path):
    folder, weights, build = whole

    # After the log of epoch 1, before its checkpoint.
    def cut(epoch, logs):
        return epoch == 1 and power_cut()

    with pytest.raises(SystemError):
        train(tmp_path, build, x, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=cut)])
    np.testing.assert_array_equal(plots.read_log(tmp_path / "phase.csv")["epoch"], [0, 1])
    resumed, *_ = train(tmp_path, build, x, resume=True)
    np.testing.assert_equal(resumed, weights)
    assert (tmp_path / "phase.csv").read_text() == (folder / "phase.csv").read_text()


def test_killed_before_the_first_checkpoint(x, tmp_path):
    with pytest.raises(SystemError):
        train(tmp_path, build_density, x, steps=3, callbacks=[At(2, power_cut)])
    _, made, done = train(tmp_path, build_density, x, resume=True, steps=3)
    assert done and made == 3


def test_final_weights_are_the_averages(x, tmp_path):
    weights, *_ = train(tmp_path, build_density, x, steps=4)
    model = build_density()
    model.load_weights(tmp_path / "checkpoint" / "phase.weights.h5")
    trained = [w.path for w in model.trainable_weights]
    averages = dict(zip(trained, model.optimizer._model_variables_moving_average, strict=True))
    for now, weight in zip(weights, model.weights, strict=True):
        if weight.path in averages:
            np.testing.assert_array_equal(now, averages[weight.path].numpy())
            assert not np.array_equal(now, weight.numpy())


def test_second_ctrl_c_quits_at_once_and_the_handler_is_put_back(x, tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def twice():
        ctrl_c()
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, build_density, x, callbacks=[At(7, twice)])
    assert signal.getsignal(signal.SIGINT) is before
    raw = build_density()
    raw.load_weights(tmp_path / "checkpoint" / "phase.weights.h5")
    assert int(raw.optimizer.iterations) == 5  # of the last whole epoch


@pytest.mark.parametrize("under", ["one device", "two devices"])
def test_sigterm_saves_and_resumes_to_the_bit(x, two, tmp_path, capsys, under):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    build = reusable(lambda: density_of(two)) if under == "two devices" else build_density

    @runs.command
    def main(name, resume=False, callbacks=()):
        built = build()
        run = runs.Run(tmp_path / name, {}, resume)
        batches = functools.partial(stream, x, 16, 2)
        done = run.train("phase", built, batches, STEPS, EPOCH, callbacks)
        return done and run.save("end", built) is None

    assert main("whole") == 0

    def twice():  # as from a process group, and from its leader
        terminate()
        terminate()

    assert main("run", callbacks=[At(7, twice)]) == runs.TERMINATED
    captured = capsys.readouterr()
    assert f"Interrupted at step 7 of {STEPS}" in captured.out
    assert captured.out.endswith("To continue, run the same command with --resume.\n")
    assert main("run", resume=True) == 0
    np.testing.assert_equal(saved(tmp_path / "run", "end"), saved(tmp_path / "whole", "end"))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_outside_of_the_training_ends_as_ctrl_c_does(capsys):
    assert runs.command(terminate)() == runs.TERMINATED
    assert runs.command(ctrl_c)() == runs.INTERRUPTED
    assert capsys.readouterr().out.count("--resume") == 2


def test_in_a_thread_there_are_no_signals_and_the_same_weights(whole, x, tmp_path):
    _, weights, build = whole
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    codes = []

    @runs.command
    def main():
        trained, _, done = train(tmp_path, build, x)
        np.testing.assert_equal(trained, weights)
        return done

    thread = threading.Thread(target=lambda: codes.append(main()))
    thread.start()
    thread.join()
    assert codes == [0]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


NOT_ASCII = """
import sys
from tfdde import runs

@runs.command
def main():
    print("Held-out log-likelihood: 1 ± 2, σ = 3")
    return True

sys.exit(main())
"""


def test_a_result_is_printed_whatever_the_encoding_of_the_output():
    done = subprocess.run(
        [sys.executable, "-c", NOT_ASCII],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Held-out log-likelihood: 1 \\xb1 2, \\u03c3 = 3\n"


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    runs.Run(tmp_path, {})
    kept, left = tmp_path / "checkpoint/.mine.h5", tmp_path / "checkpoint/.12.phase.weights.h5"
    kept.parent.mkdir()
    for path in (kept, left, tmp_path / ".12.phase.csv"):
        path.touch()
    runs.Run(tmp_path, {}, resume=True)
    assert {p.name for p in tmp_path.rglob("*")} == {"config.json", "checkpoint", kept.name}


def test_config_tells_what_was_run(tmp_path):
    runs.Run(tmp_path / "new", {"sigma": 0.2, "devices": ("CPU:0",), "output": "here"})
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["arguments"]["sigma"] == 0.2
    assert config["versions"]["tfdde"] == tfdde.__version__
    assert set(config) == {"arguments", "versions", "command", "started"}


def test_run_folder_is_not_mixed_up(tmp_path):
    with pytest.raises(runs.RunError, match="no run to resume in .*leave out --resume"):
        runs.Run(tmp_path, {"sigma": 0.2}, resume=True)
    runs.Run(tmp_path, {"sigma": 0.2, "devices": ("CPU:0",), "resume": False})
    with pytest.raises(runs.RunError, match="add --resume to continue it, or choose another"):
        runs.Run(tmp_path, {"sigma": 0.2})
    with pytest.raises(runs.RunError, match=r"started with sigma = 0\.2, not 0\.3"):
        runs.Run(tmp_path, {"sigma": 0.3, "devices": ("CPU:0",)}, resume=True)
    runs.Run(tmp_path, {"sigma": 0.2, "devices": ("CPU:0",), "resume": True}, resume=True)


def test_command_ends_in_a_sentence_and_a_code(capsys):
    def raising(error):
        @runs.command
        def main():
            raise error

        return main

    assert runs.command(lambda: True)() == 0
    assert runs.command(lambda: False)() == runs.INTERRUPTED
    assert raising(KeyboardInterrupt())() == runs.INTERRUPTED
    assert "--resume" in capsys.readouterr().out
    assert raising(runs.RunError("busy"))() == 2
    assert raising(FileNotFoundError("no data"))() == 2
    assert raising(tfdde.DivergedError(3, {"loss": float("nan")}))() == 1
    assert capsys.readouterr().err.splitlines()[:2] == ["error: busy", "error: no data"]
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        raising(ZeroDivisionError())()


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (runs.positive_int, "0", "an integer >= 1, got '0'"),
        (runs.positive_int, "2.5", "an integer >= 1, got '2.5'"),
        (runs.positive_float, "nan", "a finite number > 0, got 'nan'"),
        (runs.positive_float, "x", "a finite number > 0, got 'x'"),
    ],
)
def test_options_say_what_they_expect(capsys, kind, text, expected):
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=kind)
    assert parser.parse_args(["--size", "3"]).size == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["--size", text])
    assert f"argument --size: must be {expected}" in capsys.readouterr().err
