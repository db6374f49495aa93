"""train/tabular.py as a user runs it, tiny: files, likelihood, errors, Ctrl-C and --resume."""

import json
import math
import re
import signal

import keras
import numpy as np
import pandas as pd
import pytest
import tabular as script
from scipy.stats import multivariate_normal, norm, poisson

import tfdde
from tfdde import anomalies, datasets, metrics, plots, recipes, runs, scoring, serving

# Keras's own saving of weights makes NumPy 2 warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TINY = ["--width=8", "--depth=1", "--batch-size=64", "--samples=4000", "--no-jit"]
STEPS = ["--steps=23", "--learning-rate=0.01"]
MEAN = np.array([5.0, -100.0, 0.0])
COVARIANCE = np.array([[1.0, 1.6, 0.0], [1.6, 4.0, 0.003], [0.0, 0.003, 1e-4]])
FILES = {
    "config.json",
    "checkpoint/best.npz",
    "checkpoint/density.weights.h5",
    "density.csv",
    "density.keras",
    "log_density.png",
    "losses.png",
    "marginals.png",
    "normal_rows.npz",
    "pairs.png",
    "report.md",
    "result.json",
    "scores.png",
    "validation.csv",
}


@pytest.fixture(scope="module")
def tabular():
    """The script, with short epochs and validations."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"EPOCH_STEPS": 6, "STEPS_PER_CALL": 2, "VALIDATION_ROWS": 500}
        for name, value in sizes.items():
            patch.setattr(recipes, name, value)
        yield script


def write(path, x, names=("a", "b", "c")):
    np.savetxt(path, x, "%.9g", delimiter=",", header=",".join(names), comments="")
    return path


@pytest.fixture(scope="module")
def gaussian():
    return np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 2000).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tabular, gaussian, tmp_path_factory):
    """The run folder of an uninterrupted run on a CSV file, which is beside it."""
    folder = tmp_path_factory.mktemp("whole")
    data = write(folder / "table.csv", gaussian)
    assert tabular.main([f"--data={data}", *TINY, *STEPS, f"--output={folder / 'run'}"]) == 0
    return folder / "run"


def read(folder):
    return json.loads((folder / "result.json").read_text())


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_report_has_the_threshold_and_the_strangest_rows(whole, gaussian):
    text = (whole / "report.md").read_text("utf-8")
    dde = keras.saving.load_model(whole / "density.keras")
    _, validation, test = datasets.split_rows(gaussian, 0)
    log_density = dde.log_density(test, normalized=dde.normalized).numpy()
    alarm = float(re.search(r"below (\S+) nats is an alarm", text)[1])
    known = dde.log_density(validation, normalized=dde.normalized).numpy()
    assert (known < alarm + 1e-3 * abs(alarm)).mean() == pytest.approx(0.05, abs=0.01)
    listed = [int(row) for row in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert listed == np.argsort(log_density)[: len(listed)].tolist() and listed
    pictures = set(re.findall(r"\((\S+\.png)\)", text))
    assert {"marginals.png", "pairs.png", "scores.png", "sigma.png"} <= pictures
    for picture in pictures:
        assert (whole / picture).is_file()
    assert "200 test rows were compared with 1600 training rows: no change was found" in text


def test_the_scorer_finds_the_threshold_of_the_report(whole, gaussian, tmp_path):
    """From the rows that the run keeps; and what it explains is planted."""
    x = datasets.split_rows(gaussian, 0)[2].copy()
    x[:5, 2] = 0.06  # six standard deviations
    out = tmp_path / "out.csv"
    table = write(tmp_path / "in.csv", x)
    scoring.score_file(whole, table, out, threshold=0.05, explain="first")
    got = pd.read_csv(out)
    report = (whole / "report.md").read_text("utf-8")
    alarm = float(re.search(r"below (\S+) nats is an alarm", report)[1])
    expected = got["log_density"] < alarm
    assert (got["alarm"] != expected).sum() <= 1  # the report rounds the threshold
    assert got["alarm"][:5].all() and (got["strange_column"][:5] == "c").all()
    np.testing.assert_allclose(got["usual_value"][:5], 0.0, atol=0.02)
    assert "no change was found" in scoring.file_drift(whole, table)


def test_likelihood_of_a_known_gaussian(whole, gaussian):
    _, validation, test = datasets.split_rows(gaussian, 0)
    result = read(whole)
    assert result["rows"] == {"train": 1600, "validation": 200, "test": 200}
    assert result["columns"] == ["a", "b", "c"]
    log_z_error = result["log_partition"]["standard_error"]
    exact = multivariate_normal(MEAN, COVARIANCE).logpdf(test)
    # On the same rows: what is left is log Z, 9 parameters of 1,600 rows, and the blur.
    assert abs(result["log_likelihood"] - exact.mean()) < 3 * log_z_error + 0.05
    error = math.hypot(exact.std() / math.sqrt(200), log_z_error)
    assert result["standard_error"] == pytest.approx(error, rel=0.1)
    # In standardised units it is what the standardised rows would give.
    volume = np.log(np.sqrt(np.diag(COVARIANCE))).sum()
    assert result["in_standardized_units"] - result["log_likelihood"] == pytest.approx(
        volume, abs=0.1
    )


def test_files_and_the_saved_density(whole, gaussian):
    assert FILES | {"sigma.png"} <= files(whole)
    result, (density, _) = read(whole), serving.load_run(whole)
    test = datasets.split_rows(gaussian, 0)[2]
    assert density.normalized and density.noise.sigma == result["sigma"] >= 0.05
    again = density.log_density(test, normalized=True).numpy()
    assert result["log_likelihood"] == pytest.approx(again.mean(dtype=float), abs=1e-4)
    # Its integral, by importance sampling from the exact Gaussian made wider, is 1.
    wide = multivariate_normal(MEAN, 1.5 * COVARIANCE)
    x = wide.rvs(20_000, random_state=1)
    log_w = density.log_density(x, normalized=True).numpy() - wide.logpdf(x)
    error = result["log_partition"]["standard_error"]
    assert abs(math.log(np.exp(log_w).mean())) < 3 * error < 0.15


def test_the_script_tells_the_likelihood(tabular, whole, capsys):
    args = [f"--data={whole.parent / 'table.csv'}", *TINY, *STEPS, f"--output={whole}"]
    before = read(whole)
    assert tabular.main([*args, "--resume"]) == 0  # of a run that is complete: evaluates again
    assert read(whole) == before
    out = capsys.readouterr().out
    told = re.search(r"Held-out log-likelihood: (\S+) ± (\S+) nats per row in the data's", out)
    assert float(told[1]) == pytest.approx(before["log_likelihood"], abs=1e-4)
    assert float(told[2]) == pytest.approx(before["standard_error"], abs=1e-4)
    # A second run does not overwrite the first, nor go on with other rows or settings.
    assert tabular.main(args) == 2
    assert "add --resume" in capsys.readouterr().err
    assert tabular.main([*args, "--resume", "--seed=1"]) == 2
    assert tabular.main([*args, "--resume", "--columns", "b", "a", "c"]) == 2


def test_a_column_in_other_units(tabular, whole, gaussian, tmp_path):
    """Ten times the numbers of a column: the density of a row is a tenth."""
    data = tmp_path / "table.npy"
    np.save(data, gaussian * np.float32([1, 10, 1]))
    assert tabular.main([f"--data={data}", *TINY, *STEPS, f"--output={tmp_path / 'run'}"]) == 0
    here, there = read(whole), read(tmp_path / "run")
    assert there["sigma"] == here["sigma"]
    fall = here["log_likelihood"] - there["log_likelihood"]
    assert fall == pytest.approx(math.log(10), abs=1e-3)
    both = [r["in_standardized_units"] for r in (here, there)]
    assert both[0] == pytest.approx(both[1], abs=1e-3)


def test_ctrl_c_then_resume_equals_an_uninterrupted_run(
    tabular, whole, tmp_path, monkeypatch, capfd
):
    def interrupt(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == 14:  # in the middle of an epoch
            signal.raise_signal(signal.SIGINT)

    args = [f"--data={whole.parent / 'table.csv'}", *TINY, *STEPS, f"--output={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(runs.Checkpoint, "on_train_batch_end", interrupt)
        assert tabular.main(args) == 130
    assert "Interrupted at step 14 of 23" in capfd.readouterr().out
    assert files(tmp_path) >= {"density.keras", "losses.png"}
    assert "result.json" not in files(tmp_path)

    assert tabular.main([*args, "--resume"]) == 0
    assert read(tmp_path) == read(whole)
    validation = [(folder / "validation.csv").read_text() for folder in (tmp_path, whole)]
    assert validation[0] == validation[1] and validation[0].count("\n") == 1 + 4
    a, b = (keras.saving.load_model(folder / "density.keras") for folder in (tmp_path, whole))
    for v, w in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(v.numpy(), w.numpy(), err_msg=v.path)


def test_wine_stops_early_and_without_log_z_there_is_no_likelihood(tabular, tmp_path, capsys):
    """150 samples are too few to trust log Z."""
    args = ["--dataset=wine", "--seed=1", *TINY, "--samples=150", "--steps=200"]
    args += ["--contrast-weight=0"]  # with it the loss would fall on at this rate
    assert tabular.main([*args, "--learning-rate=0.1", "--patience=2", f"--output={tmp_path}"]) == 0
    losses = plots.read_log(tmp_path / "validation.csv")["loss"]
    assert len(losses) == losses.argmin() + 3 < 200 // 6
    with np.load(tmp_path / "checkpoint/best.npz") as file:
        _, *kept = file.values()
    density = keras.saving.load_model(tmp_path / "density.keras")
    for v in density.trainable_variables:
        assert any(np.array_equal(v.numpy(), w) for w in kept), v.path

    result, out = read(tmp_path), capsys.readouterr().out
    assert result["rows"] == {"train": 144, "validation": 17, "test": 17}
    assert not density.normalized and "log_likelihood" not in result
    assert "Held-out UNNORMALISED log-density: " in out
    assert "NOT to be trusted" in out and "log-likelihood" not in out
    x = datasets.load_builtin("wine", 1).x_test
    s = density.log_density(x, normalized=False).numpy()
    assert result["unnormalized_log_density"] == pytest.approx(s.mean(), abs=1e-3)


def uci(rows=300):
    x = np.random.default_rng(1).standard_normal((rows, 2)).astype(np.float32)
    return datasets.Table(*datasets.split_rows(x, 0), ("a", "b"))


def test_paper(tabular, tmp_path, monkeypatch):
    monkeypatch.setattr("tfdde.datasets.sources.load_uci", lambda name, folder: uci())
    args = ["--dataset=power", "--paper", *TINY, "--steps=10", f"--output={tmp_path}"]
    assert tabular.main(args) == 0
    assert files(tmp_path) >= FILES and "sigma.png" not in files(tmp_path)
    result, density = read(tmp_path), keras.saving.load_model(tmp_path / "density.keras")
    assert density.normalized and density.normalization is None
    assert density.noise.sigma == result["sigma"] == 0.05
    assert result["log_partition"]["method"] == "importance"
    again = density.log_density(uci().x_test, normalized=True).numpy().mean()
    assert result["log_likelihood"] == pytest.approx(again, abs=1e-4)
    grid, cell = metrics.grid(-6, 6, 100)
    integral = np.exp(density.log_density(grid).numpy()).sum() * cell
    assert abs(math.log(integral)) < 3 * result["log_partition"]["standard_error"] < 0.2
    assert result["in_standardized_units"] == result["log_likelihood"]


@pytest.mark.parametrize(
    ("name", "width", "sigma"),
    [("power", 64, 0.05), ("gas", 128, 0.04), ("hepmass", 128, 0.02), ("miniboone", 64, 0.15)],
)
def test_settings_of_the_paper(tabular, name, width, sigma):
    args = tabular.parse([f"--dataset={name}", "--paper", "--depth=1", "--steps=1000"])
    assert (args.width, args.sigma, args.sigma_max) == (width, sigma, 0.1)
    assert tabular.parse([f"--dataset={name}", "--paper"]).depth == 25
    density = tabular.build(args, uci().x_train)
    if name == "miniboone":
        assert isinstance(density.noise, tfdde.Constant)
    else:
        assert isinstance(density.noise, tfdde.Decay)
        # The last level is reached, in the first three quarters of the training.
        assert float(density.noise.at(750)) == pytest.approx(sigma)
    assert density.noise.sigma == sigma
    rate = density.optimizer._learning_rate
    rates = [float(rate(step)) for step in (0, 249, 250, 999)]
    np.testing.assert_allclose(rates, 2.5e-4 * np.array([1, 1, 1 / 2, 1 / 8]), rtol=1e-5)


@pytest.mark.parametrize(("base", "components"), [([], 1), (["--base=mixture"], 4)])
def test_the_base_that_was_asked_for(tabular, base, components):
    args = tabular.parse(["--dataset=wine", "--width=8", "--depth=1", *base])
    centres = np.random.default_rng(0).choice([-4.0, 4.0], (2_000, 2))
    x = centres + np.random.default_rng(1).standard_normal((2_000, 2))
    assert tabular.build(args, x).base.components == components


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "one of the arguments --data --dataset is required"),
        (["--data=a.csv", "--dataset=wine"], "--dataset: not allowed with argument --data"),
        (["--dataset=wime"], "invalid choice: 'wime'.*wine"),
        (["--dataset=wine", "--columns", "a"], "--columns needs --data"),
        (["--dataset=wine", "--sigma=9"], "--sigma-max 8.0 must exceed --sigma 9.0"),
        (["--dataset=wine", "--steps=0"], "argument --steps: .*'0'"),
        (["--dataset=wine", "--base=one"], "argument --base: .*'one'.*gaussian.*mixture"),
        (["--dataset=power", "--paper", "--base=mixture"], "--base mixture is not for --paper"),
        (["--dataset=power", "--paper", "--contrast-weight=1"], "--contrast-weight is not for"),
        (["--dataset=wine", "--contrast-weight=-1"], "--contrast-weight must be .* got -1.0"),
    ],
)
def test_wrong_arguments(tabular, capsys, args, message):
    with pytest.raises(SystemExit) as exit_:
        tabular.main(args)
    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def rows(**columns):
    x = np.random.default_rng(0).standard_normal((100, 2))
    for column, values in columns.items():
        x[:, "ab".index(column)] = values
    return x


@pytest.mark.parametrize(
    ("x", "args", "message"),
    [
        (rows(b=[*np.linspace(0, 1, 90), *[math.nan] * 10]), [], r"missing \(NaN\) in 'b' in"),
        (rows(b=[*np.linspace(0, 1, 90), *[math.inf] * 10]), [], "Column 'b' must be finite"),
        (rows(a=7), [], r"Column 'a' is constant \(7\)"),
        (rows() @ [[1, 2], [0, 0]], [], "Columns 'a' and 'b' are linearly dependent"),
        (rows()[:15], [], "at least 20 rows"),
        (rows(), ["--columns", "a", "d"], "`columns` must name columns of .*, got 'd'"),
        (rows(), ["--seed=-1"], "`seed` must be .*, got -1"),
    ],
)
def test_wrong_tables_are_one_sentence(tabular, tmp_path, capsys, x, args, message):
    data, folder = write(tmp_path / "table.csv", x, "ab"), tmp_path / "run"
    assert tabular.main([f"--data={data}", f"--output={folder}", *args]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{message}.*\n", error), error
    assert not folder.exists()


def test_a_table_as_it_is(tabular, tmp_path, capsys):
    """Seconds, counts, a gap and a column twice: named, and a likelihood in the columns' units."""
    rng, n = np.random.default_rng(0), 2_000
    x = pd.DataFrame(
        {
            "seconds": 1.7e9 + rng.standard_normal(n),
            "visits": rng.poisson(20, n),
            "amount": 1e-12 * rng.standard_normal(n),
        }
    )
    x["again"] = 2 * x.amount
    x.loc[rng.choice(n, 100, replace=False), "visits"] = np.nan
    x.to_parquet(tmp_path / "table.parquet")
    folder = tmp_path / "run"
    args = [f"--data={tmp_path / 'table.parquet'}", *TINY, *STEPS, f"--output={folder}"]
    assert tabular.main(args) == 2
    assert "(NaN) in 'visits' in" in capsys.readouterr().err
    assert tabular.main([*args, "--missing=impute"]) == 2
    assert "Columns 'amount' and 'again' are linearly" in capsys.readouterr().err
    assert tabular.main([*args, "--missing=impute", "--dependent=drop"]) == 0
    out = capsys.readouterr().out
    for told in ("'visits' misses", "'visits' holds integers, 1 apart", "'again' is left out"):
        assert told in out
    assert "It is that of the columns with noise: visits." in out
    result, (density, _) = read(folder), serving.load_run(folder)
    assert result["columns"] == ["seconds", "visits", "amount"] == list(density.normalization.names)
    assert len(result["notices"]) == 3 and result["warnings"] == []
    # All columns are independent; the entropies of the noisy counts and of normal columns.
    counts = np.arange(60)
    p = poisson.pmf(counts, 20)
    exact = (p * np.log(p)).sum() + 2 * norm.entropy() * -1 - math.log(1e-12)
    assert abs(result["log_likelihood"] - exact) < 4 * result["standard_error"] + 0.1
    kept = anomalies.NormalRows.load(folder / "normal_rows.npz", 3)
    for rows in kept:  # as new rows will come: integers, and no gap filled
        np.testing.assert_array_equal(rows[:, 1], np.rint(rows[:, 1]))
    assert 1_480 < len(kept.training) < 1_600
    scores = scoring.Scorer(folder)
    assert scores.columns == result["columns"] and scores.dtype == "float64"


def test_missing_data_are_one_sentence(tabular, tmp_path, capsys):
    nowhere = tmp_path / "nowhere.csv"
    assert tabular.main([f"--data={nowhere}"]) == 2
    assert capsys.readouterr().err == f"error: Table {str(nowhere)!r} does not exist.\n"
    assert tabular.main(["--dataset=power", f"--data-dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "household_power_consumption.txt" in error


def test_more_columns_than_rows_or_units(tabular):
    """There are no independent components to start at, and training does without."""
    x = np.random.default_rng(0).standard_normal((6, 9)).astype(np.float32)
    args = tabular.parse(["--dataset=wine", "--width=16", "--depth=1", "--no-jit"])
    assert np.isfinite(tabular.build(args, x).log_density(x, normalized=False)).all()
    args.width = 8
    assert np.isfinite(
        tabular.build(args, np.tile(x, (3, 1))).log_density(x, normalized=False)
    ).all()


def test_a_bad_network_is_left_out_for_its_base():
    """Four clusters, a mixture that knows them, and a network that does harm."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 5, (4, 4))[rng.integers(4, size=2_000)] + rng.standard_normal((2_000, 4))
    x = x.astype(np.float32)
    keras.utils.set_random_seed(0)
    dde = recipes.table_density(x[:1_500], tfdde.LogUniform(0.5, 16.0), width=8, depth=1)
    assert not dde.base.one_gaussian
    held_out = x[1_500:]
    good = tfdde.tuning.select_sigma(dde, held_out, samples=500)
    assert not script.likelier_base(dde, held_out, good)  # the network is near 0 at first
    last = [layer for layer in dde.network.layers if layer.weights][-1]
    last.set_weights([3.0 * rng.standard_normal(w.shape) for w in last.get_weights()])
    bad = tfdde.tuning.select_sigma(dde, held_out, samples=500)
    assert script.likelier_base(dde, held_out, bad)
    dde.drop_correction()
    alone = tfdde.tuning.select_sigma(dde, held_out, samples=500)
    assert not script.likelier_base(dde, held_out, alone)
    assert alone.partitions[alone.best].trusted
