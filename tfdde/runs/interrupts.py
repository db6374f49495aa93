"""Ctrl-C and SIGTERM end the training after the current step, on all workers."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any, Self

import keras
import tensorflow as tf

from tfdde.runs import cluster


class Signals:
    """Context in which SIGINT and SIGTERM raise KeyboardInterrupt, or do as a subclass says.

    In another thread than the main one, where Python does not handle signals, it changes nothing.

    Attributes:
        last: number of the last signal that came in any context; None: none came.
    """

    last: int | None = None

    def __enter__(self) -> Self:
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            Signals.last = None
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        Signals.last = number
        raise KeyboardInterrupt


class Interrupt(Signals, keras.callbacks.Callback):
    """End ``fit`` after the step in which a signal came to any worker.

    A second SIGINT raises KeyboardInterrupt at once.  A second SIGTERM does not, since the system
    may send it to a process and to its group.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        super().__init__()
        self.requested = False
        self._anywhere = cluster.anywhere(strategy)

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            # `print` fails if the signal came while another `print` was running.
            os.write(2, b"\nStopping after this step; Ctrl-C again quits at once.\n")
        self.requested, Signals.last = True, number

    def anywhere(self) -> bool:
        """Whether a signal came to any worker; all of them must call it together."""
        stop = self._anywhere(self.requested)
        if stop and not self.requested:
            Signals.last = signal.SIGTERM  # another worker got a signal, and knows which
        return stop

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Keras then calls `on_epoch_end`, and so the checkpoint is written.
        if self.anywhere():
            self.model.stop_training = True
