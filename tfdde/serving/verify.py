"""Compare every signature of an exported artifact with the Keras models that it was made from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.models.candidates import Candidates, Draws
from tfdde.models.dde import DDE
from tfdde.models.generator import Generator
from tfdde.networks.normalization import has_tails, outside
from tfdde.serving.signatures import FLOAT64, log_density

Errors = dict[str, float]


class ExportError(RuntimeError):
    """The model cannot be exported, or the artifact disagrees with Keras."""


def check_single(density: DDE, what: str) -> None:
    """Raise ExportError if the density takes rows in float64, which ``what`` can't."""
    if density.row_dtype != "float32":
        raise ExportError(
            f"{what} takes rows in float32, but this density needs float64 for its columns: export "
            "a SavedModel, or train on columns that are centred and rescaled."
        )


def verify(
    call: Callable[[str, dict[str, Any]], dict[str, Any]],
    density: DDE,
    generator: Generator | None,
    drawn: Callable[[int, int], Iterable[tuple[str, dict[str, Any], Draws]]],
    bound: float,
    batch_size: int | None = None,
    advice: str = "",
    float64: bool = False,
    choice: Candidates | None = None,
) -> Errors:
    """Compare every signature with Keras.

    The error of a signature is its largest difference from Keras, as a share of the largest value.
    Log-densities may have a level of thousands, whose rounding in float32 is part of their error;
    so for rows near the data their error is also given in nats, as ``log_density_nats``.

    A sample that is chosen from candidates must be the one that Keras chooses. Where several are as
    good up to the error that is allowed, each of them is right.

    Args:
        call: runs a signature of the artifact on inputs by name.
        density, generator: the Keras models.
        drawn: from a number of rows and a seed, gives each sampling signature with its inputs
            (without a condition) and the random numbers that it must draw.
        bound: the largest error allowed.
        batch_size: rows of every call if the artifact fixes them, else None.
        advice: the end of the message of an ExportError.
        float64: compare the signatures of float64 rows, too.
        choice: from what each sample is chosen, or None.

    Returns:
        The largest error of each signature.

    Raises:
        ExportError: a shape is wrong, or an error is larger than ``bound`` or NaN.
    """
    errors: Errors = {}
    size = 64 if batch_size is None else batch_size * math.ceil(64 / batch_size)
    parts = [slice(0, 64), slice(0, 1), slice(0, 0)]
    if batch_size is not None:
        parts = [slice(i, i + batch_size) for i in range(0, size, batch_size)]

    def compare(name: str, inputs: dict[str, Any], expected: Any, among: Any) -> float:
        """Return the largest difference; as a share it refers to the largest of ``among``.

        ``expected`` may be a function of what the artifact returns.
        """
        (output,) = call(name, inputs).values()
        got = np.asarray(output, np.float64)
        want = np.asarray(expected(got) if callable(expected) else expected, np.float64)
        if got.shape != want.shape:
            raise ExportError(f"`{name}` returns the shape {got.shape}, Keras {want.shape}.")
        difference = float(np.abs(got - want).max(initial=0.0))
        # The largest of all rows, since the value of a single row may be nearly 0.
        share = difference / float(np.abs(among).max(initial=1e-30))
        if not share <= bound:  # also NaN
            raise ExportError(
                f"`{name}` of the artifact differs from Keras by {share:.1e} of the largest "
                f"value, more than {bound:.0e}; it was not kept{advice}."
            )
        errors[name] = max(errors.get(name, 0.0), share)
        return difference

    def compare_rows(name: str, function: Callable[..., tf.Tensor], **first: Any) -> float:
        inputs = first | conditions
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
        near, far, conditions = _points(density, generator, size)
        nats = compare_rows("log_density", partial(log_density, density), x=near)
        compare_rows("log_density", partial(log_density, density), x=far)
        compare_rows("score", score, x=near)
        compare_rows("score", score, x=far)
        if float64:
            fine = _fine_points(density, size)
            for name, function in FLOAT64.items():
                compare_rows(name, partial(function, density), x=fine)
        if generator is not None:
            z = np.random.default_rng(1).standard_normal((size, generator.latent_dim), np.float32)
            compare_rows("decode", generator.decode, z=z)
            among = generator.decode(z, conditions.get("condition"))
            for part in parts[:3]:
                inputs = {name: value[part] for name, value in conditions.items()}
                c = [tf.constant(value) for value in inputs.values()]
                for seed in (0, 2**31 - 1):
                    for name, arguments, numbers in drawn(part.stop - part.start, seed):
                        expected = (
                            generator.decode(numbers.latent(0), *c)
                            if choice is None
                            else partial(_chosen, generator, numbers, choice, bound, c)
                        )
                        compare(name, arguments | inputs, expected, among)
    return errors | {"log_density_nats": nats}


def _chosen(
    generator: Generator,
    numbers: Draws,
    choice: Candidates,
    bound: float,
    condition: list[tf.Tensor],
    got: np.ndarray,
) -> np.ndarray:
    """Return the samples that Keras chooses; among equally good ones, those nearest to ``got``.

    Candidates are equally good if the values that they are chosen by differ by no more than
    ``bound``, as a share of the largest value.
    """
    sigma = tf.constant(choice.sigma, tf.float32)
    samples, values, largest = [], [], 0.0
    for k in range(choice.number):
        z, value = generator.candidate(numbers, k, sigma, *condition)
        samples.append(generator.decode(z, *condition).numpy())
        values.append(value.numpy())
        terms = [values[-1]]
        if not generator.relative:  # then the value is a difference of larger ones
            y = samples[-1] + sigma * numbers.noise(k)
            terms.append(generator.data_dde.at(y, sigma, *condition).numpy())
        largest = max(largest, *(np.abs(t[np.isfinite(t)]).max(initial=0.0) for t in terms))
    rows, value = np.stack(samples), np.stack(values)
    if got.shape != rows.shape[1:]:
        return rows[0]
    value = np.where(np.isnan(value), -np.inf, value)
    distance = np.abs(rows - got).max(axis=tuple(range(2, rows.ndim)))
    distance[value < value.max(axis=0) - bound * largest] = np.inf
    return rows[distance.argmin(axis=0), np.arange(len(got))]


def _points(
    density: DDE, generator: Generator | None, count: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return rows to compare at: ``count`` near the data (as far as known) and ``count`` far away.

    The third value holds further inputs by name: conditions, if the density takes them; those whose
    log Z is known, if there are any.
    """
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((count, *density.data_shape), np.float32)
    conditions = {}
    if density.condition_dim:
        c = rng.standard_normal((count, density.condition_dim), np.float32)
        if density.normalized and density.partitions is not None:
            c = np.resize(np.array(density.partitions.conditions, np.float32), c.shape)
        conditions["condition"] = c
    if generator is not None:
        samples = generator.sample(count, seed=0, conditions=conditions.get("condition")).numpy()
        near = samples + np.float32(density.noise.sigma) * noise
    else:
        near = _in_data_units(density, noise)
    # With heavy tails 3 deviations are far: values grow exponentially there.
    far = _in_data_units(density, (3.0 if has_tails(density.normalization) else 10.0) * noise)
    if len(density.data_shape) == 3:  # the density refuses pixels farther from [0, 1]
        margin = 9.0 * density.noise.sigma
        near, far = (np.clip(rows, -margin, 1.0 + margin) for rows in (near, far))
    return near, far, conditions


def _in_data_units(density: DDE, inside: np.ndarray) -> np.ndarray:
    """Return standardised rows as the density takes them."""
    rows = inside if density.normalization is None else outside(density.normalization, inside)
    return rows.astype(density.row_dtype)


def _fine_points(density: DDE, count: int) -> np.ndarray:
    """Return float64 rows near the data of a density with a normalization."""
    noise = np.random.default_rng(0).standard_normal((count, *density.data_shape))
    return outside(density.normalization, noise)


@contextlib.contextmanager
def _exact_matmul() -> Iterator[None]:
    """Multiply matrices in full float32; by default GPUs round the factors to 10 bits."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
