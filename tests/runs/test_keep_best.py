"""The best averaged weights are kept, and a stopped run stops and keeps as an undisturbed one."""

import os
import signal

import keras
import numpy as np
import pytest
from worker import At, reusable

import tfdde
from tfdde import networks, plots, runs
from tfdde.datasets import stream
from tfdde.runs.keep_best import averaged

# Keras's own saving of weights makes NumPy 2 warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

EPOCH, STEPS, PATIENCE = 3, 60, 2
RATE, MOMENTUM = 0.03, 0.8
RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 2)).astype(np.float32)
HELD_OUT = RNG.standard_normal((300, 2)).astype(np.float32)


@reusable
def build():
    keras.utils.set_random_seed(1)
    model = tfdde.DDE(networks.residual_mlp(2, 16, 1), tfdde.Constant(0.1), seed=1)
    model.compile(keras.optimizers.Adam(RATE, use_ema=True, ema_momentum=MOMENTUM))
    return model


def keeper(folder):
    return runs.KeepBest(
        HELD_OUT, PATIENCE, path=folder / "checkpoint/best.npz", curve=folder / "validation.csv"
    )


def train(folder, resume=False, callbacks=(), before=()):
    """The last weights, the keeper, the steps made, and whether no interrupt ended it."""
    model, best = build(), keeper(folder)
    run = runs.Run(folder, {}, resume)
    done = run.train(
        "density",
        model,
        lambda k: stream(X, 8, 1, k),
        STEPS,
        EPOCH,
        callbacks=[*before, best, *callbacks],
    )
    return model.get_weights(), best, int(model.optimizer.iterations), done


class Averages(keras.callbacks.Callback):
    """What the optimizer's averages are to be, from the weights after each step."""

    def on_train_begin(self, logs=None):
        self.average, self.epochs = None, []

    def on_train_batch_end(self, batch, logs=None):
        weights = [w.numpy().astype(np.float64) for w in self.model.trainable_variables]
        if self.average is None:
            self.average = weights
        pairs = zip(self.average, weights, strict=True)
        self.average = [MOMENTUM * a + (1 - MOMENTUM) * w for a, w in pairs]

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.average)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and results of an undisturbed run, which stops early, and the averages."""
    folder, averages = tmp_path_factory.mktemp("whole"), Averages()
    results = train(folder, callbacks=[averages])
    return folder, results, averages.epochs


def test_the_kept_weights_are_the_averages_of_the_epoch_with_the_lowest_loss(whole):
    folder, (_, best, *_), averages = whole
    losses = np.array(list(best.losses.values()))
    assert list(best.losses) == list(range(len(losses))) and best.best_epoch == losses.argmin()
    model = build()
    for epoch, weights in enumerate(averages):
        for variable, value in zip(model.trainable_variables, weights, strict=True):
            variable.assign(value)
        assert model.evaluate(HELD_OUT, batch_size=512, verbose=0) == pytest.approx(
            losses[epoch], rel=1e-4
        )
    for kept, average in zip(best.weights, averages[losses.argmin()], strict=True):
        np.testing.assert_allclose(kept, average, rtol=1e-4, atol=1e-5)
    curve = plots.read_log(folder / "validation.csv")
    np.testing.assert_array_equal(curve["epoch"], range(len(losses)))
    np.testing.assert_allclose(curve["loss"], losses, rtol=1e-8)


def test_training_ends_when_patience_does_and_tells_the_true_step(whole):
    _, (_, best, steps, done), _ = whole
    epochs = len(best.losses)
    assert 1 < best.best_epoch + 1 + PATIENCE == epochs < STEPS // EPOCH
    assert done and steps == EPOCH * epochs
    assert not best.stopped(epochs - 1) and best.stopped(epochs)


@pytest.mark.parametrize("rise", [None, 0.1])
def test_a_loss_far_above_the_lowest_ends_the_training_at_once(rise):
    best = runs.KeepBest(HELD_OUT, 5, rise=rise)
    best.losses = dict(enumerate([2.0, 1.0, 1.05, 1.09, 1.11, 1.12, 1.13]))
    stopped = [best.stopped(epochs) for epochs in range(1, 8)]
    # After the last of them five epochs have not been better, and patience ends it as well.
    ends_at_once = rise is not None
    assert stopped == [False] * 4 + [ends_at_once] * 2 + [True]
    assert best.best_epoch == 1


def assert_same(a, b):
    """Of two runs: the last weights, all that the keepers hold, and the steps."""
    np.testing.assert_equal(a[0], b[0])
    assert a[1].losses == b[1].losses
    np.testing.assert_equal(a[1].weights, b[1].weights)
    assert a[2:] == b[2:]


def power_cut():
    raise SystemError("power cut")


def test_interrupted_within_and_at_the_end_of_an_epoch(whole, tmp_path):
    folder, results, _ = whole
    last = results[2]
    for k, step in enumerate((2, EPOCH, last - 1)):
        at = At(step, lambda: os.kill(os.getpid(), signal.SIGINT))
        *_, stopped, done = train(tmp_path, k > 0, callbacks=[at])
        assert stopped == step and not done
    assert_same(train(tmp_path, resume=True), results)
    # Resumed once more it has nothing to do.
    again = train(tmp_path, resume=True, callbacks=[At(last + 1, power_cut)])
    assert_same(again, results)
    for name in ("validation.csv", "density.csv"):
        a, b = (plots.read_log(f / name) for f in (tmp_path, folder))
        np.testing.assert_array_equal(a["epoch"], b["epoch"])


@pytest.mark.parametrize("when", ["before its file", "after its file"])
def test_killed_in_the_epoch_that_ends_the_training(whole, tmp_path, when):
    """The last checkpoint is then of the epoch before."""
    folder, results, _ = whole
    last = len(results[1].losses) - 1

    def cut(epoch, logs):
        return epoch == last and power_cut()

    kill = [keras.callbacks.LambdaCallback(on_epoch_end=cut)]
    place = {"before": kill} if when == "before its file" else {"callbacks": kill}
    with pytest.raises(SystemError):
        train(tmp_path, **place)
    assert len(keeper(tmp_path).losses) == last + (when == "after its file")
    assert_same(train(tmp_path, resume=True), results)
    assert (tmp_path / "density.csv").read_text() == (folder / "density.csv").read_text()


def test_in_memory_and_from_a_later_epoch_on():
    """As a search has it; the losses are in the history."""
    model, best = build(), runs.KeepBest(HELD_OUT, 3, batch_size=100)
    fit = {"steps_per_epoch": 2, "callbacks": [best], "verbose": 0}
    history = model.fit(stream(X, 8, 1), initial_epoch=4, epochs=6, **fit).history
    assert list(best.losses) == [4, 5] and best.path is None
    assert history["val_loss"] == list(best.losses.values())
    model.set_weights(best.weights)
    again = model.evaluate(HELD_OUT, batch_size=100, verbose=0)
    assert again == pytest.approx(best.losses[best.best_epoch], rel=1e-6)


def test_within_averaged_the_weights_are_the_averages_and_afterwards_what_they_were():
    model = build()
    model.fit(X, batch_size=8, verbose=0)
    model.fit(X, batch_size=8, verbose=0)
    for variable in model.trainable_variables:
        variable.assign(variable + 1.0)
    before = model.get_weights()
    averages = [v.numpy() for v in model.optimizer._model_variables_moving_average]
    with pytest.raises(SystemError), averaged(model):
        for variable, average in zip(model.trainable_variables, averages, strict=True):
            np.testing.assert_array_equal(variable.numpy(), average)
        power_cut()
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_arguments_files_and_losses(tmp_path):
    with pytest.raises(ValueError, match="`patience` must be an integer >= 1, got 0"):
        runs.KeepBest(HELD_OUT, 0)
    with pytest.raises(ValueError, match="`rise` must be .* > 0, got 0"):
        runs.KeepBest(HELD_OUT, 1, rise=0.0)
    path = tmp_path / "best.npz"
    path.write_bytes(b"PK\3\4 not really")
    with pytest.raises(runs.RunError, match=r"best.npz is damaged .*train from the start"):
        runs.KeepBest(HELD_OUT, 1, path=path)
    model = build()
    model.optimizer.learning_rate = 1e30  # after one step the loss overflows
    fit = {"steps_per_epoch": 1, "callbacks": [runs.KeepBest(HELD_OUT, 1)], "verbose": 0}
    with pytest.raises(tfdde.DivergedError, match="diverged at step 1: val_loss = "):
        model.fit(stream(X, 8, 1), **fit)
    model.optimizer.learning_rate = RATE
