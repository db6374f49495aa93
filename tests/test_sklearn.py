import functools
import importlib
import logging
import math
import pickle
import random
import sys

import joblib
import numpy as np
import pandas as pd
import pyarrow
import pytest
import tensorflow as tf
from mixtures import three
from scipy.stats import norm, poisson
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from tensorflow.python.eager.polymorphic_function import polymorphic_function

import tfdde
from tfdde import LogPartition
from tfdde.partition import far_field
from tfdde.partition.far_field import Annealing
from tfdde.partition.importance import importance
from tfdde.sklearn import DDEstimator

SCALE = np.array([100.0, 0.02])
SHIFT = np.array([500.0, -1.0])
UNTRUSTED = LogPartition(0.0, 0.1, -0.2, 0.2, 3.0, "ladder", 0.2)


def tiny(**kwargs):
    settings = {"sigma": 0.3, "width": 16, "depth": 1, "steps": 5}
    small = {"batch_size": 64, "partition_samples": 500, "random_state": 0}
    return DDEstimator(**{**settings, **small, **kwargs})


def rows(n, seed):
    """A mixture in the plane whose columns are of very different units."""
    return three().sample(n, seed) * SCALE + SHIFT


DATA = rows(20_000, 0)
NOISE = 0.2 * DATA.std(axis=0)


@pytest.fixture(scope="module")
def fitted():
    settings = {"sigma": 0.2, "width": 64, "depth": 2, "steps": 600, "learning_rate": 1e-2}
    return DDEstimator(**settings, random_state=0).fit(DATA)


@pytest.fixture
def quick(monkeypatch):
    """Less to trace, which is most of a tiny fit: steps run eagerly, log Z needs no gradients."""

    def ladder(evaluate, data, levels, samples, moves, seed, weights, verbose):
        return [importance(evaluate, data, levels[0], samples, seed, weights)]

    def annealing_from_outside(evaluate, rows, sigmas, rng):
        return [Annealing(-1e300, rows[:0]) for _ in sigmas]

    def confirmed_at_one_level(result, *args):
        return result

    eager = functools.partialmethod(tfdde.DDE.compile, run_eagerly=True)
    monkeypatch.setattr("tfdde.partition.estimate.ladder", ladder)
    monkeypatch.setattr("tfdde.partition.estimate.confirmed_at_one_level", confirmed_at_one_level)
    monkeypatch.setattr(far_field, "annealing_from_outside", annealing_from_outside)
    monkeypatch.setattr(tfdde.DDE, "compile", eager)


def blurred(n, seed):
    return rows(n, seed) + NOISE * np.random.default_rng(seed).standard_normal((n, 2))


def exact(x):
    """Log-density of the mixture blurred by ``NOISE``."""
    mixture, y = three(), (x - SHIFT) / SCALE
    v = mixture.variances[:, None] + (NOISE / SCALE) ** 2
    parts = -0.5 * ((y[:, None, :] - mixture.means) ** 2 / v + np.log(2 * math.pi * v)).sum(axis=2)
    return np.logaddexp.reduce(np.log(mixture.weights) + parts, axis=1) - np.log(SCALE).sum()


def not_exact(estimator):
    """Checks that only an estimator without random batches can pass."""
    reason = "a weight of 2 has the same expected step as a row twice, but other random batches"
    return {"check_sample_weight_equivalence_on_dense_data": reason}


@parametrize_with_checks([tiny(steps=2, partition_samples=2_000)], expected_failed_checks=not_exact)
@pytest.mark.usefixtures("quick")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_log_density_is_exact_in_the_units_of_the_data(fitted):
    x = blurred(4_000, 1)
    error = fitted.score_samples(x) - exact(x)
    # Minus the mean error at samples of the truth is KL(truth || model).
    assert -0.03 < -error.mean() < 0.05
    assert error.std() < 0.2
    assert fitted.score(x) == pytest.approx(fitted.score_samples(x).sum(dtype=float))
    assert fitted.score_samples(x[:3]).dtype == np.float32


def test_density_integrates_to_one(fitted):
    axes = [np.linspace(s - 5 * k, s + 5 * k, 250) for s, k in zip(SHIFT, SCALE, strict=True)]
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    cell = math.prod(a[1] - a[0] for a in axes)
    log_mass = np.log(np.exp(fitted.score_samples(grid).astype(float)).sum() * cell)
    assert abs(log_mass) < 3 * fitted.log_partition_.standard_error + 0.01


def test_samples_are_of_the_blurred_density(fitted):
    truth = blurred(100_000, 3)
    drawn = fitted.sample(6_000, random_state=0)  # more than one chunk
    assert drawn.shape == (6_000, 2) and drawn.dtype == np.float64
    spread = truth.std(axis=0)
    np.testing.assert_allclose((drawn.mean(axis=0) - truth.mean(axis=0)) / spread, 0, atol=0.06)
    difference = np.cov(drawn, rowvar=False) - np.cov(truth, rowvar=False)
    np.testing.assert_allclose(difference / np.outer(spread, spread), 0, atol=0.08)
    assert exact(drawn).mean() == pytest.approx(exact(truth).mean(), abs=0.08)


def test_samples_depend_on_the_random_state_alone(fitted):
    first = fitted.sample(3, random_state=1)
    assert np.array_equal(fitted.sample(3, random_state=1), first)
    assert not np.array_equal(fitted.sample(3, random_state=2), first)
    assert fitted.sample().shape == (1, 2)
    with pytest.raises(ValueError, match="`n_samples` must be an integer >= 1, got 0"):
        fitted.sample(0)


def test_pickle_and_joblib_keep_density_and_samples(fitted, tmp_path):
    x = rows(50, 5)
    joblib.dump(fitted, tmp_path / "fitted.joblib")
    for copy in (pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "fitted.joblib")):
        np.testing.assert_array_equal(copy.score_samples(x), fitted.score_samples(x))
        np.testing.assert_allclose(copy.sample(3, 0), fitted.sample(3, 0), rtol=1e-5)
        assert copy.log_partition_ == fitted.log_partition_
    unfitted = clone(fitted)
    assert unfitted.get_params() == fitted.get_params()
    assert not hasattr(unfitted, "log_partition_")


def test_anomaly_scores_are_of_the_rows_in_standard_deviations(fitted):
    """They rank as the exact kernel density of the training rows, and survive a pickle."""
    x = np.r_[rows(300, 3), rows(20, 4) + 8 * DATA.std(axis=0)]
    found = fitted.anomaly_score(x)
    starts = fitted._starts.astype(float)
    z = (x - DATA.mean(axis=0)) / DATA.std(axis=0)
    sigma = fitted._anomaly_scores.rows_density.sigma
    square = np.square(z[:, None] - starts).sum(axis=-1)
    exact = -np.log(np.exp(-square[:300] / (2 * sigma**2)).mean(axis=1))
    shift = found[:300] - exact
    np.testing.assert_allclose(shift, np.median(shift), atol=0.05)
    assert found[:300].max() < found[300:].min()
    loaded = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_allclose(loaded.anomaly_score(x), found)
    density = fitted.anomaly_score(x, "density") + fitted.score_samples(x)
    np.testing.assert_allclose(density[:300], np.median(density), atol=1e-3)  # up to log Z


@pytest.mark.usefixtures("quick")
def test_anomaly_scores_heed_the_weights():
    """Rows of a small weight are strange."""
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(-2, 0.5, (300, 2)), rng.normal(2, 0.5, (300, 2))]
    weights = np.repeat([1.0, 0.02], 300)
    found = tiny().fit(x, sample_weight=weights).anomaly_score(x)
    assert np.median(found[300:]) > np.quantile(found[:300], 0.95)


@pytest.mark.usefixtures("quick")
def test_anomaly_scores_of_seconds_since_1970():
    """float32, with its steps of 128 s there, would not see ten seconds."""
    rng = np.random.default_rng(0)
    x = np.column_stack([1.7e9 + rng.random(300), rng.normal(size=300)])
    estimator = tiny().fit(x)
    late = x[:5] + [10.0, 0.0]
    for method in ("rows", "density"):
        usual = estimator.anomaly_score(x, method)
        assert estimator.anomaly_score(late, method).min() > np.quantile(usual, 0.99)


@pytest.mark.usefixtures("quick")
def test_an_integer_random_state_fixes_the_fit_and_leaves_pythons_alone():
    x = rows(1_200, 6)  # enough for some to be held back
    before = random.getstate()
    first = tiny().fit(x).score_samples(x)
    assert random.getstate() == before
    random.random()
    np.random.random()
    np.testing.assert_array_equal(tiny().fit(x).score_samples(x), first)


def test_repeated_fits_are_not_taken_for_retracing(caplog, monkeypatch):
    """TensorFlow warns if five of the last ten calls of one function traced it, here if three."""
    monkeypatch.setattr(polymorphic_function, "FREQUENT_TRACING_WARNING_THRESHOLD", 3)
    logger = logging.getLogger("tensorflow")
    logger.addHandler(caplog.handler)
    try:
        for seed in range(4):
            x = rows(100 + seed, seed)
            estimator = tiny(steps=1 + seed // 2).fit(x)
            estimator.score_samples(x)
            estimator.dde_.score(x)
            estimator.dde_.fit(x, epochs=2, verbose=0)
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record.getMessage() for record in caplog.records if "retrac" in record.getMessage()]


@pytest.mark.usefixtures("quick")
def test_search_over_sigma_in_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), PCA(1), tiny())
    search = GridSearchCV(pipeline, {"ddestimator__sigma": [0.2, 4.0]}, cv=2)
    x = rows(600, 7)
    search.fit(x)
    assert search.best_params_ == {"ddestimator__sigma": 0.2}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score_samples(x).shape == (600,)
    assert search.score(x) == pytest.approx(search.score_samples(x).sum(dtype=float))


def test_without_a_trusted_log_partition_no_likelihood_is_returned(fitted, monkeypatch):
    monkeypatch.setattr(fitted.dde_, "partition", UNTRUSTED)
    x = rows(5, 8)
    for method in (fitted.score_samples, fitted.score):
        with pytest.raises(ValueError, match="no trusted log Z: .*3 effective samples.*`steps`"):
            method(x)
    assert fitted.dde_.log_density(x, normalized=False).shape == (5,)


def clusters():
    """Rows whose base is a mixture."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 6, (4, 4))[rng.integers(4, size=1_500)] + rng.standard_normal((1_500, 4))


def test_where_log_z_is_not_trusted_the_base_is_left(monkeypatch):
    """A mixture is a density by itself, whose log Z is known."""
    x, found, calls = clusters(), tfdde.DDE.log_partition, []

    def untrusted_at_first(self, *args, **kwargs):
        estimate = found(self, *args, **kwargs)
        calls.append(estimate)
        if len(calls) == 1:
            self.partition = UNTRUSTED
        return estimate

    monkeypatch.setattr(tfdde.DDE, "log_partition", untrusted_at_first)
    with pytest.warns(UserWarning, match="the network is left out, and the density is that of its"):
        model = tiny().fit(x)
    assert len(calls) == 2 and not model.dde_.base.one_gaussian
    rows = model.schema_.rows(x[:50])
    inside = model.dde_.inside(tf.constant(rows))
    base = model.dde_.base(inside, tf.constant(model.sigma)) + model.dde_.log_jacobian(inside)
    np.testing.assert_allclose(model.score_samples(x[:50]), base, atol=1e-3)


def test_where_nothing_is_trusted_the_network_stays(monkeypatch):
    def untrusted(self, *args, **kwargs):
        self.partition = UNTRUSTED
        return UNTRUSTED

    monkeypatch.setattr(tfdde.DDE, "log_partition", untrusted)
    model = tiny().fit(clusters())
    assert not model.dde_.base.one_gaussian and model.log_partition_ == UNTRUSTED
    y = tf.constant(clusters()[:9].astype("f4"))
    assert np.abs(model.dde_.correction(y, tf.constant(0.3))).max() > 0
    with pytest.raises(ValueError, match="no trusted log Z"):
        model.score_samples(clusters())


def test_fit_warns_of_an_untrusted_log_partition_and_no_search_takes_it(monkeypatch):
    monkeypatch.setattr("tfdde.models.normalized_density.estimate", lambda *args: UNTRUSTED)
    refused = pytest.warns(UserWarning, match="(?s)Scoring failed.*no trusted log Z")
    with refused, pytest.warns(UserWarning, match="This estimate can't be trusted"):
        scores = cross_val_score(tiny(), rows(40, 9), cv=2)
    assert np.isnan(scores).all()


def test_weighted_rows_have_the_density_of_as_many_rows():
    """Two clusters of as many rows, one of which counts three times as much."""
    rng = np.random.default_rng(0)
    side = np.repeat([-1.0, 1.0], 3_000)
    x = 2.0 * side[:, None] + 0.5 * rng.standard_normal((6_000, 1))
    weights = np.where(side < 0, 3.0, 1.0)
    far = np.full((500, 1), 50.0)  # of weight 0
    x, weights = np.concatenate([x, far]), np.concatenate([weights, np.zeros(500)])
    settings = {"sigma": 0.2, "width": 32, "depth": 2, "steps": 400, "learning_rate": 1e-2}
    model = DDEstimator(**settings, random_state=0).fit(x, sample_weight=weights)
    grid = np.linspace(-12, 12, 2_001)[:, None]
    density = np.exp(model.score_samples(grid).astype(float))
    cell = grid[1, 0] - grid[0, 0]
    assert density.sum() * cell == pytest.approx(1.0, abs=0.03)
    assert density[:1000].sum() * cell == pytest.approx(0.75, abs=0.03)
    deviation = np.sqrt(np.cov(x[:, 0], aweights=weights, ddof=0))
    noise = 0.2 * deviation
    parts = [norm.logpdf(grid[:, 0], m, np.hypot(0.5, noise)) for m in (-2.0, 2.0)]
    exact_density = 0.75 * np.exp(parts[0]) + 0.25 * np.exp(parts[1])
    assert np.abs(density - exact_density).sum() * cell < 0.1
    share = (model.sample(4_000, random_state=0) < 0).mean()
    assert share == pytest.approx(0.75, abs=0.03)
    values = model.score_samples(x[:10])
    assert model.score(x[:10], sample_weight=np.arange(10)) == pytest.approx(
        float(np.dot(values.astype(float), np.arange(10)))
    )
    for bad in (np.ones(3), -weights):
        with pytest.raises(ValueError, match="`sample_weight` must"):
            model.score(x, sample_weight=bad)
        with pytest.raises(ValueError, match="`sample_weight` must"):
            tiny().fit(x, sample_weight=bad)


def test_a_column_without_a_density_is_refused_by_name():
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 4)), columns=list("abcd"))
    for bad, message in (
        (x.assign(b=0.1), r"Column 'b' is constant \(0.1\)"),
        (x.assign(d=2 * x.a), "Columns 'a' and 'd' are linearly dependent: no density in 4 dim"),
        (x.assign(c=pd.Categorical(["x", "y"] * 25)), "Column 'c' must hold numbers, got categ"),
        (x.assign(c=pd.date_range("2020", periods=50)), "Column 'c' must hold numbers, got dates"),
        (x.assign(c=["x"] * 50), "Column 'c' must hold numbers, got text or other objects"),
        (x.assign(c=x.c.where(x.c > 0)), r"missing \(NaN\) in 'c' in \d+ of 50 rows: .*impute"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny().fit(bad)
    with pytest.raises(ValueError, match="Columns '0' and '4' are linearly dependent"):
        tiny().fit(np.column_stack([x, 2 * x.a]))


PLANE = np.random.default_rng(3).standard_normal((500, 2))


def plane(**kwargs):
    settings = {"sigma": 0.2, "width": 32, "depth": 2, "steps": 300, "partition_samples": 2_000}
    return DDEstimator(random_state=0, **{**settings, **kwargs})


@pytest.mark.usefixtures("quick")
def test_the_base_can_be_a_mixture():
    x = np.random.default_rng(0).choice([-4.0, 4.0], (2_000, 2)) * [1.0, 100.0]
    x += np.random.default_rng(1).standard_normal(x.shape) * [1.0, 100.0]
    weights = np.where(x[:, 0] > 0, 4.0, 1.0)
    enough = {"partition_samples": 4_000}
    base = tiny(base="mixture", **enough).fit(x, sample_weight=weights).dde_.base
    assert base.components == 4
    assert base._mixture["weights"].numpy().max() == pytest.approx(0.4, abs=0.03)
    assert tiny(**enough).fit(x).dde_.base.components == 1


def test_columns_of_any_scale_have_the_density_of_standardised_ones():
    """The fit is that of the columns standardised by hand in float64, in other units."""
    x = PLANE * [1e-12, 1e12] + [0.0, 1e13]
    x = np.column_stack([x, 1.7e9 + np.random.default_rng(4).random(500)])
    centre, scale = x.mean(axis=0), np.sqrt(np.square(x - x.mean(axis=0)).mean(axis=0))
    z = (x - centre) / scale
    raw, by_hand = plane().fit(x), plane().fit(z)
    assert raw.schema_.row_dtype == "float64"
    difference = raw.score_samples(x) + np.log(scale).sum() - by_hand.score_samples(z)
    # A last digit of a row that rounds to the other side makes another training.
    assert abs(difference.mean()) < 0.1 and difference.std() < 0.15
    drawn = raw.sample(2_000, random_state=0)
    np.testing.assert_allclose((drawn.mean(axis=0) - centre) / scale, 0, atol=0.15)
    np.testing.assert_allclose(drawn.std(axis=0) / scale, np.sqrt(1 + 0.2**2), rtol=0.1)


def test_one_far_value_is_unlikely_alone():
    x = PLANE.copy()
    x[7, 0] = 1e9
    far = np.arange(500) == 7
    values = plane().fit(x).score_samples(x)
    without = plane().fit(x[~far]).score_samples(x[~far])
    difference = values[~far] - without
    # Both have the error of log Z, and another network starts at each.
    assert abs(np.median(difference)) < 0.1 and abs(difference.mean()) < 0.1
    assert np.quantile(np.abs(difference), 0.9) < 0.25
    assert values[7] < without.min() - 10


def test_integers_have_the_density_of_their_probabilities():
    x = np.random.default_rng(0).poisson(3, (2_000, 1)).astype(float)
    estimator = plane(sigma=0.05, steps=1_000).fit(x)
    assert estimator.schema_.dequantised == ("0",)
    values, counts = np.unique(x, return_counts=True)
    common = values[counts > 20, None]
    # The noise of sigma hardly matters in the middle of a cell, whose ends are ten sigma away.
    error = estimator.score_samples(common) - np.log(counts[counts > 20] / len(x))
    assert np.abs(error).max() < 0.3 and np.abs(error).mean() < 0.15
    assert abs(estimator.score_samples(x).mean() - poisson.logpmf(x, 3).mean()) < 0.15


def test_a_value_that_many_rows_have_is_warned_about(monkeypatch):
    x = PLANE.copy()
    x[:150, 1] = 0.0

    def stop(*args):
        raise InterruptedError

    monkeypatch.setattr("tfdde.sklearn.table_density", stop)
    warned = pytest.warns(UserWarning, match="Column '1' has the value 0 in 30 % of the rows: the")
    with warned, pytest.raises(InterruptedError):
        tiny().fit(x)


@pytest.mark.usefixtures("quick")
def test_names_of_columns_are_kept_and_their_order_is_checked():
    x = pd.DataFrame(PLANE, columns=["a", "b"])
    estimator = tiny().fit(x)
    assert estimator.feature_names_in_.tolist() == ["a", "b"] == list(estimator.schema_.names)
    values = estimator.score_samples(x)
    with pytest.raises(ValueError, match="(?s)must be in the same order as they were in fit"):
        estimator.score_samples(x[["b", "a"]])
    with pytest.raises(ValueError, match="(?s)Feature names unseen at fit time:.*more"):
        estimator.score_samples(x.assign(more=1.0))
    arrow = pyarrow.Table.from_pandas(x)
    np.testing.assert_array_equal(estimator.score_samples(arrow), values)
    again = tiny().fit(arrow)
    assert again.feature_names_in_.tolist() == ["a", "b"]
    np.testing.assert_array_equal(again.score_samples(x), values)


@pytest.mark.usefixtures("quick")
def test_gaps_are_filled_and_dependent_columns_dropped_on_request(capsys):
    x = pd.DataFrame(PLANE, columns=["a", "b"])
    x = x.assign(c=x.a - x.b)
    x.loc[::10, "b"] = np.nan
    estimator = tiny(missing="impute", dependent="drop", verbose=2).fit(x)
    assert estimator.schema_.names == ("a", "b")
    told = capsys.readouterr().out
    assert "Column 'b' misses 50 of 500 values" in told
    assert "Column 'c' is left out: it is a combination of 'a', 'b'." in told
    values = estimator.score_samples(x)
    filled = x.assign(b=x.b.fillna(x.b.median()))
    np.testing.assert_array_equal(estimator.score_samples(filled), values)
    assert estimator.sample(3).shape == (3, 2)
    copy = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(copy.score_samples(x), values)


def test_a_sigma_that_float32_cannot_hold_is_to_blame_itself():
    x = np.random.default_rng(0).normal(500.0, 100.0, (50, 2))
    with pytest.raises(ValueError, match=r"`sigma` must be at least 5e-06, got 1e-06: .* `X`"):
        tiny(sigma=1e-6).fit(x)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sigma", 0, "`sigma` must be a finite number > 0, got 0"),
        ("sigma_max", 0.3, "`sigma_max` must exceed `sigma` .0.3., got 0.3"),
        ("width", 0, "`width` must be an integer >= 1, got 0"),
        ("depth", 1.5, "`depth` must be an integer >= 1, got 1.5"),
        ("steps", 0, "`steps` must be an integer >= 1, got 0"),
        ("batch_size", "all", "`batch_size` must be an integer >= 1, got 'all'"),
        ("learning_rate", -1.0, "`learning_rate` must be a finite number > 0, got -1.0"),
        ("base", "one", "`base` must be 'gaussian', 'mixture', 'tree' or None, got 'one'"),
        ("partition_samples", 10, "`partition_samples` must be an integer >= 200, got 10"),
    ],
)
def test_a_parameter_out_of_range_is_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        tiny(**{name: value}).fit(rows(20, 10))


def test_before_fit_there_is_nothing_to_ask():
    for ask in (lambda: tiny().score_samples([[0.0]]), lambda: tiny().sample()):
        with pytest.raises(NotFittedError):
            ask()


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "tfdde.sklearn")
    with pytest.raises(ImportError, match=r"pip install 'tfdde\[tables\]'"):
        importlib.import_module("tfdde.sklearn")
