"""One of two workers on the loopback, for test_cluster.py: trains, is stopped, loses the other."""

import json
import os
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

import tfdde
from tfdde import networks, runs
from tfdde.datasets import stream

EPOCH, STEPS = 3, 8


def build(strategy, learning_rate=1e-2, **compile_kwargs):
    keras.utils.clear_session()
    keras.utils.set_random_seed(1 + runs.cluster.this_cluster().rank)  # the chief's counts
    with strategy.scope():
        network = networks.residual_mlp(2, 8, 1, levels=True)
        model = tfdde.DDE(network, tfdde.LogUniform(0.2, 2.0), seed=1)
        averaging = {"use_ema": True, "ema_momentum": 0.9}
        model.compile(keras.optimizers.SGD(learning_rate, **averaging), **compile_kwargs)
    return model


def reusable(build):
    """A function that returns the model ``build()``, each time as it was when it was new.

    It is built and traced once, which takes longer than the trainings of most tests.
    """
    model, start = None, []

    def renewed():
        nonlocal model
        if model is None:
            model = build()
            optimizers = (getattr(model, f"{name}optimizer", None) for name in ("", "dde_"))
            variables = [v for part in (model, *optimizers) if part for v in part.variables]
            start.extend((v, v.numpy()) for v in variables)
        for variable, value in start:
            variable.assign(value)
        return model

    return renewed


def train(model, folder, resume=False, steps=STEPS, callbacks=(), bad=None):
    """Train in ``folder``; batch number ``bad`` has a NaN."""
    x = np.random.default_rng(0).standard_normal((200, 2)).astype("float32")
    run = runs.Run(folder, {"steps": steps}, resume)

    def batches(k):
        rows = stream(x, 15, 1, k)  # odd, so that the shares differ
        if bad is None:
            return rows
        return rows.enumerate(k).map(lambda i, x: tf.where(i == bad, np.float32("nan"), x))

    return run.train("density", model, batches, steps, EPOCH, callbacks)


class At(keras.callbacks.Callback):
    """Do something once, right after iteration ``step``."""

    def __init__(self, step, action):
        super().__init__()
        self.step, self.action = step, action

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            self.action()


def main(top, rank, ports, loss="SIGKILL"):
    addresses = [f"127.0.0.1:{port}" for port in ports.split(",")]
    task = {"type": "worker", "index": int(rank)}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
    second = rank == "1"
    strategy = runs.strategy_for(None)

    @runs.command
    def whole():
        return train(build(strategy), f"{top}/whole")

    @runs.command
    def stopped(resume=False):
        term = (
            [At(4, lambda: os.kill(os.getpid(), signal.SIGTERM))] if second and not resume else []
        )
        return train(build(strategy), f"{top}/stopped", resume, callbacks=term)

    @runs.command
    def lost():
        kill = [At(4, lambda: os.kill(os.getpid(), signal.Signals[loss]))] if second else []
        return train(build(strategy), f"{top}/lost", steps=1_000_000, callbacks=kill)

    if loss == "SIGSTOP":
        return lost()
    codes = [whole(), stopped(), stopped(resume=True)]
    print(json.dumps({"codes": codes}), flush=True)
    return lost()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
