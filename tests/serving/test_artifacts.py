"""What artifacts tell of their training, and TFLite files of float16 and of a fixed batch."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import tfdde
from tfdde import anomalies, networks, serving
from tfdde.serving import metadata
from tfdde.serving.counter_sampler import counter_normal


def rows(n, dim):
    return np.random.default_rng(0).uniform(size=(n, dim)).astype(np.float32)


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(1)
    data, generated = (tfdde.DDE(networks.residual_mlp(2, width=128, depth=3)) for _ in range(2))
    decoder = networks.dense_block(3, width=32, depth=3, output_shape=2)
    return data, tfdde.Generator(decoder, data, generated, latent_dim=3)


def test_facts_of_the_run_are_told(tmp_path):
    """Of files as `train/tabular.py` writes them; a likelihood only if it is of this log Z."""
    layer = keras.layers.Normalization()
    layer.adapt(np.float32([[2, 1], [4, 5]]))
    network = networks.residual_mlp(2, width=4, depth=1)
    density = tfdde.DDE(network, tfdde.Constant(0.2), normalization=layer)
    density.partition = tfdde.LogPartition(2.0, 0.05, 1.9, 2.1, 900.0, "importance", 0.2)
    run = tmp_path / "run"
    run.mkdir()
    config = {
        "arguments": {"checksum": 0xABC},
        "command": ["train/tabular.py", "--data", "t.csv"],
        "started": "2026-01-02T03:04:05+00:00",
    }
    (run / "config.json").write_text(json.dumps(config))
    result = {
        "log_likelihood": -3.25,
        "standard_error": 0.125,
        "log_partition": density.partition.get_config(),
        "rows": {"train": 80, "validation": 10, "test": 10},
        "columns": ["price", "weight"],
    }
    (run / "result.json").write_text(json.dumps(result))
    path, _ = serving.export_savedmodel(tmp_path / "m", density, run=run)
    about = json.loads((path / "assets.extra" / "metadata.json").read_text())
    held_out = {"log_likelihood": -3.25, "standard_error": 0.125, "rows": 10}
    assert about["held_out"] == held_out and about["training"] == config
    assert about["data_hash"] == "crc32:00000abc" and about["columns"] == ["price", "weight"]
    np.testing.assert_allclose(about["preprocessing"]["mean"], [3, 3])
    np.testing.assert_allclose(about["preprocessing"]["standard_deviation"], [1, 2], rtol=1e-6)
    card = (path / "assets.extra" / "model_card.md").read_text("utf-8")
    assert "log Z = 2.0000 ± 0.0500 nats" in card and "in this order: price, weight." in card
    assert "Held-out log-likelihood: -3.2500 ± 0.1250 nats per row (10 test rows)." in card
    assert "crc32:00000abc" in card and "`train/tabular.py --data t.csv`" in card

    result["log_partition"]["value"] = 3.0  # of another density
    (run / "result.json").write_text(json.dumps(result))
    path, _ = serving.export_savedmodel(tmp_path / "m", density, run=run)
    about = json.loads((path / "assets.extra" / "metadata.json").read_text())
    assert about["held_out"] is None
    damaged = r"result\.json can't be read as a JSON object: "
    (run / "result.json").write_text("[1]")
    with pytest.raises(ValueError, match=damaged):
        metadata.facts(density, None, {}, {}, serving.BOUND, run)
    (run / "result.json").write_text("no JSON")
    with pytest.raises(ValueError, match=damaged):
        serving.export_savedmodel(tmp_path / "m", density, run=run)
    assert not (tmp_path / "m" / "3").exists()


def test_metadata_tell_what_is_normal_but_no_row(tmp_path):
    density = tfdde.DDE(networks.residual_mlp(2, width=4, depth=1), tfdde.Constant(0.2))
    assert metadata.facts(density, None, {}, {}, serving.BOUND, tmp_path)["normal"] is None
    rows = np.random.default_rng(0).normal(size=(150, 2)).astype(np.float32)
    rows[:, 1] = np.arange(150) % 3
    anomalies.NormalRows(rows[:51], rows[51:]).save(tmp_path / "normal_rows.npz")
    path, _ = serving.export_savedmodel(tmp_path / "m", density, run=tmp_path)
    text = (path / "assets.extra" / "metadata.json").read_text()
    normal = json.loads(text)["normal"]
    low, high = rows[:51, 0].min(), rows[:51, 0].max()
    assert normal["ranges"] == [
        {"low": float(low), "high": float(high), "values": None},
        {"low": 0.0, "high": 2.0, "values": [0.0, 1.0, 2.0]},
    ]
    values = density.log_density(rows[51:], normalized=False).numpy()
    np.testing.assert_allclose(normal["held_out_log_density"], np.sort(values), rtol=1e-6)
    threshold = normal["threshold"]
    assert (values < threshold["log_density"] - 1e-6).sum() == 4  # 5 of 99 + 1 are not above it
    assert threshold["rate"] == pytest.approx(0.05) and threshold["rows"] == 99
    assert len(text.splitlines()) < 150  # a list of numbers is one line
    card = (path / "assets.extra" / "model_card.md").read_text("utf-8")
    assert f"A log-density below {threshold['log_density']:.4g} nats is an alarm. 5 % of" in card
    (tmp_path / "normal_rows.npz").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=r"normal_rows.npz can't be read as normal rows of 2 col"):
        metadata.facts(density, None, {}, {}, serving.BOUND, tmp_path)


def test_float16_is_measured_and_smaller(models, tmp_path):
    density, generator = models
    whole, _ = serving.export_tflite(tmp_path / "m.tflite", density, generator)
    half, errors = serving.export_tflite(tmp_path / "h.tflite", density, generator, float16=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    runner = Interpreter(model_path=str(half)).get_signature_runner("log_density")
    x = rows(64, 2)
    expected = density.log_density(x, normalized=False).numpy()
    error = np.abs(runner(x=x)["log_density"] - expected).max() / np.abs(expected).max()
    for each in (error, errors["log_density"]):
        assert serving.BOUND < each < serving.FLOAT16_BOUND
    sample = Interpreter(model_path=str(half)).get_signature_runner("sample")
    got = sample(num=np.int32(500), seed=np.int32(1))["x"]
    z = counter_normal(tf.constant(500), 3, tf.constant(1))
    assert np.abs(got - generator.decode(z)).max() < 1e-2
    about = json.loads((tmp_path / "h.tflite.json").read_text())
    assert about["weights"] == "float16" and about["errors"] == errors
    assert about["error_bound"] == serving.FLOAT16_BOUND


def test_float16_that_is_too_coarse_is_refused(tmp_path):
    network = networks.residual_mlp(2, width=4, depth=1)
    density = tfdde.DDE(network)
    network.weights[0].assign(np.full(network.weights[0].shape, 1e5))  # beyond float16
    serving.export_tflite(tmp_path / "m.tflite", density)
    with pytest.raises(serving.ExportError, match="more than 1e-02; .* export it without float16"):
        serving.export_tflite(tmp_path / "h.tflite", density, float16=True)
    assert not list(tmp_path.glob("h.*"))


@pytest.mark.parametrize("batch", [1, 5])
def test_tflite_of_a_fixed_batch(models, tmp_path, batch, capfd):
    density, generator = models
    path, errors = serving.export_tflite(
        tmp_path / "m.tflite", density, generator, batch_size=batch
    )
    assert max(v for k, v in errors.items() if k != "log_density_nats") <= serving.BOUND
    interpreter = Interpreter(model_path=str(path))
    x, z = rows(batch, 2), rows(batch, 3)
    inputs = {
        "log_density": {"x": x},
        "score": {"x": x},
        "decode": {"z": z},
        "sample": {"seed": np.int32(5)},
    }
    latents = counter_normal(tf.constant(batch), 3, tf.constant(5))
    expected = {
        "log_density": density.log_density(x, normalized=False),
        "score": density.score(x),
        "decode": generator.decode(z),
        "sample": generator.decode(latents),
    }
    for name, given in inputs.items():
        runner = interpreter.get_signature_runner(name)
        for details in (runner.get_input_details(), runner.get_output_details()):
            for each in details.values():  # no dimension is left to the caller
                np.testing.assert_array_equal(each["shape"], each["shape_signature"])
        (got,) = runner(**given).values()
        np.testing.assert_allclose(got, expected[name], atol=5e-6, rtol=5e-6)
    assert json.loads((tmp_path / "m.tflite.json").read_text())["batch_size"] == batch
    tf.lite.experimental.Analyzer.analyze(model_path=str(path))
    assert not re.search("FLEX|CUSTOM", capfd.readouterr().out.upper())


def test_batch_size_must_be_a_number_of_rows(tmp_path):
    density = tfdde.DDE(networks.residual_mlp(2, width=4, depth=1))
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1, got 0"):
        serving.export_tflite(tmp_path / "m.tflite", density, batch_size=0)
