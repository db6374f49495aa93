"""The training state in one file that is never half-written and has a checksum."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfdde.models.fit_callbacks import DivergedError, not_finite
from tfdde.runs.cluster import RunError
from tfdde.utils.files import atomic


class Checkpoint(keras.callbacks.Callback):
    """Save the whole training state to one file after each epoch, atomically.

    The file holds weights and optimizers.  It is written under another name and then renamed, so
    that a kill leaves the previous file whole.  A state that is not finite is not saved.  HDF5 has
    no checksum, so one is added at the end of the file, where ``load_weights`` ignores it.

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
        if bad := not_finite({path: np.float64(np.sum(w)) for path, w in weights.items()}):
            raise DivergedError(int(self.model.optimizer.iterations.numpy()), bad)
        with atomic(self.path) as temporary:
            # Adam with averages has three more numbers for each weight; HDF5 adds 2 kB a weight.
            _reserve(temporary, sum(4 * (w.nbytes + 2048) for w in weights.values()))
            self.model.save_weights(temporary, overwrite=True)
            with open(temporary, "r+b") as f:
                f.write(SEAL + hashlib.file_digest(f, "sha256").digest())


def _reserve(path: Path, size: int) -> None:
    """Raise OSError unless the disk has ``size`` bytes for a file; HDF5 would crash there."""
    with open(path, "wb") as f:
        if size and hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(f.fileno(), 0, size)


SEAL = b"tfdde sha256:"
DIGEST = 32  # bytes


def check_seal(path: str | os.PathLike) -> None:
    """Raise ValueError if a checkpoint has changed since it was written.

    Files without a checksum, as earlier versions wrote them, pass.
    """
    with open(path, "rb") as f:
        data = memoryview(f.read())
    content, seal = data[: -len(SEAL) - DIGEST], data[-len(SEAL) - DIGEST :]
    if seal[: len(SEAL)] == SEAL and hashlib.sha256(content).digest() != seal[len(SEAL) :]:
        raise ValueError("its checksum is wrong")


def load_checkpoint(model: keras.Model, path: Path) -> None:
    """Load a file that ``Checkpoint`` wrote into a model of the same kind.

    Raises:
        RunError: the file is damaged or of another model.
    """
    try:
        with warnings.catch_warnings():
            # Keras only warns when it could not load some of the weights.
            warnings.simplefilter("error", UserWarning)
            check_seal(path)
            model.load_weights(path)
    except Exception as error:  # whatever h5py and Keras raise at a bad file
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RunError(
            f"The checkpoint {path} is damaged, or of another model ({reason}): put back a copy "
            "of it, or remove it to train from the start."
        ) from error
