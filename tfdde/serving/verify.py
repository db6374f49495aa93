"""Comparison of an exported artifact with Keras."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.models.dde import DDE
from tfdde.models.generator import Generator
from tfdde.networks.normalization import statistics
from tfdde.serving.signatures import log_density

Errors = dict[str, float]


class ExportError(RuntimeError):
    """The model can't be exported, or the artifact disagrees with Keras."""


def verify(
    call: Callable[[str, dict[str, Any]], dict[str, Any]],
    density: DDE,
    generator: Generator | None,
    drawn: Callable[[int, int], Iterable[tuple[str, dict[str, Any], tf.Tensor]]],
    bound: float,
    batch_size: int | None = None,
    advice: str = "",
) -> Errors:
    """Compare every signature with Keras; the largest error of each, or ExportError.

    Args:
        call: runs a signature of the artifact on inputs by name.
        density, generator: what it must agree with.
        drawn: for a number of rows and a seed, each sampling signature with its inputs before any
            condition and the latents that it must decode.
        bound: the largest error allowed.
        batch_size: rows of every call, if the artifact fixes them.
        advice: what the message of an ExportError ends with.

    An error is the largest difference as a share of the largest value.  Log-densities have
    an arbitrary level, often of thousands, whose rounding in float32 is part of their error;
    so theirs near the data is given in nats too, as ``log_density_nats``.
    """
    errors: Errors = {}
    size = 64 if batch_size is None else batch_size * math.ceil(64 / batch_size)
    parts = [slice(0, 64), slice(0, 1), slice(0, 0)]
    if batch_size is not None:
        parts = [slice(i, i + batch_size) for i in range(0, size, batch_size)]

    def compare(name: str, inputs: dict[str, Any], expected: Any, among: Any) -> float:
        """The largest difference; its share is of the values ``among`` those expected are."""
        (output,) = call(name, inputs).values()
        got, want = np.asarray(output, np.float64), np.asarray(expected, np.float64)
        if got.shape != want.shape:
            raise ExportError(f"`{name}` returns the shape {got.shape}, Keras {want.shape}.")
        difference = float(np.abs(got - want).max(initial=0.0))
        # Not of its own rows: the value of a single one may cancel to nearly 0.
        share = difference / float(np.abs(among).max(initial=1e-30))
        if not share <= bound:  # also NaN
            raise ExportError(
                f"`{name}` of the artifact differs from Keras by {share:.1e} of the largest "
                f"value, more than {bound:.0e}; it was not kept{advice}."
            )
        errors[name] = max(errors.get(name, 0.0), share)
        return difference

    def compare_rows(name: str, function: Callable[..., tf.Tensor], **first: Any) -> float:
        inputs = first | given
        among = function(*map(tf.constant, inputs.values()))
        differences = []
        for part in parts:
            rows = {name: value[part] for name, value in inputs.items()}
            expected = function(*map(tf.constant, rows.values()))
            differences.append(compare(name, rows, expected, among))
        return max(differences)

    def score(x: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        return density.score(x, conditions=condition[0] if condition else None)

    with _exact_matmul():
        near, far, given = _points(density, generator, size)
        nats = compare_rows("log_density", partial(log_density, density), x=near)
        compare_rows("log_density", partial(log_density, density), x=far)
        compare_rows("score", score, x=near)
        compare_rows("score", score, x=far)
        if generator is not None:
            z = np.random.default_rng(1).standard_normal((size, generator.latent_dim), np.float32)
            compare_rows("decode", generator.decode, z=z)
            among = generator.decode(z, given.get("condition"))
            for part in parts[:3]:
                inputs = {name: value[part] for name, value in given.items()}
                c = [tf.constant(value) for value in inputs.values()]
                for seed in (0, 2**31 - 1):
                    for name, arguments, latent in drawn(part.stop - part.start, seed):
                        compare(name, arguments | inputs, generator.decode(latent, *c), among)
    return errors | {"log_density_nats": nats}


def _points(
    density: DDE, generator: Generator | None, count: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Rows to compare at: two sets of ``count``, near the data as far as is known, and far away.

    With them the inputs beside the rows, by name: conditions, those with a log Z if there are.
    """
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((count, *density.data_shape), np.float32)
    mean, scale = np.zeros(()), np.ones(())
    if density.normalization is not None:
        mean, variance = statistics(density.normalization)
        mean, scale = (
            np.broadcast_to(v, (1, *density.data_shape)) for v in (mean, np.sqrt(variance))
        )
    given = {}
    if density.condition_dim:
        c = rng.standard_normal((count, density.condition_dim), np.float32)
        if density.normalized and density.partitions is not None:
            c = np.resize(np.array(density.partitions.conditions, np.float32), c.shape)
        given["condition"] = c
    if generator is not None:
        samples = generator.sample(count, seed=0, conditions=given.get("condition")).numpy()
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
