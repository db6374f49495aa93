"""Comparison of an exported artifact with Keras."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.density import DDE
from tfdde.generator import Generator

Errors = dict[str, float]


class ExportError(RuntimeError):
    """The model can't be exported, or the artifact disagrees with Keras."""


def log_density(density: DDE, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
    """What an artifact's ``log_density`` is: normalised if it can be; the metadata say which."""
    return density.log_density(x, conditions=condition, normalized=density.normalized)


def verify(
    call: Callable[[str, dict[str, Any]], dict[str, Any]],
    density: DDE,
    generator: Generator | None,
    sample: Callable[[Generator, int, int, Any], tf.Tensor],
    seed_type: type,
    bound: float,
) -> Errors:
    """Compare every signature with Keras; the largest error of each, or ExportError.

    ``sample`` gives the rows to expect of a generator for a number, a seed and conditions.

    An error is the largest difference as a share of the largest value.  Log-densities have
    an arbitrary level, often of thousands, whose rounding in float32 is part of their error;
    so theirs near the data is given in nats too, as ``log_density_nats``.
    """
    errors: Errors = {}
    scales: dict[str, float] = {}

    def compare(name: str, inputs: dict[str, Any], expected: Any) -> float:
        (output,) = call(name, inputs).values()
        got, want = np.asarray(output, np.float64), np.asarray(expected, np.float64)
        if got.shape != want.shape:
            raise ExportError(f"`{name}` returns the shape {got.shape}, Keras {want.shape}.")
        difference = float(np.abs(got - want).max(initial=0.0))
        # The full set of rows comes first: the value of a single one may cancel to nearly 0.
        scales[name] = max(float(np.abs(want).max(initial=1e-30)), scales.get(name, 0.0))
        share = difference / scales[name]
        if not share <= bound:  # also NaN
            raise ExportError(
                f"`{name}` of the artifact differs from Keras by {share:.1e} of the largest "
                f"value, more than {bound:.0e}; it was not kept."
            )
        errors[name] = max(errors.get(name, 0.0), share)
        return difference

    with _exact_matmul():
        near, far, given = _points(density, generator)

        def rows_of(count: int, **first: Any) -> tuple[dict[str, Any], list[tf.Tensor]]:
            """The first rows of all inputs, by name and as tensors: the condition is the last."""
            inputs = {name: value[:count] for name, value in (first | given).items()}
            return inputs, [tf.constant(value) for value in inputs.values()]

        inputs, tensors = rows_of(len(near), x=near)
        nats = compare("log_density", inputs, log_density(density, *tensors))
        for x in (near, far):
            for count in (len(x), 1, 0):
                inputs, (x_, *c) = rows_of(count, x=x)
                compare("log_density", inputs, log_density(density, x_, *c))
                conditions = c[0] if c else None
                compare("score", inputs, density.score(x_, conditions=conditions))
        if generator is not None:
            z = np.random.default_rng(1).standard_normal((64, generator.latent_dim), np.float32)
            for count in (len(z), 1, 0):
                inputs, tensors = rows_of(count, z=z)
                compare("decode", inputs, generator.decode(*tensors))
                del inputs["z"]
                for seed in (0, 2**31 - 1):
                    arguments = {"num": np.int32(count), "seed": seed_type(seed), **inputs}
                    expected = sample(generator, count, seed, inputs.get("condition"))
                    compare("sample", arguments, expected)
    return errors | {"log_density_nats": nats}


def _points(
    density: DDE, generator: Generator | None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Rows to compare at: two sets of 64, near the data as far as is known, and far away.

    With them the inputs beside the rows, by name: conditions, those with a log Z if there are.
    """
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((64, *density.data_shape), np.float32)
    mean, scale = np.zeros(()), np.ones(())
    if density.normalization is not None:
        mean, scale = (
            np.broadcast_to(v, (1, *density.data_shape))
            for v in (density.normalization.mean, np.sqrt(density.normalization.variance))
        )
    given = {}
    if density.condition_dim:
        c = rng.standard_normal((64, density.condition_dim), np.float32)
        if density.normalized and density.partitions is not None:
            c = np.resize(np.array(density.partitions.conditions, np.float32), c.shape)
        given["condition"] = c
    if generator is not None:
        samples = generator.sample(64, seed=0, conditions=given.get("condition")).numpy()
        near = samples + np.float32(density.noise.sigma) * noise
    else:
        near = (mean + scale * noise).astype(np.float32)
    return near, (mean + 10.0 * scale * noise).astype(np.float32), given


@contextlib.contextmanager
def _exact_matmul() -> Iterator[None]:
    """Full float32 products: GPUs round the factors to 10 bits by default."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
