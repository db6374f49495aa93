"""Convolutional networks for images, from layers that every export target understands.

Unlike the paper's dense blocks they use that pixels have neighbours. Images may have any size,
and one channel or several.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfdde.networks.layers import Concat, ResidualSum
from tfdde.utils.checks import check_integer

KERNEL = 4  # of layers that halve or double the image; multiples of the stride show no grid
SMALLEST = 8  # the image is halved while its longer side exceeds this


def _pad(x: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Append rows of zeros to x until it has ``rows`` rows."""
    missing = tf.maximum(rows - tf.shape(x)[0], 0)
    padded = tf.pad(x, [[0, missing], *[[0, 0]] * (x.shape.rank - 1)])
    return tf.reshape(padded, (-1, *x.shape[1:]))  # without it TFLite does not know the sizes


@tf.custom_gradient
def _one_or_more(x: tf.Tensor) -> Any:
    count = tf.shape(x)[0]
    return _pad(x, tf.constant(1)), lambda dy: dy[:count]  # TFLite lacks the gradient of Pad


@keras.saving.register_keras_serializable(package="tfdde")
class OneOrMore(keras.layers.Layer):
    """Pass a batch on, but replace an empty one by one row of zeros.

    For an empty batch, TensorFlow's CPU convolution returns the shape of its input, which the
    next layer refuses; an exported model must score any number of rows. ``First`` removes the
    row again.
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return _one_or_more(x)


@keras.saving.register_keras_serializable(package="tfdde")
class First(keras.layers.Layer):
    """The first rows of the first input, as many as the second input has."""

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        y, like = inputs
        count = tf.shape(like)[0]

        @tf.custom_gradient
        def first(y: tf.Tensor) -> Any:
            return y[:count], lambda dy: _pad(dy, tf.shape(y)[0])

        return first(y)

    def compute_output_shape(self, input_shape: list[tuple]) -> tuple:
        return tuple(input_shape[0])


def _check_image(shape: Any) -> tuple[int, int, int]:
    try:
        height, width, channels = (check_integer(n, "image_shape") for n in shape)
    except (TypeError, ValueError):
        raise ValueError(
            f"`image_shape` must be (height, width, channels) of positive integers, got {shape!r}."
        ) from None
    return height, width, channels


def _keeps_variance() -> keras.Initializer:
    """Initial weights that keep the variance of SiLU units; with Glorot's s stays flat long."""
    return keras.initializers.VarianceScaling(3.0, "fan_in", "normal")


def _halvings(shape: tuple[int, int, int]) -> int:
    return max(1, math.ceil(math.log2(max(shape[:2]) / SMALLEST)))


def _active(h: keras.KerasTensor, features: Any, activation: Any, shifts: str) -> keras.KerasTensor:
    """f(h + shift); the shift is linear in the features of level and condition, and 0 at first."""
    if features is not None:
        shape = h.shape[1:]
        units = math.prod(shape) if shifts == "pixel" else shape[-1]
        shift = keras.layers.Dense(units, use_bias=False, kernel_initializer="zeros")(features)
        if shifts == "channel":  # repeated, since TFLite lacks the gradient of a broadcast
            shift = keras.layers.RepeatVector(shape[0] * shape[1])(shift)
        h = ResidualSum()([h, keras.layers.Reshape(shape)(shift)])
    return keras.layers.Activation(activation)(h)


def conv_density(
    image_shape: tuple[int, int, int],
    width: int = 32,
    depth: int = 2,
    units: int = 256,
    activation: Any = "silu",
    levels: bool = False,
    conditions: int = 0,
    name: str | None = None,
    shifts: str = "pixel",
) -> keras.Model:
    """Residual convolutional network to one scalar s(x).

    Convolutions of stride 2 until the image has at most 8 rows and columns, then ``depth``
    residual convolutions, a dense layer and a linear output. The score, its gradient, goes back
    through the same layers, like a decoder that shares its weights with the encoder.

    >>> network = tfdde.networks.conv_density((28, 28, 1), width=8, units=32, levels=True)
    >>> network.input_shape, network.output_shape
    ([(None, 28, 28, 1), (None, 1)], (None, 1))

    Args:
        image_shape: (height, width, channels), any size.
        width: channels after the first layer, doubled after the second.
        depth: residual layers at the lowest resolution.
        units: of the dense layer.
        activation: of all hidden layers; it must be smooth, since the score is a derivative.
        levels: give the model a second input ``level`` (batch, 1) for the noise level, as
            ``LogUniform`` needs it.
        conditions: entries of a condition; with any, the model has a last input ``condition``
            (batch, conditions).
        name: the model's name.
        shifts: by what level and condition shift the hidden units: "pixel", a number for each
            channel of each pixel, or "channel", one for each channel, which is cheaper: three
            eighths of the weights are gone at 28 x 28 pixels.

    Returns:
        A Functional model (batch, height, width, channels) -> (batch, 1).

    Raises:
        ValueError: a shape or size is not a positive integer, or other ``shifts``.
    """
    shape = _check_image(image_shape)
    width, depth = check_integer(width, "width"), check_integer(depth, "depth")
    units, conditions = check_integer(units, "units"), check_integer(conditions, "conditions", 0)
    if shifts not in ("pixel", "channel"):
        raise ValueError(f'`shifts` must be "pixel" or "channel", got {shifts!r}.')
    layers = keras.layers
    x = keras.Input(shape, name="x")
    extra = [keras.Input((1,), name="level")] if levels else []
    if conditions:
        extra.append(keras.Input((conditions,), name="condition"))
    features = None
    if extra:
        features = extra[0] if len(extra) == 1 else Concat()(extra)
        features = layers.Dense(width, activation=activation)(OneOrMore()(features))
    h = OneOrMore()(x)
    for k in range(_halvings(shape)):
        channels = width if k == 0 else 2 * width
        h = layers.Conv2D(channels, KERNEL, 2, "same", kernel_initializer=_keeps_variance())(h)
        h = _active(h, features, activation, shifts)
    for _ in range(depth):
        f = layers.Conv2D(h.shape[-1], 3, padding="same", kernel_initializer=_keeps_variance())(h)
        h = ResidualSum()([h, _active(f, features, activation, shifts)])
    h = layers.Flatten()(h)
    h = Concat()([h, features]) if extra else h
    h = layers.Dense(units, activation=activation, kernel_initializer=_keeps_variance())(h)
    # The output has no bias: its gradient in x, which is trained, has none.
    s = First(name="s")([layers.Dense(1, use_bias=False)(h), x])
    return keras.Model([x, *extra] if extra else x, s, name=name)


def _modulated(h: keras.KerasTensor, style: keras.KerasTensor) -> keras.KerasTensor:
    """Normalise the channels of each pixel; scale and shift them by linear functions of style."""
    layers, channels = keras.layers, h.shape[-1]
    h = layers.RMSNormalization()(h)

    def of_channels(bias: str) -> keras.KerasTensor:  # the same at first, whatever the style
        dense = layers.Dense(channels, kernel_initializer="zeros", bias_initializer=bias)
        return layers.Reshape((1, 1, channels))(dense(style))

    return layers.Add()([layers.Multiply()([h, of_channels("ones")]), of_channels("zeros")])


def conv_generator(
    latent_dim: int,
    image_shape: tuple[int, int, int],
    width: int = 32,
    depth: int = 1,
    activation: Any = "silu",
    output_activation: Any = "sigmoid",
    conditions: int = 0,
    name: str | None = None,
    modulated: bool = False,
) -> keras.Model:
    """Generator of images as in DCGAN (Radford et al. 2016).

    Two dense layers, then transposed convolutions that double height and width.

    >>> network = tfdde.networks.conv_generator(16, (28, 28, 1), width=8)
    >>> network.input_shape, network.output_shape
    ((None, 16), (None, 28, 28, 1))

    Args:
        latent_dim: dimensions of z.
        image_shape: (height, width, channels), any size.
        width: channels before the last layer, twice as many at the lowest resolutions.
        depth: residual layers at the lowest resolution.
        activation: of the hidden layers.
        output_activation: of the pixels.
        conditions: as for ``conv_density``.
        name: the model's name.
        modulated: before each convolution divide the channels of a pixel by their root mean
            square (Zhang and Sennrich 2019), and scale and shift each channel by linear functions
            of z and condition (as the styles of Karras et al. 2019).

    Returns:
        A Functional model (batch, latent_dim) -> (batch, height, width, channels).

    Raises:
        ValueError: a shape or size is not a positive integer.
    """
    shape = _check_image(image_shape)
    width, depth = check_integer(width, "width"), check_integer(depth, "depth", 0)
    conditions = check_integer(conditions, "conditions", 0)
    layers = keras.layers
    z = keras.Input((check_integer(latent_dim, "latent_dim"),), name="z")
    condition = [keras.Input((conditions,), name="condition")] if conditions else []
    style = h = OneOrMore()(Concat()([z, *condition]) if conditions else z)
    halvings = _halvings(shape)
    rows, columns = (math.ceil(n / 2**halvings) for n in shape[:2])
    for units in (8 * width, rows * columns * 2 * width):
        h = layers.Dense(units, activation=activation, kernel_initializer=_keeps_variance())(h)
    h = layers.Reshape((rows, columns, 2 * width))(h)
    for _ in range(depth):
        f = layers.Conv2D(
            2 * width,
            3,
            padding="same",
            activation=activation,
            kernel_initializer=_keeps_variance(),
        )(_modulated(h, style) if modulated else h)
        h = ResidualSum()([h, f])
    for k in range(halvings, 0, -1):
        h = _modulated(h, style) if modulated else h
        channels = shape[2] if k == 1 else width if k == 2 else 2 * width
        # A pixel sees one in four of the KERNEL**2 weights, and Keras computes "fan_out" here
        # from the number of inputs.
        gain = 4.0 if k == 1 else 12.0
        scaled = keras.initializers.VarianceScaling(gain, "fan_out", "normal")
        h = layers.Conv2DTranspose(channels, KERNEL, 2, "same", kernel_initializer=scaled)(h)
        if k > 1:
            h = layers.Activation(activation)(h)
    surplus = [(0, n * 2**halvings - m) for n, m in zip((rows, columns), shape, strict=False)]
    if any(right for _, right in surplus):
        h = layers.Cropping2D(surplus)(h)
    x = First(name="y")([layers.Activation(output_activation)(h), z])
    return keras.Model([z, *condition] if conditions else z, x, name=name)
