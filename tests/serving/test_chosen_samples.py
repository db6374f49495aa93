"""Artifacts that choose their samples from candidates, against Keras and exact Gaussians."""

import importlib.util
import json
import re
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import scipy.stats
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from exact_generator import ROWS, SIGMA, check_law_of_many, check_law_of_three, exact

import tfdde
from tfdde import networks, serving
from tfdde.serving import onnx, savedmodel, tflite
from tfdde.serving.counter_sampler import counter_draws

ROOT = Path(__file__).parents[2]
FORMATS = ("savedmodel", "tflite", "onnx")


def density(conditions=0):
    """Of rows of one number; the generator does not need it."""
    return tfdde.DDE(networks.residual_mlp(1, 4, 1, conditions=conditions), tfdde.Constant(SIGMA))


def of_levels(relative=True):
    keras.utils.set_random_seed(1)
    noise = tfdde.LogUniform(0.1, 2.5)
    p, q = (tfdde.DDE(networks.residual_mlp(2, 8, 1, levels=True), noise) for _ in range(2))
    for start, dde in enumerate((p, q)):  # so that candidates differ by some nats
        for v in dde.network.trainable_variables:
            v.assign(v + 0.5 * np.sin(start + np.arange(np.prod(v.shape)).reshape(v.shape)))
    network = networks.residual_mlp(3, 8, 1, output_shape=2)
    return tfdde.Generator(network, p, q, latent_dim=3, relative=relative)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A generator and, by format, the path of its artifact that chooses from 5 candidates."""
    model, folder = of_levels(), tmp_path_factory.mktemp("chosen")
    paths = {}
    for kind in FORMATS:
        function = getattr(serving, f"export_{kind}")
        paths[kind], errors = function(folder / kind, model.data_dde, model, candidates=5)
        assert errors["sample"] <= serving.BOUND
    return model, paths


def sampler(kind, path):
    """``sample`` of an artifact, as a function of num, seed and a condition."""
    if kind == "savedmodel":
        loaded = tf.saved_model.load(str(path))

        def sample(num, seed, **condition):
            named = {k: tf.constant(v) for k, v in condition.items()}
            inputs = {"num": tf.constant(num), "seed": tf.constant(seed, tf.int64)}
            return loaded.signatures["sample"](**inputs, **named)["x"].numpy()

    elif kind == "tflite":
        runner = Interpreter(str(path)).get_signature_runner("sample")

        def sample(num, seed, **condition):
            return runner(num=np.int32(num), seed=np.int32(seed), **condition)["x"]

    else:
        session = onnxruntime.InferenceSession(path / "sample/1/model.onnx")

        def sample(num, seed, **condition):
            inputs = {"num": np.array(num, np.int32), "seed": np.array(seed, np.int32)}
            return session.run(None, inputs | condition)[0]

    return sample


def expected(kind, model, num, seed, candidates, sigma=None, conditions=None):
    """What ``sample`` of an artifact of this format must return."""
    if kind == "savedmodel":
        return model.sample_from_candidates(
            num, candidates, seed, sigma=sigma, conditions=conditions
        )
    condition = [] if conditions is None else [tf.constant(conditions)]
    _, level = model.check_candidates(candidates, sigma)

    @tf.function
    def sample(num, seed):
        numbers = counter_draws(model.latent_dim, model.data_shape, num, seed)
        z = model.choose(numbers, candidates, tf.constant(level, tf.float32), *condition)
        return model.call(z, *condition)

    return sample(tf.constant(num), tf.constant(seed))


def about(kind, path):
    """The metadata and the model card of an artifact."""
    if kind == "tflite":
        names = [path.with_name(path.name + ending) for ending in (".json", ".md")]
    else:
        folder = path / "assets.extra" if kind == "savedmodel" else path
        names = [folder / "metadata.json", folder / "model_card.md"]
    return json.loads(names[0].read_text()), names[1].read_text("utf-8")


@pytest.mark.parametrize("kind", FORMATS)
def test_samples_are_those_of_the_generator(kind, exported):
    model, paths = exported
    sample = sampler(kind, paths[kind])
    for n, seed in ((0, 3), (1, 3), (200, 2**31 - 1)):
        got = sample(n, seed)
        assert got.shape == (n, 2)
        np.testing.assert_allclose(got, expected(kind, model, n, seed, 5), atol=1e-5)
    np.testing.assert_allclose(sample(20, 2**31 - 1), got[:20], atol=1e-5)
    assert np.abs(sample(200, 3) - got).min() > 0


def test_rows_with_seeds_of_their_own(exported):
    model, paths = exported
    loaded = tf.saved_model.load(str(paths["savedmodel"]))
    seeds = np.int64([0, 5, 2**31 - 1, 5])
    rows = loaded.signatures["sample_rows"](seed=tf.constant(seeds))["x"].numpy()
    for row, seed in zip(rows, seeds.tolist(), strict=True):
        chosen = model.sample_from_candidates(1, 5, seed)[0]
        np.testing.assert_allclose(row, chosen, atol=1e-6)
    np.testing.assert_array_equal(rows[1], rows[3])
    assert loaded.signatures["sample_rows"](seed=tf.constant(seeds[:0]))["x"].shape == (0, 2)


@pytest.mark.parametrize("relative", [True, False])
def test_laws_of_exact_generators(relative, tmp_path):
    """Those of Keras, which a SavedModel samples like, are in tests/models/test_candidates.py."""
    model = exact(relative)
    check_law_of_many(np.asarray(expected("tflite", model, ROWS, 1, 100))[:, 0])
    path, _ = serving.export_tflite(tmp_path / "m", density(), model, candidates=3)
    check_law_of_three(sampler("tflite", path)(ROWS, 1)[:, 0])


@pytest.mark.parametrize("kind", FORMATS)
def test_an_unknown_constant_of_each_condition_changes_nothing(kind, tmp_path):
    conditions = np.float32([[0.0, 1.0], [2.0, -1.0]] * 200)
    function = getattr(serving, f"export_{kind}")
    model = exact(True, conditions=2)
    path, _ = function(tmp_path / "m", density(2), model, candidates=5)
    got = sampler(kind, path)(400, 2, condition=conditions)
    np.testing.assert_allclose(got, expected(kind, exact(True), 400, 2, 5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FORMATS)
def test_artifacts_tell_how_they_choose(kind, exported):
    facts, card = about(kind, exported[1][kind])
    assert facts["candidates"] == {"number": 5, "sigma": pytest.approx(0.5)}
    assert "chosen from 5 candidates" in card and "at σ = 0.5 (sampling" in card
    assert "costs 5 passes" in card and "in one step" not in card


@pytest.mark.parametrize("relative", [True, False])
def test_another_level_and_no_choice(relative, tmp_path):
    model = of_levels(relative)
    path, _ = serving.export_savedmodel(
        tmp_path / "m", model.data_dde, model, candidates=5, compare_at=0.1
    )
    assert about("savedmodel", path)[0]["candidates"] == {"number": 5, "sigma": 0.1}
    got = sampler("savedmodel", path)(200, 7)
    np.testing.assert_allclose(got, expected("savedmodel", model, 200, 7, 5, sigma=0.1), atol=1e-6)
    assert not np.allclose(got, expected("savedmodel", model, 200, 7, 5))
    path, _ = serving.export_savedmodel(tmp_path / "m", model.data_dde, model, candidates=1)
    facts, card = about("savedmodel", path)
    assert "candidates" not in facts and "candidate" not in card and "in one step" in card
    got = sampler("savedmodel", path)(200, 7)
    np.testing.assert_allclose(got, model.sample(200, seed=7), atol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_can_not_be_chosen_is_refused(kind, tmp_path):
    function = getattr(serving, f"export_{kind}")
    model = exact(True)
    for generator, options, message in (
        (None, {"candidates": 8}, "`candidates` = 8 needs a generator"),
        (model, {"candidates": 0}, "`candidates` must be an integer >= 1, got 0"),
        (model, {"candidates": 2.0}, "`candidates` must be an integer"),
        (model, {"compare_at": SIGMA}, "`compare_at` = 0.5 needs `candidates` > 1"),
        (model, {"candidates": 2, "compare_at": 0.4}, "`compare_at` must be 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            function(tmp_path / "m", density(), generator, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [savedmodel, tflite, onnx])
def test_an_artifact_that_does_not_choose_is_not_kept(module, tmp_path, monkeypatch):
    of_signatures = module.signatures
    monkeypatch.setattr(
        module, "signatures", lambda *args, choice, **options: of_signatures(*args, **options)
    )
    function = getattr(serving, f"export_{module.__name__.rpartition('.')[2]}")
    with pytest.raises(serving.ExportError, match="`sample` of the artifact differs from Keras"):
        function(tmp_path / "m", density(), exact(True), candidates=2)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_rounded_file_may_choose_otherwise_where_candidates_are_as_good(exported, tmp_path):
    model, paths = exported
    path, errors = serving.export_tflite(
        tmp_path / "h.tflite", model.data_dde, model, float16=True, candidates=5
    )
    assert serving.BOUND < errors["sample"] < serving.FLOAT16_BOUND
    whole, half = (sampler("tflite", p)(2_000, 1) for p in (paths["tflite"], path))
    apart = np.abs(half - whole).max(axis=1) > 1e-2 * np.abs(whole).max()
    assert apart.mean() < 0.02


def test_a_fixed_batch_and_builtin_operations(exported, tmp_path, capfd):
    model, _ = exported
    path, _ = serving.export_tflite(
        tmp_path / "m.tflite", model.data_dde, model, batch_size=16, candidates=5
    )
    runner = Interpreter(str(path)).get_signature_runner("sample")
    for details in (runner.get_input_details(), runner.get_output_details()):
        for each in details.values():
            np.testing.assert_array_equal(each["shape"], each["shape_signature"])
    got = runner(seed=np.int32(5))["x"]
    np.testing.assert_allclose(got, expected("tflite", model, 16, 5, 5), atol=1e-5)
    tf.lite.experimental.Analyzer.analyze(model_path=str(path))
    assert not re.search("FLEX|CUSTOM", capfd.readouterr().out.upper())


def test_random_numbers_of_candidates_are_independent():
    numbers = counter_draws(2, (3, 1), tf.constant(20_000), tf.constant(7))
    columns = [numbers.latent(0), numbers.latent(tf.constant(1)), numbers.latent(tf.constant(2))]
    columns += [tf.reshape(numbers.noise(tf.constant(k)), (-1, 3)) for k in range(3)]
    uniform = np.stack([numbers.uniform(tf.constant(k)) for k in range(3)], axis=1)
    assert numbers.noise(0).shape == (20_000, 3, 1) and uniform.min() > 0 and uniform.max() <= 1
    normal = np.concatenate(columns, axis=1)
    for column in normal.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-4
    for column in uniform.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-4
    off = np.corrcoef(normal, uniform, rowvar=False) - np.eye(18)
    assert np.abs(off).max() < 5 / np.sqrt(20_000)
    np.testing.assert_array_equal(numbers.latent(0), numbers.latent(tf.constant(0)))


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "export" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_savedmodel_script(tmp_path, capsys):
    model = of_levels()
    model.data_dde.save(tmp_path / "density.keras")
    options = [str(tmp_path), "--candidates=3", "--compare-at=0.2"]
    assert script("savedmodel").main(options) == 2
    assert capsys.readouterr().err.startswith("error: `candidates` = 3 needs a generator")
    model.save(tmp_path / "generator.keras")
    assert script("savedmodel").main(options) == 0
    got = sampler("savedmodel", tmp_path / "savedmodel/1")(50, 9)
    np.testing.assert_allclose(got, expected("savedmodel", model, 50, 9, 3, sigma=0.2), atol=1e-6)


@pytest.mark.parametrize("name, kind", [("tflite", "tflite"), ("onnx_models", "onnx")])
def test_other_scripts_pass_their_options_on(name, kind, tmp_path, monkeypatch):
    given = []

    def export(output, *models, **options):
        given.append(options)
        return output, {"log_density": 0.0, "log_density_nats": 0.0}

    monkeypatch.setattr(serving, f"export_{kind}", export)
    density().save(tmp_path / "density.keras")
    assert script(name).main([str(tmp_path), "--candidates=3", "--compare-at=0.2"]) == 0
    assert script(name).main([str(tmp_path)]) == 0
    asked, plain = given
    assert (asked["candidates"], asked["compare_at"]) == (3, 0.2)
    assert (plain["candidates"], plain["compare_at"]) == (1, None)
