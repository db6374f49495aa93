"""ONNX files equal Keras, under ONNX Runtime, and their folder is one that Triton serves."""

import importlib.util
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from test_serving import IMAGE, assert_close, make_models, rows

import tfdde
from tfdde import networks, serving
from tfdde.serving.signatures import log_density

ROOT = Path(__file__).parents[2]


def conv_models():
    keras.utils.set_random_seed(1)
    shape = (9, 10, 2)
    data, generated = (
        tfdde.DDE(networks.conv_density(shape, width=4, depth=1, units=16)) for _ in range(2)
    )
    decoder = networks.conv_generator(3, shape, width=4, modulated=True)
    generator = tfdde.Generator(decoder, data, generated, latent_dim=3)
    for v in generator.trainable_variables:
        v.assign(v + 0.05 * np.random.default_rng(v.shape[0]).standard_normal(v.shape))
    return data, generator


def conditional_models():
    keras.utils.set_random_seed(1)
    data, generated = (
        tfdde.DDE(networks.residual_mlp(2, width=8, depth=2, conditions=3)) for _ in range(2)
    )
    decoder = networks.residual_mlp(4, width=8, depth=1, output_shape=2, conditions=3)
    return data, tfdde.Generator(decoder, data, generated, latent_dim=4)


MODELS = {
    "rows": lambda: make_models(networks.residual_mlp, 2),
    "dense images": lambda: make_models(networks.dense_block, IMAGE),
    "convolutions": conv_models,
    "conditions": conditional_models,
}


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    density, generator = MODELS[request.param]()
    folder, errors = serving.export_onnx(
        tmp_path_factory.mktemp("onnx") / "models", density, generator
    )
    return density, generator, folder, errors


def session(folder, name):
    return onnxruntime.InferenceSession(folder / name / "1/model.onnx")


@pytest.mark.parametrize("n", [0, 1, 7])
def test_onnx_equals_keras(exported, n):
    density, generator, folder, _ = exported
    x, many = rows(density.data_shape, n), rows(density.data_shape, 64)
    c = rows((3,), n, seed=2) if density.condition_dim else None
    more = {} if c is None else {"condition": c}
    all_c = None if c is None else rows((3,), 64, seed=2)
    (got,) = session(folder, "log_density").run(None, {"x": x, **more})
    assert_close(got, log_density(density, x, c), log_density(density, many, all_c))
    (got,) = session(folder, "score").run(None, {"x": x, **more})
    assert_close(got, density.score(x, conditions=c), density.score(many, conditions=all_c))
    z = np.random.default_rng(3).standard_normal((n, generator.latent_dim)).astype("f4")
    (got,) = session(folder, "decode").run(None, {"z": z, **more})
    assert got.shape == (n, *density.data_shape)
    assert_close(got, generator.decode(z, c), [1.0])


def test_equal_seeds_give_the_samples_of_tflite(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    density, generator = MODELS["rows"]()
    folder, _ = serving.export_onnx(tmp_path / "onnx", density, generator)
    path, _ = serving.export_tflite(tmp_path / "m.tflite", density, generator)
    inputs = {"num": np.array(9, np.int32), "seed": np.array(2**31 - 1, np.int32)}
    (got,) = session(folder, "sample").run(None, inputs)
    runner = Interpreter(str(path)).get_signature_runner("sample")
    np.testing.assert_allclose(got, runner(**inputs)["x"], atol=1e-5)


def test_threads_get_the_values_of_a_single_one(exported):
    density, _, folder, _ = exported
    if density.condition_dim:
        pytest.skip("one more input, and nothing else")
    model = session(folder, "score")
    batches = [rows(density.data_shape, n, seed=n) for n in range(1, 33)]
    alone = [model.run(None, {"x": x})[0] for x in batches]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(lambda x: model.run(None, {"x": x})[0], batches * 3))
    for a, b in zip(alone * 3, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_table_is_standardised_normalised_and_told_of(tmp_path):
    layer = keras.layers.Normalization()
    layer.adapt(np.float32([[2, 1], [4, 5]]))
    network = networks.residual_mlp(2, width=4, depth=1)
    density = tfdde.DDE(network, tfdde.Constant(0.2), normalization=layer)
    density.partition = tfdde.LogPartition(2.0, 0.05, 1.9, 2.1, 900.0, "importance", 0.2)
    folder, errors = serving.export_onnx(tmp_path / "models", density)
    x = rows((2,), 5) * 9
    (got,) = session(folder, "log_density").run(None, {"x": x})
    np.testing.assert_allclose(got, density.log_density(x, normalized=True), rtol=1e-5)
    assert {p.name for p in folder.iterdir()} == {
        "log_density",
        "log_density_float64",
        "score",
        "score_float64",
        "metadata.json",
        "model_card.md",
    }
    assert errors["log_density"] <= serving.BOUND
    assert "log Z = 2.000" in (folder / "model_card.md").read_text("utf-8")


def test_tritons_configuration_is_that_of_the_files(exported):
    """Names, types and shapes; a scalar is a tensor of one number to Triton."""
    _, _, folder, _ = exported
    for path in sorted(folder.glob("*/config.pbtxt")):
        text = path.read_text()
        assert f'name: "{path.parent.name}"\nbackend: "onnxruntime"\nmax_batch_size: 0' in text
        graph = onnx.load(path.parent / "1/model.onnx").graph
        told = re.findall(r'\{ name: "(\w+)" data_type: (\w+) dims: (\[.*?\])( reshape)?', text)
        assert [t[0] for t in told] == [v.name for v in (*graph.input, *graph.output)]
        for (_, kind, dims, reshaped), value in zip(
            told, (*graph.input, *graph.output), strict=True
        ):
            tensor = value.type.tensor_type
            assert tensor.elem_type == {"TYPE_FP32": 1, "TYPE_INT32": 6}[kind]
            shape = [d.dim_value or -1 for d in tensor.shape.dim]
            assert bool(reshaped) == (not shape) and str(shape or [1]) == dims


def test_what_fails_leaves_nothing(tmp_path, monkeypatch):
    density = tfdde.DDE(networks.residual_mlp(2, width=4, depth=1))
    (tmp_path / "models").mkdir()
    with pytest.raises(FileExistsError, match="`folder` must not exist yet"):
        serving.export_onnx(tmp_path / "models", density)
    (tmp_path / "models").rmdir()
    monkeypatch.setattr("tfdde.serving.onnx.BOUND", -1.0)
    with pytest.raises(serving.ExportError, match="differs from Keras"):
        serving.export_onnx(tmp_path / "models", density)
    x = keras.Input((2,), name="x")
    h = keras.layers.Lambda(lambda v: __import__("tensorflow").math.lgamma(v), output_shape=(2,))(x)
    density = tfdde.DDE(keras.Model(x, keras.layers.Dense(1)(h)))
    with pytest.raises(serving.ExportError, match="`log_density` can't be converted .*Lgamma"):
        serving.export_onnx(tmp_path / "models", density)
    assert not list(tmp_path.iterdir())


def test_script(tmp_path, capsys):
    density, generator = MODELS["rows"]()
    density.save(tmp_path / "density.keras")
    generator.save(tmp_path / "generator.keras")
    path = ROOT / "export/onnx_models.py"
    spec = importlib.util.spec_from_file_location("onnx_models", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main([str(tmp_path)]) == 0
    assert f"Wrote {tmp_path / 'onnx'}" in capsys.readouterr().out
    assert script.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: `folder` must not exist yet")


def test_the_cap_of_a_correction_is_exported(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    data = rows((3,), 500)
    network = networks.residual_mlp(3, 8, 2, activation="silu", levels=True)
    network.set_weights(
        [w + 0.3 * np.sin(np.arange(w.size).reshape(w.shape)) for w in network.get_weights()]
    )
    dde = tfdde.DDE(network, tfdde.LogUniform(0.5, 4.0))
    dde.adapt(data)
    far = 200 * rows((3,), 64, seed=1)
    free = dde.log_density(far, normalized=False).numpy()
    dde.cap_correction(data)
    expected = dde.log_density(far, normalized=False).numpy()
    assert (expected < free - 1).any()
    saved, _ = serving.export_savedmodel(tmp_path / "saved", dde)
    lite, _ = serving.export_tflite(tmp_path / "model.tflite", dde)
    onnx, _ = serving.export_onnx(tmp_path / "onnx", dde)
    signature = tf.saved_model.load(str(saved)).signatures["log_density"]
    got = signature(x=tf.constant(far))["log_density"]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    interpreter = Interpreter(model_path=str(lite))
    assert_close(interpreter.get_signature_runner("log_density")(x=far)["log_density"], expected)
    assert_close(interpreter.get_signature_runner("score")(x=far)["score"], dde.score(far))
    session = onnxruntime.InferenceSession(onnx / "log_density/1/model.onnx")
    assert_close(session.run(None, {"x": far})[0], expected)
