"""The training that ``DDE`` and ``Generator`` share: any strategy, resumable bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.datasets.batches import epoch_batches
from tfdde.models.fit_callbacks import EpochNumber, StopOnDivergence, UseAverages, flat
from tfdde.models.training_data import BATCH_SIZE, Arrays, TrainingData, clear_errors
from tfdde.networks.check_network import check_trainable
from tfdde.utils.checks import check_integer


def local_count(x: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Number of rows of ``x`` in this replica, as float32, or the sum of their weights."""
    return tf.cast(tf.shape(x)[0], tf.float32) if weights is None else tf.reduce_sum(weights)


def global_count(x: tf.Tensor, weights: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """Number of rows of ``x`` in this replica and in all replicas together, as float32.

    With weights, their sums. A loss is the local sum divided by the global count, because
    optimizers sum the gradients of the replicas. This is right for uneven and empty replicas, too.
    """
    local = local_count(x, weights)
    context = tf.distribute.get_replica_context()
    return local, context.all_reduce(tf.distribute.ReduceOp.SUM, local)


def update_mean(metric: keras.metrics.Mean, total: tf.Tensor, count: tf.Tensor) -> None:
    """Add ``count`` rows, whose values sum to ``total``, to a running mean."""
    metric.update_state(tf.math.divide_no_nan(total, count), sample_weight=count)


def unscaled(total: tf.Tensor, optimizer: Any) -> tf.Tensor:
    """What to divide a loss by instead of ``total``, so that it is scaled as the optimizer expects.

    A ``LossScaleOptimizer``, or one with a ``loss_scale_factor``, divides the gradients by the
    scale again.
    """
    return tf.maximum(total, np.finfo(np.float32).tiny) / optimizer.scale_loss(tf.ones(()))


def warn_of_underflow(model: Trainer) -> None:
    """Warn if a network computes in float16 and its optimizer does not scale the loss."""
    for optimizer, network, name in model.trained_parts():
        scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        scales = scales or optimizer.loss_scale_factor is not None
        if network.compute_dtype == "float16" and not scales:
            warnings.warn(
                f"`{name}` computes in float16, in which small gradients are 0: pass "
                "keras.optimizers.LossScaleOptimizer(optimizer), or use mixed_bfloat16.",
                UserWarning,
                stacklevel=3,
            )


def add_penalty(loss: tf.Tensor, network: keras.Model, count: tf.Tensor) -> tf.Tensor:
    """Add the regularizers of a network's weights to each of ``count`` losses, as Keras does."""
    terms = [v.regularizer(v) for v in network.trainable_variables if v.regularizer is not None]
    return loss + count * tf.add_n(terms) if terms else loss


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
    its condition, 0 for none), ``weighted`` (whether its loss takes sample weights), ``seed``,
    ``train_step`` and ``test_step``. Keras's own train
    function fails with ``steps_per_execution`` > 1 under a strategy and with several hosts;
    the one here loops in cross-replica context, which works in all cases.
    """

    data_shape: tuple[int, ...]
    condition_dim: int = 0
    weighted = False
    seed: int
    steps_per_execution: int
    train_function: Any
    _traced_with: tuple[Any, ...]  # what ``parts_in_traces`` was then
    test_function: Any

    def __init__(self, **kwargs: Any):
        # Also under a policy of mixed precision, which concerns the networks only.
        super().__init__(**({"dtype": "float32"} | kwargs))

    def fit(
        self,
        x: Any,
        conditions: Any = None,
        *,
        sample_weight: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
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

        The order of an array's rows depends on the seed and the number of steps made before the
        epoch, so each epoch has another order, and a run that is resumed at an epoch equals an
        uninterrupted one.

        Args:
            x: array of shape (rows, *data_shape); or a tf.data.Dataset, ``keras.utils.PyDataset``
                or generator of batches: rows, (rows, conditions) for networks with an input
                ``condition``, and with weights (rows, sample_weight) or
                (rows, conditions, sample_weight).
            conditions: of the rows, for networks with an input ``condition`` only: array of
                shape (rows, condition_dim). ``keras.utils.to_categorical`` makes such rows of
                labels; scale other conditions to about unit scale.
            sample_weight: of the rows, for a ``DDE``: array of shape (rows,), >= 0. The loss is
                the weighted mean, as if each row came ``sample_weight`` times.
            batch_size: rows in a batch of an array; 32 if not given.
            validation_split: share of the last rows of an array to hold out.
            validation_data: what to evaluate after each epoch: rows, a dataset as for ``x``, or
                a tuple (x, conditions, sample_weight), of which the last may be missing or None.
            callbacks, epochs and the others: as in ``keras.Model.fit``.

        Returns:
            The History of losses.

        Raises:
            ValueError: wrong rank or width, no rows, NaN or infinity, unscaled pixels, rows that
                float32 can't hold together with the noise, bad weights, conditions for a network
                that takes none, or none for one that does; or the network has layers, such as
                Dropout, that training would not heed.
            DivergedError: the loss stopped being finite.
        """
        data = self.training_data
        rows = data.check(x, conditions, sample_weight)
        validation: Any = None
        if validation_split:
            if (
                not isinstance(rows, Arrays)
                or not 0 < validation_split < 1
                or validation_data is not None
            ):
                raise ValueError(
                    "`validation_split` must be in (0, 1), with an array `x` and no "
                    f"`validation_data`, got {validation_split!r}."
                )
            rows, validation = rows.split(validation_split)
        elif validation_data is not None:
            validation = data.check_validation(validation_data)
        callbacks = [*self.own_callbacks(), *flat(callbacks)]
        if isinstance(rows, Arrays):
            size = BATCH_SIZE if batch_size is None else check_integer(batch_size, "batch_size")
            if shuffle:
                number = tf.Variable(0, dtype=tf.int64, trainable=False)
                callbacks.append(EpochNumber(number))
                batches: Any = epoch_batches(
                    rows.x, size, self.seed, number, rows.conditions, rows.weights
                )
            else:
                batches = rows.batches(size)
        elif batch_size is not None:
            raise ValueError("`batch_size` must not be given with a dataset, which has its own.")
        else:
            batches, size = rows, BATCH_SIZE
        if isinstance(validation, Arrays):
            if validation_batch_size is not None:
                check_integer(validation_batch_size, "validation_batch_size")
            validation = validation.batches(validation_batch_size or size)
        elif validation_batch_size is not None:
            raise ValueError(
                "`validation_batch_size` must not be given without arrays to validate on, got "
                f"{validation_batch_size!r}."
            )
        if initial_epoch >= epochs:
            epochs = 0  # or Keras would put the averages of no steps in place of the weights
        try:
            with clear_errors():
                return super().fit(
                    batches,
                    epochs=epochs,
                    verbose=verbose,
                    callbacks=[StopOnDivergence(), UseAverages(), *callbacks],
                    validation_data=validation,
                    shuffle=shuffle and isinstance(rows, keras.utils.PyDataset),
                    initial_epoch=initial_epoch,
                    steps_per_epoch=steps_per_epoch,
                    validation_steps=validation_steps,
                    validation_freq=validation_freq,
                )
        finally:
            self.after_training()

    def evaluate(
        self,
        x: Any,
        conditions: Any = None,
        *,
        sample_weight: Any = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Mean loss on the rows; ``x``, ``conditions`` and ``sample_weight`` are as for ``fit``.

        The noise is the same at every call, so the values of different models can be compared.
        The other arguments are those of ``keras.Model.evaluate``.
        """
        if kwargs.get("_use_cached_eval_dataset"):  # called by `fit`, which has checked the data
            return super().evaluate(x, **kwargs)
        rows = self.training_data.check(x, conditions, sample_weight)
        if isinstance(rows, Arrays):
            size = BATCH_SIZE if batch_size is None else check_integer(batch_size, "batch_size")
            rows = rows.batches(size)
        elif batch_size is not None:
            raise ValueError("`batch_size` must not be given with a dataset, which has its own.")
        with clear_errors():
            return super().evaluate(rows, **kwargs)

    @property
    def training_data(self) -> TrainingData:
        """What ``fit`` and ``evaluate`` accept."""
        return TrainingData(
            self.data_shape,
            self.condition_dim,
            self.weighted,
            self.check_resolution,
            self.row_dtype,
        )

    @property
    def row_dtype(self) -> str:
        """The dtype of rows."""
        return "float32"

    def check_resolution(self, rows: np.ndarray, name: str) -> None:
        """Refuse rows, with a ValueError, if their dtype can't hold noise of the lowest level."""
        raise NotImplementedError

    def trained_parts(self) -> list[tuple[Any, keras.Model, str]]:
        """The optimizers with the networks that they train, and what errors call these."""
        raise NotImplementedError

    def finalize_averages(self) -> None:
        """Put the averages of all optimizers with ``use_ema`` in place of the weights."""
        for optimizer, network, _ in self.trained_parts():
            if optimizer.iterations.numpy() > 0:  # the averages are zeros before
                optimizer.finalize_variable_values(network.trainable_variables)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                f"`filepath` must end in .keras, got {str(filepath)!r}: HDF5 files hold Functional "
                "and Sequential models only. For the weights alone use `save_weights`."
            )
        super().save(filepath, *args, **kwargs)

    def export(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Not available: ``tfdde.serving.export_savedmodel`` and ``export_tflite`` export models.

        Their files return normalised log-densities, and keep the error of log Z and the checks.
        """
        raise NotImplementedError(
            "Export by tfdde.serving.export_savedmodel(folder, density, generator) or "
            "tfdde.serving.export_tflite(file, density, generator): their signatures include "
            "log_density, score and sample, of which Keras's `export` knows nothing."
        )

    def own_callbacks(self) -> list[keras.callbacks.Callback]:
        """Callbacks that ``fit`` adds to the user's."""
        return []

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

    def parts_in_traces(self) -> tuple[Any, ...]:
        """What changes the traced functions themselves, not only the numbers in their variables."""
        raise NotImplementedError

    def _follow_parts(self) -> None:
        """Trace all functions anew if these parts have changed since."""
        parts = self.parts_in_traces()
        if parts != self._traced_with:
            self._traced_with = parts
            self._trace_anew()

    def _trace_anew(self) -> None:
        self.train_function = self.test_function = None
        if self.compiled:
            self._jit()

    def _jit(self) -> None:
        """Make the functions of ``maybe_jit``."""
        raise NotImplementedError

    def make_train_function(self, force: bool = False) -> Callable:
        self.before_weights_change()
        self._follow_parts()
        for _, network, name in self.trained_parts():
            check_trainable(network, name)
        if self.train_function is None or force:
            self.train_function = self._loop(self.train_step, [m.name for m in self.metrics])
        return self.train_function

    def make_test_function(self, force: bool = False) -> Callable:
        self._follow_parts()
        if self.test_function is None or force:
            self.test_function = self._loop(self.test_step, ["loss"])
        return self.test_function

    def _loop(self, step: Callable, names: list[str]) -> Callable:
        """A function that makes the steps of one execution and returns the last step's logs."""
        strategy, repeats = self.distribute_strategy, self.steps_per_execution
        # Only the loop below needs AutoGraph, which takes a good part of the time of a trace.
        step = tf.autograph.experimental.do_not_convert(step)

        def on_batch(batch: Any) -> Any:
            outputs = strategy.run(step, args=(batch,))
            return tf.nest.map_structure(
                lambda v: strategy.reduce("SUM", v, axis=None) / strategy.num_replicas_in_sync,
                outputs,
            )

        def on_iterator(iterator: Any) -> Any:
            if repeats == 1:
                return on_batch(iterator.get_next())
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
        # Partials, so that TensorFlow does not take the traces of several models for retracing.
        loops = repeats > 1
        compiled = tf.function(partial(on_iterator), reduce_retracing=True, autograph=loops)
        one = tf.function(partial(on_batch), reduce_retracing=True, autograph=False)

        def function(iterator: Any) -> Any:
            if isinstance(iterator, tf.data.Iterator | tf.distribute.DistributedIterator):
                return compiled(iterator)
            return one(next(iterator))  # `train_on_batch` passes a Python generator

        return function

    def maybe_jit(self, function: Callable) -> Callable:
        """Trace ``function``, which runs within one replica, with XLA if `compile` asked for it.

        With ``run_eagerly`` it is left as it is, so that a debugger can follow it.
        """
        if self.run_eagerly:
            return function
        jit = bool(self.jit_compile)
        return tf.function(function, jit_compile=jit, reduce_retracing=True, autograph=False)
