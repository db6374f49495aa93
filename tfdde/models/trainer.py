"""The training that ``DDE`` and ``Generator`` share: any strategy, resumable bit for bit."""

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


class EpochCounter(keras.callbacks.Callback):
    """Write the epoch to a tf.Variable on which the order of the rows depends."""

    def __init__(self, variable: Any):
        super().__init__()
        self.variable = variable

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.variable.assign(epoch)


def is_dataset(x: Any) -> bool:
    """Whether ``x`` is a tf.data dataset, distributed or not."""
    return isinstance(x, tf.data.Dataset | tf.distribute.DistributedDataset)


def global_count(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Number of rows of ``x`` in this replica and in all replicas together, as float32.

    A loss is the local sum divided by the global count, because optimizers sum the gradients of
    the replicas. This is right for uneven and empty replicas, too.
    """
    local = tf.cast(tf.shape(x)[0], tf.float32)
    context = tf.distribute.get_replica_context()
    return local, context.all_reduce(tf.distribute.ReduceOp.SUM, local)


def update_mean(metric: keras.metrics.Mean, total: tf.Tensor, count: tf.Tensor) -> None:
    """Add ``count`` rows, whose values sum to ``total``, to a running mean."""
    metric.update_state(tf.math.divide_no_nan(total, count), sample_weight=count)


def repeat(update: Callable[[], None], times: int) -> None:
    """Call ``update``, which changes variables, several times in one step.

    In a graph it is a loop, which is traced and compiled once. Eagerly, and under a strategy,
    where optimizers can't be inside a tf.while_loop, the calls follow one another.
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

    A subclass defines ``data_shape`` (the shape of one row), ``condition_dim`` (the entries of
    its condition, 0 for none), ``seed``, ``train_step`` and ``test_step``. Keras's own train
    function fails with ``steps_per_execution`` > 1 under a strategy and with several hosts;
    the one here loops in cross-replica context, which works in all cases.
    """

    data_shape: tuple[int, ...]
    condition_dim: int = 0
    seed: int
    steps_per_execution: int
    train_function: Any
    test_function: Any

    def __init__(self, **kwargs: Any):
        # Also under a policy of mixed precision, which concerns the networks only.
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

        The order of an array's rows depends on (seed, epoch) alone, so a run that is resumed at
        an epoch equals an uninterrupted one.

        Args:
            x: array of shape (rows, *data_shape), or a tf.data.Dataset of such batches; for
                networks with an input ``condition`` a dataset of pairs (x, conditions).
            conditions: of the rows, for networks with an input ``condition`` only: array of
                shape (rows, condition_dim). ``keras.utils.to_categorical`` makes such rows of
                labels; scale other conditions to about unit scale.
            batch_size: rows in a batch of an array; 32 if not given.
            validation_split: share of the last rows of an array to hold out.
            validation_data: array or dataset to evaluate after each epoch; with conditions a
                pair of arrays (x, conditions) or a dataset of pairs.
            callbacks, epochs and the others: as in ``keras.Model.fit``.

        Returns:
            The History of losses.

        Raises:
            ValueError: wrong rank or width, no rows, NaN or infinity, unscaled pixels,
                conditions for a network that takes none, or none for one that does.
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
        try:
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
        finally:
            self.after_training()

    def evaluate(self, x: Any, conditions: Any = None, **kwargs: Any) -> Any:
        """Mean loss on ``x`` and ``conditions``, which are as for ``fit``.

        The noise is the same at every call, so the values of different models can be compared.
        The other arguments are those of ``keras.Model.evaluate``.
        """
        if kwargs.get("_use_cached_eval_dataset"):  # called by `fit`, which has checked the data
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
        self.check_resolution(rows, name)
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

    def check_resolution(self, rows: np.ndarray, name: str) -> None:
        """Refuse rows, with a ValueError, if their float32 can't hold noise of the lowest level."""
        raise NotImplementedError

    def after_training(self) -> None:
        """Called at the end of ``fit``, also when it ends by an error."""

    def before_weights_change(self) -> None:
        """Called by everything that may change weights, before it does."""

    def set_weights(self, weights: Any) -> None:
        self.before_weights_change()
        super().set_weights(weights)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        self.before_weights_change()
        super().load_weights(filepath, *args, **kwargs)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Do nothing: the networks are built from the start.

        Under a strategy Keras's method takes a batch out of the data, which is then missing with
        ``steps_per_epoch``, and fails on several hosts if the batch does not divide evenly.
        """

    def group_steps(self, steps: int) -> None:
        """Set ``steps_per_execution`` of a compiled model."""
        if steps != self.steps_per_execution:
            self.steps_per_execution = steps
            self.train_function = self.test_function = None

    def make_train_function(self, force: bool = False) -> Callable:
        self.before_weights_change()
        if self.train_function is None or force:
            self.train_function = self._loop(self.train_step, [m.name for m in self.metrics])
        return self.train_function

    def make_test_function(self, force: bool = False) -> Callable:
        if self.test_function is None or force:
            self.test_function = self._loop(self.test_step, ["loss"])
        return self.test_function

    def _loop(self, step: Callable, names: list[str]) -> Callable:
        """A function that makes the steps of one execution and returns the last step's logs."""
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
                    next(iterator)  # raises OutOfRangeError, the end of the epoch
            return logs

        if self.run_eagerly:
            return lambda iterator: [on_batch(next(iterator)) for _ in range(repeats)][-1]
        compiled = tf.function(on_iterator, reduce_retracing=True)
        one = tf.function(on_batch, reduce_retracing=True)

        def function(iterator: Any) -> Any:
            if isinstance(iterator, tf.data.Iterator | tf.distribute.DistributedIterator):
                return compiled(iterator)
            return one(next(iterator))  # `train_on_batch` passes a Python generator

        return function

    def maybe_jit(self, function: Callable) -> Callable:
        """Trace ``function``, which runs within one replica, with XLA if `compile` asked for it."""
        return tf.function(function, jit_compile=bool(self.jit_compile), reduce_retracing=True)
