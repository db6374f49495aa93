"""The named signatures that every artifact has, as concrete functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfdde.models.dde import DDE
from tfdde.models.generator import Generator


def log_density(density: DDE, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
    """What an artifact's ``log_density`` is: normalised if it can be; the metadata say which."""
    return density.log_density(x, conditions=condition, normalized=density.normalized)


BOUND = 1e-5  # the largest error of an artifact, as a share of the largest value
# A sampling signature: latents (rows, dim) of dim and its inputs before any condition; these.
Sampler = tuple[Callable[..., tf.Tensor], list[tf.TensorSpec]]


def signatures(
    density: DDE,
    generator: Generator | None,
    samplers: Mapping[str, Sampler],
    batch_size: int | None = None,
) -> dict[str, Any]:
    """The signatures by name, as concrete functions."""
    if generator is not None and generator.data_shape != density.data_shape:
        raise ValueError(
            f"`generator` must make rows of the density's shape {density.data_shape}, "
            f"got {generator.data_shape}."
        )
    if generator is not None and generator.condition_dim != density.condition_dim:
        raise ValueError(
            f"`generator` must take conditions of {density.condition_dim} entries, as the density "
            f"does, got {generator.condition_dim}."
        )

    def rows(name: str, *shape: int) -> tf.TensorSpec:
        return tf.TensorSpec((batch_size, *shape), tf.float32, name=name)

    x = rows("x", *density.data_shape)
    condition = [rows("condition", density.condition_dim)] if density.condition_dim else []

    def at(x: tf.Tensor, *condition: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"log_density": log_density(density, x, *condition)}

    def score(x: tf.Tensor, *condition: tf.Tensor) -> dict[str, tf.Tensor]:
        conditions = condition[0] if condition else None
        return {"score": density.score(x, conditions=conditions)}

    functions = {
        "log_density": traced(at, x, *condition),
        "score": traced(score, x, *condition),
    }
    if generator is not None:
        dim = generator.latent_dim

        def decode(z: tf.Tensor, *condition: tf.Tensor) -> dict[str, tf.Tensor]:
            # LiteRT can't return no rows from a reshape to a shape that it had to compute.
            return {"x": tf.reshape(generator.decode(z, *condition), (-1, *density.data_shape))}

        def sampling(latent: Callable[..., tf.Tensor], count: int) -> Callable:
            return lambda *given: decode(latent(dim, *given[:count]), *given[count:])

        functions["decode"] = traced(decode, rows("z", dim), *condition)
        for name, (latent, inputs) in samplers.items():
            functions[name] = traced(sampling(latent, len(inputs)), *inputs, *condition)
    return functions


def save_module(
    functions: dict[str, Any], density: DDE, generator: Generator | None, path: str | os.PathLike
) -> None:
    """Write the signatures as a SavedModel that holds the models' weights."""
    module = tf.Module()
    # SavedModel tracks TensorFlow's variables, not the Keras ones around them.
    models = [density] if generator is None else [density, generator.generator]
    module.variables_ = [v.value for model in models for v in model.weights]
    tf.saved_model.save(module, os.fspath(path), signatures=functions)


def traced(function: Callable, *signature: tf.TensorSpec) -> Any:
    """The concrete function of these inputs."""
    return tf.function(function, input_signature=signature).get_concrete_function()
