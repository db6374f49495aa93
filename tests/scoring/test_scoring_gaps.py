"""Missing values in files to score, for models that impute them, against ``Schema.rows``."""

import json

import numpy as np
import pandas as pd
import pytest

import tfdde
from tfdde import anomalies, scoring, serving
from tfdde.datasets.readers import blocks
from tfdde.tables import Schema

ROWS = 400


def table():
    """Three columns, of which the second is skewed; a third of the first's values is missing."""
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(3, 2, ROWS), "b": rng.exponential(size=ROWS), "c": rng.poisson(4, ROWS)}
    x = pd.DataFrame(x).astype("f8")
    x.loc[::3, "a"] = np.nan
    x.loc[5:8, "b"] = np.nan
    return x


def density(x, **kwargs):
    network = tfdde.networks.residual_mlp(3, 8, 1)
    schema = Schema.learn(x, **kwargs)
    return tfdde.DDE(network, tfdde.Constant(0.2), tfdde.GaussianBase(3), schema, seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A density that imputes, as a SavedModel and as a run folder."""
    dde = density(table(), missing="impute")
    folder = tmp_path_factory.mktemp("model")
    serving.export_savedmodel(folder / "saved", dde)
    (folder / "keras").mkdir()
    dde.save(folder / "keras/density.keras")
    return dde, folder


def write(path, x):
    x.to_csv(path, index=False) if path.suffix == ".csv" else x.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("form", ["saved", "keras"])
def test_medians_stand_for_missing_values(model, form, kind, tmp_path, capsys):
    dde, folder = model
    x = table()
    source = write(tmp_path / f"in.{kind}", x[["c", "a", "b"]])
    out = tmp_path / "out.parquet"
    assert scoring.score_file(folder / form, source, out, part_rows=150) == 0
    values = pd.read_parquet(out)
    expected = dde.log_density(dde.normalization.rows(x), normalized=False)
    np.testing.assert_array_equal(values["row"], range(ROWS))
    np.testing.assert_allclose(values["unnormalized_log_density"], expected, rtol=1e-5, atol=1e-5)
    counts = {"a": int(x["a"].isna().sum()), "b": 4, "c": 0}
    about = json.loads((tmp_path / "out.parquet.json").read_text())
    assert about["imputed"] == counts
    np.testing.assert_allclose(about["medians"], x.median())
    said = (
        f"Medians stand for missing values, in so many rows of a column: 'a' {counts['a']}, 'b' 4."
    )
    assert said in capsys.readouterr().out


def test_only_missing_values_are_imputed(model, tmp_path):
    _, folder = model
    (tmp_path / "in.csv").write_text("a,b,c\n,1,2\n , NaN,3\nx,,3\n,inf,3\n1,2,3\n,,\n")
    out = tmp_path / "out.csv"
    assert scoring.score_file(folder / "saved", tmp_path / "in.csv", out) == 2
    bad = pd.read_csv(f"{out}.rejects.csv", index_col="row")["reason"].to_dict()
    assert bad == {
        2: "column 'a' must be a number, got 'x'",
        3: "column 'b' must be finite in float32, got inf",
    }
    about = json.loads((tmp_path / "out.csv.json").read_text())
    assert about["imputed"] == {"a": 3, "b": 2, "c": 1}  # bad rows do not count


def test_counts_go_on_after_an_interruption(model, tmp_path, monkeypatch):
    _, folder = model
    source = write(tmp_path / "in.csv", table())
    merge = scoring.file_scores._merge

    def fail(parts, *args):
        parts[-1].unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring.file_scores, "_merge", fail)
    with pytest.raises(KeyboardInterrupt):
        scoring.score_file(folder / "saved", source, tmp_path / "out.csv", part_rows=150)
    monkeypatch.setattr(scoring.file_scores, "_merge", merge)
    scoring.score_file(folder / "saved", source, tmp_path / "out.csv", part_rows=150)
    about = json.loads((tmp_path / "out.csv.json").read_text())
    assert about["imputed"] == {**table().isna().sum().to_dict()}


def test_without_imputing_such_rows_are_rejected(tmp_path):
    x = table()
    dde = density(x.dropna())
    dde.save(tmp_path / "density.keras")
    source = write(tmp_path / "in.csv", x)
    out = tmp_path / "out.csv"
    rejected = scoring.score_file(tmp_path / "density.keras", source, out)
    assert rejected == x.isna().any(axis=1).sum()
    about = json.loads((tmp_path / "out.csv.json").read_text())
    assert "imputed" not in about and "medians" not in about


def test_conditions_and_kept_columns_keep_their_gaps():
    columns = {"a": [1.0, None], "k": [None, 2.0]}
    data = blocks.pa.table(columns)
    values, reasons = blocks.numbers(data, ["a", "k"], gaps=1)
    assert reasons == ["column 'k' is missing", None]
    assert np.isnan(values[1, 0]) and values[1, 1] == 2


def test_beam_does_as_the_scorer(model):
    pytest.importorskip("apache_beam")
    from tfdde.beam import _Score

    dde, folder = model
    x = table()
    step = _Score(str(folder / "saved"), None, None, [], None)
    step.setup()
    (scores,) = step.process(blocks.pa.Table.from_pandas(x))
    expected = dde.log_density(dde.normalization.rows(x), normalized=False)
    found = scores.column("unnormalized_log_density")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_explanations_take_medians_and_drift_leaves_gaps_out(model, tmp_path):
    dde, folder = model
    x = table()
    whole = x.dropna()
    source, normal = write(tmp_path / "in.parquet", x), write(tmp_path / "normal.parquet", x)
    out = tmp_path / "out.parquet"
    scoring.score_file(folder / "saved", source, out, explain="all", normal=normal)
    got = pd.read_parquet(out)
    shares, usual = anomalies.explain(
        lambda rows: dde.log_density(rows, normalized=False),
        dde.normalization.rows(x).astype(np.float64),
        whole.to_numpy().astype(np.float32).astype(np.float64),
    )
    np.testing.assert_allclose(got[[f"share:{c}" for c in "abc"]], shares, atol=2e-3)
    np.testing.assert_allclose(got[[f"usual:{c}" for c in "abc"]], usual, atol=2e-2)
    said = scoring.file_drift(folder / "saved", source, normal=normal)
    assert f"{len(whole)} new rows" in said and f"{len(whole)} held-out rows" in said
