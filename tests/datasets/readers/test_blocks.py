"""Blocks of files: what counts as a row, how values are read, and how much memory it takes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scored import frame, write

from tfdde.datasets import read_table
from tfdde.datasets.file_batches import stream_files
from tfdde.datasets.readers import blocks, tfrecords
from tfdde.datasets.readers.blocks import Source, common_type


@pytest.mark.parametrize("neighbour", ["1", "x", "", "1e400"])
def test_a_value_is_read_alike_whatever_its_neighbours(neighbour):
    texts = ["1.5", " +2 ", "-3e-2", ".5", "7.", "0x10", "1_0", "nan", "Infinity", "", "1e-46"]
    table = blocks.pa.table({"a": [neighbour, *texts]})
    values, reasons = blocks.numbers(table, ["a"])
    expected = [1.5, 2.0, np.float32(-0.03), 0.5, 7.0]
    np.testing.assert_array_equal(values[1:6, 0], expected)
    assert values[-1, 0] == 0
    assert [r is None for r in reasons[1:]] == [True] * 5 + [False] * 5 + [True]


def test_lines_are_read_as_by_the_page(tmp_path):
    """The same cases are read by JavaScript in tests/explore."""
    cases = json.loads(Path(__file__).with_name("csv_cases.json").read_text())
    (tmp_path / "in.csv").write_text("\n".join(["a,b,c", *cases]))
    (block,) = Source(tmp_path / "in.csv", None, None, [], None)
    for row, reason, (line, expected) in zip(
        block.values, block.reasons, cases.items(), strict=True
    ):
        assert (reason is None) == (expected is not None), (line, reason)
        if expected is not None:
            assert row.tolist() == np.float32(expected).tolist()


@pytest.mark.parametrize(("delimiter", "name"), [(";", "a semicolon"), ("\t", "a tab")])
def test_another_delimiter_is_named_at_once(tmp_path, delimiter, name):
    path = tmp_path / "in.csv"
    path.write_text(f"a{delimiter}b\n1{delimiter}2\n3{delimiter}5\n")
    for call in (
        lambda: read_table(path),
        lambda: stream_files(path, 2, seed=0),
        lambda: Source(path, None, None, [], None),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert f"has {name}: read it with delimiter={delimiter!r}" in str(caught.value)
    assert read_table(path, delimiter=delimiter)[1] == ("a", "b")
    assert stream_files(path, 2, seed=0, delimiter=delimiter).element_spec.shape == (2, 2)


def test_blank_lines_of_a_single_column_are_missing_values(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("a\n1\n\n3\r\n\r\n5\n")
    (block,) = Source(path, None, None, [], None)
    assert block.rows.tolist() == [0, 1, 2, 3, 4]
    assert block.values[[0, 2, 4], 0].tolist() == [1, 3, 5]
    missing = "column 'a' is missing"
    assert block.reasons == [None, missing, None, missing, None]
    with pytest.raises(ValueError, match="in 2 of 5 rows, the first at row 1"):
        read_table(path)


def test_common_types_hold_every_value():
    assert common_type([pa.string(), pa.dictionary(pa.int8(), pa.string())]) == pa.string()
    assert common_type([pa.float32(), pa.float64()]) == pa.float64()
    assert common_type([pa.null(), pa.null()]) == pa.null()
    for kinds in ([pa.int64(), pa.float64()], [pa.int8(), pa.uint8()], [pa.string(), pa.int8()]):
        assert common_type(kinds) is None


def test_checksum_is_crc_32c():
    # The check value of CRC-32C is that of the digits 1 to 9: e3069283.
    crc = 0xE3069283
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert tfrecords.masked_crc(b"123456789") == masked


@pytest.mark.parametrize("name", ["in.csv", "in.parquet", "in.tfrecord"])
def test_blocks_do_not_stay_in_memory(tmp_path, small_blocks, name):
    """Of arrow; a file of many blocks takes no more of it than one of few."""
    most = []
    for rows in (1_000, 10_000):
        source = blocks.Source(write(tmp_path / name, frame(rows)), None, None, ["id"], 3)
        before, used = blocks.pa.total_allocated_bytes(), [0]
        count = 0
        for block in source:
            count += len(block)
            used.append(blocks.pa.total_allocated_bytes() - before)
        assert count == rows
        most.append(max(used))
    assert most[1] < 1.5 * most[0] + 20_000
