"""IDX files, genuine and damaged, and what is said when there are no data."""

import gzip
import hashlib
import os
import struct
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfdde.datasets import (
    images,
    load_digits,
    load_fashion_mnist,
    load_mnist,
    load_mnist_components,
    load_stacked_mnist,
)

REAL = Path(os.environ.get("TFDDE_DATA_DIR", ".")) / "mnist"
real = pytest.mark.skipif(not REAL.is_dir(), reason="TFDDE_DATA_DIR holds no mnist")


def idx(array, claim=None):
    shape = claim or array.shape
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + array.tobytes()


def write(folder, compress=True, **change):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (6, 5, 4), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(6, dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (3, 5, 4), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(3, dtype=np.uint8),
    }
    for name, array in parts.items():
        content = change.get(name.replace("-", "_"), idx(array))
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return parts


def test_principal_components_of_dequantised_pixels(tmp_path):
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((240, 3)) @ (20 * rng.standard_normal((3, 20)))
    pixels = np.clip(128 + mixed, 0, 255).astype(np.uint8).reshape(240, 5, 4)
    digits = {"train_images_idx3_ubyte": idx(pixels), "t10k_images_idx3_ubyte": idx(pixels[:50])}
    labels = {"train_labels_idx1_ubyte": idx(np.zeros(240, np.uint8))}
    write(tmp_path, **digits, **labels, t10k_labels_idx1_ubyte=idx(np.zeros(50, np.uint8)))
    table = load_mnist_components(3, tmp_path, seed=1)
    assert [len(x) for x in (table.x_train, table.x_validation, table.x_test)] == [220, 20, 50]
    assert table.columns == ("component 3", "component 2", "component 1")
    covariance = np.cov(table.x_train, rowvar=False, bias=True)
    assert np.trace(covariance) == pytest.approx(3, rel=0.01)
    assert np.all(np.diff(np.diag(covariance)) > 0)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-5)
    # An isometry but for one factor: up to what is cut off, distances are those of the pixels.
    flat = (pixels[:50].reshape(50, -1) + 0.5) / 256
    distances = [
        np.linalg.norm(x[:, None] - x, axis=-1)[np.triu_indices(50, 1)]
        for x in (table.x_test, flat)
    ]
    ratio = distances[0] / distances[1]
    assert ratio.std() < 0.03 * ratio.mean()
    with pytest.raises(ValueError, match="`components` must be at most 20, the number of pixels"):
        load_mnist_components(21, tmp_path)


def test_stacked_digits(tmp_path):
    write(tmp_path)
    digits = load_mnist(tmp_path)
    stacked = load_stacked_mnist(tmp_path, seed=1)
    for x, y, single, labels in (
        (stacked.x_train, stacked.y_train, digits.x_train, digits.y_train),
        (stacked.x_test, stacked.y_test, digits.x_test, digits.y_test),
    ):
        assert x.shape == (len(single), 5, 4, 3) and x.dtype == np.float32
        for channel in range(3):
            digit = y // 10 ** (2 - channel) % 10
            assert sorted(digit) == sorted(labels)  # each digit once a channel
            np.testing.assert_array_equal(x[..., channel], single[digit, ..., 0])
    assert (load_stacked_mnist(tmp_path, seed=2).y_train != stacked.y_train).any()


@real
def test_genuine_files():
    expected = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    for name, digest in expected.items():
        content = gzip.decompress((REAL / f"{name}.gz").read_bytes())
        assert hashlib.md5(content).hexdigest() == digest
    data = load_mnist()  # through the environment variable
    assert data.x_train.shape == (60_000, 28, 28, 1) and data.x_test.shape == (10_000, 28, 28, 1)
    assert data.x_train.dtype == np.float32
    assert data.x_train.min() == 0 and data.x_train.max() == 1
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    pixels = images.read_idx(REAL / "t10k-images-idx3-ubyte.gz")
    np.testing.assert_allclose(data.x_test[..., 0], pixels / 255, atol=1e-7)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("inner", [".", "mnist"])
def test_folder_of_files(tmp_path, compress, inner):
    parts = write(tmp_path / inner, compress)
    data = load_mnist(tmp_path)
    np.testing.assert_allclose(data.x_train[..., 0] * 255, parts["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.y_test, [0, 1, 2])


def test_environment_variable(tmp_path, monkeypatch):
    write(tmp_path / "fashion_mnist")
    monkeypatch.setenv("TFDDE_DATA_DIR", str(tmp_path))
    assert load_fashion_mnist().x_train.shape == (6, 5, 4, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file of unsigned bytes.*got nothing"),
        (b"garbage, not an IDX file", "not an IDX file of unsigned bytes"),
        (b"\0\0\x0d\x01\0\0\0\1aaaa", "not an IDX file of unsigned bytes"),  # floats
        (b"\0\0\x08\x03\0\0", "ends within its header of 3 dimensions"),
        (idx(np.zeros((2, 5, 4), np.uint8))[:-1], "must hold 40 bytes.*got 39"),
        (idx(np.zeros((2, 5, 4), np.uint8)) + b"!", "must hold 40 bytes.*got more than that"),
        (idx(np.zeros(9, np.uint8), claim=(2**32 - 1,) * 4), "must hold .* bytes.*got 9"),
        (idx(np.zeros((4, 5, 4), np.uint8)), r"train images must .* got \(4, 5, 4\) and \(6,\)"),
        (idx(np.zeros((0, 5, 4), np.uint8)), r"\(0, 5, 4\)"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    write(tmp_path, train_images_idx3_ubyte=content)
    with pytest.raises(ValueError, match=message):
        load_mnist(tmp_path)


def test_damaged_compression(tmp_path):
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for broken in (whole[:-9], whole[:12] + b"\xff\xff\xff" + whole[15:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"train-images.*cannot be read"):
            load_mnist(tmp_path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=40) | st.binary(max_size=30).map(lambda b: b"\0\0\x08" + b))
def test_any_bytes_give_an_array_or_a_clear_error(tmp_path, content):
    path = tmp_path / "any"
    path.write_bytes(content)
    try:
        array = images.read_idx(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert array.dtype == np.uint8 and content.endswith(array.tobytes())


def test_folder_without_the_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="`data_dir` must hold the files train-images"):
        load_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        images.read_idx(tmp_path / "nothing")


def fake_builder(monkeypatch, data_path):
    def as_dataset(split, batch_size):
        n = {"train": 4, "test": 2}[split]
        return {"image": np.full((n, 5, 4, 1), 255, np.uint8), "label": np.arange(n)}

    builder = SimpleNamespace(data_path=data_path, as_dataset=as_dataset)
    module = SimpleNamespace(builder=lambda name: builder, as_numpy=lambda x: x)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    monkeypatch.delenv("TFDDE_DATA_DIR", raising=False)
    return builder


def test_prepared_by_tensorflow_datasets(tmp_path, monkeypatch):
    fake_builder(monkeypatch, tmp_path)
    data = load_mnist()
    assert data.x_train.shape == (4, 5, 4, 1) and data.x_train.max() == 1
    np.testing.assert_array_equal(data.y_test, [0, 1])


def test_reachable_data_are_downloaded(tmp_path, monkeypatch):
    builder = fake_builder(monkeypatch, tmp_path / "none")
    builder.download_and_prepare = lambda: (tmp_path / "none").mkdir()
    closed = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(images.socket, "create_connection", lambda *a, **k: closed)
    assert load_mnist().x_train.shape == (4, 5, 4, 1)
    assert (tmp_path / "none").exists()


def test_unreachable_data_are_one_sentence_within_15_seconds(tmp_path, monkeypatch):
    """With the real tensorflow-datasets, and a host name that never resolves."""
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.delenv("TFDDE_DATA_DIR", raising=False)
    monkeypatch.setattr(images, "_HOST", "host.invalid")
    real_builder = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name: real_builder(name, data_dir=tmp_path))
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="cannot be reached.*TFDDE_DATA_DIR") as caught:
        load_mnist()
    assert time.monotonic() - start < 15
    assert "\n" not in str(caught.value)


def test_a_host_that_never_answers_costs_no_more_than_its_seconds(monkeypatch):
    """Neither a slow look-up of its name nor its many addresses add to them."""
    wait = threading.Event()

    def connect(*args, **kwargs):
        wait.wait(60)
        raise OSError

    monkeypatch.setattr(images.socket, "create_connection", connect)
    start = time.monotonic()
    assert images._connection_error("host", 0.2) == "no answer within 0.2 s"
    assert time.monotonic() - start < 2
    wait.set()


def test_small_digits():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    digits, others = load_digits(), load_digits(seed=1)
    bunch = sklearn_datasets.load_digits()
    together = np.concatenate([digits.x_train, digits.x_test])[..., 0] * 16
    labels = np.concatenate([digits.y_train, digits.y_test])
    assert len(digits.x_test) == 297 and digits.x_train.max() == 1 and digits.x_train.min() == 0

    def in_order(images, labels):
        return sorted(map(tuple, np.column_stack([images.reshape(1797, -1), labels])))

    assert in_order(together, labels) == in_order(bunch.images, bunch.target)
    assert not np.array_equal(digits.x_test, others.x_test)
    with pytest.raises(ValueError, match="`seed` must be an integer >= 0, got -1"):
        load_digits(seed=-1)


def test_without_scikit_learn_there_are_no_digits(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'tfdde\[train\]'"):
        load_digits()


def test_without_tensorflow_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.delenv("TFDDE_DATA_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match=r"--data-dir.*pip install 'tfdde\[data\]'"):
        load_fashion_mnist()
