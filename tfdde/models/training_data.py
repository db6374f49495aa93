"""The data that ``fit`` and ``evaluate`` accept: checked, and as batches."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfdde.datasets.batches import without_autotune
from tfdde.utils.checks import (
    check_conditions,
    check_pixels,
    check_rows,
    check_weights,
    describe,
)

BATCH_SIZE = 32  # rows in a batch of arrays, as in Keras
REFUSED = re.compile("<<(.*?)>>", re.DOTALL)  # around messages of assertions in a graph


class Batch(NamedTuple):
    """What a training step gets: rows, a list of at most one condition, and weights or None."""

    x: tf.Tensor
    condition: list[tf.Tensor]
    weights: tf.Tensor | None


class Arrays(NamedTuple):
    """Checked arrays: rows, and conditions and weights of the rows, each of which may be None."""

    x: np.ndarray
    conditions: np.ndarray | None
    weights: np.ndarray | None

    def part(self, rows: slice) -> Arrays:
        """Some of the rows."""
        conditions, weights = (None if a is None else a[rows] for a in self[1:])
        return Arrays(self.x[rows], conditions, weights)

    def split(self, share: Any) -> tuple[Arrays, Arrays]:
        """The first rows, to train on, and a ``share`` of all, the last ones, to validate on."""
        rows = len(self.x)
        held_out = int(round(rows * share))
        if not 0 < held_out < rows:
            raise ValueError(
                f"`validation_split` = {share} of {rows} rows leaves {held_out} rows to validate "
                f"on and {rows - held_out} to train on."
            )
        return self.part(slice(-held_out)), self.part(slice(-held_out, None))

    def batches(self, batch_size: int) -> tf.data.Dataset:
        """The rows in order, with what belongs to them."""
        with tf.device("CPU:0"):
            parts = tuple(array for array in self if array is not None)
            slices = tf.data.Dataset.from_tensor_slices(parts)
            return without_autotune(slices.batch(batch_size).prefetch(4))


class TrainingData:
    """What a model accepts as data.

    Args:
        shape: of one row.
        width: entries of a condition, 0 for a model that takes none.
        weighted: whether the rows may have weights.
        check_resolution: raises ValueError for arrays, of the given name, that lose the noise.
        dtype: of the rows.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        weighted: bool,
        check_resolution: Callable[[np.ndarray, str], None],
        dtype: str = "float32",
    ):
        self.shape, self.width, self.weighted, self.dtype = shape, width, weighted, dtype
        self.check_resolution = check_resolution

    def check(
        self,
        x: Any,
        conditions: Any,
        weights: Any,
        names: tuple[str, str, str] = ("x", "conditions", "sample_weight"),
    ) -> Arrays | Any:
        """Return checked arrays, or a dataset, ``PyDataset`` or generator of batches.

        Args:
            x: rows, or one of the others.
            conditions, weights: of the rows, None with the others.
            names: of the three arguments.

        Raises:
            ValueError: as described in ``Trainer.fit``.
        """
        if is_dataset(x) or isinstance(x, keras.utils.PyDataset | Iterator):
            for value, name in ((conditions, names[1]), (weights, names[2])):
                if value is not None:
                    raise ValueError(
                        f"`{name}` must not be given with a dataset, which yields tuples of rows "
                        "and what belongs to them."
                    )
            return self._check_batches(x, names[0])
        rows = check_pixels(check_rows(x, names[0], self.shape, dtype=self.dtype), names[0])
        self.check_resolution(rows, names[0])
        if weights is not None and not self.weighted:
            raise ValueError(
                f"`{names[2]}` must be None: the rows that this model trains on have no weights."
            )
        return Arrays(
            rows,
            check_conditions(conditions, self.width, len(rows), names[1]),
            check_weights(weights, len(rows), names[2]),
        )

    def check_validation(self, data: Any, name: str = "validation_data") -> Arrays | Any:
        """The same for (x, conditions, sample_weight), of which the last may be missing."""
        pair_list = isinstance(data, list) and self.width and len(data) == 2
        if isinstance(data, tuple) or pair_list:
            if not 1 <= len(data) <= 3:
                raise ValueError(
                    f"`{name}` must have 1 to 3 parts (x, conditions, sample_weight), got "
                    f"{len(data)}."
                )
            x, conditions, weights = (*data, None, None)[:3]
            return self.check(x, conditions, weights, (f"{name}[0]", f"{name}[1]", f"{name}[2]"))
        if self.width and not is_dataset(data) and not isinstance(data, keras.utils.PyDataset):
            raise ValueError(
                f"`{name}` must be a pair (x, conditions) or a dataset of them, since the network "
                f"has an input `condition`, got {type(data).__name__}."
            )
        return self.check(data, None, None, (name, name, name))

    def _check_batches(self, x: Any, name: str) -> Any:
        """Check what a dataset says of its batches, or the first batch that a generator yields."""
        if is_dataset(x):
            self._check_dataset(x, name)
            return x
        if isinstance(x, keras.utils.PyDataset):
            self._check_first(x[0], name)
            return x
        first = next(x, None)
        if first is None:
            raise ValueError(f"`{name}` is a generator that yields no batch.")
        self._check_first(first, name)
        return (tuple(self._parts(batch)) for batch in itertools.chain([first], x))

    def _check_dataset(self, dataset: Any, name: str) -> None:
        spec = dataset.element_spec
        specs = spec if isinstance(spec, tuple) else (spec,)
        shapes = [self.shape, *[(self.width,)] * bool(self.width)]
        counts = (len(shapes), len(shapes) + self.weighted)
        if len(specs) not in counts or not all(isinstance(s, tf.TensorSpec) for s in specs):
            # A distributed dataset has the specs of its replicas; the training step checks it.
            if isinstance(dataset, tf.data.Dataset):
                raise ValueError(
                    f"`{name}` must yield {self._expected()}, without labels, got elements of "
                    f"{spec}."
                )
            return
        for part, part_shape in zip(specs, [*shapes, ()], strict=False):
            if not part.dtype.is_floating:
                raise ValueError(
                    f"`{name}` must yield floating-point batches, without labels, got "
                    f"{part.dtype.name}: {self._expected()}."
                )
            if not part.shape.is_compatible_with((None, *part_shape)):
                raise ValueError(
                    f"`{name}` must yield batches of shape {describe(part_shape)}, got "
                    f"{part.shape}; is `.batch(...)` missing?"
                )

    def _expected(self) -> str:
        """The elements of a dataset, in words."""
        rows = f"one tensor of shape {describe(self.shape)}"
        if self.width:
            rows = f"pairs of rows {describe(self.shape)} and conditions (rows, {self.width})"
        return rows + ", perhaps followed by sample weights (rows,)" * self.weighted

    def _parts(self, batch: Any) -> list[Any]:
        """The rows, conditions and weights that there are in what Keras passes to a step.

        That is x, (x, conditions, weights), of which the last may be missing or None, or without
        conditions (x, weights) or (x, None, weights).
        """
        x, *others = list(batch) if isinstance(batch, tuple | list) else [batch]
        parts = [x]
        if self.width:
            if not others or others[0] is None:
                raise ValueError(
                    f"Training data must be rows with conditions of shape (rows, {self.width})."
                )
            parts.append(others.pop(0))
        elif len(others) == 2 and others[0] is None:
            others.pop(0)
        if len(others) > 1 or (others and others[0] is not None and not self.weighted):
            raise ValueError(f"Training data must be {self._expected()}, without labels.")
        return parts + [part for part in others if part is not None]

    def batch(self, data: Any) -> Batch:
        """The tensors of what Keras passes to a step, whose values the graph checks.

        Rows have ``dtype``, all others are float32.
        """
        shapes = [self.shape, *[(self.width,)] * bool(self.width), ()]
        dtypes = [self.dtype, "float32", "float32"]
        x, *others = (
            tf.ensure_shape(tf.cast(part, dtype), (None, *part_shape))
            for part, part_shape, dtype in zip(self._parts(data), shapes, dtypes, strict=False)
        )
        condition = [others.pop(0)] if self.width else []
        weights = others[0] if others else None
        if len(self.shape) == 3:
            low, high = tf.reduce_min(x), tf.reduce_max(x)
            message = (
                "Batches of images must hold pixels scaled to [0, 1], got values in [{}, {}]; "
                "divide 8-bit pixels by 255."
            )
            x = refuse_if((low < 0.0) | (high > 1.0), message, (low, high), x)
        if weights is not None:
            low = tf.reduce_min(weights)
            message = "Batches must have sample weights >= 0, got {}."
            weights = refuse_if(low < 0.0, message, (low,), weights)
        return Batch(x, condition, weights)

    def _check_first(self, batch: Any, name: str) -> None:
        x, *others = self._parts(batch)
        conditions = others.pop(0) if self.width else None
        names = (f"{name}: first batch",) * 3
        self.check(x, conditions, others[0] if others else None, names)


def is_dataset(x: Any) -> bool:
    """Whether ``x`` is a tf.data dataset, distributed or not."""
    return isinstance(x, tf.data.Dataset | tf.distribute.DistributedDataset)


def refuse_if(
    bad: tf.Tensor, message: str, values: tuple[tf.Tensor, ...], x: tf.Tensor
) -> tf.Tensor:
    """Return ``x``, or stop the step if ``bad``: ``clear_errors`` raises the message."""
    text = tf.strings.format(f"<<{message}>>", values)
    check = tf.debugging.Assert(tf.logical_not(bad), [text])
    with tf.control_dependencies([] if check is None else [check]):  # None without a graph
        return tf.identity(x)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Raise a ValueError in one sentence for a batch that a training step has refused."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = REFUSED.search(str(error))
        if not found:
            raise
        raise ValueError(found[1]) from None
