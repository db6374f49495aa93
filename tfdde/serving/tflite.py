"""Export to a TFLite file, for LiteRT on servers, phones and in browsers."""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfdde.models.candidates import Candidates
from tfdde.models.dde import DDE
from tfdde.models.generator import Generator
from tfdde.serving import metadata
from tfdde.serving.counter_sampler import counter_sampler
from tfdde.serving.signatures import BOUND, check_choice, save_module, signatures
from tfdde.serving.verify import Errors, ExportError, check_single, verify
from tfdde.utils.checks import check_integer
from tfdde.utils.files import atomic

FLOAT16_BOUND = 1e-2  # as BOUND, for a file whose weights are rounded to float16


def export_tflite(
    path: str | os.PathLike,
    density: DDE,
    generator: Generator | None = None,
    run: str | os.PathLike | None = None,
    *,
    float16: bool = False,
    batch_size: int | None = None,
    candidates: int = 1,
    compare_at: float | None = None,
) -> tuple[Path, Errors]:
    """Write a TFLite file with the named signatures, made of builtin operations only.

    ``sample`` draws its latents by ``counter_normal``, since TFLite lacks the generator that Keras
    uses: they are N(0, I) too, but other numbers. The metadata are written to ``<path>.json``, the
    model card to ``<path>.md``.

    Args:
        path: the file, replaced if it exists.
        density: the trained density.
        generator: a generator of rows of the same shape, or None.
        run: the run folder; the metadata then describe the training.
        float16: round the weights to float16, which halves the file. Errors of up to
            ``FLOAT16_BOUND`` of the largest value are then allowed.
        batch_size: rows of every call; None for any number. Runtimes in browsers need a fixed
            number. ``sample`` then generates so many rows and has no input ``num``.
        candidates: that each sample is chosen from, see ``export_savedmodel``.
        compare_at: noise level at which they are compared.

    Returns:
        The file written, and the measured errors as from ``export_savedmodel``. ``sample`` is
        compared with TensorFlow running the same sampler.

    Raises:
        ValueError: as from ``export_savedmodel``, or ``batch_size`` is not a positive integer.
        ImportError: ai-edge-litert, which verifies the file, is not installed.
        ExportError: the density needs rows in float64, a layer has no builtin operation in TFLite,
            or the file disagrees with Keras; no file is written then.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise ImportError("TFLite export needs ai-edge-litert: pip install 'tfdde[lite]'.")
    if batch_size is not None:
        check_integer(batch_size, "batch_size")
    check_single(density, "TFLite")
    path = Path(path)
    bound = FLOAT16_BOUND if float16 else BOUND

    choice = check_choice(generator, candidates, compare_at)
    sampler, drawn = counter_sampler(generator, batch_size)
    functions = signatures(density, generator, {"sample": sampler}, batch_size, choice=choice)
    content = _convert(functions, density, generator, float16, choice)
    with atomic(path) as temporary:
        temporary.write_bytes(content)
        runners = _lite_runners(temporary)
        errors = verify(
            lambda name, inputs: runners[name](**inputs),
            density,
            generator,
            drawn,
            bound,
            batch_size,
            "; export it without float16" if float16 else "",
            choice=choice,
        )
        about = metadata.facts(density, generator, functions, errors, bound, run, choice)
        about |= {"weights": "float16" if float16 else "float32", "batch_size": batch_size}
        for ending, text in ((".json", metadata.text(about)), (".md", metadata.card(about))):
            with atomic(path.with_name(path.name + ending)) as description:
                description.write_text(text, "utf-8")
    return path, errors


def _convert(
    functions: dict[str, Any],
    density: DDE,
    generator: Generator | None,
    float16: bool,
    choice: Candidates | None,
) -> bytes:
    """Return the content of the TFLite file with these signatures."""
    with tempfile.TemporaryDirectory() as folder:
        save_module(functions, density, generator, folder, choice)
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
                "build the networks from the layers that tfdde.networks uses (for a sum, "
                "ResidualSum instead of Add)."
            ) from error


def _lite_runners(path: Path) -> dict[str, Any]:
    """Return LiteRT's runner of each signature in the file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=os.fspath(path))
    return {
        name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()
    }
