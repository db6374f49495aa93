"""The folder of one training run, whose training can be stopped and resumed exactly.

The folder of a script's run::

    runs/mnist/
        config.json                     arguments, versions, command, start
        checkpoint/<phase>.weights.h5   the whole training state, after each epoch
        density.keras  generator.keras  the trained models
        <phase>.csv  tensorboard/       losses by epoch
        *.png                           pictures

On several hosts (``tfdde.runs.cluster``) the chief writes this folder, and each other worker writes
a temporary one.
"""

from __future__ import annotations

import csv
import datetime
import importlib.util
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde._version import __version__
from tfdde.models.trainer import Trainer
from tfdde.partition.result import LogPartition
from tfdde.runs import cluster
from tfdde.runs.checkpoint import Checkpoint, load_checkpoint
from tfdde.runs.cluster import RunError
from tfdde.runs.interrupts import Interrupt
from tfdde.runs.keep_best import KeepBest
from tfdde.utils.files import atomic, read_object, write_json
from tfdde.utils.statistics import mean_and_error

# Arguments that may differ when a run is resumed; a preset has set others, which may not.
NOT_COMPARED = ("output", "resume", "preset")


class Run:
    """A run folder.

    Args:
        folder: path of the folder.
        arguments: the settings of the run by name, as JSON can hold them.
        resume: continue the run in ``folder``, which must have been started with the same
            arguments but for ``NOT_COMPARED``; otherwise there must be none.

    Raises:
        RunError: the folder has a run and ``resume`` is false; or ``resume`` is true, and there
            is no run or it was started with other arguments.
    """

    def __init__(
        self, folder: str | os.PathLike, arguments: Mapping[str, Any], resume: bool = False
    ):
        self.folder, self.resume = Path(folder), resume
        saved = json.loads(json.dumps(dict(arguments)))  # tuples become lists, as in the file
        config = self / "config.json"
        if resume:
            if not config.exists():
                raise RunError(f"There is no run to resume in {self.folder}: leave out --resume.")
            _check_same(_arguments(config), saved, self.folder)
        self.chief = cluster.this_cluster().rank == 0
        if not self.chief:
            self._take_copy()
            config = self / "config.json"
        if resume:
            self._remove_half_written()
            return
        if config.exists():
            raise RunError(
                f"There is a run in {self.folder} already: add --resume to continue it, "
                "or choose another --output."
            )
        content = {
            "arguments": saved,
            "versions": {
                "tfdde": __version__,
                **{m.__name__: m.__version__ for m in (tf, keras, np)},
            },
            "command": sys.argv,
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        write_json(config, content)

    def __truediv__(self, name: str) -> Path:
        """A path in the folder, as with ``pathlib``."""
        return self.folder / name

    def _take_copy(self) -> None:
        """Continue in a temporary folder, since the chief writes the same models and logs."""
        self._temporary = tempfile.TemporaryDirectory()  # removed with this object
        shared, self.folder = self.folder, Path(self._temporary.name)
        if self.resume:
            ignore = shutil.ignore_patterns("tensorboard", ".*")
            shutil.copytree(shared, self.folder, ignore=ignore, dirs_exist_ok=True)

    def _remove_half_written(self) -> None:
        """Remove what was being written when the run was killed."""
        for folder in (self.folder, self / "checkpoint"):
            for path in folder.glob(".*"):
                if path.name.split(".")[1].isdecimal():
                    path.unlink(missing_ok=True)

    def train(
        self,
        phase: str,
        model: Trainer,
        batches: Callable[[int], tf.data.Dataset],
        steps: int,
        epoch_steps: int,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> bool:
        """Train a compiled model up to ``steps`` iterations, and save it to ``<phase>.keras``.

        A run that is resumed from any step ends with exactly the weights of an uninterrupted one
        and logs the same epochs; the loss logged for an interrupted epoch is the mean over its
        steps since the resume.  Ctrl-C or SIGTERM, to any of several workers, ends the training
        after the current step and saves the state.  A second Ctrl-C raises KeyboardInterrupt at
        once and leaves the last checkpoint whole.

        Args:
            phase: name of the files.
            model: a ``DDE`` or ``Generator``.  If its ``steps_per_execution`` does not divide the
                steps of an epoch, the greatest common divisor of both is taken.
            batches: ``batches(k)`` is the infinite dataset of batches from number k on.
            steps: number of iterations in all.
            epoch_steps: iterations of an epoch, after which losses are logged and the state
                is saved.
            callbacks: further callbacks; a ``KeepBest`` with a file in this folder may end the
                training before ``steps``.

        Returns:
            False if Ctrl-C or SIGTERM ended the training, True if it is complete.

        Raises:
            RunError: the checkpoint is damaged, or of another model.
            DivergedError: the loss or a weight stopped being finite.
        """
        checkpoint = Checkpoint(self / "checkpoint" / f"{phase}.weights.h5")
        group = model.steps_per_execution
        log = _Log(self / f"{phase}.csv")
        keepers = [callback for callback in callbacks if isinstance(callback, KeepBest)]
        load = self.resume and checkpoint.path.exists()
        with Interrupt(model.distribute_strategy) as interrupt:
            while True:
                if load:
                    # Also after each `fit`: at its end Keras replaces the weights by the
                    # optimizer's averages (`use_ema`), but training goes on from the weights.
                    load_checkpoint(model, checkpoint.path)
                start = int(model.optimizer.iterations.numpy())
                epoch, done = divmod(start, epoch_steps)
                complete = start >= steps or any(keeper.stopped(epoch) for keeper in keepers)
                interrupted = interrupt.anywhere()
                if complete or interrupted:
                    break
                # One `fit` trains all whole epochs.  Another one trains the rest of an epoch that
                # was interrupted, or a last epoch that is shorter than the others.
                whole = 0 if done else (steps - start) // epoch_steps
                part = epoch_steps if whole else min(epoch_steps - done, steps - start)
                model.group_steps(math.gcd(group, part))
                model.fit(
                    batches(start),
                    initial_epoch=epoch,
                    epochs=epoch + max(whole, 1),
                    steps_per_epoch=part,
                    # A log file gets a line for each epoch instead of progress bars.
                    verbose=("auto" if sys.stdout.isatty() else 2) if self.chief else 0,
                    callbacks=[
                        log,
                        *self._tensorboard(phase),
                        *callbacks,
                        checkpoint,
                        interrupt,
                    ],
                )
                load = True
        model.group_steps(group)
        model.finalize_averages()
        self.save(phase, model)
        if interrupted and not complete:
            print(f"Interrupted at step {start} of {steps} ({phase}).")
        return not interrupted

    def save(self, name: str, model: keras.Model) -> None:
        """Write ``<name>.keras``."""
        with atomic(self / f"{name}.keras") as temporary:
            model.save(temporary)

    def write_result(
        self, values: np.ndarray, log_z: LogPartition, rows: Mapping[str, int], **more: Any
    ) -> tuple[float, float]:
        """Write the mean log-density of held-out rows and its error to ``result.json``.

        It is called ``log_likelihood`` only if log Z is trusted.

        Args:
            values: log-density of each row, normalised if log Z is trusted, float64 (rows,).
            log_z: of the density.
            rows: how many rows there were for what.
            more: further entries.

        Returns:
            The mean, in nats, and its standard error, with that of log Z.
        """
        known = log_z.trusted
        mean, error = mean_and_error(values, log_z.standard_error if known else 0.0)
        result = {
            "log_likelihood" if known else "unnormalized_log_density": mean,
            "standard_error": error,
            "sigma": log_z.sigma,
            "log_partition": log_z.get_config(),
            "rows": rows,
        }
        write_json(self / "result.json", result | more)
        return mean, error

    def _tensorboard(self, phase: str) -> list[keras.callbacks.Callback]:
        if importlib.util.find_spec("tensorboard") is None:
            return []
        return [keras.callbacks.TensorBoard(self / "tensorboard" / phase, write_graph=False)]


class _Log(keras.callbacks.Callback):
    """Write the losses of each epoch to a CSV file.

    Unlike ``keras.callbacks.CSVLogger`` it replaces the rows of epochs that are trained again
    after a resume.  It leaves no half-written line and no open file, whatever ends the training.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        rows: list[dict[str, Any]] = []
        if self.path.exists():
            with self.path.open(newline="") as f:
                rows = [row for row in csv.DictReader(f) if int(row["epoch"]) < epoch]
        rows.append({"epoch": epoch, **(logs or {})})
        with atomic(self.path) as temporary, temporary.open("w", newline="") as f:
            writer = csv.DictWriter(f, rows[-1])
            writer.writeheader()
            writer.writerows(rows)


def _arguments(config: Path) -> dict[str, Any]:
    try:
        arguments = read_object(config).get("arguments")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise RunError(
            f"{config} is damaged: it must hold a JSON object with the run's arguments. Choose "
            "another --output to start anew."
        )
    return arguments


def _check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    for name in sorted((old.keys() | new.keys()) - set(NOT_COMPARED)):
        if old.get(name) != new.get(name):
            raise RunError(
                f"The run in {folder} was started with {name} = {old.get(name)!r}, not "
                f"{new.get(name)!r}: resume it with the same arguments, or choose another --output."
            )
