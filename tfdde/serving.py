"""Export of a trained density and its generator, to SavedModel and TFLite.

Both artifacts have the same named signatures, for any number of rows, also none:

    log_density   x float32[rows, *shape] -> log_density float32[rows]
    score         x float32[rows, *shape] -> score float32[rows, *shape]
    decode        z float32[rows, latent_dim] -> x float32[rows, *shape]
    sample        num int32[], seed int64[] (TFLite: int32[]) -> x float32[num, *shape]
    sample_rows   seed int64[rows] -> x float32[rows, *shape]   (SavedModel only)

The last three are there if a generator is.  ``sample_rows`` has one seed for each row, so that a
server can batch the requests of several callers: a row depends on its own seed alone.  The
signatures of conditional models take another input ``condition`` float32[rows, k] (``sample``:
[num, k]).  The log-density is normalised if the density has a trusted log Z, which the metadata
tell with its error, and otherwise not; that of a conditional density if it has one at each
condition asked for, and then it is NaN at any other.
Rows are in the data's own units: standardisation, sigma and log Z are inside.
Inputs are not checked as Keras's are: NaN in a row gives NaN out, in that row alone.
An artifact is written beside its place, loaded again, compared with Keras, and put
in place only if it agrees.  It carries its description, ``metadata.json`` and ``model_card.md``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde import metadata, random
from tfdde.callbacks import atomic, atomic_folder
from tfdde.checks import check_integer
from tfdde.counter import counter_normal
from tfdde.density import DDE
from tfdde.generator import Generator
from tfdde.verify import Errors, ExportError, log_density, verify
from tfdde.warmup import write_warmup

BOUND = 1e-5  # the largest error of an artifact, as a share of the largest value
FLOAT16_BOUND = 1e-2  # the same of one whose weights are rounded to float16

# A sampling signature: latents (rows, dim) of dim and its inputs before any condition; these.
Sampler = tuple[Callable[..., tf.Tensor], list[tf.TensorSpec]]


def load_run(folder: str | os.PathLike) -> tuple[DDE, Generator | None]:
    """The models in a run folder.

    Args:
        folder: holds ``density.keras`` (a ``DDE``), ``generator.keras`` (a ``Generator``)
            or both.  Without the first, the density is the generator's ``data_dde``.

    Returns:
        The density, and the generator or None.

    Raises:
        OSError: no such folder, or no model in it.
        ValueError: a file is corrupt or holds another model; the message is one line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run folder {folder}.")
    density_file, generator_file = folder / "density.keras", folder / "generator.keras"
    density = _load(density_file, DDE) if density_file.exists() else None
    generator = _load(generator_file, Generator) if generator_file.exists() else None
    if density is None:
        if generator is None:
            raise FileNotFoundError(
                f"There is neither density.keras nor generator.keras in {folder}."
            )
        density = generator.data_dde
    return density, generator


def _load(path: Path, kind: type) -> Any:
    try:
        with warnings.catch_warnings():
            # Keras only warns when it could not load some of the weights.
            warnings.simplefilter("error", UserWarning)
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # Keras does not look at the checksums
                    raise ValueError(f"the checksum of {damaged} in it is wrong")
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever zipfile, json, h5py and Keras raise at a bad file
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} can't be loaded as a Keras model: {reason}") from error
    if not isinstance(model, kind):
        raise ValueError(
            f"{path} must hold a tfdde.{kind.__name__}, got {type(model).__name__} "
            f"{model.name!r}; save the tfdde model, not its network."
        )
    return model


def export_savedmodel(
    base: str | os.PathLike,
    density: DDE,
    generator: Generator | None = None,
    run: str | os.PathLike | None = None,
) -> tuple[Path, Errors]:
    """Write a TensorFlow SavedModel in the folder layout of TensorFlow Serving.

    ``sample`` returns the numbers of ``generator.sample(num, seed)``, and ``sample_rows`` those of
    ``generator.sample(1, seed)`` for each of its seeds, in [0, 2**31).  The default signature is
    ``log_density``.  Nothing is compiled by XLA, so any server can run it.

    ``assets.extra`` holds ``metadata.json`` and ``model_card.md``, and, if tensorflow-serving-api
    is installed, requests by which TensorFlow Serving warms up.

    Args:
        base: the model's folder; the artifact becomes its next version, ``base/1`` at first.
        density: the trained density.
        generator: a generator of data of the same shape.
        run: the run folder, for the metadata to tell of the training.

    Returns:
        The folder written, and the measured error of each signature as a share of the
        largest value (``log_density_nats``: of the log-density in nats).

    Raises:
        ValueError: density and generator do not fit together, or a file in ``run`` is damaged.
        ExportError: the artifact disagrees with Keras; nothing is left at ``base``.
    """
    base = Path(base)
    seed = tf.TensorSpec((), tf.int64, name="seed")
    samplers: dict[str, Sampler] = {
        "sample": (random.latents, [tf.TensorSpec((), tf.int32, name="num"), seed]),
        "sample_rows": (_latent_rows, [tf.TensorSpec((None,), tf.int64, name="seed")]),
    }
    functions = _functions(density, generator, samplers)
    functions["serving_default"] = functions["log_density"]
    versions = [int(p.name) for p in base.glob("*") if p.name.isdecimal()]
    path = base / str(max(versions, default=0) + 1)

    def drawn(count: int, seed: int) -> Iterator[tuple[str, dict[str, Any], Any]]:
        assert generator is not None
        dim = generator.latent_dim
        z = random.latents(dim, count, seed)
        yield "sample", {"num": np.int32(count), "seed": np.int64(seed)}, z
        seeds = (seed - np.arange(count)) % 2**31
        z = tf.concat([z[:0], *(random.latents(dim, 1, s) for s in seeds.tolist())], axis=0)
        yield "sample_rows", {"seed": seeds}, z

    with atomic_folder(path) as beside:
        _save(functions, density, generator, beside)
        # Held in a name: its functions lose their variables when the module is collected.
        loaded = tf.saved_model.load(os.fspath(beside))

        def call(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
            return loaded.signatures[name](**{k: tf.constant(v) for k, v in inputs.items()})

        errors = verify(call, density, generator, drawn, BOUND)
        about = metadata.facts(density, generator, functions, errors, BOUND, run)
        extra = beside / "assets.extra"
        extra.mkdir()
        (extra / metadata.FACTS).write_text(metadata.text(about), "utf-8")
        (extra / metadata.CARD).write_text(metadata.card(about), "utf-8")
        write_warmup(extra, base.name, functions)
    return path, errors


def export_tflite(
    path: str | os.PathLike,
    density: DDE,
    generator: Generator | None = None,
    run: str | os.PathLike | None = None,
    *,
    float16: bool = False,
    batch_size: int | None = None,
) -> tuple[Path, Errors]:
    """Write a TFLite file of several signatures that needs builtin operations only.

    ``sample`` draws by ``counter_normal``: z ~ N(0, I) too, but other numbers than Keras's,
    whose generator TFLite lacks.  ``<path>.json`` and ``<path>.md`` are metadata and model card.

    Args:
        path: the file, replaced if it exists.
        density: the trained density.
        generator: a generator of data of the same shape.
        run: the run folder, for the metadata to tell of the training.
        float16: round the weights to float16, which halves the file.  The errors may then be
            up to ``FLOAT16_BOUND`` of the largest value.
        batch_size: rows of every call; by default any number.  Runtimes in browsers need it
            fixed.  ``sample`` then makes so many rows and has no input ``num``.

    Returns:
        The file written, and the measured errors as of ``export_savedmodel`` (``sample``:
        against TensorFlow running the same sampler).

    Raises:
        ValueError: density and generator do not fit together, ``batch_size`` is out of range,
            or a file in ``run`` is damaged.
        ImportError: ai-edge-litert, which verifies the file, is not installed.
        ExportError: a layer has no builtin operation in TFLite, or the file disagrees with
            Keras; nothing is left at ``path``.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise ImportError("TFLite export needs ai-edge-litert: pip install 'tfdde[lite]'.")
    if batch_size is not None:
        check_integer(batch_size, "batch_size")
    path = Path(path)
    bound = FLOAT16_BOUND if float16 else BOUND

    def latent(dim: int, *given: tf.Tensor) -> tf.Tensor:
        num, seed = given if batch_size is None else (tf.constant(batch_size), *given)
        return counter_normal(num, dim, seed)

    num = [] if batch_size else [tf.TensorSpec((), tf.int32, name="num")]
    seed = tf.TensorSpec((), tf.int32, name="seed")
    samplers: dict[str, Sampler] = {"sample": (latent, [*num, seed])}
    functions = _functions(density, generator, samplers, batch_size)

    def drawn(count: int, seed: int) -> Iterator[tuple[str, dict[str, Any], Any]]:
        assert generator is not None
        inputs = {"num": np.int32(count), "seed": np.int32(seed)}
        z = counter_normal(tf.constant(count), generator.latent_dim, tf.constant(seed))
        yield "sample", {spec.name: inputs[spec.name] for spec in samplers["sample"][1]}, z

    content = _convert(functions, density, generator, float16)
    with atomic(path) as beside:
        beside.write_bytes(content)
        runners = _lite_runners(beside)
        errors = verify(
            lambda name, inputs: runners[name](**inputs),
            density,
            generator,
            drawn,
            bound,
            batch_size,
            "; export it without float16" if float16 else "",
        )
        about = metadata.facts(density, generator, functions, errors, bound, run)
        about |= {"weights": "float16" if float16 else "float32", "batch_size": batch_size}
        for ending, text in ((".json", metadata.text(about)), (".md", metadata.card(about))):
            with atomic(path.with_name(path.name + ending)) as description:
                description.write_text(text, "utf-8")
    return path, errors


def export_run(
    export: Callable[..., tuple[Path, Errors]],
    run: str | os.PathLike,
    output: str | os.PathLike,
) -> int:
    """Export the models of a run folder and print where to and how exactly.

    Returns:
        The exit code of a script: 0; 1 if the export fails; 2 if there is nothing to export.
    """
    try:
        path, errors = export(output, *load_run(run), run=run)
    except (OSError, ValueError, ImportError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ExportError) else 2
    nats = errors.pop("log_density_nats")
    print("Largest difference from Keras, as a share of the largest value:")
    for name, measured in errors.items():
        print(f"  {name} {measured:.1e}" + (f" ({nats:.1e} nats)" if name == "log_density" else ""))
    print(f"Wrote {path}")
    return 0


def _latent_rows(dim: int, seeds: tf.Tensor) -> tf.Tensor:
    """The latent of ``Generator.sample(1, seed)`` for each of the seeds (rows,)."""
    # Not tf.vectorized_map, which fails for no rows.
    row = tf.TensorSpec((dim,), tf.float32)
    return tf.map_fn(lambda seed: random.latents(dim, 1, seed)[0], seeds, fn_output_signature=row)


def _functions(
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
        "log_density": _traced(at, x, *condition),
        "score": _traced(score, x, *condition),
    }
    if generator is not None:
        dim = generator.latent_dim

        def decode(z: tf.Tensor, *condition: tf.Tensor) -> dict[str, tf.Tensor]:
            # LiteRT can't return no rows from a reshape to a shape that it had to compute.
            return {"x": tf.reshape(generator.decode(z, *condition), (-1, *density.data_shape))}

        def sampling(latent: Callable[..., tf.Tensor], count: int) -> Callable:
            return lambda *given: decode(latent(dim, *given[:count]), *given[count:])

        functions["decode"] = _traced(decode, rows("z", dim), *condition)
        for name, (latent, inputs) in samplers.items():
            functions[name] = _traced(sampling(latent, len(inputs)), *inputs, *condition)
    return functions


def _save(
    functions: dict[str, Any], density: DDE, generator: Generator | None, path: str | os.PathLike
) -> None:
    module = tf.Module()
    # SavedModel tracks TensorFlow's variables, not the Keras ones around them.
    models = [density] if generator is None else [density, generator.generator]
    module.variables_ = [v.value for model in models for v in model.weights]
    tf.saved_model.save(module, os.fspath(path), signatures=functions)


def _traced(function: Callable, *signature: tf.TensorSpec) -> Any:
    return tf.function(function, input_signature=signature).get_concrete_function()


def _convert(
    functions: dict[str, Any], density: DDE, generator: Generator | None, float16: bool
) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        _save(functions, density, generator, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[*functions])
        if float16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # its ConverterError is not public
            missing = sorted(set(re.findall(r"\btf\.[A-Z]\w+", str(error))))
            raise ExportError(
                f"TFLite has no builtin operation for {', '.join(missing) or 'this model'}: "
                "build the networks of the layers that tfdde.networks uses (a sum is a "
                "ResidualSum, not Add)."
            ) from error


def _lite_runners(path: Path) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=os.fspath(path))
    return {
        name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()
    }
