"""Evaluate a function of rows: traced once for all batches, some thousand rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdde.partition.evaluator import CHUNK

Function = Callable[..., tf.Tensor]


def traced(function: Function, row_shape: tuple[int, ...], dtype: str, conditions: int) -> Function:
    """A function of rows, a noise level and perhaps conditions, traced once for all rows.

    It is a concrete function: TensorFlow takes the traces of several models for retracing of one,
    and would warn.

    Args:
        function: of rows (batch, *row_shape), sigma () and perhaps conditions (batch, k).
        row_shape, dtype: of the rows.
        conditions: k, 0 for a function without conditions.
    """
    specs = [
        tf.TensorSpec((None, *row_shape), dtype),
        tf.TensorSpec((), tf.float32),
        *[tf.TensorSpec((None, conditions), tf.float32)] * bool(conditions),
    ]
    graph = tf.function(function, specs, autograph=False)

    def call(*inputs: tf.Tensor) -> tf.Tensor:
        # Within another graph it becomes part of that graph, whose shapes may be known.
        if not tf.executing_eagerly() or tf.config.functions_run_eagerly():
            return function(*inputs)
        return graph.get_concrete_function()(*inputs)

    return call


def in_chunks(function: Function, columns: list[Any]) -> tf.Tensor:
    """``function`` of ``columns``: arrays some thousand rows at a time, tensors in one call."""
    if any(tf.is_tensor(column) for column in columns):
        return function(*(tf.convert_to_tensor(column) for column in columns))
    starts = range(0, max(len(columns[0]), 1), CHUNK)
    chunks = [function(*(tf.constant(c[i : i + CHUNK]) for c in columns)) for i in starts]
    return chunks[0] if len(chunks) == 1 else tf.concat(chunks, axis=0)
