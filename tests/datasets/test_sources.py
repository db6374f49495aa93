"""Tables by name or from a file."""

import numpy as np
import pandas as pd
import pytest

from tfdde import datasets
from tfdde.datasets import Table, load_table, sources


def test_toys_and_files_are_split_by_the_seed(tmp_path):
    x = datasets.sample_toy("rings", 50, 3)
    np.save(tmp_path / "x.npy", x)
    toy = load_table("rings", seed=3, rows=50)
    file = load_table(tmp_path / "x.npy", ["1", "0"], seed=3)
    assert (toy.columns, file.columns) == (("x", "y"), ("1", "0"))
    for name, part in zip(
        ("x_train", "x_validation", "x_test"), datasets.split_rows(x, 3), strict=True
    ):
        np.testing.assert_array_equal(getattr(toy, name), part)
        np.testing.assert_array_equal(getattr(file, name), part[:, ::-1])


def test_each_name_has_its_loader(monkeypatch):
    table = Table(*[np.zeros((2, 2), np.float32)] * 3, ("a", "b"))
    asked = []
    for name in ("load_uci", "load_builtin", "load_mnist_components"):
        monkeypatch.setattr(sources, name, lambda *args: asked.append(args) or table)
    for name in ("gas", "wine", "mnist"):
        assert load_table(name, data_dir="here", seed=1, components=7) is table
    assert asked == [("gas", "here"), ("wine", 1), (7, "here", 1)]


def test_too_few_rows_and_unknown_sources(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((15, 2)))
    with pytest.raises(ValueError, match="at least 20 rows: a tenth"):
        load_table(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"`path` must end in one of .*, got 'wime'"):
        load_table("wime")
    with pytest.raises(ValueError, match="`seed` must be .*, got -1"):
        load_table("wine", seed=-1)


def test_a_table_as_it_is_is_split_before_its_schema_is_learned(tmp_path):
    """Rows of float64, with gaps and integers, whose centre is that of the training rows."""
    rng = np.random.default_rng(0)
    x = pd.DataFrame({"seconds": 1.7e9 + rng.random(400), "visits": rng.poisson(3, 400)})
    x.loc[:19, "seconds"] = np.nan
    x.to_csv(tmp_path / "table.csv", index=False)
    raw, names = datasets.read_columns(tmp_path / "table.csv")
    assert names == ("seconds", "visits") and raw.dtype == np.float64
    np.testing.assert_array_equal(raw, x)
    with pytest.raises(ValueError, match=r"missing \(NaN\) in 'seconds' in"):
        datasets.learn_table(tmp_path / "table.csv")
    table = datasets.learn_table(tmp_path / "table.csv", missing="impute", seed=3)
    train, validation, test = datasets.split_rows(raw, 3)
    mean = np.nanmean(train[:, 0])
    assert table.schema.location[0] == pytest.approx(mean, abs=1e-6)
    for rows, whole in (
        (table.x_train, train),
        (table.x_validation, validation),
        (table.x_test, test),
    ):
        assert rows.dtype == np.float64 and np.isfinite(rows).all()
        known = ~np.isnan(whole[:, 0])
        np.testing.assert_array_equal(rows[known, 0], whole[known, 0])
        assert 0.3 < np.abs(rows[:, 1] - whole[:, 1]).max() <= 0.5
    assert table.columns == ("seconds", "visits")
    again = datasets.learn_table(tmp_path / "table.csv", missing="impute", seed=3)
    np.testing.assert_array_equal(again.x_test, table.x_test)
    x[:15].to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(ValueError, match="at least 20 rows"):
        datasets.learn_table(tmp_path / "short.csv", missing="impute")


def test_raw_rows_are_those_of_the_file_without_gaps(tmp_path):
    """In the order of the parts, without noise; a dropped column and its gaps do not count."""
    rng = np.random.default_rng(0)
    x = pd.DataFrame({"amount": rng.random(400), "visits": rng.poisson(3.0, 400).astype(float)})
    x.loc[:19, "visits"] = np.nan
    x.to_csv(tmp_path / "table.csv", index=False)
    table = datasets.learn_table(tmp_path / "table.csv", missing="impute", seed=3)
    given = datasets.split_rows(x.to_numpy(), 3)
    for raw, part in zip(table.to_score(), given, strict=True):
        np.testing.assert_allclose(raw, part[~np.isnan(part).any(axis=1)], rtol=1e-6)
    assert (table.x_train[:, 1] % 1 != 0).mean() > 0.9  # these have the noise
    toy = load_table("rings", seed=3, rows=50)
    assert toy.raw is None and toy.to_score()[2] is not None
    np.testing.assert_array_equal(toy.to_score()[1], toy.x_validation)
