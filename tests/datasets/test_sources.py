"""Tables by name or from a file."""

import numpy as np
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
