"""MNIST, Fashion-MNIST, data sets made of them, and scikit-learn's small digits."""

from __future__ import annotations

import gzip
import math
import os
import queue
import socket
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdde.datasets.tables import Table
from tfdde.utils.checks import check_integer

DATA_DIR_VARIABLE = "TFDDE_DATA_DIR"
_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_HOST = "storage.googleapis.com"  # tensorflow-datasets downloads both from here
_PROBE_SECONDS = 5


@dataclass(frozen=True)
class ImageData:
    """Images, float32 (n, rows, columns, channels) in [0, 1], and their labels, int64 (n,)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Read a file of unsigned bytes in LeCun's IDX format, plain or gzip.

    Returns:
        uint8 array of the shape that the header gives.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not in the IDX format, does not hold bytes, or is shorter or longer
            than its header says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"IDX file {str(path)!r} does not exist.")
    with open(path, "rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if compressed else open(path, "rb") as f:
            magic = f.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != 8 or not 1 <= magic[3] <= 4:
                raise ValueError(
                    f"{str(path)!r} is not an IDX file of unsigned bytes: expected a header "
                    f"00 00 08 followed by 1 to 4 dimensions, got {magic.hex(' ') or 'nothing'}."
                )
            header = f.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                raise ValueError(f"{str(path)!r} ends within its header of {magic[3]} dimensions.")
            shape = struct.unpack(f">{magic[3]}I", header)
            expected = math.prod(shape)
            # Read in pieces, so that a wrong header does not allocate the size that it claims.
            pieces, found = [], 0
            while found <= expected and (piece := f.read(min(1 << 24, expected + 1 - found))):
                pieces.append(piece)
                found += len(piece)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}.") from None
    if found != expected:
        more = "more than that" if found > expected else f"{found}"
        raise ValueError(
            f"{str(path)!r} must hold {expected} bytes after its header, as its shape {shape} "
            f"says, got {more}."
        )
    return np.frombuffer(b"".join(pieces), np.uint8).reshape(shape)


def _scaled(parts: dict[str, np.ndarray]) -> ImageData:
    """Scale images of bytes to [0, 1] and check that they fit their labels."""
    for split in ("train", "test"):
        images, labels = parts[f"x_{split}"], parts[f"y_{split}"]
        if images.ndim not in (3, 4) or labels.ndim != 1 or len(images) != len(labels):
            raise ValueError(
                f"The {split} images must have shape (n, rows, columns) and the labels (n,), "
                f"got {images.shape} and {labels.shape}."
            )
        if len(images) == 0:
            raise ValueError(f"The {split} images are empty.")
        images = images.reshape(*images.shape[:3], 1)
        parts[f"x_{split}"] = images.astype(np.float32) / np.float32(255)
        parts[f"y_{split}"] = labels.astype(np.int64)
    return ImageData(**parts)


def _find(folder: Path, name: str) -> dict[str, Path] | None:
    """Return the four IDX files in ``folder`` or ``folder/name``; None if one is missing."""
    for place in (folder, folder / name):
        found = {
            part: path
            for part, stem in _FILES.items()
            for path in (place / stem, place / f"{stem}.gz")
            if path.is_file()
        }
        if len(found) == len(_FILES):
            return found
    return None


def _connection_error(host: str, seconds: float) -> str | None:
    """Why ``host`` can't be reached over HTTPS within so many seconds; None if it can.

    Looking up a name has no time limit of its own, and a host may have many addresses.
    """
    errors: queue.Queue = queue.Queue()

    def connect() -> None:
        try:
            socket.create_connection((host, 443), timeout=seconds).close()
        except OSError as error:
            errors.put(str(error))
        else:
            errors.put(None)

    threading.Thread(target=connect, daemon=True).start()
    try:
        return errors.get(timeout=seconds)
    except queue.Empty:
        return f"no answer within {seconds:g} s"


def _from_tfds(name: str) -> ImageData:
    """Load a data set by tensorflow-datasets, which downloads it if need be."""
    where = (
        f"Put the four original IDX files in a folder and give it as `data_dir` (--data-dir) or "
        f"in the environment variable {DATA_DIR_VARIABLE}"
    )
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise FileNotFoundError(
            f"No {name} data: {where}, or install tensorflow-datasets to download them "
            "(pip install 'tfdde[data]')."
        ) from None
    builder = tfds.builder(name)
    if not builder.data_path.exists():
        # tensorflow-datasets retries an unreachable host for minutes, so test the connection first.
        if error := _connection_error(_HOST, _PROBE_SECONDS):
            raise FileNotFoundError(
                f"No {name} data: tensorflow-datasets has not prepared them and {_HOST} cannot be "
                f"reached ({error}). {where}, or run again where the download works."
            )
        print(f"Downloading {name} with tensorflow-datasets to {builder.data_path}.", flush=True)
        builder.download_and_prepare()
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        both = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
        arrays[f"x_{split}"], arrays[f"y_{split}"] = both["image"], both["label"]
    return _scaled(arrays)


def _load(name: str, data_dir: str | os.PathLike | None) -> ImageData:
    folder = data_dir if data_dir is not None else os.environ.get(DATA_DIR_VARIABLE)
    if folder:
        paths = _find(Path(folder), name)
        if paths is not None:
            return _scaled({part: read_idx(path) for part, path in paths.items()})
        # An explicit folder without the files is an error; the variable may be for other data.
        if data_dir is not None:
            raise FileNotFoundError(
                f"`data_dir` must hold the files {', '.join(_FILES.values())} (or .gz), itself or "
                f"in its folder {name!r}, got {str(folder)!r}, which does not."
            )
    return _from_tfds(name)


def load_mnist(data_dir: str | os.PathLike | None = None) -> ImageData:
    """Load MNIST: 60,000 training and 10,000 test digits, 28 x 28 pixels.

    The IDX files are looked for in ``data_dir`` or else in the folder that the environment variable
    TFDDE_DATA_DIR names, and there also in a folder ``mnist``. Without them,
    tensorflow-datasets is used, which downloads the data if need be.

    Args:
        data_dir: folder with the four original files, plain or gzip.

    Returns:
        ``ImageData``: pixels in [0, 1].

    Raises:
        FileNotFoundError: there are no data; the message, which comes within seconds, says what to
            do.
        ValueError: a file is damaged.
    """
    return _load("mnist", data_dir)


def load_fashion_mnist(data_dir: str | os.PathLike | None = None) -> ImageData:
    """Load Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28 x 28 pixels.

    Sources, arguments and errors are those of ``load_mnist``; the inner folder is
    ``fashion_mnist``.
    """
    return _load("fashion_mnist", data_dir)


def load_digits(seed: int = 0) -> ImageData:
    """Load scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, which come with that package.

    >>> digits = tfdde.datasets.load_digits()
    >>> digits.x_train.shape, digits.x_test.shape
    ((1500, 8, 8, 1), (297, 8, 8, 1))

    Args:
        seed: fixes which 297 digits are for the test.

    Returns:
        ``ImageData``: the pixels 0 ... 16 are divided by 16.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: the seed is out of range.
    """
    order = np.random.default_rng(check_integer(seed, "seed", minimum=0)).permutation(1797)
    try:
        import sklearn.datasets
    except ImportError:
        raise ImportError(
            "The digits come with scikit-learn: pip install 'tfdde[train]'."
        ) from None
    bunch = sklearn.datasets.load_digits()
    images = (bunch.images[order] / 16).astype(np.float32)[..., None]
    labels = bunch.target[order].astype(np.int64)
    return ImageData(images[:1500], labels[:1500], images[1500:], labels[1500:])


def load_stacked_mnist(data_dir: str | os.PathLike | None = None, seed: int = 0) -> ImageData:
    """Load stacked MNIST: three random digits as red, green and blue, which makes 1,000 classes.

    Errors are those of ``load_mnist``.

    Args:
        data_dir: as for ``load_mnist``.
        seed: fixes which digits are stacked.

    Returns:
        As many images as MNIST has, float32 (n, 28, 28, 3) in [0, 1]; each digit is used once in
        each colour. The label is 100 red + 10 green + blue.
    """
    rng = np.random.default_rng(check_integer(seed, "seed", minimum=0))
    data = load_mnist(data_dir)
    parts = {}
    for split in ("train", "test"):
        images, labels = getattr(data, f"x_{split}"), getattr(data, f"y_{split}")
        orders = [rng.permutation(len(images)) for _ in range(3)]
        parts[f"x_{split}"] = np.concatenate([images[order] for order in orders], axis=-1)
        red, green, blue = (labels[order] for order in orders)
        parts[f"y_{split}"] = 100 * red + 10 * green + blue
    return ImageData(**parts)


def load_mnist_components(
    components: int = 43, data_dir: str | os.PathLike | None = None, seed: int = 0
) -> Table:
    """Load the leading principal components of MNIST: by default 43 columns, as MINIBOONE has.

    Pixels are dequantised: (255 x + u) / 256 with u uniform in [0, 1). The axes are those of the
    training rows, and one factor scales the mean variance to 1. Errors are those of
    ``load_mnist``.

    Args:
        components: the number of components, up to 784.
        data_dir: as for ``load_mnist``.
        seed: fixes the noise and the split.

    Returns:
        A table of 55,000 training, 5,000 validation and 10,000 test rows; the last are the test
        images.
    """
    rng = np.random.default_rng(check_integer(seed, "seed", minimum=0))
    data = load_mnist(data_dir)
    if check_integer(components, "components") > data.x_train[0].size:
        raise ValueError(
            f"`components` must be at most {data.x_train[0].size}, the number of pixels, "
            f"got {components}."
        )

    def dequantised(images: np.ndarray) -> np.ndarray:
        pixels = images.reshape(len(images), -1) * np.float32(255)
        return (pixels + rng.random(pixels.shape, np.float32)) / np.float32(256)

    images, test = dequantised(data.x_train), dequantised(data.x_test)
    images = images[rng.permutation(len(images))]
    train, validation = np.split(images, [-len(images) // 12])
    mean = train.mean(axis=0, dtype=np.float64)
    variances, axes = np.linalg.eigh(np.cov(train, rowvar=False))
    project = axes[:, -components:] / math.sqrt(variances[-components:].mean())
    first, second, third = (
        ((x - mean) @ project).astype(np.float32) for x in (train, validation, test)
    )
    return Table(first, second, third, tuple(f"component {k}" for k in range(components, 0, -1)))
