"""Export to ONNX files in a model repository, for ONNX Runtime, Triton and KServe."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.models.dde import DDE
from tfdde.models.generator import Generator
from tfdde.serving import metadata
from tfdde.serving.counter_sampler import counter_sampler
from tfdde.serving.signatures import BOUND, check_choice, signatures
from tfdde.serving.verify import Errors, ExportError, check_single, verify
from tfdde.utils.files import atomic_folder

OPSET = 18
TYPES = {tf.float32: "TYPE_FP32", tf.float64: "TYPE_FP64", tf.int32: "TYPE_INT32"}


def export_onnx(
    folder: str | os.PathLike,
    density: DDE,
    generator: Generator | None = None,
    run: str | os.PathLike | None = None,
    *,
    candidates: int = 1,
    compare_at: float | None = None,
) -> tuple[Path, Errors]:
    """Write a model repository, with an ONNX file for each named signature.

    An ONNX file has no signatures, so each is a model of its own::

        folder/
            log_density/1/model.onnx   log_density/config.pbtxt
            score/...  log_density_float64/...  score_float64/...  decode/...  sample/...
            metadata.json  model_card.md

    Triton serves the folder as it is, and KServe by Triton's runtime. ONNX Runtime reads each
    ``model.onnx``. Inputs and outputs have the names of the signatures. ``sample`` draws its
    latents as a TFLite file does, so equal seeds give equal samples in both.

    Args:
        folder: to write, which must not exist.
        density: the trained density.
        generator: a generator of rows of the same shape, or None.
        run: the run folder; the metadata then describe the training.
        candidates: that each sample is chosen from, see ``export_savedmodel``.
        compare_at: noise level at which they are compared.

    Returns:
        The folder written, and the measured errors as from ``export_savedmodel``. ``sample`` is
        compared with TensorFlow running the same sampler.

    Raises:
        FileExistsError: ``folder`` exists.
        ValueError: as from ``export_savedmodel``.
        ImportError: tf2onnx or onnxruntime, which verifies the files, is not installed.
        ExportError: the density needs rows in float64, a layer can't be converted, or the files
            disagree with Keras; none is written then.
    """
    if not all(map(importlib.util.find_spec, ("tf2onnx", "onnxruntime"))):
        raise ImportError("ONNX export needs tf2onnx and onnxruntime: pip install 'tfdde[onnx]'.")
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"`folder` must not exist yet, got {os.fspath(folder)!r}.")
    check_single(density, "ONNX")
    choice = check_choice(generator, candidates, compare_at)
    sampler, drawn = counter_sampler(generator)
    float64 = density.normalization is not None
    functions = signatures(density, generator, {"sample": sampler}, float64=float64, choice=choice)
    with atomic_folder(folder) as temporary:
        sessions = {}
        for name, function in functions.items():
            path = temporary / name / "1" / "model.onnx"
            path.parent.mkdir(parents=True)
            try:
                path.write_bytes(_convert(function))
                sessions[name] = _session(path)
            except Exception as error:  # tf2onnx raises whatever its many handlers do
                reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                raise ExportError(f"`{name}` can't be converted to ONNX: {reason[0]}") from error
            (temporary / name / "config.pbtxt").write_text(_triton_config(name, function), "utf-8")
        errors = verify(
            lambda name, inputs: sessions[name](inputs),
            density,
            generator,
            drawn,
            BOUND,
            float64=float64,
            choice=choice,
        )
        about = metadata.facts(density, generator, functions, errors, BOUND, run, choice)
        (temporary / metadata.FACTS).write_text(metadata.text(about), "utf-8")
        (temporary / metadata.CARD).write_text(metadata.card(about), "utf-8")
    return folder, errors


def _inputs(function: Any) -> list[tf.TensorSpec]:
    arguments, named = function.structured_input_signature
    return [*arguments, *named.values()]


class _Traced:
    """What tf2onnx takes for a ``tf.function``."""

    def __init__(self, function: Any):
        self.function = function

    def get_concrete_function(self, *specs: tf.TensorSpec) -> Any:
        return self.function


def _convert(function: Any) -> bytes:
    """Return the content of the ONNX file of a concrete function."""
    import onnx
    import tf2onnx

    model, _ = tf2onnx.convert.from_function(
        _Traced(function),
        input_signature=_inputs(function),
        opset=OPSET,
        custom_op_handlers={"ShapeN": (_shapes, [])},
    )
    # Constants from outside of the function, as the mean that a Normalization was given, are inputs
    # of the model by now.
    captured = {inside.name: outside for outside, inside in function.graph.captures}
    for each in [each for each in model.graph.input if each.name in captured]:
        value = onnx.numpy_helper.from_array(captured[each.name].numpy(), each.name)
        model.graph.initializer.append(value)
        model.graph.input.remove(each)
    return model.SerializeToString()


def _shapes(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """Write the operation ShapeN, of the gradients of convolutions, as a Shape for each input."""
    inputs, outputs = node.input[:], node.output[:]
    kinds = [graph.get_dtype(output) for output in outputs]
    graph.remove_node(node.name)
    for source, output, kind in zip(inputs, outputs, kinds, strict=True):
        shape = graph.make_node("Shape", [source]).output[0]
        graph.make_node("Cast", [shape], attr={"to": kind}, outputs=[output])


def _session(path: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that runs the file on inputs by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        return dict(zip(outputs, session.run(outputs, arrays), strict=True))

    return run


def _triton_config(name: str, function: Any) -> str:
    """Return the text of Triton's ``config.pbtxt``; every batch dimension is part of the shape."""

    def tensor(name: str, spec: tf.TensorSpec) -> str:
        dims = [-1 if n is None else n for n in spec.shape]
        shape = f"dims: {dims}" if dims else "dims: [1] reshape: { shape: [] }"
        return f'  {{ name: "{name}" data_type: {TYPES[spec.dtype]} {shape} }}'

    inputs = [tensor(spec.name, spec) for spec in _inputs(function)]
    outputs = [tensor(name, spec) for name, spec in function.structured_outputs.items()]
    parts = [f'name: "{name}"', 'backend: "onnxruntime"', "max_batch_size: 0"]
    for kind, tensors in (("input", inputs), ("output", outputs)):
        parts += [f"{kind} [", ",\n".join(tensors), "]"]
    return "\n".join(parts) + "\n"
