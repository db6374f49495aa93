"""Read and write TFRecord files of tf.Example; reading goes on after a corrupt record.

TensorFlow's own reader stops at the first corrupt record. The format is: length uint64, its
checksum uint32, the record, its checksum uint32, all little-endian
(tensorflow.org/tutorials/load_data/tfrecord). Checksums are masked CRC-32C.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfdde.datasets.readers.headers import open_bytes, reading

Wrong = dict[int, str]  # by its position in a block, why a record is bad


# Arrow's type for each kind of feature, and its name for users.
_TYPES = {"int64_list": pa.int64(), "float_list": pa.float32(), "bytes_list": pa.string()}
_KINDS = {pa.int64(): "integer", pa.float32(): "float", pa.string(): "text"}


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum of the bytes: CRC-32C, rotated by 15 bits, plus a constant.

    >>> from tfdde.datasets.readers.tfrecords import masked_crc
    >>> hex(masked_crc(b"123456789"))
    '0xc78ab0e5'
    """
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _length(head: bytes) -> int | None:
    """The record length in a record's first 12 bytes, or None if its checksum is wrong."""
    if len(head) < 12:
        return None
    length, crc = struct.unpack("<QI", head)
    return length if crc == masked_crc(head[:8]) else None


def read(f: IO[bytes], rows: int, size: int) -> Iterator[tuple[list[bytes], Wrong]]:
    """Yield blocks of records, and which of them are corrupt and why.

    A record that is cut off, or whose length has a wrong checksum, is the last of the file.

    Args:
        f: the file.
        rows: the most records of a block.
        size: the bytes of a block, about.
    """
    known: dict[bytes, int | None] = {}  # lengths by their bytes: most records are equally long
    head: bytes | None = f.read(12)
    while head:
        records: list[bytes] = []
        crcs: list[int] = []
        wrong: Wrong = {}
        total = 0
        while head and len(records) < rows and total < size:
            if head not in known:
                known = known if len(known) < 1000 else {}
                known[head] = _length(head)
            length = known[head]
            body = b"" if length is None else f.read(length + 4)
            if length is None or len(body) < length + 4:
                wrong[len(records)] = "record has a corrupt length or is cut off: the file ends"
                body, head = bytes(4), None
            else:
                head = f.read(12)
            records.append(body[:-4])
            crcs.append(struct.unpack("<I", body[-4:])[0])
            total += len(body)
        for i, (record, crc) in enumerate(zip(records, crcs, strict=True)):
            if masked_crc(record) != crc:
                wrong.setdefault(i, "record is corrupt: its checksum does not match")
        yield records, wrong


def parse(
    records: Sequence[bytes], wrong: Wrong, width: int, condition_dim: int, schema: Any
) -> tuple[np.ndarray, list[str | None], Any]:
    """Parse records of tf.Example with a feature ``x`` and, for a condition, ``condition``.

    Args:
        records: those of a block.
        wrong: the corrupt ones, with the reason.
        width: entries of ``x``.
        condition_dim: entries of ``condition``; 0 for none.
        schema: arrow schema of the features that are passed on, of one value each.

    Returns:
        Values float32 (records, width + condition_dim); for each record None, or why it is bad;
        and a pyarrow table of ``schema``. A feature to be passed on that a record lacks is null.
    """
    reasons = [wrong.get(i) for i in range(len(records))]
    values = np.full((len(records), width + condition_dim), np.nan, np.float32)
    kept: dict[str, list] = {name: [None] * len(records) for name in schema.names}
    good = [i for i in range(len(records)) if i not in wrong]
    sizes = {"x": width, "condition": condition_dim} if condition_dim else {"x": width}
    spec = {name: tf.io.FixedLenFeature([n], tf.float32) for name, n in sizes.items()}
    types = {pa.int64(): tf.int64, pa.float32(): tf.float32, pa.string(): tf.string}
    for field in schema:
        spec[field.name] = tf.io.FixedLenFeature([], types[field.type])
    try:
        parsed = tf.io.parse_example([records[i] for i in good], spec)
    except (tf.errors.OpError, ValueError):  # at least one is bad: parse them one by one
        for i in good:
            reasons[i] = _parse_one(records[i], sizes, schema, values[i], kept, i)
    else:
        values[good] = np.concatenate([parsed[name].numpy() for name in sizes], axis=1)
        for name, column in kept.items():
            for i, value in zip(good, parsed[name].numpy().tolist(), strict=True):
                column[i] = _text(value)
    for i in np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist():
        reasons[i] = reasons[i] or "`x` or `condition` must be finite, got NaN or infinity"
    return values, reasons, pa.table({f.name: pa.array(kept[f.name], f.type) for f in schema})


def _parse_one(
    record: bytes, sizes: dict[str, int], schema: Any, values: np.ndarray, kept: dict, i: int
) -> str | None:
    """Fill ``values`` and entry ``i`` of ``kept``; return why the record is bad, or None."""
    try:
        features = tf.train.Example.FromString(record).features.feature
    except Exception:  # protobuf's DecodeError; TensorFlow doesn't export it
        return "record is not a tf.Example"
    row: list[float] = []
    for name, size in sizes.items():
        floats = features[name].float_list.value if name in features else []
        if len(floats) != size:
            return f"feature {name!r} must have {size} floats, got {len(floats)}"
        row.extend(floats)
    for field in schema:
        # `features[name]` would add the feature.
        feature = features[field.name] if field.name in features else tf.train.Feature()
        kind = feature.WhichOneof("kind")
        content = getattr(feature, kind).value if kind else []
        if not content:
            continue
        if len(content) > 1 or _TYPES[kind] != field.type:
            return (
                f"feature {field.name!r} must be one {_KINDS[field.type]}, as in the first record, "
                f"got {len(content)} of type {_KINDS[_TYPES[kind]]}"
            )
        kept[field.name][i] = _text(content[0])
    values[:] = row
    return None


def _text(value: Any) -> Any:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _first(file: Path) -> Any:
    """Return the features of the first record, or None if the file has no record.

    Raises:
        ValueError: the record is corrupt or no tf.Example.
    """
    with reading(file), open_bytes(file) as f:
        records, wrong = next(read(f, 1, 1), ([], {}))
        if wrong:
            raise ValueError(wrong[0])
        return tf.train.Example.FromString(records[0]).features.feature if records else None


def sizes(file: Path) -> tuple[int, int]:
    """Return the lengths of the features ``x`` and ``condition`` (0 if absent), by record 0."""
    features = _first(file)
    if features is None:
        raise ValueError(f"{str(file)!r} must have a record, but it is empty.")
    width, condition_dim = (
        len(features[name].float_list.value) if name in features else 0
        for name in ("x", "condition")
    )
    if width == 0:
        raise ValueError(f"The records of {str(file)!r} must have floats as feature `x`, got none.")
    return width, condition_dim


def schema(files: Sequence[Path], keep: Sequence[str]) -> Any:
    """Return the arrow types of the features ``keep`` in the first record of all; bytes are text.

    Without any record, all are text.

    Raises:
        ValueError: the record lacks one of them, or can't be read.
    """
    if not keep:
        return pa.schema([])
    file, features = next(
        ((file, features) for file in files if (features := _first(file)) is not None),
        (files[0], None),
    )
    if features is None:
        return pa.schema([(name, pa.string()) for name in keep])
    fields = []
    for name in keep:
        kind = features[name].WhichOneof("kind") if name in features else None
        if kind is None:
            raise ValueError(
                f"`keep` must name features of {str(file)!r}, got {name!r}; its first record "
                f"has {', '.join(sorted(features)) or 'none'}."
            )
        fields.append((name, _TYPES[kind]))
    return pa.schema(fields)


class Writer:
    """Writes the rows of pyarrow tables as tf.Example.

    Integers, floats and bytes stay so, and any other value becomes text. A null is left out.
    """

    def __init__(self, path: Path):
        self.file = tf.io.TFRecordWriter(str(path))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.file.close()

    def write_table(self, table: Any) -> None:
        """Add the rows of a table."""
        for row in table.to_pylist():
            features = {name: _feature(value) for name, value in row.items() if value is not None}
            example = tf.train.Example(features=tf.train.Features(feature=features))
            self.file.write(example.SerializeToString())


def _feature(value: Any) -> tf.train.Feature:
    if isinstance(value, int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))
    if isinstance(value, float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    text = value if isinstance(value, bytes) else str(value).encode()
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[text]))
