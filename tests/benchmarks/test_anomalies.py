"""The protocol of the benchmark of anomalies, on small tables."""

import json
from argparse import Namespace

import numpy as np
import pytest

anomalies = pytest.importorskip("anomalies")


def table(normal=300, strange=40):
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(3, 2, (normal, 3)), rng.normal(20, 2, (strange, 3))]
    x = np.column_stack([x, np.ones(len(x))])  # and a constant column
    return x, np.repeat([0, 1], [normal, strange])


def test_one_class_rows_are_half_of_the_normal_ones_standardised():
    x, y = table()
    train, rows, truth = anomalies.split(x, y, "one_class", 0)
    assert train.shape == (150, 4) and rows.shape == (190, 4) and truth.sum() == 40
    np.testing.assert_allclose(train[:, :3].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(train[:, :3].std(axis=0), 1)
    assert (train[:, 3] == 0).all()
    both = np.r_[train, rows[truth == 0]]
    assert len(np.unique(both[:, 0])) == 300  # no row trains and is scored
    assert not np.array_equal(anomalies.split(x, y, "one_class", 1)[0], train)


def test_unsupervised_rows_are_all_rows():
    x, y = table()
    train, rows, truth = anomalies.split(x, y, "unsupervised", 0)
    assert train is rows and len(rows) == 340 and truth.sum() == 40


@pytest.mark.parametrize("setting", anomalies.SETTINGS)
@pytest.mark.parametrize("method", ["rows", "DTE-NP"])
def test_methods_find_far_rows_and_files_are_resumed(setting, method, tmp_path, capsys):
    (tmp_path / "adbench").mkdir()
    x, y = table()
    np.savez(tmp_path / "adbench/1_far.npz", X=x, y=y)
    words = ["run", "--folder", tmp_path, "--data-dir", tmp_path, "--setting", setting]
    words += ["--seeds", 0, 1, "--methods", method]
    anomalies.main([str(word) for word in words])
    asked = Namespace(folder=tmp_path, setting=setting, seeds=[0, 1, 2], tables=None)
    found = anomalies.gather(asked, method)
    assert set(found) == {"far"} and set(found["far"]) == {0, 1}
    assert found["far"][0]["roc"] > (99 if setting == "one_class" else 60)
    assert capsys.readouterr().out.count(f"far 0 {method}") == 1
    anomalies.main([str(word) for word in words])
    assert not capsys.readouterr().out


def test_means_are_over_tables_and_errors_over_seeds():
    values = {"a": [80.0, 90.0], "b": [60.0, 60.0]}
    found = {t: {s: {"roc": v, "pr": v / 2} for s, v in enumerate(vs)} for t, vs in values.items()}
    # The means of the seeds are 70 and 75.
    assert anomalies.summary(found) == {"roc": [72.5, 2.5], "pr": [36.25, 1.25]}
    assert json.dumps(anomalies.summary(found))
