"""Requests that TensorFlow Serving runs when it loads a model, so that no caller waits for it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

FILE = "tf_serving_warmup_requests"


def write_warmup(folder: str | os.PathLike, name: str, signatures: Mapping[str, Any]) -> None:
    """Write a request of one row for each signature; do nothing without tensorflow-serving-api.

    Signatures with a scalar input get no request: a server that batches would refuse it.

    Args:
        folder: ``assets.extra`` of the SavedModel.
        name: the model's name on the server.
        signatures: concrete functions by name.
    """
    if importlib.util.find_spec("tensorflow_serving") is None:
        return
    from tensorflow_serving.apis import (
        model_pb2,
        predict_pb2,
        prediction_log_pb2,
    )

    with tf.io.TFRecordWriter(os.fspath(Path(folder) / FILE)) as writer:
        for signature, function in signatures.items():
            inputs = function.structured_input_signature[0]
            if any(spec.shape.rank == 0 for spec in inputs):
                continue
            spec = model_pb2.ModelSpec(name=name, signature_name=signature)
            request = predict_pb2.PredictRequest(model_spec=spec)
            for tensor in inputs:
                one_row = tf.zeros((1, *tensor.shape[1:]), tensor.dtype).numpy()
                request.inputs[tensor.name].CopyFrom(tf.make_tensor_proto(one_row))
            log = prediction_log_pb2.PredictLog(request=request)
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString())
