"""Fix the condition of a conditional network."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.utils.checks import check_rows


@keras.saving.register_keras_serializable(package="tfdde")
class FixedCondition(keras.layers.Layer):
    """The same condition for every row of its input: (batch, ...) -> (batch, k).

    Args:
        condition: k numbers.
    """

    def __init__(self, condition: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.condition = tuple(float(v) for v in condition)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return repeated(self.condition, x)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape[0], len(self.condition)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "condition": self.condition}


def repeated(condition: Any, x: tf.Tensor) -> tf.Tensor:
    """One condition of k entries for each row of ``x``: float32 (rows, k)."""
    row = tf.convert_to_tensor(condition, tf.float32)
    return tf.broadcast_to(row, tf.stack([tf.shape(x)[0], row.shape[0]]))


def fix(network: keras.Model, condition: Any, width: int) -> keras.Model:
    """A copy of ``network`` with its condition fixed, which takes the other inputs only.

    Args:
        network: Functional model whose last input is the condition.
        condition: float vector (width,).
        width: entries of the condition.

    Raises:
        ValueError: a wrong shape, NaN or infinity.
    """
    if not width:
        raise ValueError("There is no `condition` to fix: the network has no input `condition`.")
    if np.shape(condition) != (width,):
        raise ValueError(
            f"`condition` must be one condition, shape ({width},), got {np.shape(condition)}."
        )
    inputs = [keras.Input(i.shape[1:], name=i.name) for i in network.inputs[:-1]]
    layer = FixedCondition(check_rows(condition, "condition", ()), name="condition")
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    s = copy([*inputs, layer(inputs[0])])
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], s)
