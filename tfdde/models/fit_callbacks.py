"""What ``fit`` of a ``Trainer`` does beside the steps: it stops at NaN, and takes averages."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf


class DivergedError(RuntimeError):
    """Training produced a loss or a weight that is not finite.

    Attributes:
        step: number of training iterations when it was noticed.
        loss: the values that are not finite, by name.
    """

    def __init__(self, step: int, loss: dict[str, float]):
        self.step, self.loss = step, loss
        values = ", ".join(f"{name} = {value}" for name, value in loss.items())
        super().__init__(
            f"Training diverged at step {step}: {values}. Lower the learning rate, set the "
            "optimizer's `clipnorm`, raise sigma, or look for NaN in the data; the last "
            "checkpoint, if there is one, is from before the divergence."
        )


def not_finite(values: dict[str, Any]) -> dict[str, float]:
    """The values that are NaN or infinite, by name."""
    return {name: float(v) for name, v in values.items() if not np.isfinite(v).all()}


class StopOnDivergence(keras.callbacks.Callback):
    """Raise ``DivergedError`` at the first step whose logs are not finite; ``fit`` adds it."""

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if bad := not_finite(logs or {}):
            raise DivergedError(int(self.model.optimizer.iterations.numpy()), bad)


class EpochNumber(keras.callbacks.Callback):
    """Write a number for the order of an epoch's rows to a tf.Variable: the steps made so far.

    The number of the epoch would be the same in each call of ``fit``.
    """

    def __init__(self, variable: Any):
        super().__init__()
        self.variable = variable

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.variable.assign(tf.cast(self.model.optimizer.iterations, tf.int64))


class UseAverages(keras.callbacks.Callback):
    """Put the averages of all optimizers (``use_ema``) in place of the weights at the end.

    Keras does so for the model's ``optimizer`` only. The callbacks of the user come later, for
    instance one that restores the best weights.
    """

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.model.finalize_averages()


def flat(callbacks: Any) -> list[keras.callbacks.Callback]:
    """The callbacks in a list: None, one, a ``CallbackList``, or nested lists of them."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    return [callback for callback in keras.tree.flatten(callbacks) if callback is not None]
