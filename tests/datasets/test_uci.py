"""The UCI benchmark: small files in the original formats, against values computed here."""

import gzip
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tfdde.datasets import UCI, load_uci
from tfdde.datasets.uci import Sizes

REAL = Path(os.environ.get("TFDDE_DATA_DIR", "."))
FILES = {
    "power": ["household_power_consumption.txt"],
    "gas": ["ethylene_CO.txt"],
    "hepmass": ["1000_train.csv", "1000_test.csv"],
    "miniboone": ["MiniBooNE_PID.txt"],
}
HEADER = (
    "Date;Time;Global_active_power;Global_reactive_power;Voltage;Global_intensity;"
    "Sub_metering_1;Sub_metering_2;Sub_metering_3"
)


def by_hand(full, reference, ddof):
    """Standardise with sums written out."""
    mean = sum(reference) / len(reference)
    variance = sum((row - mean) ** 2 for row in reference) / (len(reference) - ddof)
    return (full - mean) / variance**0.5


def assert_parts(table, x, train, validation, test):
    assert len(x) == train + validation + test
    parts = np.split(x, [train, train + validation])
    for found, expected in zip(
        (table.x_train, table.x_validation, table.x_test), parts, strict=True
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", UCI)
def test_originals(name):
    for file in FILES[name]:
        if not any(path.is_file() for path in (REAL / file, REAL / name / file)):
            pytest.skip(f"TFDDE_DATA_DIR holds no {file}")
    table = load_uci(name)  # checks the published sizes
    both = np.concatenate([table.x_train, table.x_validation])
    assert np.isfinite(both).all() and np.isfinite(table.x_test).all()
    np.testing.assert_allclose(both.mean(axis=0, dtype=float), 0, atol=0.05)
    np.testing.assert_allclose(both.std(axis=0, dtype=float), 1, atol=0.05)


def write_power(folder, rows=43):
    rng = np.random.default_rng(0)
    lines, kept = [HEADER], []
    for i in range(rows):
        hour, minute = int(rng.integers(24)), int(rng.integers(60))
        values = [f"{v:.3f}" for v in rng.random(4) * 240] + [
            f"{v}.000" for v in rng.integers(9, size=3)
        ]
        if i == 5:
            values = ["?"] * 6 + [""]
        elif i == 9:
            values[3] = "?"  # a column that is dropped: the row is, too
        else:
            kept.append([float(v) for v in values] + [60 * hour + minute])
        lines.append(";".join(["16/12/2006", f"{hour:02}:{minute:02}:00", *values]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILES["power"][0]).write_text("\r\n".join(lines) + "\r\n")
    return np.array(kept)


@pytest.mark.parametrize("inner", [".", "power"])
def test_power(tmp_path, monkeypatch, inner):
    x = write_power(tmp_path / inner)
    assert x.shape == (41, 8)
    rng = np.random.RandomState(42)
    rng.shuffle(x)  # MAF's order of draws: rows, voltage, active power, sub-metering
    voltage, active, metering = 0.01 * rng.rand(41, 1), 0.001 * rng.rand(41, 1), rng.rand(41, 3)
    noise = np.hstack([active, voltage, metering, rng.rand(41, 1)])
    x = x[:, [0, 2, 4, 5, 6, 7]] + noise
    # The last tenth of 41 are 4, the last tenth of the 37 others 3.
    monkeypatch.setenv("TFDDE_DATA_DIR", str(tmp_path))
    table = load_uci("power", check_sizes=False)
    assert_parts(table, by_hand(x, x[:37], 0), 34, 3, 4)
    assert table.columns == (
        "Global_active_power",
        "Voltage",
        "Sub_metering_1",
        "Sub_metering_2",
        "Sub_metering_3",
        "Time",
    )


def write_gas(folder, rows=130):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((rows, 16))
    x[:, 4] = x[:, 9] + 0.01 * rng.standard_normal(rows)  # above 0.98: the first of both goes
    x[:, 12] = -x[:, 3]  # correlated below -0.98: stays
    # A chain a ~ b ~ c with a and c below 0.98: a goes, then b.
    x[:, 1] = x[:, 0] + 0.15 * rng.standard_normal(rows)
    x[:, 2] = x[:, 1] + 0.15 * rng.standard_normal(rows)
    x = np.round(x, 5)
    lines = ["Time (seconds), CO conc (ppm), Ethylene conc (ppm), sensor readings (16 channels) "]
    for i, row in enumerate(x):
        lines.append(f"{i / 100:.2f}   0.00  0.00  " + "  ".join(f"{v:.5f}" for v in row) + "  ")
    (folder / "ethylene_CO.txt").write_text("\n".join(lines) + "\n")
    return x


def test_gas(tmp_path):
    x = write_gas(tmp_path)
    x = x[np.random.RandomState(42).permutation(130)[:32]]  # 130 / 4 = 32.5, to even
    frame = pd.DataFrame(x)
    gone = []
    while True:
        high = frame.drop(columns=gone).corr() > 0.98
        alike = [c for c in high if high[c].sum() > 1]
        if not alike:
            break
        gone.append(alike[0])
    assert {0, 4} <= set(gone) and 9 not in gone and len(gone) < 5
    x = np.delete(x, gone, axis=1)
    table = load_uci("gas", tmp_path, check_sizes=False)
    assert_parts(table, by_hand(x, x, 1), 27, 2, 3)
    assert table.columns == tuple(f"sensor_{i + 1}" for i in range(16) if i not in gone)


def write_hepmass(folder, compress=False):
    """Train with 4 columns; test as in the original, where a fifth is announced."""
    rng = np.random.default_rng(2)
    parts = {}
    for file, rows, header in (
        ("1000_train.csv", 60, "# label,f0,f1,f2,f3"),
        ("1000_test.csv", 30, "# label,f0,f1,f2,f3,mass"),
    ):
        x = rng.standard_normal((rows, 5)).round(6)
        x[:, 0] = np.arange(rows) % 2
        x[:, 2] = rng.integers(0, 2, rows)  # recurs, the smallest value as well
        x[:, 4] = np.minimum(x[:, 4], 0)  # recurs, but not the smallest value: stays
        lines = [header] + [",".join(f"{v:.18e}" for v in row) for row in x]
        if "mass" in header:
            lines[1:] = [f"{line},1000.0" for line in lines[1:]]
        text = ("\n".join(lines) + "\n").encode()
        if compress:
            (folder / f"{file}.gz").write_bytes(gzip.compress(text))
        else:
            (folder / file).write_bytes(text)
        parts[file] = x[x[:, 0] == 1][:, [1, 3, 4]]
    assert max(Counter(parts["1000_train.csv"][:, 2]).values()) > 5
    return parts["1000_train.csv"], parts["1000_test.csv"]


@pytest.mark.parametrize("compress", [False, True])
def test_hepmass(tmp_path, compress):
    train, test = write_hepmass(tmp_path, compress)
    table = load_uci("hepmass", tmp_path, check_sizes=False)
    assert_parts(table, by_hand(np.concatenate([train, test]), train, 1), 27, 3, 15)
    assert table.columns == ("f0", "f2", "f3")


def test_hepmass_takes_as_many_events_as_published(tmp_path, monkeypatch):
    train, test = write_hepmass(tmp_path)
    monkeypatch.setitem(UCI, "hepmass", Sizes(18, 2, 7, 3))
    monkeypatch.setattr("tfdde.datasets.uci._CHUNK", 9)
    table = load_uci("hepmass", tmp_path)
    first = train[:20]
    assert_parts(table, by_hand(np.concatenate([first, test[:7]]), first, 1), 18, 2, 7)


def write_miniboone(folder):
    rng = np.random.default_rng(3)
    x = (10 * rng.standard_normal((40, 50))).round(4)
    x[3] = x[17] = -999.0
    x[:, 7] = np.maximum(x[:, 7], 0)  # the smallest value recurs
    x[:6, 20] = -50.0  # six times
    x[30:35, 21] = -50.0  # five times: stays
    x[:, 22] = np.minimum(x[:, 22], 0)  # the largest recurs: stays
    lines = ["   33   7"] + ["  " + "  ".join(f"{v:.6E}" for v in row) for row in x]
    (folder / "MiniBooNE_PID.txt").write_text("\n".join(lines) + "\n")
    return np.delete(np.delete(x[:33], [3, 17], axis=0), [7], axis=1)


def test_miniboone(tmp_path):
    x = write_miniboone(tmp_path)
    # Of the six rows with -50, one was an outlier, so that five are left.
    table = load_uci("miniboone", tmp_path, check_sizes=False)
    assert table.columns == tuple(str(i) for i in range(50) if i != 7)
    assert_parts(table, by_hand(x, x[:28], 0), 26, 2, 3)


def test_sizes_are_checked(tmp_path):
    write_power(tmp_path)
    with pytest.raises(
        ValueError,
        match="power data must have the published sizes 1659917 / 184435 / 204928 rows of 6 "
        "columns, got 34 / 3 / 4 rows of 6 columns.*check_sizes=False",
    ):
        load_uci("power", tmp_path)


def test_published_sizes_follow_from_the_rule():
    """Of the original rows that are left: 2,049,280; a quarter of 4,208,261; 36,499 - 11."""
    for name, rows in (("power", 2_049_280), ("gas", round(4_208_261 / 4)), ("miniboone", 36_488)):
        test = int(0.1 * rows)
        validation = int(0.1 * (rows - test))
        assert UCI[name][:3] == (rows - test - validation, validation, test)


def test_missing_files(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDDE_DATA_DIR", raising=False)
    with pytest.raises(
        FileNotFoundError, match="MiniBooNE_PID.txt.*'MiniBooNE particle ident.*UCI"
    ):
        load_uci("miniboone")
    with pytest.raises(
        FileNotFoundError, match="`folder` must hold the file ethylene_CO.txt.*'Gas"
    ):
        load_uci("gas", tmp_path)
    write_hepmass(tmp_path)
    (tmp_path / "1000_test.csv").unlink()
    monkeypatch.setenv("TFDDE_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="TFDDE_DATA_DIR must hold the file 1000_test.csv"):
        load_uci("hepmass")
    with pytest.raises(ValueError, match="`name` must be one of power, .* got 'hepmas'.*'hepmass'"):
        load_uci("hepmas")


def lines(*rows, n=1):
    """A header, and the other rows n times."""
    return "\n".join(rows[:1] + rows[1:] * n) + "\n"


def power(old="", new=""):
    return [lines(HEADER, "16/12/2006;17:24:00;4.2;0.4;234.8;18.4;0;1;17".replace(old, new))]


def hepmass(row, test="1,2", n=20):
    return [lines("# label,f0", row, n=n), lines("# label,f0", test)]


GAS_ROW = "0.01 0 0" + " 1.5" * 16
OUTLIER = "-999 " * 50


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("power", [""], "must have a header and rows, got 0 lines"),
        ("power", [lines("Date;Time;Voltage", "a;b;1")], "a column 'Global_active_power'"),
        ("power", power(), "too few rows to split: 1 where 10"),
        ("power", power("17:24", "x"), "Column 'Time' .* hh:mm:ss, got 'x:00'"),
        ("power", power("234.8", "V"), "cannot be read: .*'V'"),
        ("power", power("234.8", "inf"), "Column 'Voltage' .* finite in float64"),
        ("gas", ["head\n1 2 3\n"], "must have 19 columns .* got 3"),
        ("gas", [lines("head", GAS_ROW, n=50)], "Column 'sensor_1' .*must vary.* 1.5"),
        ("gas", [lines("head", GAS_ROW, "1 2 3")], "'sensor_1' .* finite .* 1 of 2 .* row 1"),
        ("hepmass", [lines("# label,f0", "1,2"), lines("# label", "1")], "got 1 for 2"),
        ("hepmass", hepmass("0,2"), "too few rows to split: 0"),
        ("hepmass", hepmass("1,2", test="0,2"), "events of class 1, got none"),
        ("hepmass", hepmass("1,2"), "has no usable column: in each, the smallest value occurs"),
        ("hepmass", hepmass("1,"), "Column 'f0' .* in 20 of 20"),
        ("hepmass", [b"\x1f\x8b\x08", ""], "1000_train.csv' cannot be read"),
        ("miniboone", ["1 2 3\n4\n"], "two counts.* got a first line of '1 2 3'"),
        ("miniboone", [f"2 1\n{OUTLIER}\n"], "hold 2 signal events, got 1"),
        ("miniboone", [f"1 1\n{OUTLIER}\n"], "got outliers only"),
    ],
)
def test_damaged_files(tmp_path, name, contents, message):
    for file, content in zip(FILES[name], contents, strict=True):
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load_uci(name, tmp_path, check_sizes=False)
    assert "\n" not in str(caught.value)


def test_damaged_compression(tmp_path):
    write_hepmass(tmp_path, compress=True)
    path = tmp_path / "1000_test.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="1000_test.csv.gz' cannot be read"):
        load_uci("hepmass", tmp_path, check_sizes=False)
