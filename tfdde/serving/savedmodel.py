"""Export to a TensorFlow SavedModel, in the folder layout of TensorFlow Serving."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.models.candidates import Draws, draws
from tfdde.models.dde import DDE
from tfdde.models.generator import Generator
from tfdde.serving import metadata
from tfdde.serving.signatures import BOUND, Sampler, check_choice, save_module, signatures
from tfdde.serving.verify import Errors, verify
from tfdde.serving.warmup_requests import write_warmup
from tfdde.utils.files import atomic_folder


def export_savedmodel(
    base: str | os.PathLike,
    density: DDE,
    generator: Generator | None = None,
    run: str | os.PathLike | None = None,
    *,
    candidates: int = 1,
    compare_at: float | None = None,
) -> tuple[Path, Errors]:
    """Write a TensorFlow SavedModel in the folder layout of TensorFlow Serving.

    ``sample`` returns the numbers of ``generator.sample(num, seed)``. ``sample_rows`` returns those
    of ``generator.sample(1, seed)`` for each of its seeds, which are in [0, 2**31). The default
    signature is ``log_density``. Nothing is compiled by XLA, so any server can run the model.
    A density with a ``normalization`` has ``log_density_float64`` and ``score_float64``, too.

    With ``candidates`` the two choose their samples as ``generator.sample_from_candidates`` does,
    and return its numbers. ``decode`` chooses nothing.

    ``assets.extra`` holds ``metadata.json`` and ``model_card.md``. With tensorflow-serving-api
    installed, it also holds requests that TensorFlow Serving runs to warm up.

    Args:
        base: the model's folder. The artifact becomes its next version; the first is ``base/1``.
        density: the trained density.
        generator: a generator of rows of the same shape, or None.
        run: the run folder; the metadata then describe the training.
        candidates: that each sample is chosen from.
        compare_at: noise level at which they are compared; by default as in
            ``generator.sample_from_candidates``.

    Returns:
        The folder written, and the measured error of each signature as a share of the
        largest value; ``log_density_nats`` is the error of the log-density in nats.

    Raises:
        ValueError: density and generator do not fit together, there are candidates but no
            generator, ``compare_at`` was not trained, or a file in ``run`` is damaged.
        ExportError: the artifact disagrees with Keras; it is removed.

    Example:
        >>> from tfdde import serving
        >>> density = tfdde.DDE(tfdde.networks.residual_mlp(2, width=8, depth=1))
        >>> path, errors = serving.export_savedmodel("model", density)
        >>> path.name, errors["log_density"] < serving.BOUND
        ('1', True)
    """
    base = Path(base)
    choice = check_choice(generator, candidates, compare_at)
    seed = tf.TensorSpec((), tf.int64, name="seed")
    samplers: dict[str, Sampler] = {
        "sample": (draws, [tf.TensorSpec((), tf.int32, name="num"), seed]),
        "sample_rows": (_draws_of_rows, [tf.TensorSpec((None,), tf.int64, name="seed")]),
    }
    float64 = density.normalization is not None
    functions = signatures(density, generator, samplers, float64=float64, choice=choice)
    functions["serving_default"] = functions["log_density"]
    versions = [int(p.name) for p in base.glob("*") if p.name.isdecimal()]
    path = base / str(max(versions, default=0) + 1)

    def drawn(count: int, seed: int) -> Iterator[tuple[str, dict[str, Any], Draws]]:
        assert generator is not None
        sizes = generator.latent_dim, generator.data_shape
        many = draws(*sizes, count, seed)
        yield "sample", {"num": np.int32(count), "seed": np.int64(seed)}, many
        seeds = (seed - np.arange(count)) % 2**31
        single = [draws(*sizes, 0, 0), *(draws(*sizes, 1, s) for s in seeds.tolist())]

        def joined(field: str) -> Callable[[Any], tf.Tensor]:
            return lambda k: tf.concat([getattr(each, field)(k) for each in single], axis=0)

        yield "sample_rows", {"seed": seeds}, Draws(*map(joined, ("latent", "noise", "uniform")))

    with atomic_folder(path) as temporary:
        save_module(functions, density, generator, temporary, choice)
        # The name keeps the module alive: without it the functions lose their variables.
        loaded = tf.saved_model.load(os.fspath(temporary))

        def call(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
            return loaded.signatures[name](**{k: tf.constant(v) for k, v in inputs.items()})

        errors = verify(call, density, generator, drawn, BOUND, float64=float64, choice=choice)
        about = metadata.facts(density, generator, functions, errors, BOUND, run, choice)
        extra = temporary / "assets.extra"
        extra.mkdir()
        (extra / metadata.FACTS).write_text(metadata.text(about), "utf-8")
        (extra / metadata.CARD).write_text(metadata.card(about), "utf-8")
        write_warmup(extra, base.name, functions)
    return path, errors


def _draws_of_rows(latent_dim: int, data_shape: tuple[int, ...], seeds: tf.Tensor) -> Draws:
    """The draws of a single sample for each of the seeds (rows,)."""

    def of_each(field: str, *shape: int) -> Callable[[Any], tf.Tensor]:
        def rows(k: Any) -> tf.Tensor:
            def row(seed: tf.Tensor) -> tf.Tensor:
                return getattr(draws(latent_dim, data_shape, 1, seed), field)(k)[0]

            # tf.vectorized_map would fail for an empty batch.
            spec = tf.TensorSpec(shape, tf.float32)
            return tf.map_fn(row, seeds, fn_output_signature=spec)

        return rows

    return Draws(of_each("latent", latent_dim), of_each("noise", *data_shape), of_each("uniform"))
