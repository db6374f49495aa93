"""Alarms, explanations and drift of files, against `tfdde.anomalies` and planted anomalies."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gaussians import gaussian_dde
from scored import MEAN, frame, read, write

from tfdde import anomalies, scoring, serving, tables

ROOT = Path(__file__).parents[2]
NAMES = list("abcdef")
# Keras's own saving of weights makes NumPy 2 warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def correlated(count, seed):
    """Rows of six columns with strong correlations, and their precision matrix."""
    mixing = np.random.default_rng(0).standard_normal((6, 3))
    covariance = mixing @ mixing.T + 0.3 * np.eye(6)
    rng = np.random.default_rng(seed)  # Cholesky's factor is unique: the same rows everywhere
    rows = rng.multivariate_normal(np.zeros(6), covariance, count, method="cholesky")
    return rows.astype(np.float32).astype(float), np.linalg.inv(covariance)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an exact density, the rows that it keeps, and an artifact of it."""
    folder = tmp_path_factory.mktemp("run")
    training, _ = correlated(3_000, 1)
    density = gaussian_dde(training.astype(np.float32))
    density.save(folder / "density.keras")
    held_out, _ = correlated(400, 2)
    anomalies.NormalRows(training, held_out).save(folder / "normal_rows.npz")
    (folder / "result.json").write_text(json.dumps({"columns": NAMES}))
    serving.export_savedmodel(folder / "saved", density, run=folder)
    return folder, density


def planted():
    """200 rows, in each one value five conditional deviations from its mean; its column."""
    x, precision = correlated(200, 3)
    rng, each = np.random.default_rng(4), np.arange(200)
    column = rng.integers(0, 6, 200)
    usual = x - (x @ precision) / np.diag(precision)
    shift = 5 / np.sqrt(np.diag(precision)[column]) * rng.choice([-1, 1], 200)
    x[each, column] = usual[each, column] + shift
    return x.astype(np.float32).astype(float), column


def explained(density, x, folder):
    kept = anomalies.NormalRows.load(folder / "normal_rows.npz", 6)
    return anomalies.explain(
        lambda rows: density.log_density(rows, normalized=density.normalized), x, kept.training
    )


@pytest.mark.parametrize("model", [".", "saved"])
def test_planted_columns_come_first_with_the_shares_of_explain(run, tmp_path, model):
    folder, density = run
    x, column = planted()
    out = tmp_path / "out.parquet"
    write(tmp_path / "in.parquet", pd.DataFrame(x[:, ::-1], columns=NAMES[::-1]).assign(id="x"))
    scoring.score_file(folder / model, tmp_path / "in.parquet", out, keep=["id"], explain="all")
    got = read(out)
    log_density = got.columns[1]
    shares, usual = (got[[f"{what}:{name}" for name in NAMES]] for what in ("share", "usual"))
    assert list(got) == [
        *["row", log_density, "strange_column", "strange_share", "usual_value"],
        *[*shares, *usual, "id"],
    ]
    first = got["strange_column"].map(NAMES.index).to_numpy()
    assert (first == column).mean() >= 0.9
    found = explained(density, x, folder)
    np.testing.assert_array_equal(first, found.ranking()[:, 0])
    np.testing.assert_allclose(shares, found.shares, rtol=1e-5, atol=1e-5)
    # At the top of the density, rounding to float32 lets its place vary.
    np.testing.assert_allclose(usual, found.usual, atol=5e-3)
    each = np.arange(len(x))
    np.testing.assert_array_equal(got["strange_share"], shares.to_numpy()[each, first])
    np.testing.assert_array_equal(got["usual_value"], usual.to_numpy()[each, first])


@pytest.mark.parametrize("model", [".", "saved"])
def test_alarms_are_below_the_calibrated_threshold_and_alone_explained(run, tmp_path, model):
    folder, density = run
    x = np.r_[correlated(1_000, 5)[0], planted()[0]]
    source, out = write(tmp_path / "in.csv", pd.DataFrame(x, columns=NAMES)), tmp_path / "out.csv"
    scoring.score_file(folder / model, source, out, threshold=0.05, explain="first", part_rows=150)
    got = read(out)
    normalized = density.normalized
    held_out = correlated(400, 2)[0].astype(np.float32)
    scores = -density.log_density(held_out, normalized=normalized).numpy().astype(float)
    highest = anomalies.threshold(scores, 0.05).value
    expected = -density.log_density(x, normalized=normalized).numpy() > highest
    assert (got["alarm"] != expected).sum() <= 1  # equal but for rounding
    # Of 1,000 normal rows about 5 % raise one; the interval for 400 held-out rows is wide.
    assert 20 <= got["alarm"][:1_000].sum() <= 90 and got["alarm"][1_000:].mean() > 0.9
    for name in ("strange_column", "strange_share", "usual_value"):
        np.testing.assert_array_equal(got[name].notna(), got["alarm"])


def test_a_model_that_only_has_a_log_density(exact, tmp_path):
    """N(MEAN, I): the usual value is the mean, the share half the square of the distance."""
    table = frame(40)
    table.loc[:, "c"] += 9
    source, out = write(tmp_path / "in.csv", table), tmp_path / "out.csv"
    normal = tmp_path / "normal.csv"
    frame(900, seed=8).assign(b=lambda t: [*t["b"][:-1], "bad"]).to_csv(
        normal, sep=";", index=False
    )
    options = {"columns": list("abc"), "threshold": 0.01, "explain": "all"}
    with pytest.raises(ValueError, match="knows no normal rows, which `explain`, `threshold` and"):
        scoring.score_file(exact / "unknown", source, out, **options)
    scoring.score_file(exact / "unknown", source, out, normal=normal, keep=["id"], **options)
    got = read(out)
    assert got["alarm"].all() and (got["strange_column"] == "c").all()
    np.testing.assert_allclose(got["usual:b"], MEAN[1], atol=5e-3)
    np.testing.assert_allclose(got["share:c"], 0.5 * (table["c"] - MEAN[2]) ** 2, rtol=1e-4)
    # Another call does not replace it, and says what differs.
    with pytest.raises(FileExistsError, match=r"another threshold \(0.01, not 0.02\)"):
        options["threshold"] = 0.02
        scoring.score_file(exact / "unknown", source, out, normal=normal, keep=["id"], **options)


def test_integers_and_seconds_are_explained_in_their_own_units(tmp_path):
    rng = np.random.default_rng(0)
    seconds, visits = 1.7e9 + rng.random(900), rng.integers(0, 9, 900)
    table = pd.DataFrame({"seconds": seconds, "visits": visits})
    schema = tables.Schema.learn(table)
    density = gaussian_dde(schema.training_rows(table, 0), normalization=schema)
    density.adapt(schema.training_rows(table, 0))  # in float64
    density.save(tmp_path / "density.keras")
    rows = schema.rows(table)
    anomalies.NormalRows(rows[:700], rows[700:]).save(tmp_path / "normal_rows.npz")
    new = pd.DataFrame({"seconds": [1.7e9 + 0.5, 1.7e9 + 60], "visits": [40, 4]})
    source, out = write(tmp_path / "in.parquet", new), tmp_path / "out.parquet"
    scoring.score_file(tmp_path, source, out, threshold=0.05, explain="first")
    got = read(out)
    assert got["strange_column"].tolist() == ["visits", "seconds"] and got["alarm"].all()
    assert got["usual_value"][0] == 4.0
    assert got["usual_value"][1] == pytest.approx(seconds.mean(), abs=0.02)


def test_bad_rows_have_neither_alarm_nor_explanation(run, tmp_path):
    folder, _ = run
    x = pd.DataFrame(planted()[0][:20], columns=NAMES)
    x.loc[3, "b"] = np.nan
    source, out = write(tmp_path / "in.csv", x), tmp_path / "out.csv"
    assert scoring.score_file(folder, source, out, threshold=0.05, explain="first") == 1
    assert read(out)["row"].tolist() == [i for i in range(20) if i != 3]


def test_drift_of_a_file(run, exact, tmp_path):
    folder, _ = run
    same, lost = correlated(6_000, 11)[0], correlated(2_000, 12)[0]
    lost[:, 2] = np.random.default_rng(0).permutation(lost[:, 2])  # each column as before
    moved = correlated(2_000, 13)[0] + 1.5 * np.eye(6)[4]  # half a deviation
    said = {}
    for name, x in {"same": same, "lost": lost, "moved": moved}.items():
        path = write(tmp_path / f"{name}.csv", pd.DataFrame(x, columns=NAMES).assign(id=1))
        said[name] = scoring.file_drift(folder, path, keep=["id"])
    compared = "new rows were compared with 400 held-out rows:"
    assert said["same"].startswith(f"5000 {compared} no change was found (p = ")
    assert said["lost"] == (
        f"2000 {compared} there is a change (p = 0.001) of the log-density (p = 0.001)."
    )
    assert f"2000 {compared} there is a change (p = 0.001) of `e` (p = 0.001, " in said["moved"]
    path = tmp_path / "moved.csv"
    with pytest.raises(ValueError, match="keeps no rows, which drift needs, only ranges of the"):
        scoring.file_drift(folder / "saved", path, NAMES)
    held_out = write(
        tmp_path / "normal.parquet", pd.DataFrame(correlated(400, 2)[0], columns=NAMES)
    )
    assert scoring.file_drift(folder / "saved", path, NAMES, normal=held_out) == said["moved"]


def test_what_is_refused(run, exact, tmp_path):
    folder, _ = run
    source = write(tmp_path / "in.csv", pd.DataFrame(planted()[0], columns=NAMES))

    def message(model=folder, output="out.csv", source=source, **options):
        with pytest.raises((OSError, ValueError)) as info:
            scoring.score_file(model, source, tmp_path / output, **options)
        assert not list(tmp_path.glob("out*"))
        return str(info.value)

    assert "`explain` must be one of first, all, got 'last'" in message(explain="last")
    assert "`normal` must be left out without a `threshold`" in message(normal=source)
    assert "must end in .csv or .parquet" in message(output="out.tfrecord", threshold=0.1)
    assert "`threshold` must be at least 0.0025, got 0.001: only 400" in message(threshold=0.001)
    for rate in (0.0, -0.1, 1.0, float("nan")):
        assert "`threshold` must be a rate in (0, 1)" in message(threshold=rate)
    assert "`keep` must not name 'alarm'" in message(
        source=write(
            tmp_path / "in.parquet", pd.DataFrame(planted()[0], columns=NAMES).assign(alarm=1)
        ),
        keep=["alarm"],
        threshold=0.1,
    )
    table = frame(3).drop(columns="id").assign(k=1.0)
    assert "need a density without conditions" in message(
        exact / "conditional",
        source=write(tmp_path / "k.csv", table),
        conditions=["k"],
        threshold=0.1,
    )
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "normal_rows.npz").write_bytes(b"no zip")
    assert "can't be read as normal rows of 6 columns" in message(damaged, explain="first")
    artifact = damaged / "saved" / "1" / "assets.extra" / "metadata.json"
    facts = json.loads(artifact.read_text())
    facts["normal"]["ranges"].pop()
    artifact.write_text(json.dumps(facts))
    assert "it has 5 ranges for 6 columns" in message(damaged / "saved", explain="first")


def test_script(run, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("score", ROOT / "export" / "score.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder, _ = run
    source = write(tmp_path / "in.csv", pd.DataFrame(planted()[0], columns=NAMES))
    arguments = [str(folder), f"--input={source}", f"--output={tmp_path / 'out.csv'}"]
    assert script.main([*arguments, "--threshold=0.05", "--explain", "--drift"]) == 0
    out = capsys.readouterr().out
    assert "is an alarm. 5 % of normal rows are expected to raise one" in out
    assert "200 new rows were compared with 400 held-out rows: there is a change (p = 0.0" in out
    assert read(tmp_path / "out.csv")["alarm"].mean() > 0.9
    assert script.main([*arguments, "--threshold=0.05", "--explain"]) == 0
    assert "is complete already" in capsys.readouterr().out
    assert script.main([*arguments, "--threshold=0.05", "--explain=all"]) == 2
    assert "another explain ('first', not 'all')" in capsys.readouterr().err
    for wrong in (["--normal=a.csv"], ["--drift", "--input=-"]):
        with pytest.raises(SystemExit):
            script.main([*arguments, *wrong])
