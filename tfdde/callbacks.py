"""Keras callbacks: stop a diverged run, keep a checkpoint that is never half-written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
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
    not replaced by a state that is not finite.  At its end is a checksum, since HDF5 has none and
    ``load_weights``, which ignores it, would read changed numbers.

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
        weights = {w.path: w.numpy() for w in self.model.weights}
        if bad := _bad({path: np.float64(np.sum(w)) for path, w in weights.items()}):
            raise DivergedError(int(self.model.optimizer.iterations.numpy()), bad)
        with atomic(self.path) as beside:
            # Weights, and three more of each in Adam with averages, with HDF5's own bytes.
            _reserve(beside, sum(4 * (w.nbytes + 2048) for w in weights.values()))
            self.model.save_weights(beside, overwrite=True)
            with open(beside, "r+b") as f:
                f.write(SEAL + hashlib.file_digest(f, "sha256").digest())


def _reserve(path: Path, size: int) -> None:
    """Raise OSError unless a file may have ``size`` bytes: HDF5 crashes if a disk is full."""
    with open(path, "wb") as f:
        if size and hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(f.fileno(), 0, size)


SEAL = b"tfdde sha256:"
DIGEST = 32  # bytes


def check_seal(path: str | os.PathLike) -> None:
    """Raise ValueError if a file that ``Checkpoint`` wrote has changed; one without seal passes."""
    with open(path, "rb") as f:
        data = memoryview(f.read())
    content, seal = data[: -len(SEAL) - DIGEST], data[-len(SEAL) - DIGEST :]
    if seal[: len(SEAL)] == SEAL and hashlib.sha256(content).digest() != seal[len(SEAL) :]:
        raise ValueError("its checksum is wrong")


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what storage says


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
            if isinstance(value, OSError) and value.errno in FULL:
                # h5py's message has many lines, and not this name.
                raise OSError(value.errno, os.strerror(value.errno), str(self.path)) from value


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
