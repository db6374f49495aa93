"""Keras callbacks: stop a diverged run, keep a checkpoint that is never half-written."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np


class DivergedError(RuntimeError):
    """Training produced a loss or a weight that is not finite.

    Attributes:
        step: training iterations done when it was noticed.
        loss: the offending values by name.
    """

    def __init__(self, step: int, loss: dict[str, float]):
        self.step, self.loss = step, loss
        values = ", ".join(f"{name} = {value}" for name, value in loss.items())
        super().__init__(
            f"Training diverged at step {step}: {values}. Lower the learning rate, set the "
            "optimizer's `clipnorm`, raise sigma, or look for NaN in the data; the last "
            "checkpoint, if any, is from before."
        )


def _bad(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in values.items() if not np.isfinite(v).all()}


class StopOnDivergence(keras.callbacks.Callback):
    """Raise ``DivergedError`` at the first step whose logs are not finite; `fit` adds it."""

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if bad := _bad(logs or {}):
            raise DivergedError(int(self.model.optimizer.iterations.numpy()), bad)


class EpochCounter(keras.callbacks.Callback):
    """Tell the epoch to a tf.Variable on which the order of the rows depends."""

    def __init__(self, variable: Any):
        super().__init__()
        self.variable = variable

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.variable.assign(epoch)


class Checkpoint(keras.callbacks.Callback):
    """Save the whole training state to one file after each epoch, atomically.

    The file holds weights and optimizers.  It is written beside its
    final name and renamed, so a kill leaves the previous one whole, and it is
    not replaced by a state that is not finite.

    Args:
        path: the file, ending in ``.weights.h5``.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)
        if not self.path.name.endswith(".weights.h5"):
            raise ValueError(f"`path` must end in '.weights.h5', got {str(path)!r}.")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.save()

    def save(self) -> None:
        """Write the state now."""
        weights = {w.path: np.float64(np.sum(w.numpy())) for w in self.model.weights}
        if bad := _bad(weights):
            raise DivergedError(int(self.model.optimizer.iterations.numpy()), bad)
        with atomic(self.path) as beside:
            self.model.save_weights(beside, overwrite=True)


class atomic:  # noqa: N801, used like a function
    """Context manager: a path beside ``path`` to write to, renamed to it on success.

    The temporary name keeps the ending, on which Keras's formats depend.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.beside = self.path.with_name(f".{os.getpid()}.{self.path.name}")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.beside

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            with open(self.beside, "rb") as f:
                os.fsync(f.fileno())
            os.replace(self.beside, self.path)
        else:
            self.beside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to write to, renamed to it on success and removed otherwise."""
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield beside
        os.rename(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
