"""The folder examples/mlserver, started as docs/serving.md says, answers the requests there."""

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from test_runtimes import ROOT, SIGNATURES, V2, assert_close, tool

from tfdde.scoring import score_file


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
        if "price" in given:  # one input for each column
            given = {"x": np.stack([given["price"], given["weight"]], axis=1)}
        assert_close(np.reshape(output["data"], output["shape"]), expected(name, **given))
        tried.add(name)
    assert tried == SIGNATURES


def test_mlserver_tells_inputs_and_outputs_of_the_signatures(server):
    with urllib.request.urlopen(f"{server[0]}/v2/models/density", timeout=60) as response:
        about = json.load(response)
    x = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    value = {"name": "log_density", "datatype": "FP32", "shape": [-1]}
    assert (about["inputs"], about["outputs"]) == ([x], [value])
    assert about["parameters"]["columns"] == ["price", "weight"]
    signatures = about["parameters"]["signatures"]
    assert set(signatures) == SIGNATURES
    assert signatures["score"] == {"inputs": [x], "outputs": [x | {"name": "score"}]}
    assert signatures["sample"]["inputs"] == [
        {"name": "num", "datatype": "INT32", "shape": []},
        {"name": "seed", "datatype": "INT64", "shape": []},
    ]


def by_column(*columns, **more):
    """A request of columns, each a name, a datatype and values."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}
        for name, datatype, data in columns
    ]
    return {"inputs": inputs, **more}


def test_mlserver_scores_columns_by_name_as_files_are_scored(server, artifacts, expected, tmp_path):
    """In any order, of any type of number, with others between; the gradient in the model's."""
    price, weight = [0.1, 1.5, 16777217], [0, -3, 2**40]
    columns = [("weight", "INT64", weight), ("id", "BYTES", ["a", "b", "c"])]
    columns.append(("price", "FP64", price))
    x = np.stack([price, weight], axis=1)
    for name in ("log_density", "score"):
        body = by_column(*columns, parameters={"signature": name, "content_type": "pd"})
        status, answer = infer(server[0], body)
        (output,) = answer["outputs"]
        assert status == 200
        got = np.reshape(output["data"], output["shape"])
        want = expected(name, x=x)
        # Entries of a gradient are sums of terms as large as the largest entry of their row.
        largest = np.abs(want).reshape(len(want), -1).max(axis=1)
        errors = np.abs(got - want).reshape(len(want), -1).max(axis=1)
        assert (errors < 5e-6 * largest).all()
        if name == "log_density":
            log_density = got
    (tmp_path / "x.csv").write_text(
        "weight,id,price\n" + "".join(f"{w},a,{p}\n" for p, w in zip(price, weight, strict=True))
    )
    assert score_file(artifacts[0], tmp_path / "x.csv", tmp_path / "scores.csv") == 0
    of_file = np.loadtxt(tmp_path / "scores.csv", delimiter=",", skiprows=1)[:, 1]
    np.testing.assert_allclose(log_density, of_file, rtol=1e-6)


def test_columns_come_beside_a_condition():
    """The condition of a conditional density stays one input."""
    types = pytest.importorskip("mlserver.types")
    model = runpy.run_path(str(ROOT / "examples/mlserver/model.py"))
    specs = {n: tf.TensorSpec((None, 2), tf.float64) for n in ("x", "condition")}
    inputs = [
        types.RequestInput(name="b", datatype="INT32", shape=[2], data=[3, 4]),
        types.RequestInput(name="condition", datatype="FP64", shape=[2, 2], data=[5, 6, 7, 8]),
        types.RequestInput(name="a", datatype="FP64", shape=[2, 1], data=[1.7e9 + 0.25, 2]),
    ]
    got = model["arrays"](inputs, specs, ["a", "b"], "log_density")
    np.testing.assert_array_equal(got["x"], [[1.7e9 + 0.25, 3], [2, 4]])
    np.testing.assert_array_equal(got["condition"], [[5, 6], [7, 8]])
    error = model["InferenceError"]
    with pytest.raises(error, match="must be condition, x, or one for each of the columns a, b"):
        model["arrays"](inputs[::2], specs, ["a", "b"], "log_density")


def test_mlserver_takes_what_pandas_clients_send(server, expected):
    codecs = pytest.importorskip("mlserver.codecs")
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"weight": [2, 3], "price": [0.5, np.nan], "sold": [True, False]})
    body = json.loads(codecs.PandasCodec.encode_request(table).model_dump_json(exclude_none=True))
    status, answer = infer(server[0], body)
    value, missing = answer["outputs"][0]["data"]
    assert (status, missing) == (200, None)
    assert_close([value], expected("log_density", x=[[0.5, 2.0]]))


GOOD = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 0.2]}
PRICE = {"name": "price", "datatype": "FP64", "shape": [1], "data": [0.1]}
WEIGHT = {"name": "weight", "datatype": "INT64", "shape": [1, 1], "data": [2]}
SEED = {"name": "seed", "datatype": "INT64", "shape": [1], "data": [7]}


@pytest.mark.parametrize(
    ("signature", "inputs", "sentence"),
    [
        ("nothing", [GOOD], "The signature must be one of decode, .*, got 'nothing'."),
        ("score", [GOOD | {"datatype": "FP64"}], "The datatype of input 'x' must be FP32, got"),
        ("score", [GOOD | {"name": "y"}], "The inputs of score must be x, .*, got y."),
        ("score", [], "must be x, or one for each of the columns price, weight, got none."),
        ("score", [GOOD, GOOD], "The inputs of score must be x, .* got x, x."),
        ("score", [PRICE], "one for each of the columns price, weight, got price."),
        ("score", [PRICE, WEIGHT, PRICE], "columns price, weight, got price, weight, price."),
        ("score", [PRICE, WEIGHT, GOOD], "columns price, weight, got price, weight, x."),
        ("decode", [PRICE, WEIGHT], "The inputs of decode must be z, got price, weight."),
        (
            "score",
            [PRICE | {"datatype": "BYTES", "data": ["1"]}, WEIGHT],
            "The datatype of column 'price' must be one of numbers, got BYTES.",
        ),
        (
            "score",
            [PRICE | {"shape": [1, 2], "data": [1, 2]}, WEIGHT],
            r"The shape of column 'price' must be \[rows\], got \[1, 2\].",
        ),
        (
            "score",
            [PRICE | {"shape": [2], "data": [1, 2]}, WEIGHT],
            "equal numbers of rows, got price 2, weight 1.",
        ),
        ("score", [PRICE, WEIGHT | {"data": ["2"]}], "data of input 'weight' .* not all are num"),
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
