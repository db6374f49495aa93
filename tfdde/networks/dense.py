"""The paper's networks, from layers that every export target understands.

All are Functional models with an input named ``x``, so that they load from ``.keras`` files
without custom code and export with a readable signature. Three choices serve TFLite: residuals
are added by ``tf.add_n`` and concatenation has its own gradient, since the gradients of ``+`` and
``tf.concat`` with a dynamic batch size need operations that TFLite lacks; and Softplus does not
overflow when the converter lowers it to ``log(1 + exp(x))``.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import keras

from tfdde.networks.layers import Concat, ProductOfMixtures, ResidualSum, softplus
from tfdde.utils.checks import check_integer, check_positive

Shape = int | tuple[int, ...]


def _check_shape(value: Any, name: str) -> tuple[int, ...]:
    shape = (value,) if isinstance(value, numbers.Integral) else value
    try:
        shape = tuple(int(n) for n in shape)
    except (TypeError, ValueError):
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"`{name}` must be a positive int or a tuple of them, got {value!r}.")
    return shape


def _flat_input(input_shape: Shape, levels: bool, conditions: int) -> tuple[Any, keras.KerasTensor]:
    """The model's inputs, and all of them as one flat tensor."""
    shape = _check_shape(input_shape, "input_shape")
    conditions = check_integer(conditions, "conditions", 0)
    x = keras.Input(shape, name="x")
    flat = x if len(shape) == 1 else keras.layers.Flatten()(x)
    extra = [keras.Input((1,), name="level")] if levels else []
    if conditions:
        extra.append(keras.Input((conditions,), name="condition"))
    return ([x, *extra], Concat()([flat, *extra])) if extra else (x, flat)


def _output(h: keras.KerasTensor, output_shape: Shape | None, activation: Any) -> Any:
    if output_shape is None:
        # A scalar log-density has no bias: its gradient in x, which is trained, has none.
        return keras.layers.Dense(1, use_bias=False, activation=activation, name="s")(h)
    shape = _check_shape(output_shape, "output_shape")
    y = keras.layers.Dense(math.prod(shape), activation=activation, name="y")(h)
    return y if len(shape) == 1 else keras.layers.Reshape(shape)(y)


def residual_mlp(
    input_shape: Shape,
    width: int = 32,
    depth: int = 25,
    output_shape: Shape | None = None,
    activation: Any = softplus,
    output_activation: Any = None,
    levels: bool = False,
    experts: int = 0,
    components: int = 16,
    spread: float = 2.0,
    conditions: int = 0,
    name: str | None = None,
) -> keras.Model:
    """Residual MLP: a linear layer to ``width``, ``depth`` times h + f(Wh + b), a linear output.

    The paper's network for 2-D data (25 x 32) and tables (25 x 64 or 25 x 128). The initial
    weights suit inputs of about unit scale.

    >>> network = tfdde.networks.residual_mlp(2, width=32, depth=25)
    >>> network.output_shape, network.count_params()
    ((None, 1), 26528)
    >>> network = tfdde.networks.residual_mlp(2, levels=True, conditions=10)
    >>> [i.name for i in network.inputs]
    ['x', 'level', 'condition']

    Args:
        input_shape: shape of one input, an int for flat vectors.
        width: units of each hidden layer.
        depth: number of residual layers.
        output_shape: None for a scalar s(x), returned with shape (batch, 1) and without a
            bias; otherwise the shape of one output, as for a vector field or a generator.
        activation: of the hidden layers (the paper: Softplus).
        output_activation: of the output layer.
        levels: give the model a second input ``level`` (batch, 1) for the noise level, as
            ``LogUniform`` needs it.
        experts: make the scalar a sum of so many log-mixtures (``ProductOfMixtures``) instead
            of a linear output; 0 as in the paper.
        components: of each of these mixtures.
        spread: initial standard deviation of the first layer's units, for inputs of unit scale;
            their offsets are uniform in plus or minus twice that. Choose it low for smooth
            densities and high for sharp ones: it is about the number of bends along a unit's
            direction at the start.
        conditions: entries of a condition; with any, the model has a last input ``condition``
            (batch, conditions).
        name: the model's name.

    Returns:
        A Functional model (batch, *input_shape) -> (batch, 1) or (batch, *output_shape).

    Raises:
        ValueError: a shape or size is not a positive integer.
    """
    width, depth = check_integer(width, "width"), check_integer(depth, "depth")
    spread = check_positive(spread, "spread")
    experts, components = (
        check_integer(experts, "experts", 0),
        check_integer(components, "components"),
    )
    x, h = _flat_input(input_shape, levels, conditions)
    # Directions and offsets spread the bends over a few units around the origin, and branches
    # of variance 1 / depth keep the scale of the sum. With Glorot's initial weights 25 layers
    # learn next to nothing in 1,500 steps (KL 0.25 against 0.002 nats on the checkerboard).
    # The entries of a condition, most of which may be 0, don't make the weights of x smaller.
    fan_in = h.shape[-1] / (h.shape[-1] - conditions)
    directions = keras.initializers.VarianceScaling(spread**2 * fan_in, "fan_in", "normal")
    offsets = keras.initializers.RandomUniform(-2.0 * spread, 2.0 * spread)
    h = keras.layers.Dense(width, kernel_initializer=directions, bias_initializer=offsets)(h)
    for _ in range(depth):
        # A new initializer for each layer: one instance returns the same weights at every call.
        branch = keras.initializers.VarianceScaling(1.0 / depth, "fan_avg", "uniform")
        f = keras.layers.Dense(width, activation=activation, kernel_initializer=branch)(h)
        h = ResidualSum()([h, f])
    if experts and output_shape is None:
        # Nearly constant at first, so that e^s starts at the Gaussian base, if there is one.
        small = keras.initializers.VarianceScaling(0.01, "fan_in", "normal")
        logits = keras.layers.Dense(experts * components, kernel_initializer=small)(h)
        return keras.Model(x, ProductOfMixtures(experts, name="s")(logits), name=name)
    return keras.Model(x, _output(h, output_shape, output_activation), name=name)


def dense_block(
    input_shape: Shape,
    width: int = 256,
    depth: int = 15,
    output_shape: Shape | None = None,
    activation: Any = softplus,
    output_activation: Any = None,
    levels: bool = False,
    conditions: int = 0,
    name: str | None = None,
) -> keras.Model:
    """Dense block: ``depth`` fully connected layers, each of which sees all layers before it.

    The paper's network for MNIST and Fashion-MNIST (15 x 256), for the densities
    and, with ``output_shape`` and a sigmoid, for the generator.

    Args, returns and errors are those of ``residual_mlp``.
    """
    width, depth = check_integer(width, "width"), check_integer(depth, "depth")
    x, h = _flat_input(input_shape, levels, conditions)
    for _ in range(depth):
        new = keras.layers.Dense(width, activation=activation)(h)
        h = Concat()([h, new])
    return keras.Model(x, _output(h, output_shape, output_activation), name=name)
