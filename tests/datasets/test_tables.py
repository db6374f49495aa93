"""Users' tables and built-in sets: what is read, and what is said of bad files."""

import gzip
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets as sklearn_datasets

from tfdde.datasets import load_builtin, load_uci, read_table, split_rows

TABLE = {"a": [1.5, 2.5, -3.0], "b": [4, 5, 7], "c c": [True, False, True]}


@pytest.fixture(params=["t.csv", "t.CSV.gz", "t.parquet"])
def file(request, tmp_path):
    path = tmp_path / request.param
    frame = pd.DataFrame(TABLE)
    if path.suffix == ".parquet":
        frame.index = [7, 8, 9]  # an index is stored, too, but is no column
        frame.to_parquet(path)
    else:
        text = frame.to_csv(index=False).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_frames(file):
    x, names = read_table(file)
    assert x.dtype == np.float32 and names == ("a", "b", "c c")
    np.testing.assert_array_equal(x, [[1.5, 4, 1], [2.5, 5, 0], [-3, 7, 1]])
    x, names = read_table(str(file), columns=["b", "a"])
    assert names == ("b", "a")
    np.testing.assert_array_equal(x, [[4, 1.5], [5, 2.5], [7, -3]])


def test_columns_asked_for(file):
    with pytest.raises(
        ValueError, match="`columns` must name columns of .* 'cc'; did you mean 'c c"
    ):
        read_table(file, columns=["a", "cc"])
    with pytest.raises(ValueError, match="got 'zzz'; there are a, b, c c"):
        read_table(file, columns=["zzz"])
    for columns in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="`columns` must name one column or more, each once"):
            read_table(file, columns=columns)
    for columns in ("a", [0]):
        with pytest.raises(ValueError, match="`columns` must be a list of column names"):
            read_table(file, columns=columns)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8, np.uint64, bool])
def test_arrays(tmp_path, dtype):
    array = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]], dtype)
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", anything=array)
    for file in ("x.npy", "x.npz"):
        x, names = read_table(tmp_path / file)
        assert x.dtype == np.float32 and names == ("0", "1", "2")
        np.testing.assert_array_equal(x, array)
        x, names = read_table(tmp_path / file, columns=["2", "0"])
        assert names == ("2", "0")
        np.testing.assert_array_equal(x, array[:, [2, 0]])


def test_headers(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("0,1\n1,2\n3,5\n")  # as pandas writes an array
    assert read_table(path)[1] == ("0", "1")
    path.write_text(",a\n0,2\n1,5\n")
    assert read_table(path, columns=["a"])[1] == ("a",)
    for text, message in (
        ("1.5,2\n1,2\n3,5\n", "first line .* must hold the names .*, got the numbers 1.5, 2"),
        (",a\n0,2\n1,5\n", "Column number 0 .* must have a name"),
        ("a,b,a\n1,2,3\n", "must name each column once, got 'a' twice"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_table(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, np.nan, np.inf], "Column 'bad' .* finite in float32, got .* 2 of 3 rows, .* row 1"),
        ([1.0, 2.0, -1e39], "Column 'bad' .* finite in float32, got .* 1 of 3 rows, .* row 2"),
        ([None, None, None], "Column 'bad' .*(3 of 3 rows|numeric)"),
        ([2.5, 2.5, 2.5], r"Column 'bad' .* must vary .* the constant 2.5 \(as float32\)"),
        ([1e9, 1e9 + 1, 1e9 + 2], "Column 'bad' .* must vary .* constant 1e"),
        (["1", "?", "x"], r"Column 'bad' .* numeric, got dtype \w+, with '\?' at row 1"),
        ([True, None, False], "Column 'bad' .* numeric, got dtype object"),
        (
            pd.to_datetime(["2020-01-01"] * 3),
            r"Column 'bad' .* numeric, got dtype (datetime|str|obj)",
        ),
    ],
)
def test_bad_columns(tmp_path, suffix, values, message):
    frame = pd.DataFrame({"good": [1, 2, 3], "bad": values})
    path = tmp_path / f"x.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    with pytest.raises(ValueError, match=message):
        read_table(path)
    assert read_table(path, columns=["good"])[0].shape == (3, 1)


def test_bad_columns_of_parquet_and_arrays(tmp_path):
    for values in ([[1], [2]], [{"a": 1}, {"a": 2}], pd.Categorical(["a", "b"])):
        pd.DataFrame({"bad": values}).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match="Column 'bad' .* must be numeric, got dtype"):
            read_table(tmp_path / "x.parquet")
    for values in (pd.array([1, None], "Int64"), pd.array([1.5, None], "Float32")):
        pd.DataFrame({"bad": values}).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match="Column 'bad' .* 1 of 2 rows, the first at row 1"):
            read_table(tmp_path / "x.parquet")
    np.save(tmp_path / "x.npy", np.array([[1.0, 2.0], [np.nan, 2.0]]))
    with pytest.raises(ValueError, match="Column '0' .* finite"):
        read_table(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="Column '1' .* must vary"):
        read_table(tmp_path / "x.npy", columns=["1"])


def array(x):
    return lambda path: np.save(path, x, allow_pickle=True)


def text(content):
    content = content if isinstance(content, bytes) else content.encode()
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.csv", text("a,b\n"), r"is empty: .* got \(0, 2\)"),
        ("x.csv", text(""), "names of its columns in its first line, but it is empty"),
        ("x.csv", text("a,b\n1,2,3\n4,5,6\n"), "cannot be read: Length of header"),
        ("x.csv", text("a,b\n1,2\n4,5,6\n"), "cannot be read: .* saw 3"),
        ("x.csv", text(b"a,b\n\xff\xfe,1\n"), "cannot be read: "),
        ("x.csv.gz", text("a,b\n1,2\n"), "cannot be read: Not a gzipped"),
        ("x.csv.gz", text(gzip.compress(b"a\n" + b"1\n" * 99)[:-9]), "cannot be read: "),
        ("x.parquet", text("a,b\n"), "cannot be read: "),
        ("x.parquet", lambda path: pd.DataFrame({"a": []}).to_parquet(path), "is empty"),
        ("x.npy", text("a,b\n"), "cannot be read: "),
        ("x.npy", text(""), "cannot be read: "),
        ("x.npy", text(b"\x93NUMPY\1\0\2\0{}"), "cannot be read: "),
        ("x.npy", array(np.array([[{}]])), "cannot be read: .*allow_pickle=False"),
        ("x.npy", array(np.ones(3)), r"rows, columns\), got shape \(3,\)"),
        ("x.npy", array(np.array([["a"]])), "and dtype <U1"),
        ("x.npy", array(np.ones((0, 3))), r"is empty: .*\(0, 3\)"),
        ("x.npz", lambda p: np.savez(p, a=1, b=2), r"a single array, got \['a', 'b'\]"),
        ("x.npz", text(b"PK\3\4 no zip"), "cannot be read: "),
        ("x.txt", text("1"), "`path` must end in one of .csv, .*got .*x.txt"),
    ],
)
def test_bad_files(tmp_path, name, write, message):
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.csv' does not exist"):
        read_table(tmp_path / "x.csv")


@pytest.mark.parametrize("absent", ["pandas", "pyarrow.parquet", "sklearn"])
def test_missing_libraries(tmp_path, monkeypatch, absent):
    (tmp_path / "household_power_consumption.txt").write_text("x")
    pd.DataFrame(TABLE).to_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("a\n1\n2\n")
    monkeypatch.setitem(sys.modules, absent, None)
    calls = {
        "pandas": [
            lambda: load_uci("power", tmp_path),
            lambda: read_table(tmp_path / "x.csv"),
            lambda: read_table(tmp_path / "x.parquet"),
        ],
        "pyarrow.parquet": [lambda: read_table(tmp_path / "x.parquet")],
        "sklearn": [lambda: load_builtin("wine")],
    }
    for call in calls[absent]:
        with pytest.raises(ImportError, match=r"pip install 'tfdde\[tables\]'"):
            call()


@pytest.mark.parametrize(
    ("name", "sizes", "columns"),
    [
        ("digits", (1439, 179, 179), 64),
        ("wine", (144, 17, 17), 13),
        ("breast_cancer", (457, 56, 56), 30),
    ],
)
def test_builtin(name, sizes, columns):
    table = load_builtin(name)
    parts = [table.x_train, table.x_validation, table.x_test]
    assert tuple(map(len, parts)) == sizes and len(table.columns) == columns
    x = np.concatenate(parts)
    assert x.dtype == np.float32
    if name == "digits":
        assert x.min() >= 0 and x.max() < 1 and (x.std(axis=0) > 0).all()
        u = 17 * x.astype(float) % 1
        assert abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
        x = np.floor(17 * x.astype(float) + 1e-6).clip(0, 16)
    truth = getattr(sklearn_datasets, f"load_{name}")().data.astype(np.float32)
    same = np.lexsort(truth.T), np.lexsort(x.T)
    np.testing.assert_array_equal(x[same[1]], truth[same[0]])
    again, other = load_builtin(name), load_builtin(name, seed=1)
    np.testing.assert_array_equal(again.x_test, table.x_test)
    assert (other.x_test != table.x_test).any()


def test_builtin_errors():
    with pytest.raises(ValueError, match="`name` must be one of digits, .* got 'wines'.*'wine'?"):
        load_builtin("wines")
    with pytest.raises(ValueError, match="`seed` must be an integer >= 0, got -1"):
        load_builtin("wine", seed=-1)


def test_split_rows():
    x = np.arange(60).reshape(30, 2)
    train, validation, test = split_rows(x, seed=3, validation=0.2, test=0.15)
    assert (len(train), len(validation), len(test)) == (20, 6, 4)  # 4.5 rounded down
    joined = np.concatenate([train, validation, test])
    assert joined.dtype == x.dtype and (joined[:-1] > joined[1:]).any()
    np.testing.assert_array_equal(joined[joined[:, 0].argsort()], x)
    np.testing.assert_array_equal(split_rows(x, 3, 0.2, 0.15)[2], test)
    assert (split_rows(x, 4, 0.2, 0.15)[2] != test).any()
    assert [len(part) for part in split_rows(x, validation=0, test=0)] == [30, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1.5}, "`seed` must be an integer >= 0, got 1.5"),
        ({"validation": 1}, r"`validation` must be a number in \[0, 1\), got 1"),
        ({"test": "0.1"}, r"`test` must be a number in \[0, 1\), got '0.1'"),
        ({"test": float("nan")}, r"`test` must be a number in \[0, 1\), got nan"),
        ({"test": 0.01}, "`test` must leave a row, got 0.01 of 20 rows"),
        ({"validation": 0.5, "test": 0.5}, "leave a row to train with, got 0.5 and 0.5 of 20 rows"),
        ({"x": 3}, r"`x` must have shape \(rows, ...\), got the scalar 3"),
    ],
)
def test_split_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_rows(**{"x": np.ones((20, 2)), **arguments})
