"""The search over sigma with keras-tuner, against exact mixtures."""

from pathlib import Path

import keras_tuner
import numpy as np
import pytest
from mixtures import three

from tfdde import tuning
from tfdde.tuning.search import Densities
from tfdde.tuning.tuner import OBJECTIVE, LikelihoodTuner

pytestmark = [
    # keras-tuner's own threads, and Keras's saving of weights under NumPy 2
    pytest.mark.filterwarnings(
        "ignore:(currentThread|getName)\\(\\) is deprecated:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SMALL = {"width": 32, "depth": 2, "jit_compile": False}
# Of rows on a line values of s are enough for log Z: no gradient has to be traced in each trial.
QUICK = {"method": "importance", "samples": 1_000}
oracles = keras_tuner.oracles


@pytest.fixture(scope="module")
def rows():
    return three().sample(2_000, 1), three().sample(2_000, 2)


@pytest.fixture(scope="module")
def line(rows):
    """Rows of one column, for what does not depend on the density."""
    return tuple(x[:, :1] for x in rows)


def random_oracle(trials, **kwargs):
    return oracles.RandomSearchOracle(OBJECTIVE, max_trials=trials, seed=3, **kwargs)


def exact(rows, sigma, units):
    """Mean log-likelihood of the blurred mixture, noise of sigma standard deviations ``units``."""
    truth = three()
    v = truth.variances[:, None] + (sigma * units) ** 2
    square = ((rows[:, None] - truth.means) ** 2 / v).sum(-1)
    parts = np.log(truth.weights) - 0.5 * square - 0.5 * np.log(2 * np.pi * v).sum(-1)
    return np.logaddexp.reduce(parts, axis=1).mean()


@pytest.mark.parametrize("levels", ["all", "one"])
def test_likelihoods_are_those_of_the_exact_density_and_of_one_densitys_curve(
    tmp_path, rows, levels
):
    x, held_out = rows
    many = Densities(x, (0.2, 1.2), sigma_max=8.0, **SMALL)
    one = Densities(x, (0.2, 1.2), sigma_max=None, **SMALL)
    tuner = LikelihoodTuner(
        random_oracle(2),
        many if levels == "all" else one,
        partition={"method": "annealed", "samples": 1_000} if levels == "one" else None,
        directory=tmp_path,
    )
    tuner.search(x, validation_data=held_out, epochs=8, verbose=0)
    trials = sorted(tuner.oracle.trials.values(), key=lambda t: -t.score)
    assert [t.status for t in trials] == ["COMPLETED"] * 2
    for trial in trials:
        sigma = trial.hyperparameters.values["sigma"]
        error = trial.metrics.get_best_value("standard_error")
        assert 0.01 < error < 0.1
        # What is missing is the KL of a training of a few seconds.
        gap = exact(held_out, sigma, x.std(axis=0)) - trial.score
        assert -3 * error < gap < 0.05 + 3 * error
    best = tuner.get_best_models()[0]
    assert best.noise.sigma == trials[0].hyperparameters.values["sigma"]
    log_density = best.log_density(held_out, normalized=True).numpy()
    assert log_density.mean() == pytest.approx(trials[0].score, abs=1e-4)
    assert 1 <= trials[0].metrics.get_best_value("trained") <= 8
    if levels == "all":
        again = tuner.refit(np.concatenate([x, three().sample(500, 3)]), epochs=8, verbose=0)
        fresh = three().sample(4_000, 4)
        values = again.log_density(fresh, normalized=True).numpy()
        units = again.normalization.variance.numpy() ** 0.5
        gap = exact(fresh, again.noise.sigma, units) - values.mean()
        assert again.noise.sigma == best.noise.sigma and abs(gap) < 0.05 + 3 * error
    else:
        # The other way: all levels in one density.
        hp = keras_tuner.HyperParameters()
        hp.Fixed("sigma", 0.2)
        dde = Densities(x, 0.2, **SMALL).build(hp)
        many.fit(hp, dde, x, validation_data=held_out, epochs=8, verbose=0)
        curve = tuning.select_sigma(dde, held_out)
        for trial in trials:
            sigma = np.log(trial.hyperparameters.values["sigma"])
            value = np.interp(sigma, np.log(curve.sigmas), curve.log_likelihood)
            error = np.hypot(trial.metrics.get_best_value("standard_error"), 0.03)
            assert abs(value - trial.score) < 0.05 + 3 * error


def test_a_trial_without_a_trusted_log_z_fails_and_does_not_win(tmp_path, line):
    x, held_out = line
    tuner = LikelihoodTuner(
        random_oracle(2, max_consecutive_failed_trials=2),
        Densities(x, (0.2, 0.4), **SMALL),
        partition=QUICK | {"samples": 120},  # too few to be trusted, however good the density
        directory=tmp_path,
    )
    with pytest.raises(RuntimeError, match="consecutive failures"):
        tuner.search(x, validation_data=held_out, epochs=1, verbose=0)
    for trial in tuner.oracle.trials.values():
        assert trial.status == "FAILED" and trial.score is None
        assert "log Z can't be trusted: log Z = " in trial.message
    assert not list(tmp_path.rglob("density.keras"))


def test_a_diverged_trial_fails_and_another_wins(tmp_path, line):
    x, held_out = line
    hp = keras_tuner.HyperParameters()
    hp.Choice("rate", [1e30, 1e-3])

    class Some(Densities):
        def build(self, hp):
            model = super().build(hp)
            model.optimizer.learning_rate = hp.get("rate")
            return model

    tuner = LikelihoodTuner(
        oracles.GridSearchOracle(OBJECTIVE, max_trials=2, hyperparameters=hp, seed=0),
        Some(x, 0.3, **SMALL),
        partition=QUICK,
        directory=tmp_path,
    )
    tuner.search(x, validation_data=held_out, epochs=1, verbose=0)
    by_rate = {t.hyperparameters.get("rate"): t for t in tuner.oracle.trials.values()}
    assert by_rate[1e30].status == "FAILED" and "diverged at step" in by_rate[1e30].message
    assert by_rate[1e-3].status == "COMPLETED"
    assert tuner.get_best_hyperparameters()[0].get("rate") == 1e-3


def test_a_search_goes_on_where_it_was(tmp_path, line):
    x, held_out = line

    def run(trials):
        tuner = LikelihoodTuner(
            random_oracle(trials),
            Densities(x, (0.2, 1.0), **SMALL),
            partition=QUICK,
            directory=tmp_path,
        )
        tuner.search(x, validation_data=held_out, epochs=1, verbose=0)
        return {k: (t.hyperparameters.values, t.score) for k, t in tuner.oracle.trials.items()}

    first = run(1)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("density.keras")}
    both = run(2)
    assert len(first) == len(files) == 1 and len(both) == 2
    assert first.items() <= both.items()
    assert all(p.stat().st_mtime_ns == then for p, then in files.items())


def test_hyperband_goes_on_from_the_weights_of_a_shorter_trial(tmp_path, line):
    x, held_out = line
    starts = []

    class Watched(Densities):
        def fit(self, hp, model, x, **kwargs):
            starts.append((hp.values, int(model.optimizer.iterations), kwargs["epochs"]))
            return super().fit(hp, model, x, **kwargs)

    tuner = LikelihoodTuner(
        oracles.HyperbandOracle(OBJECTIVE, max_epochs=2, factor=2, seed=1),
        Watched(x, (0.2, 1.0), **SMALL),
        partition=QUICK,
        directory=tmp_path,
    )
    tuner.search(x, validation_data=held_out, verbose=0)
    again = [s for s in starts if "tuner/trial_id" in s[0]]
    fresh = [s for s in starts if "tuner/trial_id" not in s[0]]
    assert again and all(steps == 50 * hp["tuner/initial_epoch"] > 0 for hp, steps, _ in again)
    assert fresh and all(steps == 0 for _, steps, _ in fresh)
    assert all(epochs == hp["tuner/epochs"] for hp, _, epochs in starts)


def test_wrong_input(tmp_path, rows):
    x, held_out = rows
    with pytest.raises(ValueError, match=r"`x` must have shape \(rows, n\), got \(2000,\)"):
        Densities(x[:, 0])
    with pytest.raises(ValueError, match=r"`sigma` must be a number or \(low, high\), got \(1.0"):
        Densities(x, sigma=(1.0, 0.5))
    with pytest.raises(ValueError, match="`width` must be a finite number > 0, got -3"):
        Densities(x, width=-3)
    with pytest.raises(ValueError, match=r"`sigma_max` must exceed `sigma` \(9.0\), got 8.0"):
        Densities(x, sigma=(0.1, 9.0))
    smallest = keras_tuner.Objective("log_likelihood", "min")
    for objective in ("val_loss", smallest, [OBJECTIVE, smallest]):
        oracle = oracles.RandomSearchOracle(objective)
        with pytest.raises(ValueError, match="`oracle` must have the objective .* the maximum of"):
            LikelihoodTuner(oracle, Densities(x), directory=tmp_path)
    oracle, small = random_oracle(1), Densities(x, **SMALL)
    for ignored in ({"executions_per_trial": 3}, {"max_model_size": 9}, {"optimizer": "adam"}):
        with pytest.raises(ValueError, match=f"`{next(iter(ignored))}` must not be given"):
            LikelihoodTuner(oracle, small, directory=tmp_path, **ignored)
    with pytest.raises(ValueError, match="`partition` must have arguments .*, got 'sample'"):
        LikelihoodTuner(oracle, small, partition={"sample": 9}, directory=tmp_path)
    tuner = LikelihoodTuner(oracle, small, directory=tmp_path)
    with pytest.raises(ValueError, match=r"`validation_data` must have shape \(rows, 2\)"):
        tuner.search(x, validation_data=held_out[:, :1])
    with pytest.raises(ValueError, match=r"`x` must have shape \(rows, 2\), got \(2000, 1\)"):
        tuner.search(x[:, :1], validation_data=held_out[:, :1])
    with pytest.raises(ValueError, match="`search` takes callbacks, epochs, verbose, got `batch"):
        tuner.search(x, validation_data=held_out, batch_size=3)
    with pytest.raises(ValueError, match="`search` takes epochs, verbose, got `callbacks`"):
        tuner.search(x, callbacks=[])
    with pytest.raises(ValueError, match="`epochs` must be an integer >= 1, got 0"):
        tuner.search(x, validation_data=held_out, epochs=0)
    hyperband = oracles.HyperbandOracle(OBJECTIVE, max_epochs=3)
    tuner = LikelihoodTuner(hyperband, small, directory=tmp_path / "hyperband")
    with pytest.raises(ValueError, match="`epochs` must be 3, the oracle's `max_epochs`.* got 4"):
        tuner.search(x, validation_data=held_out, epochs=4)


def test_what_fails_in_every_trial_is_raised_at_once(tmp_path, rows):
    x, held_out = rows
    small = Densities(x, 0.3, **SMALL)

    def other(hp):
        return 3

    for k, (hypermodel, error, message) in enumerate(
        [
            (small.build, ValueError, r"`x` must have shape \(rows, 2\), as the density .* 1\)"),
            (other, TypeError, "`hypermodel` must build a compiled tfdde.DDE, got int"),
        ]
    ):
        tuner = LikelihoodTuner(random_oracle(9), hypermodel, directory=tmp_path / str(k))
        with pytest.raises(error, match=message):
            tuner.search(x[:, :1], validation_data=held_out[:, :1], verbose=0)
        assert len(tuner.oracle.trials) == 1
    # log Z at one level can't be found by the ladder, whatever the hyperparameters.
    one = Densities(x, (0.2, 0.4), sigma_max=None, **SMALL)
    ladder = LikelihoodTuner(
        random_oracle(9), one, partition={"method": "ladder"}, directory=tmp_path / "one"
    )
    with pytest.raises(ValueError, match="ladder"):
        ladder.search(x, validation_data=held_out, epochs=1, verbose=0)
    assert len(ladder.oracle.trials) == 1


def test_another_search_does_not_continue_one(tmp_path, rows, monkeypatch):
    """Nor returns its best density: other data, ranges or settings are refused."""
    (x, held_out), trained, one = rows, [], np.float64(1.0)

    def run_trial(self, trial, x, **kwargs):
        trained.append(trial.trial_id)
        return {"log_likelihood": 1.0}

    monkeypatch.setattr(LikelihoodTuner, "run_trial", run_trial)

    def tuner(x=x, sigma=(0.2, one), **kwargs):
        densities = Densities(x, sigma, **SMALL)
        return LikelihoodTuner(random_oracle(2), densities, directory=tmp_path, **kwargs)

    def search(tuner, x=x, validation_data=held_out, epochs=2):
        tuner.search(x, validation_data=validation_data, epochs=epochs, verbose=0)

    search(tuner())
    search(tuner())
    assert len(trained) == 2
    for changed, name in [
        ({"x": x[:-1]}, "rows of the hypermodel = '2000 x 2, crc32 "),
        ({"sigma": (0.2, 1.1)}, r"sigma = \[0.2, 1.0\], not \[0.2, 1.1\]"),
        ({"partition": {"samples": 999}}, "partition = "),
        ({"seed": 4}, "seed of the tuner = 0, not 4"),
    ]:
        with pytest.raises(ValueError, match=f"The search in .* was started with {name}.*overwr"):
            tuner(**changed)
    for changed, name in [
        ({"x": -x}, "x = '2000 x 2, crc32"),
        ({"validation_data": -held_out}, "validation_data = '2000 x 2"),
        ({"validation_data": None}, "folds = None, not 5"),
        ({"epochs": 3}, "epochs = 2, not 3"),
    ]:
        with pytest.raises(ValueError, match=f"The search in .* was started with {name}"):
            search(tuner(), **changed)
    assert len(trained) == 2
    search(tuner(sigma=(0.2, 1.1), overwrite=True))
    assert len(trained) == 4
    (tmp_path / "untitled_project" / "search.json").write_text("{")
    with pytest.raises(ValueError, match="search.json can't be read as a JSON object"):
        tuner(sigma=(0.2, 1.1))


def test_ranges_of_a_function_count_too(tmp_path, rows, monkeypatch):
    x, held_out = rows
    monkeypatch.setattr(LikelihoodTuner, "run_trial", lambda *args, **kwargs: 1.0)
    build = Densities(x, 0.3, **SMALL).build

    def tuner(high):
        def hypermodel(hp):
            hp.Float("rate", 1e-4, high)
            return build(hp)

        return LikelihoodTuner(random_oracle(1), hypermodel, directory=tmp_path)

    tuner(1e-2).search(x, validation_data=held_out, verbose=0)
    tuner(1e-2)
    with pytest.raises(ValueError, match="was started with the range of rate = .*0.01.*0.02"):
        tuner(2e-2)


def test_refit_by_a_function(tmp_path, line):
    x, held_out = line
    build = Densities(x, 0.3, **SMALL).build
    tuner = LikelihoodTuner(
        random_oracle(1), lambda hp: build(hp), partition=QUICK, directory=tmp_path
    )
    fit = {"epochs": 3, "batch_size": 200, "verbose": 0}
    tuner.search(x, validation_data=held_out, **fit)
    everything = np.concatenate([x, held_out])
    again = tuner.refit(everything, batch_size=200, verbose=0)
    assert again.optimizer.iterations == 3 * 20  # as many epochs as were searched, of all rows
    assert again.normalized


def test_few_rows_are_cross_validated(tmp_path):
    truth = three()
    x = truth.sample(60, 1)
    densities = Densities(x, (0.3, 1.0), **SMALL)
    tuner = LikelihoodTuner(
        random_oracle(1), densities, partition={"samples": 1_000}, folds=2, directory=tmp_path
    )
    tuner.search(x, epochs=4, verbose=0)
    trial = next(iter(tuner.oracle.trials.values()))
    assert trial.status == "COMPLETED"
    # Each row's log-likelihood is that under the density of the folds without it: of 60 rows their
    # mean is near the truth's, as a density that has seen them would not be.
    error = trial.metrics.get_best_value("standard_error")
    sigma = trial.hyperparameters.values["sigma"]
    gap = exact(x, sigma, x.std(axis=0)) - trial.score
    assert -3 * error < gap < 0.6 + 3 * error
    trained = trial.metrics.get_best_value("trained")
    assert trained in (1, 2, 4)
    folder = Path(tuner.get_trial_dir(trial.trial_id))
    assert [path.name for path in folder.glob("*.keras")] == ["density.keras"]
    again = tuner.refit(x, epochs=4, verbose=0)
    assert again.optimizer.iterations == 50 * trained
    # Scales are those of all rows, as of a density that was trained on them.
    assert np.allclose(again.normalization.mean, x.mean(axis=0), atol=1e-5)
    first = tuner.get_best_models()[0]
    assert not np.allclose(first.normalization.mean, x.mean(axis=0), atol=1e-3)


def test_curve_of_folds(rows):
    x = rows[0][:60]
    densities = Densities(x, 0.3, **SMALL)
    curve, trained = densities.curve(x, 2, epochs=4, samples=500, verbose=0)
    assert trained in (1, 2, 4)
    assert 0.3 <= curve.sigmas[curve.best] <= 8.0 and len(curve.partitions) == len(curve.sigmas)
    truth = np.array([exact(x, sigma, x.std(axis=0)) for sigma in curve.sigmas])
    assert (np.abs(truth - curve.log_likelihood) < 0.6 + 3 * curve.standard_error).all()
    with pytest.raises(ValueError, match=r"`curve` needs numbers for \['sigma'\]"):
        Densities(x, (0.1, 1.0), **SMALL).curve(x, epochs=1)
    with pytest.raises(ValueError, match="at least 120 rows for 60 folds, got 60"):
        densities.curve(x, 60, epochs=1)
    with pytest.raises(ValueError, match="at least 10 rows for 5 folds, got 9"):
        LikelihoodTuner(random_oracle(1), densities).search(x[:9], epochs=1)
    hyperband = oracles.HyperbandOracle(OBJECTIVE, max_epochs=2)
    for oracle, model in ((random_oracle(1), densities.build), (hyperband, densities)):
        with pytest.raises(ValueError, match="`validation_data` may be None only for"):
            LikelihoodTuner(oracle, model).search(x, epochs=1)


def test_folds_hold_out_each_row_once():
    x = np.arange(23.0)[:, None]
    parts = tuning.split(x, 5, seed=1)
    assert sorted(np.concatenate([held_out[:, 0] for _, held_out in parts])) == list(range(23))
    for training, held_out in parts:
        assert len(training) + len(held_out) == 23
        assert not set(training[:, 0]) & set(held_out[:, 0])
