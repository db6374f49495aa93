"""Artifacts against Keras, and the TFLite sampler against the normal distribution."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import tfdde
from tfdde import networks, serving
from tfdde.networks.gaussian_base import GaussianBase
from tfdde.serving import metadata
from tfdde.serving.counter_sampler import counter_normal

ROOT = Path(__file__).parents[2]
IMAGE = (28, 28, 1)


def make_models(network, shape, latent_dim=3):
    keras.utils.set_random_seed(1)
    base = GaussianBase(shape)  # of correlated data, off the origin
    base.adapt(rows(base.row_shape, 50) ** 2 + rows((1,) * len(base.row_shape), 50, 1))
    data = tfdde.DDE(network(shape, width=16, depth=3), base=base)
    generated = tfdde.DDE(network(shape, width=16, depth=3))
    decoder = network(
        latent_dim, width=16, depth=3, output_shape=shape, output_activation="sigmoid"
    )
    generator = tfdde.Generator(decoder, data, generated, latent_dim=latent_dim)
    # A built network has no biases yet, and then a lost bias would not show.
    for v in generator.trainable_variables:
        v.assign(v + 0.1 * tf.random.stateless_normal(v.shape, (v.shape.rank, 7)))
    return data, generator


@pytest.fixture(
    scope="module",
    params=[
        ("residual_mlp", 2),
        ("dense_block", 2),
        ("residual_mlp", IMAGE),
        ("dense_block", IMAGE),
    ],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def exported(request, tmp_path_factory):
    name, shape = request.param
    density, generator = make_models(getattr(tfdde.networks, name), shape)
    folder = tmp_path_factory.mktemp("exported")
    saved, saved_errors = serving.export_savedmodel(folder / "saved", density, generator)
    lite, lite_errors = serving.export_tflite(folder / "model.tflite", density, generator)
    return density, generator, saved, saved_errors, lite, lite_errors


def rows(shape, n, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *shape)).astype(np.float32)


def assert_close(got, expected, among=()):
    """Equal to 5e-6 of the largest value, also ``among`` others: single entries cancel."""
    largest = max(np.abs(expected).max(initial=0.0), np.abs(among).max(initial=0.0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6 * largest)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_savedmodel_equals_keras(exported, n):
    density, generator, path, *_ = exported
    loaded = tf.saved_model.load(str(path))
    call = loaded.signatures
    x, z = rows(density.data_shape, n), rows((3,), n, 1)
    for name in ("log_density", "serving_default"):
        got = call[name](x=tf.constant(x))["log_density"]
        assert got.shape == (n,)
        np.testing.assert_allclose(
            got, density.log_density(x, normalized=False), rtol=1e-6, atol=1e-6
        )
    got = call["score"](x=tf.constant(x))["score"]
    np.testing.assert_allclose(got, density.score(x), rtol=1e-6, atol=1e-6)
    got = call["decode"](z=tf.constant(z))["x"]
    np.testing.assert_allclose(got, generator.decode(z), atol=1e-6)
    for seed in (0, 5, 2**31 - 1):
        got = call["sample"](num=tf.constant(n), seed=tf.constant(seed, tf.int64))["x"]
        assert got.shape == (n, *density.data_shape)
        np.testing.assert_allclose(got, generator.sample(n, seed=seed), atol=1e-6)
    seeds = np.int64([0, 5, 2**31 - 1, 5, 6, 7, 8][:n])
    got = call["sample_rows"](seed=tf.constant(seeds))["x"].numpy()
    assert got.shape == (n, *density.data_shape)
    for row, seed in zip(got, seeds.tolist(), strict=True):
        np.testing.assert_allclose(row, generator.sample(1, seed=seed)[0], atol=1e-6)
    if n == 7:  # a row depends on its own seed alone
        np.testing.assert_array_equal(got[1], got[3])
        assert len({row.tobytes() for row in got}) == 6


def test_nan_stays_in_its_row(exported):
    density, _, path, _, lite, _ = exported
    loaded = tf.saved_model.load(str(path))
    runner = Interpreter(model_path=str(lite)).get_signature_runner
    x = rows(density.data_shape, 4)
    strange = x.copy()
    strange[2].flat[0] = np.nan
    for call in (
        lambda name, x: loaded.signatures[name](x=tf.constant(x))[name].numpy(),
        lambda name, x: runner(name)(x=x)[name],
    ):
        for name in ("log_density", "score"):
            whole, got = call(name, x), call(name, strange)
            assert np.isnan(got[2]).all()
            others = [0, 1, 3]
            np.testing.assert_array_equal(got[others], whole[others])


@pytest.mark.parametrize("n", [0, 1, 7])
def test_tflite_equals_keras(exported, n):
    density, generator, *_, path, _ = exported
    interpreter = Interpreter(model_path=str(path))
    call = {
        name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()
    }
    assert set(call) == {"log_density", "score", "decode", "sample"}
    x, z = rows(density.data_shape, n), rows((3,), n, 1)
    expected = density.log_density(x, normalized=False).numpy()
    got = call["log_density"](x=x)["log_density"]
    assert got.shape == (n,)
    many = rows(density.data_shape, 64)
    assert_close(got, expected, among=density.log_density(many, normalized=False))
    assert_close(call["score"](x=x)["score"], density.score(x))
    np.testing.assert_allclose(call["decode"](z=z)["x"], generator.decode(z), atol=1e-6)
    for seed in (0, 5, 2**31 - 1):
        got = call["sample"](num=np.int32(n), seed=np.int32(seed))["x"]
        z = counter_normal(tf.constant(n), 3, tf.constant(seed))
        np.testing.assert_allclose(got, generator.decode(z), atol=2e-6)


def test_a_normalised_density_of_many_levels_is_exported_as_such(tmp_path):
    data = rows((3,), 500) * np.float32([1, 10, 100]) + 7
    network = networks.residual_mlp(3, 8, 2, activation="silu", levels=True, experts=2)
    noise = tfdde.LogUniform(0.1, 4.0, sigma=0.3)
    dde = tfdde.DDE(network, noise, normalization=keras.layers.Normalization())
    dde.adapt(data)
    dde.partition = tfdde.LogPartition(2.0, 0.05, 1.9, 2.1, 900.0, "ladder", 0.3)
    saved, _ = serving.export_savedmodel(tmp_path / "saved", dde)
    lite, _ = serving.export_tflite(tmp_path / "model.tflite", dde)
    expected = dde.log_density(data, sigma=0.3, normalized=True).numpy()
    loaded = tf.saved_model.load(str(saved))
    got = loaded.signatures["log_density"](x=tf.constant(data))["log_density"]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    interpreter = Interpreter(model_path=str(lite))
    assert_close(interpreter.get_signature_runner("log_density")(x=data)["log_density"], expected)
    assert_close(interpreter.get_signature_runner("score")(x=data)["score"], dde.score(data))
    for path in (saved / "assets.extra" / "metadata.json", lite.with_name("model.tflite.json")):
        about = json.loads(path.read_text())
        assert about["normalized"] is True and about["sigma"] == 0.3
        assert about["log_partition"] == dde.partition.get_config()


def test_measured_errors_are_reported_and_stored(exported):
    density, _, saved, saved_errors, lite, lite_errors = exported
    assert saved.name == "1"
    names = {"log_density", "log_density_nats", "score", "decode", "sample"}
    assert set(lite_errors) == names and set(saved_errors) == {*names, "sample_rows"}
    for errors, path in (
        (saved_errors, saved / "assets.extra" / "metadata.json"),
        (lite_errors, lite.with_name("model.tflite.json")),
    ):
        assert errors["log_density_nats"] < 1e-2
        assert all(v <= serving.BOUND for k, v in errors.items() if k != "log_density_nats")
        about = json.loads(path.read_text())
        assert about["errors"] == errors
        assert about["sigma"] == density.noise.sigma
        assert about["input_shape"] == list(density.data_shape)
        assert about["normalized"] is False and about["held_out"] is about["data_hash"] is None
        assert about["versions"]["tensorflow"] == tf.__version__
        shape = [None, *density.data_shape]
        assert about["signatures"]["sample"]["outputs"] == {
            "x": {"dtype": "float32", "shape": shape}
        }


def test_model_card_names_the_doubt(exported, tmp_path):
    density, errors = exported[0], exported[3]
    fine = tfdde.LogPartition.around(1.0, 0.01, 5_000, "ladder", density.noise.sigma)
    before = density.partition
    density.partition = dataclasses.replace(fine, doubt="mass at 60")
    about = metadata.facts(density, None, {}, errors, 1e-5, tmp_path)
    density.partition = before
    assert about["normalized"] is False and about["log_partition"]["doubt"] == "mass at 60"
    assert "no trusted log Z. An estimate is doubted: mass at 60." in metadata.card(about)


def test_model_card_of_an_unknown_run(exported):
    density, _, saved, saved_errors, lite, _ = exported
    for path, seeds in (
        (saved / "assets.extra" / "model_card.md", "seed int64[]"),
        (lite.with_name("model.tflite.md"), "seed int32[]"),
    ):
        card = path.read_text("utf-8")
        assert f"σ = {density.noise.sigma:.6g}" in card and tf.__version__ in card
        assert f"| sample | num int32[], {seeds} | x float32[rows, {density.data_shape[0]}" in card
        assert "UNNORMALISED" in card and "Held-out log-likelihood: not measured." in card
        assert "Checksum of the data: unknown." in card
    card = (saved / "assets.extra" / "model_card.md").read_text("utf-8")
    assert f"score {saved_errors['score']:.1e}" in card


def test_warm_up_requests_run(exported):
    pytest.importorskip("tensorflow_serving")
    from tensorflow_serving.apis import prediction_log_pb2

    _, _, saved, *_ = exported
    loaded = tf.saved_model.load(str(saved))
    path = saved / "assets.extra" / "tf_serving_warmup_requests"
    warmed = set()
    for record in tf.data.TFRecordDataset(str(path)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        call = loaded.signatures[request.model_spec.signature_name]
        (output,) = call(**{k: tf.constant(v) for k, v in inputs.items()}).values()
        assert np.isfinite(output).all() and len(output) == 1
        warmed.add(request.model_spec.signature_name)
    # A server that batches refuses the scalars of `sample`.
    assert warmed == {"serving_default", "log_density", "score", "decode", "sample_rows"}


def test_tflite_needs_builtin_operations_only(exported, capfd):
    *_, lite, _ = exported
    tf.lite.experimental.Analyzer.analyze(model_path=str(lite))
    listing = capfd.readouterr().out
    operations = {
        line.split()[1].partition("(")[0] for line in listing.splitlines() if "Op#" in line
    }
    assert {"FULLY_CONNECTED", "BITWISE_XOR", "COS"} <= operations
    assert not {op for op in operations if "FLEX" in op.upper() or "CUSTOM" in op}


def test_tflite_computes_each_layer_once(tmp_path, capfd):
    density = tfdde.DDE(tfdde.networks.residual_mlp(2, width=4, depth=3))
    path, _ = serving.export_tflite(tmp_path / "m.tflite", density)
    tf.lite.experimental.Analyzer.analyze(model_path=str(path))
    graph = capfd.readouterr().out.partition("log_density(")[2].partition("Tensors of")[0]
    assert graph.count("FULLY_CONNECTED") == 1 + 3 + 1


def test_tflite_is_finite_where_softplus_overflows(tmp_path):
    # Its converter lowers Softplus to log(1 + exp(x)), which is infinite from x = 88.8.
    density = tfdde.DDE(tfdde.networks.residual_mlp(2, width=8, depth=2))
    path, _ = serving.export_tflite(tmp_path / "m.tflite", density)
    x = np.float32([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4]])
    runner = Interpreter(model_path=str(path)).get_signature_runner("log_density")
    np.testing.assert_allclose(
        runner(x=x)["log_density"], density.log_density(x, normalized=False), rtol=1e-5
    )


def test_savedmodel_versions_follow_each_other(tmp_path):
    density = tfdde.DDE(tfdde.networks.residual_mlp(2, width=4, depth=1))
    (tmp_path / "m" / "notes").mkdir(parents=True)
    assert serving.export_savedmodel(tmp_path / "m", density)[0] == tmp_path / "m" / "1"
    assert serving.export_savedmodel(tmp_path / "m", density)[0] == tmp_path / "m" / "2"
    loaded = tf.saved_model.load(str(tmp_path / "m" / "2"))
    assert set(loaded.signatures) == {"serving_default", "log_density", "score"}


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31 - 1])
def test_counter_normal_is_standard_normal(seed):
    z = counter_normal(tf.constant(20_000), 2, tf.constant(seed)).numpy()
    n = z.size
    # Five standard errors; a wrong sampler misses them by far.
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(scipy.stats.kurtosis(z.ravel())) < 5 * np.sqrt(24 / n)
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 1e-4
    assert len(np.unique(z[:, 0])) > 0.999 * len(z)
    for lag in (1, 2, 3):  # neighbours, and neighbours of a column
        flat = z.ravel()
        assert abs(np.mean(flat[lag:] * flat[:-lag])) < 5 / np.sqrt(n)
    radius = (z**2).sum(axis=1)
    assert scipy.stats.kstest(radius, "chi2", args=(2,)).pvalue > 1e-4


def test_counter_normal_of_many_seeds_is_normal_too():
    draw = tf.function(counter_normal)
    z = np.stack([draw(tf.constant(1), 2, tf.constant(s))[0] for s in range(2000)])
    assert scipy.stats.kstest(z[:, 0], "norm").pvalue > 1e-4
    assert scipy.stats.kstest(z[:, 1], "norm").pvalue > 1e-4
    assert abs(np.corrcoef(z.T)[0, 1]) < 5 / np.sqrt(2000)
    assert abs(np.mean(z[1:, 0] * z[:-1, 0])) < 5 / np.sqrt(2000)


def test_counter_normal_begins_with_the_same_rows_and_changes_with_the_seed():
    long = counter_normal(tf.constant(1000), 5, tf.constant(3)).numpy()
    short = counter_normal(tf.constant(10), 5, tf.constant(3)).numpy()
    np.testing.assert_allclose(short, long[:10], rtol=1e-6, atol=1e-7)
    other = counter_normal(tf.constant(1000), 5, tf.constant(4)).numpy()
    assert np.intersect1d(long, other).size < 20  # not the same numbers in another order
    assert abs(np.mean(long * other)) < 5 / np.sqrt(long.size)


def test_disagreement_fails_and_leaves_nothing(tmp_path, monkeypatch):
    density = tfdde.DDE(tfdde.networks.residual_mlp(2, width=4, depth=1))
    for module in ("savedmodel", "tflite"):
        monkeypatch.setattr(f"tfdde.serving.{module}.BOUND", -1.0)
    with pytest.raises(serving.ExportError, match="differs from Keras"):
        serving.export_savedmodel(tmp_path / "saved", density)
    with pytest.raises(serving.ExportError, match="differs from Keras"):
        serving.export_tflite(tmp_path / "m.tflite", density)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() or p.name == "1"]


def test_disagreement_keeps_the_previous_file(tmp_path, monkeypatch):
    density = tfdde.DDE(tfdde.networks.residual_mlp(2, width=4, depth=1))
    (tmp_path / "m.tflite").write_bytes(b"previous")
    for module in ("savedmodel", "tflite"):
        monkeypatch.setattr(f"tfdde.serving.{module}.BOUND", -1.0)
    with pytest.raises(serving.ExportError):
        serving.export_tflite(tmp_path / "m.tflite", density)
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]
    assert (tmp_path / "m.tflite").read_bytes() == b"previous"


def test_layer_without_builtin_operation_is_named(tmp_path):
    x = keras.Input((2,), name="x")
    h = keras.layers.Dense(4)(x)
    h = keras.layers.Add()([h, keras.layers.Dense(4, activation="tanh")(h)])
    h = keras.layers.Lambda(tf.math.lgamma, output_shape=(4,))(h)
    density = tfdde.DDE(keras.Model(x, keras.layers.Dense(1)(h)))
    with pytest.raises(serving.ExportError, match=r"no builtin operation for .*tf\."):
        serving.export_tflite(tmp_path / "m.tflite", density)
    assert not list(tmp_path.iterdir())


def test_other_shape_of_the_generator_is_refused(tmp_path):
    _, generator = make_models(tfdde.networks.residual_mlp, 2)
    density = tfdde.DDE(tfdde.networks.residual_mlp(3, width=4, depth=1))
    with pytest.raises(ValueError, match=r"`generator` must generate rows .*\(3,\), got \(2,\)"):
        serving.export_savedmodel(tmp_path / "m", density, generator)


def test_load_run_errors_are_one_line(tmp_path):
    def message(kind):
        with pytest.raises(kind) as info:
            serving.load_run(tmp_path / "run")
        text = str(info.value)
        assert "\n" not in text
        return text

    assert "no run folder" in message(FileNotFoundError)
    (tmp_path / "run").mkdir()
    assert "neither density.keras nor generator.keras" in message(FileNotFoundError)
    path = tmp_path / "run" / "density.keras"
    path.write_bytes(b"no zip archive")
    assert "density.keras can't be loaded" in message(ValueError)
    tfdde.networks.residual_mlp(2, width=4, depth=1).save(path)
    assert "must hold a tfdde.DDE, got Functional" in message(ValueError)
    tfdde.DDE(tfdde.networks.residual_mlp(2, width=4, depth=1)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    assert "density.keras can't be loaded" in message(ValueError)


def test_load_run_takes_what_there_is(tmp_path):
    density, generator = make_models(tfdde.networks.residual_mlp, 2)
    generator.compile("adam")
    generator.save(tmp_path / "generator.keras")
    x = rows((2,), 5)
    loaded, loaded_generator = serving.load_run(tmp_path)
    np.testing.assert_array_equal(
        loaded.log_density(x, normalized=False), density.log_density(x, normalized=False)
    )
    np.testing.assert_array_equal(loaded_generator.sample(4, seed=1), generator.sample(4, seed=1))
    other = tfdde.DDE(tfdde.networks.residual_mlp(2, width=4, depth=1))
    other.save(tmp_path / "density.keras")
    loaded, _ = serving.load_run(tmp_path)
    np.testing.assert_array_equal(
        loaded.log_density(x, normalized=False), other.log_density(x, normalized=False)
    )


def run_script(name, *args):
    return subprocess.run(
        [sys.executable, ROOT / "export" / name, *map(str, args)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # this checkout, installed or not
        timeout=120,
    )


def test_savedmodel_script(tmp_path):
    density, generator = make_models(tfdde.networks.residual_mlp, 2)
    density.save(tmp_path / "density.keras")
    generator.save(tmp_path / "generator.keras")
    done = run_script("savedmodel.py", tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "savedmodel" / "1"
    assert f"Wrote {path}" in done.stdout
    assert "  log_density 0.0e+00 (0.0e+00 nats)\n" in done.stdout
    loaded = tf.saved_model.load(str(path))
    got = loaded.signatures["sample"](num=tf.constant(4), seed=tf.constant(9, tf.int64))["x"]
    np.testing.assert_allclose(got, generator.sample(4, seed=9), atol=1e-6)


def test_tflite_script(tmp_path):
    density, _ = make_models(tfdde.networks.residual_mlp, 2)
    density.save(tmp_path / "density.keras")
    output = tmp_path / "out" / "d.tflite"
    spec = importlib.util.spec_from_file_location("tflite", ROOT / "export" / "tflite.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    options = ["--output", str(output), "--float16", "--batch-size", "3"]
    assert script.main([str(tmp_path), *options]) == 0
    runner = Interpreter(model_path=str(tmp_path / "out" / "d.tflite")).get_signature_runner(
        "score"
    )
    x = rows((2,), 3)
    score = density.score(x).numpy()
    np.testing.assert_allclose(runner(x=x)["score"], score, atol=1e-2 * np.abs(score).max())
    about = json.loads(output.with_name("d.tflite.json").read_text())
    assert about["weights"] == "float16" and about["batch_size"] == 3


def test_errors_of_the_scripts(tmp_path, monkeypatch, capsys):
    export = serving.export_savedmodel
    assert serving.export_run(export, tmp_path / "none", tmp_path / "m") == 2
    assert capsys.readouterr().err == f"error: There is no run folder {tmp_path / 'none'}.\n"
    tfdde.DDE(tfdde.networks.residual_mlp(2, width=4, depth=1)).save(tmp_path / "density.keras")
    for module in ("savedmodel", "tflite"):
        monkeypatch.setattr(f"tfdde.serving.{module}.BOUND", -1.0)
    assert serving.export_run(export, tmp_path, tmp_path / "m") == 1
    assert re.fullmatch("error: .* differs from Keras by .*\n", capsys.readouterr().err)
