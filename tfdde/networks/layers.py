"""Layers that every export target understands."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdde.utils.checks import check_integer


@tf.custom_gradient
def _stable_softplus(x: tf.Tensor) -> Any:
    size = tf.abs(x)
    # x / 2 + |x| / 2 is max(x, 0), exactly. With a relu, TFLite's converter would compute the
    # layer before it twice.
    y = 0.5 * x + 0.5 * size + tf.math.log(1.0 + tf.exp(-size))
    return y, lambda dy: dy * tf.sigmoid(x)  # written out, since abs has no derivative at 0


@keras.saving.register_keras_serializable(package="tfdde")
def softplus(x: tf.Tensor) -> tf.Tensor:
    """log(1 + exp(x)), finite for every finite x, also after conversion to TFLite.

    >>> tfdde.networks.softplus(tf.constant([-100.0, 0.0, 100.0])).numpy().round(4)
    array([  0.    ,   0.6931, 100.    ], dtype=float32)
    """
    return _stable_softplus(x)


@keras.saving.register_keras_serializable(package="tfdde")
class ResidualSum(keras.layers.Layer):
    """Sum of equally shaped tensors, as one AddN operation."""

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        return tf.add_n(inputs)

    def compute_output_shape(self, input_shape: list[tuple]) -> tuple:
        return tuple(input_shape[0])


@tf.custom_gradient
def log_sum_exp(logits: tf.Tensor) -> Any:
    """Log of the sum of exp(logits): (batch, k) -> (batch, 1).

    Its gradient is written out: TensorFlow's needs operations that TFLite lacks.
    """
    top = tf.reduce_max(logits, axis=-1, keepdims=True)
    logs = tf.math.log(tf.reduce_sum(tf.exp(logits - top), axis=-1, keepdims=True)) + top
    # Of the logits themselves, so that it can be differentiated again.
    return logs, lambda dy: dy * tf.nn.softmax(logits)


@tf.custom_gradient
def log_squash(x: tf.Tensor, top: tf.Tensor) -> Any:
    """arsinh(x) up to ``top`` on either side, and then smoothly constant.

    Beyond ``top`` it goes on as a hyperbolic tangent, by 1 at most; value and two derivatives are
    continuous.  The gradients are written out: TensorFlow's need operations that TFLite lacks.

    Args:
        x: (batch, n).
        top: > 0, of the same shape.
    """

    def arsinh_of_size() -> tf.Tensor:
        return tf.math.log(tf.abs(x) + tf.sqrt(tf.square(x) + 1.0))

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # From x on, so that it can be differentiated again.
        bend = tf.square(tf.tanh(tf.maximum(arsinh_of_size() - top, 0.0)))
        of_x = dy * tf.math.rsqrt(tf.square(x) + 1.0) * (1.0 - bend)
        return of_x, dy * tf.sign(x) * bend

    u = arsinh_of_size()
    return tf.sign(x) * (tf.minimum(u, top) + tf.tanh(tf.maximum(u - top, 0.0))), gradient


@tf.custom_gradient
def _concat(*inputs: tf.Tensor) -> Any:
    # TensorFlow's own gradient reads the widths at run time, with operations that TFLite lacks.
    widths = [x.shape[-1] for x in inputs]
    return tf.concat(inputs, axis=-1), lambda dy: tf.split(dy, widths, axis=-1)


@keras.saving.register_keras_serializable(package="tfdde")
class Concat(keras.layers.Layer):
    """Concatenate tensors of static widths along the last axis."""

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        return _concat(*inputs)

    def compute_output_shape(self, input_shape: list[tuple]) -> tuple:
        return (*input_shape[0][:-1], sum(shape[-1] for shape in input_shape))


@keras.saving.register_keras_serializable(package="tfdde")
class ProductOfMixtures(keras.layers.Layer):
    """Sum over ``experts`` groups of log(mean(exp)) of their logits: (batch, k) -> (batch, 1).

    e^s is then a product of mixtures, like a multimodal density whose parts are independent of
    each other. The gradient is written out, since TensorFlow's needs operations that TFLite
    lacks.

    Args:
        experts: number of groups into which the last axis of the input is divided.
    """

    def __init__(self, experts: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.experts = check_integer(experts, "experts")

    def call(self, logits: tf.Tensor) -> tf.Tensor:
        return self._sum(logits)

    @tf.custom_gradient
    def _sum(self, logits: tf.Tensor) -> Any:
        width = logits.shape[-1]
        grouped = (-1, self.experts, width // self.experts)
        u = tf.reshape(logits, grouped)
        top = tf.reduce_max(u, axis=-1, keepdims=True)
        logs = tf.math.log(tf.reduce_mean(tf.exp(u - top), axis=-1, keepdims=True)) + top

        def gradient(dy: tf.Tensor) -> tf.Tensor:
            # Computed from the input itself, so that it can be differentiated again.
            return dy * tf.reshape(tf.nn.softmax(tf.reshape(logits, grouped)), (-1, width))

        return tf.reduce_sum(logs, axis=1), gradient

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (*input_shape[:-1], 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "experts": self.experts}
