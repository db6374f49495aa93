"""Ctrl-C and SIGTERM: training ends after the step, on all workers alike."""

from __future__ import annotations

import os
import signal
from typing import Any, Self

import keras
import tensorflow as tf

from tfdde.runs import cluster


class Signals:
    """Context: handle SIGINT and SIGTERM; by default raise KeyboardInterrupt.

    Attributes:
        last: number of the last signal that came, of whatever context.
    """

    last: int | None = None

    def __enter__(self) -> Self:
        numbers = signal.SIGINT, signal.SIGTERM
        Signals.last = None
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        Signals.last = number
        raise KeyboardInterrupt


class Interrupt(Signals, keras.callbacks.Callback):
    """Ask `fit` to end after the step in which a signal came to any worker.

    A second one raises at once if it is SIGINT.  SIGTERM may come twice, to a process and to its
    group.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        super().__init__()
        self.requested = False
        self._anywhere = cluster.anywhere(strategy)

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            # Not `print`, which may not be entered again if the signal came in the middle of one.
            os.write(2, b"\nStopping after this step; Ctrl-C again quits at once.\n")
        self.requested, Signals.last = True, number

    def anywhere(self) -> bool:
        """Whether any worker is asked to stop; all must call it together."""
        stop = self._anywhere(self.requested)
        if stop and not self.requested:
            Signals.last = signal.SIGTERM  # whichever it was, to another worker
        return stop

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Keras then ends the epoch, and so the checkpoint is written.
        if self.anywhere():
            self.model.stop_training = True
