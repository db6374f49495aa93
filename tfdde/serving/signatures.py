"""The named signatures that every artifact has, as concrete TensorFlow functions.

Both exporters call ``signatures`` and write the result with ``save_module``; TFLite converts that
SavedModel.  They differ only in how numbers are drawn from seeds, see ``Sampler``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfdde.models.candidates import Candidates, Draws
from tfdde.models.dde import DDE
from tfdde.models.generator import Generator
from tfdde.noise import check_level
from tfdde.serving import float64_rows
from tfdde.utils.checks import check_integer

BOUND = 1e-5  # largest difference from Keras that is allowed, as a share of the largest value
FLOAT64 = {  # the signatures that take float64 rows, of densities with a normalization
    f"log_density{float64_rows.SUFFIX}": float64_rows.log_density,
    f"score{float64_rows.SUFFIX}": float64_rows.score,
}
# A sampling signature: a function from latent_dim, data_shape and the inputs to the draws of its
# rows, and the specs of these inputs. A condition, if there is one, comes after them.
Sampler = tuple[Callable[..., Draws], list[tf.TensorSpec]]


def log_density(density: DDE, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
    """Return what an artifact's ``log_density`` computes: normalised if log Z is trusted."""
    return density.log_density(x, conditions=condition, normalized=density.normalized)


def check_choice(
    generator: Generator | None, candidates: int, compare_at: float | None
) -> Candidates | None:
    """Return how samples are chosen from candidates; None if they are not.

    Raises:
        ValueError: there is nothing to choose with or from, or ``candidates`` or ``compare_at`` is
            out of range.
    """
    check_integer(candidates, "candidates")
    if candidates == 1:
        if compare_at is not None:
            raise ValueError(
                f"`compare_at` = {compare_at!r} needs `candidates` > 1, which are compared there."
            )
        return None
    if generator is None:
        raise ValueError(
            f"`candidates` = {candidates} needs a generator, whose log-ratio chooses among them: "
            "this is a density without one."
        )
    if compare_at is not None:
        check_level(generator.data_dde.noise, compare_at, "compare_at")
    return generator.check_candidates(candidates, compare_at)


def signatures(
    density: DDE,
    generator: Generator | None,
    samplers: Mapping[str, Sampler],
    batch_size: int | None = None,
    float64: bool = False,
    choice: Candidates | None = None,
) -> dict[str, Any]:
    """Return the signatures by name, as concrete functions.

    Args:
        density: gives ``log_density`` and ``score``.
        generator: gives ``decode`` and the samplers, or None.
        samplers: the sampling signatures by name.
        batch_size: rows of every call; None for any number.
        float64: add the signatures that take float64 rows, see ``float64_rows``.
        choice: from what each sample is chosen, or None.

    Raises:
        ValueError: the generator's rows or conditions do not have the density's shape.
    """
    if generator is not None and generator.data_shape != density.data_shape:
        raise ValueError(
            f"`generator` must generate rows of the density's shape {density.data_shape}, "
            f"got {generator.data_shape}."
        )
    if generator is not None and generator.condition_dim != density.condition_dim:
        raise ValueError(
            f"`generator` must take conditions of {density.condition_dim} entries, as the density "
            f"does, got {generator.condition_dim}."
        )

    def rows(name: str, *shape: int, dtype: str = "float32") -> tf.TensorSpec:
        return tf.TensorSpec((batch_size, *shape), dtype, name=name)

    x = rows("x", *density.data_shape, dtype=density.row_dtype)
    condition = [rows("condition", density.condition_dim)] if density.condition_dim else []

    def value(x: tf.Tensor, *condition: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"log_density": log_density(density, x, *condition)}

    def score(x: tf.Tensor, *condition: tf.Tensor) -> dict[str, tf.Tensor]:
        conditions = condition[0] if condition else None
        return {"score": density.score(x, conditions=conditions)}

    functions = {
        "log_density": traced(value, x, *condition),
        "score": traced(score, x, *condition),
    }
    if float64:
        fine = tf.TensorSpec(x.shape, tf.float64, name="x")
        for name, function in FLOAT64.items():
            functions[name] = traced(_of_float64(density, name, function), fine, *condition)
    if generator is not None:
        dim, shape = generator.latent_dim, generator.data_shape

        def decode(z: tf.Tensor, *condition: tf.Tensor) -> dict[str, tf.Tensor]:
            # With a computed shape here, LiteRT fails for an empty batch.
            return {"x": tf.reshape(generator.decode(z, *condition), (-1, *density.data_shape))}

        def sampling(draw: Callable[..., Draws], count: int) -> Callable:
            def sample(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
                numbers, condition = draw(dim, shape, *inputs[:count]), inputs[count:]
                if choice is None:
                    return decode(numbers.latent(0), *condition)
                sigma = tf.constant(choice.sigma, tf.float32)
                z = generator.choose(numbers, choice.number, sigma, *condition)
                return decode(z, *condition)

            return sample

        functions["decode"] = traced(decode, rows("z", dim), *condition)
        for name, (draw, inputs) in samplers.items():
            functions[name] = traced(sampling(draw, len(inputs)), *inputs, *condition)
    return functions


def _of_float64(density: DDE, name: str, function: Callable[..., tf.Tensor]) -> Callable:
    output = name.removesuffix(float64_rows.SUFFIX)
    return lambda *inputs: {output: function(density, *inputs)}


def save_module(
    functions: dict[str, Any],
    density: DDE,
    generator: Generator | None,
    path: str | os.PathLike,
    choice: Candidates | None = None,
) -> None:
    """Write the signatures as a SavedModel that holds the weights of the models."""
    module = tf.Module()
    models = [density] if generator is None else [density, generator.generator]
    if generator is not None and choice is not None:
        models.append(generator.generated_dde)
        if not generator.relative and generator.data_dde is not density:
            models.append(generator.data_dde)
    # SavedModel tracks TensorFlow's variables, not the Keras ones around them.
    module.variables_ = [v.value for model in models for v in model.weights]
    tf.saved_model.save(module, os.fspath(path), signatures=functions)


def traced(function: Callable, *signature: tf.TensorSpec) -> Any:
    """Trace ``function`` for inputs of these specs."""
    return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()
