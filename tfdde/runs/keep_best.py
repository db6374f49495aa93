"""Validation after each epoch: keep the best averaged weights, and stop when they stay the best."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfdde.models.fit_callbacks import DivergedError, not_finite
from tfdde.models.trainer import Trainer
from tfdde.runs.cluster import RunError
from tfdde.utils.checks import check_integer, check_positive
from tfdde.utils.files import atomic

RISE = 0.02  # of the validation loss above its lowest value: it does not come down again


@contextlib.contextmanager
def averaged(model: Trainer) -> Iterator[None]:
    """Context in which a model has the averages of its weights that its optimizer keeps.

    Without ``use_ema`` in the optimizer the weights stay as they are.
    """
    trained = model.get_weights()
    model.optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        model.set_weights(trained)


class KeepBest(keras.callbacks.Callback):
    """Keep the averaged weights of the epoch with the lowest validation loss, and stop early.

    After each epoch it evaluates the model with the averages that the optimizer keeps
    (``use_ema``), and adds the loss to the logs as ``val_loss``.  An epoch that an interrupt cut
    short is not evaluated; the resumed run completes it.  With a ``path``, one file holds the
    whole state, and ``tfdde.runs.Run.train`` keeps and stops exactly as without the interrupt.

    Args:
        x: validation rows, array of shape (rows, *data_shape).
        patience: number of epochs without a lower loss after which the training ends.
        batch_size: rows of a batch of the evaluation.
        path: file of the state, ending in ``.npz``; None: it is kept in memory only.
        curve: CSV file for the loss of each epoch; None: it is not written.
        rise: share of the lowest loss by which a later one must exceed it to end the training at
            once, for losses > 0; None: only ``patience`` ends it.

    Attributes:
        losses: validation losses by epoch.
        weights: the averaged weights of the best epoch, in the order of ``model.get_weights``.

    Raises:
        RunError: there is a file at ``path``, and it is damaged.
    """

    def __init__(
        self,
        x: np.ndarray,
        patience: int,
        batch_size: int = 512,
        path: str | os.PathLike | None = None,
        curve: str | os.PathLike | None = None,
        rise: float | None = None,
    ):
        super().__init__()
        self.x = x
        self.patience = check_integer(patience, "patience")
        self.batch_size = check_integer(batch_size, "batch_size")
        self.path = None if path is None else Path(path)
        self.curve = None if curve is None else Path(curve)
        self.rise = None if rise is None else check_positive(rise, "rise")
        self.losses: dict[int, float] = {}
        self.weights: list[np.ndarray] = []
        self._steps_done = 0
        if self.path is not None and self.path.exists():
            self._read(self.path)

    @property
    def best_epoch(self) -> int:
        """The first epoch with the lowest loss."""
        return min(self.losses, key=self.losses.__getitem__)

    def stopped(self, epochs: int) -> bool:
        """Whether the losses of the epochs before number ``epochs`` end the training."""
        losses = {epoch: loss for epoch, loss in self.losses.items() if epoch < epochs}
        if epochs - 1 not in losses:
            return False
        best = min(losses, key=losses.__getitem__)
        if self.rise is not None and losses[epochs - 1] > (1.0 + self.rise) * losses[best] > 0:
            return True
        return epochs - 1 - best >= self.patience

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps_done = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps_done = batch + 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._steps_done < (self.params.get("steps") or 0):
            return  # interrupted
        with averaged(self.model):
            result = self.model.evaluate(
                self.x, batch_size=self.batch_size, verbose=0, return_dict=True
            )
            weights = self.model.get_weights()
        if bad := not_finite({"val_loss": result["loss"]}):
            raise DivergedError(int(self.model.optimizer.iterations.numpy()), bad)
        # After a kill, epochs that were evaluated but not saved in the checkpoint come again.
        self.losses = {k: loss for k, loss in self.losses.items() if k < epoch}
        self.losses[epoch] = float(result["loss"])
        if self.best_epoch == epoch:
            self.weights = weights
        if logs is not None:
            logs["val_loss"] = self.losses[epoch]
        self._write()
        if self.stopped(epoch + 1):
            self.model.stop_training = True

    def _write(self) -> None:
        if self.path is not None:
            with atomic(self.path) as temporary:
                np.savez(temporary, list(self.losses.values()), *self.weights)
        if self.curve is not None:
            with atomic(self.curve) as temporary:
                rows = list(self.losses.items())
                np.savetxt(temporary, rows, "%d,%.9g", header="epoch,loss", comments="")

    def _read(self, path: Path) -> None:
        try:
            # np.load itself would leave a damaged file open.
            with open(path, "rb") as file, np.load(file) as arrays:
                losses, *self.weights = arrays.values()
            self.losses = dict(enumerate(losses.tolist()))
        except Exception as error:  # whatever zipfile and NumPy raise at a bad file
            raise RunError(
                f"{path} is damaged ({str(error) or type(error).__name__}): put back a copy of it, "
                "or train from the start in another --output."
            ) from error
