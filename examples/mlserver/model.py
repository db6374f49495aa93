"""An exported SavedModel behind the V2 protocol: `mlserver start` in this folder.

settings.json keeps the model in the server's own process, where TensorFlow has its threads: workers
of MLServer 1.7 fail to start with uvloop 0.22 or later ("There is no current event loop").

The server can exchange the model while it answers: put the next version beside the last one, then
POST /v2/repository/models/density/load. Until the new one is loaded and warm, the old one answers.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    MetadataModelResponse,
    MetadataTensor,
    Parameters,
    RequestInput,
)
from mlserver.utils import get_model_uri

DATATYPES = {tf.float32: "FP32", tf.float64: "FP64", tf.int32: "INT32", tf.int64: "INT64"}
NUMBERS = {"BOOL", "FP16", "FP32", "FP64"} | {
    f"{u}INT{n}" for u in ("", "U") for n in (8, 16, 32, 64)
}
DEFAULT = "serving_default"


class SavedModel(MLModel):
    """Runs the signature that the request's parameter ``signature`` names, or the default one.

    Rows of a table whose columns have names may come as one input for each column, in any order.
    A bad request is answered by status 400 and one sentence.
    """

    async def load(self) -> bool:
        """Load the folder that ``uri`` of model-settings.json names, or its latest version."""
        folder = Path(await get_model_uri(self.settings))
        versions = [p.parent for p in folder.glob("*/saved_model.pb") if p.parent.name.isdecimal()]
        if not (folder / "saved_model.pb").exists() and versions:
            folder = max(versions, key=lambda version: int(version.name))
        self.signatures = await asyncio.to_thread(load_signatures, folder)
        self.columns = names_of_columns(folder)
        return True

    async def metadata(self) -> MetadataModelResponse:
        """Inputs and outputs of the default signature; the parameters have those of all."""
        described = {name: describe(signature) for name, signature in self.signatures.items()}
        as_json = {
            name: {
                side: [t.model_dump(exclude_none=True) for t in tensors[side]] for side in tensors
            }
            for name, tensors in described.items()
        }
        columns = {"columns": self.columns} if self.columns else {}
        return MetadataModelResponse(
            name=self.name,
            platform="tensorflow_savedmodel",
            **described[DEFAULT],
            parameters=Parameters(signatures=as_json, **columns),
        )

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run one request. All inputs and outputs have their rows in the same order."""
        name = getattr(payload.parameters, "signature", DEFAULT)
        if not isinstance(name, str) or name not in self.signatures:
            names = ", ".join(sorted(self.signatures))
            raise InferenceError(f"The signature must be one of {names}, got {name!r}.")
        signature = self.signatures[name]
        inputs = arrays(payload.inputs, signature.inputs, self.columns, name)
        check_rows(inputs)
        try:
            results = await asyncio.to_thread(signature, inputs)
        except tf.errors.InvalidArgumentError as error:
            raise InferenceError(f"The inputs are not valid: {first_line(error)}") from None
        outputs = []
        for name, value in results.items():
            outputs.append(NumpyCodec.encode_output(name, value))
            outputs[-1].shape = list(value.shape)  # the codec would make a column of a vector
        return InferenceResponse(model_name=self.name, outputs=outputs)


@dataclass
class Signature:
    """A signature of a SavedModel.

    Attributes:
        inputs, outputs: their types and shapes by name.
        call: gives the outputs, in the order of ``outputs``, of the inputs in theirs. It keeps its
            TensorFlow session alive.
    """

    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]
    call: Callable[..., list[np.ndarray]]

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = self.call(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, values, strict=True))


def load_signatures(folder: Path) -> dict[str, Signature]:
    """Load a SavedModel and run each of its signatures once, so that no caller waits for that.

    A session of its own, as TensorFlow Serving has one for each model, gives its memory back when
    the last call of it has ended. Functions of ``tf.saved_model.load`` keep some of theirs.
    """
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    with graph.as_default():
        found = tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def
    signatures = {}
    for name, definition in found.items():
        if name.startswith("__"):  # TensorFlow's own
            continue
        inputs, outputs = dict(definition.inputs), dict(definition.outputs)
        fetched = [info.name for info in outputs.values()]
        fed = [info.name for info in inputs.values()]
        call = session.make_callable(fetched, feed_list=fed)
        signatures[name] = signature = Signature(specs(inputs), specs(outputs), call)
        signature(
            {
                name: np.ones([n or 1 for n in spec.shape.as_list()], spec.dtype.as_numpy_dtype)
                for name, spec in signature.inputs.items()
            }
        )
    return signatures


def specs(tensors: dict) -> dict[str, tf.TensorSpec]:
    """Return the types and shapes of a signature's tensors by name."""
    return {
        name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype))
        for name, info in tensors.items()
    }


def names_of_columns(folder: Path) -> list[str]:
    """Return the names of the columns that the model was trained on; none for 0, 1, 2 ..."""
    metadata = folder / "assets.extra" / "metadata.json"
    names = json.loads(metadata.read_text("utf-8")).get("columns") if metadata.exists() else None
    return [] if not names or names == [str(i) for i in range(len(names))] else names


def arrays(
    tensors: list[RequestInput], specs: dict[str, tf.TensorSpec], columns: list[str], signature: str
) -> dict[str, np.ndarray]:
    """Return the values of the inputs; columns that were given one by one are joined to ``x``.

    Inputs beside these columns are ignored, as other columns of a file are.
    """
    names = [tensor.name for tensor in tensors]
    given = {tensor.name: tensor for tensor in tensors}
    by_name = bool(columns) and "x" in specs and sorted(names) != sorted(specs)
    others = [name for name in sorted(specs) if name != "x"]
    wanted = [*columns, *others] if by_name else list(specs)
    missing = [name for name in wanted if name not in given]
    twice = len(given) < len(names)
    extra = set(given) & {"x"} - set(columns) if by_name else set(given) - set(specs)
    if missing or extra or twice:
        either = f", or one for each of the columns {', '.join(columns)}" if by_name else ""
        raise InferenceError(
            f"The inputs of {signature} must be {', '.join(sorted(specs))}{either}, "
            f"got {', '.join(names) or 'none'}."
        )
    if not by_name:
        return {name: decode(tensor, specs[name]) for name, tensor in given.items()}
    parts = [column(given[name], specs["x"].dtype) for name in columns]
    check_rows(dict(zip(columns, parts, strict=True)))
    return {"x": np.stack(parts, axis=1)} | {n: decode(given[n], specs[n]) for n in others}


def column(tensor: RequestInput, dtype: tf.DType) -> np.ndarray:
    """Return the values of a column, an input of shape [rows] or [rows, 1] of any numbers."""
    if tensor.datatype not in NUMBERS:
        raise InferenceError(
            f"The datatype of column {tensor.name!r} must be one of numbers, got {tensor.datatype}."
        )
    if len(tensor.shape) != 1 and tensor.shape[1:] != [1]:
        raise InferenceError(
            f"The shape of column {tensor.name!r} must be [rows], got {tensor.shape}."
        )
    same = tensor.model_copy(update={"datatype": DATATYPES[dtype], "shape": tensor.shape[:1]})
    return decode(same, tf.TensorSpec((None,), dtype))


def check_rows(inputs: dict[str, np.ndarray]) -> None:
    """Raise InferenceError unless all inputs that have rows have as many."""
    sizes = {name: len(x) for name, x in inputs.items() if x.ndim}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InferenceError(f"The inputs must have equal numbers of rows, got {told}.")


def describe(signature: Signature) -> dict[str, list[MetadataTensor]]:
    """Return the inputs and outputs of a signature; a size of -1 stands for any number of rows."""

    def tensor(name, spec) -> MetadataTensor:
        shape = [-1 if size is None else size for size in spec.shape.as_list()]
        return MetadataTensor(name=name, datatype=DATATYPES[spec.dtype], shape=shape)

    return {
        "inputs": [tensor(name, spec) for name, spec in sorted(signature.inputs.items())],
        "outputs": [tensor(name, spec) for name, spec in sorted(signature.outputs.items())],
    }


def decode(tensor: RequestInput, spec: tf.TensorSpec) -> np.ndarray:
    """Return the values of an input, or raise InferenceError if they do not fit ``spec``."""
    name, datatype = tensor.name, DATATYPES[spec.dtype]
    if tensor.datatype != datatype:
        raise InferenceError(
            f"The datatype of input {name!r} must be {datatype}, got {tensor.datatype}."
        )
    if min(tensor.shape, default=0) < 0 or not spec.shape.is_compatible_with(tensor.shape):
        shape = ["rows" if size is None else size for size in spec.shape.as_list()]
        wanted = "[" + ", ".join(map(str, shape)) + "]"
        raise InferenceError(f"The shape of input {name!r} must be {wanted}, got {tensor.shape}.")
    try:
        array = np.array(list(tensor.data))
        if spec.dtype.is_integer:
            limits = np.iinfo(spec.dtype.as_numpy_dtype)
            # An empty list is an array of floats.
            if array.size and (
                array.dtype.kind not in "iu"
                or not limits.min <= array.min() <= array.max() <= limits.max
            ):
                raise ValueError("not all are such integers")
        elif array.dtype.kind not in "fiubO":  # null among numbers stands for NaN
            raise ValueError("not all are numbers")
        elif array.size:
            largest = np.nanmax(np.abs(array.astype(np.float64)), initial=0)
            if largest > np.finfo(spec.dtype.as_numpy_dtype).max:
                raise ValueError(f"not all are finite in {spec.dtype.name}")
        return array.astype(spec.dtype.as_numpy_dtype).reshape(tensor.shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise InferenceError(
            f"The data of input {name!r} must be {datatype} values that fill the shape "
            f"{tensor.shape}: {first_line(error)}."
        ) from None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without a full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")
