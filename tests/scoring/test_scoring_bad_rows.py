"""Bad rows of files are rejected with the reason, and no others."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scored import example, frame, read, rejects, truth, write

from tfdde import scoring
from tfdde.datasets.readers import blocks

BAD_CSV = {
    "1,2": "line must have 3 fields, got 2",
    "1,2,3,4": "line must have 3 fields, got 4",
    '1,"2,3': "line has an open quote",
    "1,x,3": "column 'b' must be a number, got 'x'",
    "1,2_0,3": "column 'b' must be a number, got '2_0'",
    "1, ,3": "column 'b' is missing",
    ",nan,3": "column 'a' is missing",
    "1,2,nan": "column 'c' must be finite in float32, got nan",
    "1,2,-inf": "column 'c' must be finite in float32, got -inf",
    "1,2,1e39": "column 'c' must be finite in float32, got 1e+39",
    "\udcff,2,3": "line is not UTF-8",
}


@pytest.mark.parametrize("size", [1, 20, 3_000, 10**6])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_bad_lines_of_csv_are_rejected_and_no_others(exact, tmp_path, monkeypatch, size, end):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
    table = frame(200)[["a", "b", "c"]]
    lines = [f'{a!r},"{b!r}", {c!r}' for a, b, c in table.astype(float).itertuples(index=False)]
    places = dict(zip([0, 1, 2, 50, 60, 70, 80, 90, 100, 198, 199], BAD_CSV, strict=True))
    for row, line in places.items():
        lines[row] = line
    lines.insert(150, "")  # a blank line is no row
    text = end.join(["a,b,c", *lines])
    (tmp_path / "in.csv").write_bytes(text.encode(errors="surrogateescape"))
    out = tmp_path / "out.csv"
    bad = scoring.score_file(exact / "normalized", tmp_path / "in.csv", out, part_rows=75)
    assert bad == len(BAD_CSV)
    assert rejects(out) == {row: BAD_CSV[line] for row, line in places.items()}
    good = np.setdiff1d(np.arange(200), list(places))
    got = read(out)
    np.testing.assert_array_equal(got["row"], good)
    np.testing.assert_allclose(got["log_density"], truth(table.iloc[good]), atol=2e-5)


@pytest.mark.parametrize("size", [60, 10**6])
def test_a_line_is_never_two_rows_nor_two_lines_one(exact, tmp_path, monkeypatch, size):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
    table = frame(40)[["a", "b", "c"]].astype(float).assign(id=[f"row {i}" for i in range(40)])
    lines = [",".join(map(str, row)) for row in table.itertuples(index=False)]
    stray = "line is not one row: it has a stray carriage return or quote"
    few = "line must have 4 fields, got 3"
    places = {
        4: ("1,2,3,x\r4,5,6,y", stray),  # two rows to most readers
        5: ("1,2\r,3,x", stray),
        20: ('1,2"2,"3,x', few),  # up to the next quote one row, with the lines between
        22: ('1,2"2,"3,x', few),
    }
    for row, (line, _) in places.items():
        lines[row] = line
    lines[6] = lines[6].replace("row 6", '"row\r6"')  # quoted it is text
    lines[7] += "\r"
    lines[39] += "\r"
    (tmp_path / "in.csv").write_bytes("\n".join(["a,b,c,id", *lines]).encode())
    out = tmp_path / "out.parquet"
    bad = scoring.score_file(exact / "normalized", tmp_path / "in.csv", out, keep=["id"])
    assert bad == len(places)
    assert rejects(out) == {row: reason for row, (_, reason) in places.items()}
    got, good = read(out), table.drop(list(places))
    np.testing.assert_array_equal(got["row"], good.index)
    np.testing.assert_array_equal(got["id"], good["id"].replace("row 6", "row\r6"))
    np.testing.assert_allclose(got["log_density"], truth(good), atol=2e-5)


def test_a_file_of_bad_lines_only(exact, tmp_path):
    for line in BAD_CSV:
        text = "a,b,c\n" + f"{line}\n" * 3
        (tmp_path / "in.csv").write_bytes(text.encode(errors="surrogateescape"))
        out = tmp_path / "out.csv"
        bad = scoring.score_file(exact / "normalized", tmp_path / "in.csv", out)
        assert (bad, len(read(out))) == (3, 0)
        assert rejects(out) == dict.fromkeys(range(3), BAD_CSV[line])
        out.unlink()


def test_bad_values_of_parquet_are_rejected(exact, tmp_path):
    table = frame(30).astype({"a": float})
    table["b"] = pd.array([*range(29), None], "Int64")
    table.loc[3, "a"], table.loc[4, "c"], table.loc[5, "a"] = np.nan, np.inf, -1e300
    write(tmp_path / "in.parquet", table)
    out = tmp_path / "out.parquet"
    bad = scoring.score_file(exact / "normalized", tmp_path / "in.parquet", out, keep=["id"])
    assert bad == 4
    assert rejects(out) == {
        3: "column 'a' is missing",  # as pandas writes NaN
        4: "column 'c' must be finite in float32, got inf",
        5: "column 'a' must be finite in float32, got -1e+300",
        29: "column 'b' is missing",
    }
    good = table.drop([3, 4, 5, 29])
    got = read(out)
    np.testing.assert_array_equal(got["row"], good.index)
    np.testing.assert_array_equal(got["id"], good["id"])
    np.testing.assert_allclose(got["log_density"], truth(good), rtol=1e-6, atol=2e-5)


def frames(path):
    """Offsets of the records of a file, and its end."""
    data, offsets = path.read_bytes(), [0]
    while offsets[-1] < len(data):
        length = int.from_bytes(data[offsets[-1] : offsets[-1] + 8], "little")
        offsets.append(offsets[-1] + length + 16)
    return offsets


@pytest.mark.parametrize("keep", [[], ["id"]])
def test_bad_records_are_rejected(exact, tmp_path, small_blocks, keep):
    table = frame(200)
    records = [example(x, id=name.encode()) for *x, name in table.itertuples(index=False)]
    records[70] = b"no example"
    records[71] = example(None, id=b"no x")
    records[72] = example([1, 2, 3, 4], id=b"long")
    records[73] = example([1, np.nan, 3], id=b"nan")
    records[74] = example(table.loc[74, ["a", "b", "c"]])  # without an id, which is then missing
    path = tmp_path / "in.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    data, at = bytearray(path.read_bytes()), frames(path)
    data[at[0] + 20] ^= 1  # in a record, and in a checksum of one
    data[at[130] - 1] ^= 128
    data = data[: at[199] + 30]  # in the middle of the last
    path.write_bytes(data)
    out = tmp_path / "out.parquet"
    # The types of kept features are those of the first record, which is whole.
    if keep:
        with pytest.raises(ValueError, match=r"in\.tfrecord' cannot be read: record is corrupt"):
            scoring.score_file(exact / "normalized", path, out, keep=keep)
        data[at[0] + 20] ^= 1
        path.write_bytes(data)
    scoring.score_file(exact / "normalized", path, out, keep=keep)
    corrupt = "record is corrupt: its checksum does not match"
    expected = {
        70: "record is not a tf.Example",
        71: "feature 'x' must have 3 floats, got 0",
        72: "feature 'x' must have 3 floats, got 4",
        73: "`x` or `condition` must be finite, got NaN or infinity",
        129: corrupt,
        199: "record has a corrupt length or is cut off: the file ends",
    }
    assert rejects(out) == (expected if keep else expected | {0: corrupt})
    got = read(out)
    good = table.drop(list(rejects(out)))
    np.testing.assert_array_equal(got["row"], good.index)
    np.testing.assert_allclose(got["log_density"], truth(good), atol=2e-5)
    if keep:
        good.loc[74, "id"] = None
        assert got["id"].fillna("").tolist() == good["id"].fillna("").tolist()


def test_a_corrupt_length_ends_a_file_but_not_the_folder(exact, tmp_path):
    tables = [frame(50, seed) for seed in (0, 1)]
    (tmp_path / "in").mkdir()
    first, _ = (
        write(tmp_path / "in" / f"x.tfrecord-0000{i}-of-00002", table)
        for i, table in enumerate(tables)
    )
    data, at = bytearray(first.read_bytes()), frames(first)
    data[at[20] + 1] ^= 1
    first.write_bytes(data)
    out = tmp_path / "out.parquet"
    assert scoring.score_file(exact / "normalized", tmp_path / "in", out) == 1
    assert list(rejects(out)) == [20]
    got = read(out)
    np.testing.assert_array_equal(got["row"], [*range(20), *range(21, 71)])
    np.testing.assert_allclose(
        got["log_density"], truth(pd.concat([tables[0][:20], tables[1]])), atol=2e-5
    )
