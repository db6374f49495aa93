"""What a network must be so that a density or a generator can be made of it."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Iterator
from typing import Any

import keras

RATES = ("rate", "dropout", "recurrent_dropout", "stddev")  # of the noise in Keras's layers


def check_network(network: Any, name: str) -> None:
    """Raise ValueError unless the argument ``name`` is a built Functional or Sequential model."""
    if not isinstance(network, keras.Model) or not network.built:
        raise ValueError(f"`{name}` must be a built keras.Model, got {network!r}.")
    if not hasattr(network, "inputs") or not hasattr(network, "output_shape"):
        raise ValueError(
            f"`{name}` must be a Functional or Sequential keras.Model, with known inputs and "
            f"outputs, got {type(network).__name__}, a subclass with a `call` of its own. Wrap it: "
            "inputs = keras.Input(shape, name='x'); keras.Model(inputs, network(inputs))."
        )


def check_trainable(network: keras.Model, name: str) -> None:
    """Check that nothing in a network asks for what its training would not do.

    A log-density is trained by its gradient in x, as a function of single rows without noise of
    its own, and a generator likewise.

    Args:
        network: the network to be trained.
        name: what errors call it.

    Raises:
        ValueError: a layer, such as Dropout or BatchNormalization, computes something else in
            training than in evaluation, or has an activity regularizer.
    """
    for layer in _layers(network):
        kind = type(layer).__name__
        if getattr(layer, "activity_regularizer", None) is not None:
            raise ValueError(
                f"`{name}` must have no activity regularizer, which would not be in the loss; "
                f"layer {layer.name!r} ({kind}) has one. Use a `kernel_regularizer`."
            )
        if _differs_in_training(layer):
            raise ValueError(
                f"`{name}` must compute the same in training as in evaluation; layer "
                f"{layer.name!r} ({kind}) does not. Leave it out: against overfitting use a "
                "`kernel_regularizer`, more noise (sigma) or fewer steps."
            )


def _layers(layer: Any) -> Iterator[Any]:
    """The layers inside a model or a wrapper, at any depth."""
    inner = list(getattr(layer, "layers", ()))
    inner += [getattr(layer, name) for name in ("layer", "cell") if hasattr(layer, name)]
    for part in inner:
        yield part
        yield from _layers(part)


def _differs_in_training(layer: Any) -> bool:
    """Whether a layer, apart from those inside it, computes something else in training."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return bool(layer.trainable)  # a frozen one always uses its moving averages
    if isinstance(layer, keras.layers.SpectralNormalization):
        return True
    rates = [getattr(layer, name, 0.0) for name in RATES]
    if any(isinstance(rate, numbers.Real) and rate for rate in rates):
        return True
    of_keras = type(layer).__module__.split(".")[0] == "keras"
    return not of_keras and "training" in inspect.signature(layer.call).parameters


def condition_width(network: keras.Model) -> int:
    """Number of entries of a network's last input ``condition``, 0 if it has none."""
    last = network.inputs[-1]
    if len(network.inputs) < 2 or last.name != "condition":
        return 0
    if len(last.shape) != 2 or not last.shape[1]:
        raise ValueError(
            f"`network` must have an input `condition` of shape (None, k), got {last.shape}."
        )
    return int(last.shape[1])


def check_scalar(network: Any, levels: bool) -> tuple[tuple[int, ...], int]:
    """Check that a network is a log-density: rows, perhaps level and condition, to one scalar.

    Returns:
        The shape of one row, and the entries of a condition.

    Raises:
        ValueError: as ``check_network``, or the network is not scalar or has other inputs.
    """
    check_network(network, "network")
    if network.output_shape != (None, 1):
        raise ValueError(
            "`network` must map a batch to one scalar a row, output shape (None, 1), "
            f"got {network.output_shape}."
        )
    shapes = network.input_shape
    width = condition_width(network)
    x, *extra = shapes if isinstance(shapes, list) else [shapes]
    if width:
        extra.pop()
    if levels and extra != [(None, 1)]:
        raise ValueError(
            "`network` must have two inputs with LogUniform noise, x and level of shape "
            f"(None, 1), and perhaps a last one `condition`, got {shapes}; networks made by "
            "tfdde.networks with levels=True have them."
        )
    if extra and not levels:
        raise ValueError(
            "`network` must have one input x with noise of one level, and perhaps a last one "
            f"`condition`, got {shapes}; networks with a level, made with levels=True, are for "
            "tfdde.LogUniform."
        )
    return tuple(x[1:]), width
