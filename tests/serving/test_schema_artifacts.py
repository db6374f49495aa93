"""Artifacts of densities of tables: raw columns by name, in float64 where float32 loses them."""

import json

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow as tf

import tfdde
from tfdde import scoring, serving
from tfdde.tables import Schema

RNG = np.random.default_rng


def density(frame, **kwargs):
    schema = Schema.learn(frame, **kwargs)
    n = len(schema.names)
    network = tfdde.networks.residual_mlp(n, 8, 1)
    return tfdde.DDE(network, tfdde.Constant(0.2), tfdde.GaussianBase(n), schema, seed=0)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A table that float32 would round, its density, and the folder of the SavedModel."""
    rng = RNG(0)
    x = {
        "seconds": 1.7e9 + rng.random(300),
        "tiny": 1e-12 * rng.standard_normal(300),
        "visits": rng.poisson(3, 300),
    }
    frame = pd.DataFrame(x)
    dde = density(frame)
    folder = tmp_path_factory.mktemp("wide") / "model"
    path, errors = serving.export_savedmodel(folder, dde)
    assert max(errors[name] for name in ("log_density", "score")) < serving.BOUND
    return frame, dde, path


def test_a_savedmodel_takes_raw_rows_in_float64(wide):
    frame, dde, path = wide
    signature = tf.saved_model.load(str(path)).signatures["log_density"]
    assert signature.structured_input_signature[1]["x"].dtype == tf.float64
    rows = frame.to_numpy(np.float64)
    values = signature(x=tf.constant(rows))["log_density"]
    expected = dde.log_density(rows, normalized=False)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert np.ptp(expected) > 1


def test_signatures_of_float64_rows_agree_with_the_others(wide):
    """Also for columns whose scale is below what Keras divides by."""
    frame, dde, path = wide
    signatures = tf.saved_model.load(str(path)).signatures
    x = tf.constant(frame.to_numpy(np.float64))
    for name in ("log_density", "score"):
        expected = signatures[name](x=x)[name].numpy()
        found = signatures[f"{name}_float64"](x=x)[name].numpy()
        largest = np.abs(expected).max(axis=0)  # of each column: they differ by 1e12
        np.testing.assert_allclose(found / largest, expected / largest, atol=1e-5)


def test_metadata_name_the_columns_and_what_was_done(wide):
    frame, _, path = wide
    facts = json.loads((path / "assets.extra/metadata.json").read_text())
    assert facts["columns"] == list(frame.columns)
    assert facts["preprocessing"]["dequantised"] == ["visits"]
    assert facts["signatures"]["log_density"]["inputs"]["x"]["dtype"] == "float64"
    card = (path / "assets.extra/model_card.md").read_text()
    assert "- Columns, in this order: seconds, tiny, visits." in card
    assert "- Column 'visits' holds integers, 1 apart" in card


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("model", ["saved", "keras"])
def test_files_are_scored_by_name_in_float64(wide, kind, model, tmp_path):
    frame, dde, path = wide
    if model == "keras":
        path = tmp_path / "density.keras"
        dde.save(path)
    mixed = frame[["visits", "tiny", "seconds"]].assign(id=range(300))
    source = tmp_path / f"rows.{kind}"
    if kind == "csv":
        mixed.to_csv(source, index=False)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pandas(mixed), source)
    scored = tmp_path / "scores.parquet"
    assert scoring.score_file(path, source, scored, keep=["id"]) == 0
    values = pd.read_parquet(scored)
    expected = dde.log_density(frame.to_numpy(np.float64), normalized=False)
    np.testing.assert_allclose(values["unnormalized_log_density"], expected, rtol=1e-6)


def test_tfrecord_cannot_hold_such_rows(wide, tmp_path):
    _, _, path = wide
    source = tmp_path / "rows.tfrecord"
    source.write_bytes(b"")
    with pytest.raises(ValueError, match="must be in float64, got TFRecord.*write Parquet"):
        scoring.score_file(path, source, tmp_path / "scores.csv")


def test_tflite_and_onnx_refuse_rows_in_float64(wide, tmp_path):
    _, dde, _ = wide
    message = "takes rows in float32, but this density needs float64.*export a SavedModel"
    with pytest.raises(serving.ExportError, match=f"TFLite {message}"):
        serving.export_tflite(tmp_path / "model.tflite", dde)
    with pytest.raises(serving.ExportError, match=f"ONNX {message}"):
        serving.export_onnx(tmp_path / "onnx", dde)
    assert not list(tmp_path.iterdir())


def test_ordinary_columns_are_exported_everywhere(tmp_path):
    x = RNG(0).standard_normal((200, 3)) * [2.0, 3.0, 0.1] + 5.0
    dde = density(pd.DataFrame(x, columns=["a", "b", "c"]))
    path, _ = serving.export_savedmodel(tmp_path / "saved", dde)
    serving.export_tflite(tmp_path / "model.tflite", dde)
    serving.export_onnx(tmp_path / "onnx", dde)
    scorer = scoring.Scorer(path)
    assert scorer.dtype == "float32" and scorer.columns == ["a", "b", "c"]
    facts = json.loads((tmp_path / "model.tflite.json").read_text())
    assert facts["columns"] == ["a", "b", "c"]
