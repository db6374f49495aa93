"""What the two trained models share: `fit` under any strategy, resumable to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.datasets.batches import epoch_batches
from tfdde.utils.checks import (
    check_conditions,
    check_dataset,
    check_integer,
    check_pixels,
    check_rows,
)


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


def not_finite(values: dict[str, Any]) -> dict[str, float]:
    """Those of the values, by name, that are NaN or infinite."""
    return {name: float(v) for name, v in values.items() if not np.isfinite(v).all()}


class StopOnDivergence(keras.callbacks.Callback):
    """Raise ``DivergedError`` at the first step whose logs are not finite; `fit` adds it."""

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if bad := not_finite(logs or {}):
            raise DivergedError(int(self.model.optimizer.iterations.numpy()), bad)


class EpochCounter(keras.callbacks.Callback):
    """Tell the epoch to a tf.Variable on which the order of the rows depends."""

    def __init__(self, variable: Any):
        super().__init__()
        self.variable = variable

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.variable.assign(epoch)


def is_dataset(x: Any) -> bool:
    """Whether ``x`` is a tf.data dataset, distributed or not."""
    return isinstance(x, tf.data.Dataset | tf.distribute.DistributedDataset)


def global_count(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows of ``x`` in this replica and in all replicas together, as float32.

    A loss is the local sum over the global count, because optimizers sum the
    gradients of the replicas; that is right also for uneven and empty replicas.
    """
    local = tf.cast(tf.shape(x)[0], tf.float32)
    context = tf.distribute.get_replica_context()
    return local, context.all_reduce(tf.distribute.ReduceOp.SUM, local)


def update_mean(metric: keras.metrics.Mean, total: tf.Tensor, count: tf.Tensor) -> None:
    """Add ``count`` rows, whose values sum to ``total``, to a running mean."""
    metric.update_state(tf.math.divide_no_nan(total, count), sample_weight=count)


def repeat(update: Callable[[], None], times: int) -> None:
    """Make an update of variables several times in one step.

    As a loop, which is traced and compiled once; unrolled without a graph, and under a strategy,
    where optimizers may not stand in a tf.while_loop.
    """
    if times == 1 or tf.executing_eagerly() or tf.distribute.has_strategy():
        for _ in range(times):
            update()
        return

    def body(done: tf.Tensor) -> tf.Tensor:
        update()
        return done + 1

    tf.while_loop(lambda done: done < times, body, [0], parallel_iterations=1)


class Trainer(keras.Model):
    """Base of ``DDE`` and ``Generator``: checked input, one code path for every strategy.

    A subclass gives ``data_shape`` (the shape of one row), ``condition_dim`` (the entries of
    its condition, if any), ``seed``, ``train_step`` and ``test_step``.  Keras's own train
    function fails with ``steps_per_execution`` > 1 under a strategy and with several hosts;
    this one loops in cross-replica context, which works for all.
    """

    data_shape: tuple[int, ...]
    condition_dim: int = 0
    seed: int
    steps_per_execution: int
    train_function: Any
    test_function: Any

    def __init__(self, **kwargs: Any):
        # Under a policy of mixed precision too: the networks have their own.
        super().__init__(**({"dtype": "float32"} | kwargs))

    def fit(
        self,
        x: Any,
        conditions: Any = None,
        *,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: list | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | list[int] = 1,
    ) -> keras.callbacks.History:
        """Train as ``keras.Model.fit`` does, on data without targets.

        The order of the rows of an array depends on (seed, epoch) alone, so a run
        resumed at an epoch equals an uninterrupted one.

        Args:
            x: array of shape (rows, *data_shape), or a tf.data.Dataset of such batches; for
                networks with an input ``condition`` a dataset of pairs (x, conditions).
            conditions: of the rows, for networks with an input ``condition`` only: array of
                shape (rows, condition_dim).  Labels become one-hot rows by
                ``keras.utils.to_categorical``; scale other conditions to about unit scale.
            batch_size: rows in a batch of an array; 32 if not given.
            validation_split: share of the last rows of an array to hold out.
            validation_data: array or dataset to evaluate after each epoch; an array with
                conditions is a pair (x, conditions).
            callbacks, epochs and the others: as in ``keras.Model.fit``.

        Returns:
            The History of losses.

        Raises:
            ValueError: wrong rank or width, no rows, NaN or infinity, unscaled pixels, or
                conditions that the network does not take, or takes and were not given.
            DivergedError: the loss stopped being finite.
        """
        callbacks = [StopOnDivergence(), *(callbacks or [])]
        x, conditions = self._check_data(x, conditions, "x", "conditions")
        if validation_split:
            if is_dataset(x) or not 0 < validation_split < 1 or validation_data is not None:
                raise ValueError(
                    "`validation_split` must be in (0, 1), with an array `x` and no "
                    f"`validation_data`, got {validation_split!r}."
                )
            held_out = int(round(len(x) * validation_split))
            if not 0 < held_out < len(x):
                raise ValueError(
                    f"`validation_split` = {validation_split} of {len(x)} rows leaves "
                    f"{held_out} rows to validate on and {len(x) - held_out} to train on."
                )
            x, validation_data = x[:-held_out], x[-held_out:]
            if conditions is not None:
                validation_data = validation_data, conditions[-held_out:]
                conditions = conditions[:-held_out]
        elif validation_data is not None:
            validation_data = self._check_validation(validation_data)
        if not is_dataset(x):
            if batch_size is not None:
                check_integer(batch_size, "batch_size")
            if shuffle:
                epoch = tf.Variable(initial_epoch, dtype=tf.int64, trainable=False)
                callbacks.append(EpochCounter(epoch))
                x = epoch_batches(x, batch_size or 32, self.seed, epoch, conditions)
                conditions = None
                validation_batch_size = validation_batch_size or batch_size
                batch_size = None
        elif batch_size is not None:
            raise ValueError("`batch_size` must not be given with a dataset, which has its own.")
        return super().fit(
            x,
            conditions,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_data=validation_data,
            shuffle=False,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
            validation_freq=validation_freq,
        )

    def evaluate(self, x: Any, conditions: Any = None, **kwargs: Any) -> Any:
        """Mean loss on ``x`` and ``conditions``, as of ``fit``; else as ``keras.Model.evaluate``.

        The noise is the same at every call, so values can be compared.
        """
        if kwargs.get("_use_cached_eval_dataset"):  # from `fit`, which has checked them
            return super().evaluate(x, **kwargs)
        x, conditions = self._check_data(x, conditions, "x", "conditions")
        return super().evaluate(x, conditions, **kwargs)

    def _check_data(self, x: Any, conditions: Any, name: str, second: str) -> tuple[Any, Any]:
        if is_dataset(x):
            if conditions is not None:
                raise ValueError(
                    f"`{second}` must not be given with a dataset, which yields pairs of rows and "
                    "conditions itself."
                )
            check_dataset(x, name, self.data_shape, self.condition_dim)
            return x, None
        rows = check_pixels(check_rows(x, name, self.data_shape), name)
        return rows, check_conditions(conditions, self.condition_dim, len(rows), second)

    def _check_validation(self, data: Any) -> Any:
        name = "validation_data"
        if not self.condition_dim or is_dataset(data):
            return self._check_data(data, None, name, name)[0]
        if not (isinstance(data, tuple | list) and len(data) == 2):
            raise ValueError(
                f"`{name}` must be a pair (x, conditions) or a dataset of them, since the network "
                f"has an input `condition`, got {type(data).__name__}."
            )
        x, conditions = data
        return self._check_data(x, conditions, f"{name}[0]", f"{name}[1]")

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing: all is built from the start.

        Under a strategy Keras's own takes a batch for it, which `fit` with ``steps_per_epoch``
        would then miss, and several hosts can't if the batch doesn't divide evenly.
        """

    def group_steps(self, steps: int) -> None:
        """Set ``steps_per_execution`` of a compiled model."""
        if steps != self.steps_per_execution:
            self.steps_per_execution = steps
            self.train_function = self.test_function = None

    def make_train_function(self, force: bool = False) -> Callable:
        if self.train_function is None or force:
            self.train_function = self._loop(self.train_step, [m.name for m in self.metrics])
        return self.train_function

    def make_test_function(self, force: bool = False) -> Callable:
        if self.test_function is None or force:
            self.test_function = self._loop(self.test_step, ["loss"])
        return self.test_function

    def _loop(self, step: Callable, names: list[str]) -> Callable:
        """Function of an iterator that makes the steps of one execution: their last logs."""
        strategy, repeats = self.distribute_strategy, self.steps_per_execution

        def on_batch(batch: Any) -> Any:
            outputs = strategy.run(step, args=(batch,))
            return tf.nest.map_structure(
                lambda v: strategy.reduce("SUM", v, axis=None) / strategy.num_replicas_in_sync,
                outputs,
            )

        def on_iterator(iterator: Any) -> Any:
            if repeats == 1:
                return on_batch(next(iterator))
            logs = {name: tf.zeros(()) for name in names}  # the step is traced once, in the loop
            for k in tf.range(repeats):
                batch = iterator.get_next_as_optional()
                if batch.has_value():
                    logs = on_batch(batch.get_value())
                elif k == 0:
                    next(iterator)  # which tells of the end
            return logs

        if self.run_eagerly:
            return lambda iterator: [on_batch(next(iterator)) for _ in range(repeats)][-1]
        compiled = tf.function(on_iterator, reduce_retracing=True)
        one = tf.function(on_batch, reduce_retracing=True)

        def function(iterator: Any) -> Any:
            if isinstance(iterator, tf.data.Iterator | tf.distribute.DistributedIterator):
                return compiled(iterator)
            return one(next(iterator))  # train_on_batch hands over a Python generator

        return function

    def maybe_jit(self, function: Callable) -> Callable:
        """Compile ``function``, which must touch one replica only, as `compile` was told."""
        return tf.function(function, jit_compile=bool(self.jit_compile), reduce_retracing=True)


def size(shape: tuple[int, ...]) -> int:
    """Number of entries of one row."""
    return int(np.prod(shape))
