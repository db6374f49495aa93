"""One artifact in other people's runtimes, and the requests of docs/serving.md."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import tfdde
from tfdde import networks, serving

ROOT = Path(__file__).parents[2]
X = np.float32([[0.1, 0.2], [1.5, -0.3], [30, 40]])
Z = np.float32([[0.0, 0.5, -1.0], [2, 0, 1]])
SEEDS = [7, 2**31 - 1, 7]
SIGNATURES = {"serving_default", "log_density", "score", "decode", "sample", "sample_rows"}
BODIES = [
    json.loads(text)
    for text in re.findall(r"```json\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.S)
]
ROWS = [body for body in BODIES if "instances" in body]
V2 = [body for body in BODIES if "datatype" in json.dumps(body)]
COLUMNS = [body for body in BODIES if body not in ROWS and body not in V2]


@pytest.fixture(scope="module")
def models():
    """A normalised density on a base, of columns of different scales, and a generator to it."""
    keras.utils.set_random_seed(1)
    layer = keras.layers.Normalization()
    layer.adapt(np.float32([[2, 1], [4, 50]]))
    network = networks.residual_mlp(2, width=16, depth=2)
    base = tfdde.GaussianBase(2)
    base.adapt(np.random.default_rng(2).standard_normal((50, 2), np.float32) + 0.5)
    density = tfdde.DDE(network, tfdde.Constant(0.2), base, normalization=layer)
    density.partition = tfdde.LogPartition(2.0, 0.05, 1.9, 2.1, 900.0, "importance", 0.2)
    p, q = (tfdde.DDE(networks.residual_mlp(2, width=4, depth=1)) for _ in range(2))
    decoder = networks.residual_mlp(3, width=16, depth=2, output_shape=2)
    return density, tfdde.Generator(decoder, p, q, latent_dim=3)


@pytest.fixture(scope="module")
def artifacts(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    saved, _ = serving.export_savedmodel(folder / "savedmodel", *models)
    lite, _ = serving.export_tflite(folder / "model.tflite", *models)
    return saved, lite


@pytest.fixture(scope="module")
def expected(models):
    """What a signature must return for its inputs, by Keras."""
    density, generator = models

    def of(name, x=None, z=None, num=None, seed=None):
        if name == "score":
            return density.score(np.float32(x)).numpy()
        if name == "decode":
            return generator.decode(np.float32(z)).numpy()
        if name == "sample":
            return generator.sample(int(num), seed=int(seed)).numpy()
        if name == "sample_rows":
            seeds = np.asarray(seed).tolist()
            return np.concatenate([generator.sample(1, seed=s) for s in seeds])
        return density.log_density(np.float32(x), normalized=True).numpy()

    return of


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


@contextlib.contextmanager
def mlserver(folder):
    """An MLServer of this folder, started as documented; its address.

    Only the addresses to listen at are added to its settings: free ports of this machine.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    settings = json.loads((folder / "settings.json").read_text())
    names = ("http_port", "grpc_port", "metrics_port")
    settings |= {"host": "127.0.0.1"} | dict(zip(names, ports, strict=True))
    (folder / "settings.json").write_text(json.dumps(settings))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLSERVER")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [tool("mlserver"), "start", str(folder)],
            cwd=folder.parent,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that whatever it starts ends with it
        )
    try:
        address = f"http://127.0.0.1:{ports[0]}"
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/v2/models/density/ready", timeout=5).close()
                break
            assert process.poll() is None and time.monotonic() < deadline, (
                folder / "log"
            ).read_text()[-2000:]
            time.sleep(0.2)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def commands(heading):
    """The indented commands in this part of docs/serving.md."""
    text = (ROOT / "docs/serving.md").read_text()
    part = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^    (.*)", part, re.M)


@pytest.fixture(scope="module")
def server(artifacts, tmp_path_factory):
    """The address of an MLServer; its folder was filled twice by the documented command."""
    pytest.importorskip("mlserver")
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "examples/mlserver", folder / "examples/mlserver")
    shutil.copytree(artifacts[0].parent, folder / "runs/mnist/savedmodel")
    (copy,) = [line for line in commands("MLServer") if "cp -r" in line]
    old = folder / "runs/mnist/savedmodel/0"  # an older version, deleted before the second time
    shutil.copytree(artifacts[0], old)
    for _ in range(2):
        subprocess.run(copy, shell=True, check=True, cwd=folder)
        shutil.rmtree(old, ignore_errors=True)
    assert [p.name for p in (folder / "examples/mlserver/savedmodel").iterdir()] == ["1"]
    with mlserver(folder / "examples/mlserver") as address:
        yield address, folder / "examples/mlserver"


def infer(address, body):
    """Status and answer of a V2 request."""
    request = urllib.request.Request(
        f"{address}/v2/models/density/infer",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_mlserver_answers_the_requests_of_the_documentation(server, expected):
    tried = set()
    for body in V2:
        status, answer = infer(server[0], body)
        assert status == 200
        (output,) = answer["outputs"]
        name = body.get("parameters", {}).get("signature", "serving_default")
        given = {x["name"]: np.reshape(x["data"], x["shape"]) for x in body["inputs"]}
        assert_close(np.reshape(output["data"], output["shape"]), expected(name, **given))
        tried.add(name)
    assert tried == SIGNATURES


def test_mlserver_tells_inputs_and_outputs_of_the_signatures(server):
    with urllib.request.urlopen(f"{server[0]}/v2/models/density", timeout=60) as response:
        about = json.load(response)
    x = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    value = {"name": "log_density", "datatype": "FP32", "shape": [-1]}
    assert (about["inputs"], about["outputs"]) == ([x], [value])
    signatures = about["parameters"]["signatures"]
    assert set(signatures) == SIGNATURES
    assert signatures["score"] == {"inputs": [x], "outputs": [x | {"name": "score"}]}
    assert signatures["sample"]["inputs"] == [
        {"name": "num", "datatype": "INT32", "shape": []},
        {"name": "seed", "datatype": "INT64", "shape": []},
    ]


GOOD = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 0.2]}
SEED = {"name": "seed", "datatype": "INT64", "shape": [1], "data": [7]}


@pytest.mark.parametrize(
    ("signature", "inputs", "sentence"),
    [
        ("nothing", [GOOD], "The signature must be one of decode, .*, got 'nothing'."),
        ("score", [GOOD | {"datatype": "FP64"}], "The datatype of input 'x' must be FP32, got"),
        ("score", [GOOD | {"name": "y"}], "The inputs of score must be x, got y."),
        ("score", [], "The inputs of score must be x, got none."),
        ("score", [GOOD, GOOD], "The inputs of score must be x, got x, x."),
        (
            "score",
            [GOOD | {"shape": [2]}],
            r"shape of input 'x' must be \[rows, 2\], got \[2\]",
        ),
        (
            "score",
            [GOOD | {"shape": [1, 3], "data": [1, 2, 3]}],
            r"must be \[rows, 2\], got \[1, 3\]",
        ),
        ("score", [GOOD | {"shape": [-1, 2]}], r"must be \[rows, 2\], got \[-1, 2\]"),
        ("score", [GOOD | {"data": [1.0]}], "The data of input 'x' must be FP32 values that fill"),
        ("score", [GOOD | {"data": ["a", "b"]}], "not all are numbers."),
        ("score", [GOOD | {"data": [1.0, 1e300]}], "not all are finite in float32."),
        ("sample_rows", [SEED | {"data": [7.5]}], "INT64 values .* not all are such integers."),
        (
            "sample_rows",
            [SEED | {"data": [2**80]}],
            "data of input 'seed' must be INT64 values",
        ),
    ],
)
def test_mlserver_answers_bad_requests_by_one_sentence(server, signature, inputs, sentence):
    address, folder = server
    status, answer = infer(address, {"parameters": {"signature": signature}, "inputs": inputs})
    assert status == 400
    assert re.search(sentence, answer["error"]) and "\n" not in answer["error"]
    assert "Traceback" not in (folder / "log").read_text()


def test_mlserver_answers_nan_for_its_row_only(server, expected):
    body = {"inputs": [GOOD | {"shape": [2, 2], "data": [None, 0.0, 0.1, 0.2]}]}
    status, answer = infer(server[0], body)
    missing, value = answer["outputs"][0]["data"]
    assert (status, missing) == (200, None)
    assert_close([value], expected("log_density", x=[[0.1, 0.2]]))


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
