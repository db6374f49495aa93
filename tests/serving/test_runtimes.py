"""One artifact in other people's runtimes, and the requests of docs/serving.md."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tfdde import serving

ROOT = Path(__file__).parents[2]
X = np.float32([[0.1, 0.2], [1.5, -0.3], [30, 40]])
Z = np.float32([[0.0, 0.5, -1.0], [2, 0, 1]])
SEEDS = [7, 2**31 - 1, 7]
SIGNATURES = {"serving_default", "log_density", "score", "decode", "sample", "sample_rows"}
SIGNATURES |= {"log_density_float64", "score_float64"}
BODIES = [
    json.loads(text)
    for text in re.findall(r"```json\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.S)
]
ROWS = [body for body in BODIES if "instances" in body]
V2 = [body for body in BODIES if "datatype" in json.dumps(body)]
COLUMNS = [body for body in BODIES if body not in ROWS and body not in V2]


def assert_close(got, want):
    assert np.shape(got) == want.shape and want.size
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * np.abs(want).max())


def run(command, text=""):
    done = subprocess.run(
        list(map(str, command)), input=text, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def tool(name):
    """A program that a package of this environment installed."""
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), *sys.path]))
    return path or pytest.skip(f"no {name}")


def test_saved_model_cli(artifacts, expected, tmp_path):
    command, saved = tool("saved_model_cli"), artifacts[0]
    shown = run([command, "show", "--dir", saved, "--tag_set", "serve"])
    assert set(re.findall(r'SignatureDef key: "(\w+)"', shown)) >= SIGNATURES
    np.save(tmp_path / "x.npy", X)
    options = ["--tag_set", "serve", "--signature_def", "score", "--outdir", tmp_path]
    run([command, "run", "--dir", saved, *options, "--inputs", f"x={tmp_path / 'x.npy'}"])
    assert_close(np.load(tmp_path / "score.npy"), expected("score", x=X))


def test_c_program(artifacts, expected, tmp_path):
    gcc = shutil.which("gcc") or pytest.skip("no gcc")
    wheel = Path(tf.__file__).parent
    libraries = ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    place = [f"-I{wheel / 'include'}", f"-L{wheel}", *libraries, f"-Wl,-rpath,{wheel}"]
    program = tmp_path / "run"
    run([gcc, "-Wall", "-Wextra", "-Werror", ROOT / "examples/c/run.c", "-o", program, *place])
    for name, inputs in (
        ("log_density", {"x": X}),
        ("score", {"x": X}),
        ("sample_rows", {"seed": np.int64(SEEDS)}),
    ):
        (value,) = inputs.values()
        text = "\n".join(map(str, value.ravel().tolist()))
        repeats = ["3"] if name == "log_density" else []
        command = [program, artifacts[0], name, *repeats]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        want = expected(name, **inputs)
        assert_close(np.array(done.stdout.split(), np.float64).reshape(want.shape), want)
        if repeats:  # then it tells the seconds of each
            assert min(map(float, done.stderr.split()[-3:])) > 0
    failed = subprocess.run([program, artifacts[0], "no"], capture_output=True, text=True)
    assert failed.returncode == 1 and "error: no: not in this SavedModel" in failed.stderr


def test_batches_of_several_requests_give_each_its_rows(artifacts):
    """By TensorFlow's batching, whose scheduler TensorFlow Serving has, too."""
    text = (ROOT / "docs/serving.md").read_text()
    settings = dict(re.findall(r"^    (\w+) \{ value: (\w+) \}$", text, re.M))
    assert settings.pop("enable_large_batch_splitting") == "true"
    settings = {name: int(value) for name, value in settings.items()}
    most = settings.pop("max_execution_batch_size")
    loaded = tf.saved_model.load(str(artifacts[0]))

    def batched(name, shape, dtype, timeout):
        """The signature for several callers: its rows, and of each the size of its batch."""

        options = settings | {"batch_timeout_micros": timeout, "allowed_batch_sizes": [8, most]}

        @tf.nondifferentiable_batch_function(**options)
        def function(rows):
            (output,) = loaded.signatures[name](rows).values()
            return output, tf.fill(tf.shape(rows)[:1], tf.shape(rows)[0])

        @tf.function(input_signature=[tf.TensorSpec((None, *shape), dtype)])
        def call(rows):
            # The queue's name comes from the scope, and callers of one name share it.
            with tf.name_scope(f"{name}_{timeout}"):
                return function(rows)

        return call

    rng = np.random.default_rng(0)
    sizes = [600, 100, 1, 3 * most - 701]  # three whole batches, whoever comes first
    for name, shape in (
        ("serving_default", (2,)),
        ("log_density", (2,)),
        ("score", (2,)),
        ("decode", (3,)),
        ("sample_rows", ()),
    ):
        rows = rng.standard_normal((sum(sizes), *shape)).astype(np.float32)
        if name == "sample_rows":
            rows = rng.integers(2**31, size=sum(sizes))
        requests = np.split(rows, np.cumsum(sizes)[:-1])
        alone = [next(iter(loaded.signatures[name](tf.constant(r)).values())) for r in requests]

        joined = batched(name, shape, rows.dtype, 60_000_000)
        with ThreadPoolExecutor(len(sizes)) as callers:
            answers = list(callers.map(joined, requests))
        for (got, batch), want in zip(answers, alone, strict=True):
            assert_close(got, want.numpy())
            np.testing.assert_array_equal(batch, most)

        # And a single caller's batch, filled up to an allowed size.
        few = batched(name, shape, rows.dtype, settings["batch_timeout_micros"])
        got, batch = few(rows[:3])
        assert_close(got, alone[0].numpy()[:3])
        np.testing.assert_array_equal(batch, 8)

    too_many = np.zeros((settings["max_batch_size"] + 1, *shape), rows.dtype)
    with pytest.raises(tf.errors.InvalidArgumentError, match="larger than maximum input batch"):
        few(too_many)
    scalar = tf.nondifferentiable_batch_function(**settings)(lambda n, s: n)
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least one dimension"):
        scalar(tf.constant(3), tf.constant(7, tf.int64))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_openvino(artifacts, expected, batch):
    openvino = pytest.importorskip("openvino")
    core, saved = openvino.Core(), artifacts[0]
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(saved), "CPU", exact)
    if batch == 0:
        assert model(X[:0])["log_density"].shape == (0,)
        return
    assert_close(model(X[:batch])["log_density"], expected("log_density", x=X[:batch]))
    model = core.compile_model(core.read_model(artifacts[1]), "CPU", exact)
    assert_close(model(Z[:batch])[0], expected("decode", z=Z[:batch]))


def test_openvino_reads_the_density_of_a_file_without_a_generator(models, expected, tmp_path):
    openvino = pytest.importorskip("openvino")
    lite, _ = serving.export_tflite(tmp_path / "density.tflite", models[0])
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(lite, "CPU", exact)
    assert_close(model(X)[0], expected("log_density", x=X))


def test_threads_get_the_values_of_a_single_one(artifacts):
    """16 threads share a SavedModel; each has an interpreter of its own for the TFLite file."""
    loaded = tf.saved_model.load(str(artifacts[0]))
    local = threading.local()

    def saved(name, inputs):
        inputs = {key: tf.constant(value) for key, value in inputs.items()}
        return next(iter(loaded.signatures[name](**inputs).values())).numpy()

    def lite(name, inputs):
        if not hasattr(local, "interpreter"):
            local.interpreter = Interpreter(model_path=str(artifacts[1]))
        if name == "sample":
            inputs = {"num": inputs["num"], "seed": np.int32(inputs["seed"])}
        return next(iter(local.interpreter.get_signature_runner(name)(**inputs).values()))

    rng = np.random.default_rng(0)
    calls = []
    for i in range(320):
        rows = int(rng.integers(1, 40))
        x, z = rng.normal(size=(2, rows, 3)).astype(np.float32)
        calls.append(
            [
                ("log_density", {"x": x[:, :2]}),
                ("score", {"x": x[:, :2]}),
                ("decode", {"z": z}),
                ("sample", {"num": np.int32(rows), "seed": np.int64(i)}),
            ][i % 4]
        )
    for run_signature in (saved, lite):
        alone = [run_signature(*call) for call in calls]
        with ThreadPoolExecutor(16) as threads:
            together = list(threads.map(lambda call: run_signature(*call), calls))  # noqa: B023
        for got, expected in zip(together, alone, strict=True):
            np.testing.assert_array_equal(got, expected)


def predict(signatures, body):
    """A REST request by the rules of TensorFlow Serving: the signature, its inputs and answer."""
    name = body.get("signature_name", "serving_default")
    specs = signatures[name].structured_input_signature[1]
    given = body.get("instances", body.get("inputs"))
    if "instances" in body:
        if isinstance(given[0], dict):
            given = {key: [row[key] for row in given] for key in given[0]}
        assert all(spec.shape.rank for spec in specs.values())
    if not isinstance(given, dict):
        (only,) = specs
        given = {only: given}
    tensors = {key: tf.constant(value, specs[key].dtype) for key, value in given.items()}
    (output,) = signatures[name](**tensors).values()
    return name, given, output.numpy()


@pytest.mark.parametrize(
    ("bodies", "names"),
    [(ROWS, SIGNATURES - {"sample"}), (COLUMNS, SIGNATURES)],
    ids=["rows", "columns"],
)
def test_rest_requests_of_the_documentation(artifacts, expected, bodies, names):
    loaded = tf.saved_model.load(str(artifacts[0]))
    tried = set()
    for body in bodies:
        assert set(body) <= {"signature_name", "instances", "inputs"}
        name, given, output = predict(loaded.signatures, body)
        assert_close(output, expected(name, **given))
        tried.add(name)
    assert tried == names


def test_documentation_has_the_bound_and_files_there_are():
    text = (ROOT / "docs/serving.md").read_text()
    assert f"more than {serving.FLOAT16_BOUND:.0%}".replace("%", " %") in text
    for path in re.findall(r"`?((?:examples|export)/[\w./]+)", text):
        assert (ROOT / path).exists() or path == "examples/mlserver/savedmodel"
