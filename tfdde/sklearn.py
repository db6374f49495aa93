"""A scikit-learn estimator on top of ``DDE``: fit, score_samples, score and sample.

``import tfdde`` works without scikit-learn, so this module is imported by its own name:

>>> from tfdde.sklearn import DDEstimator
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.anomalies.scores import AnomalyScores
from tfdde.datasets.batches import stream
from tfdde.models.sampling import draw
from tfdde.noise import LogUniform
from tfdde.optimizers import FusedAdam
from tfdde.partition.result import TRUSTED_SAMPLES, LogPartition
from tfdde.recipes import check_base, table_density
from tfdde.tables import Schema
from tfdde.tables.frames import as_frame, check_kind, is_frame
from tfdde.utils.checks import check_integer, check_positive, check_weights

try:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "tfdde.sklearn needs scikit-learn 1.6 or later: pip install 'tfdde[tables]'."
    ) from error


HELD_BACK = 0.1  # share of the rows that training does not see, for log Z
ENOUGH = 1_000  # rows from which on a share is held back
STARTS = 10_000  # training rows at which samples start
ALIKE = 64  # rows: batches of a multiple of it have no last rows that are rounded otherwise


class DDEstimator(DensityMixin, BaseEstimator):
    """Normalised log-density of tabular data, and samples of it, as a scikit-learn estimator.

    A ``tfdde.tables.Schema`` standardises the columns, a ``DDE`` is trained at all noise levels
    from ``sigma`` to ``sigma_max``, and its ``log_partition`` finds log Z at ``sigma``.  The
    density is that of the data blurred by ``sigma`` standard deviations of each column.  A column
    with heavy tails is blurred in its asinh, which is nearly a logarithm far from the centre.  If
    log Z can't be trusted, ``fit`` warns and ``score_samples`` raises an error, so that a search
    never compares log-densities that are not normalised.

    >>> from tfdde.sklearn import DDEstimator
    >>> small = {"width": 16, "depth": 1, "steps": 60}
    >>> estimator = DDEstimator(sigma=0.2, random_state=0, **small).fit(x)
    >>> estimator.score_samples(x[:3]).shape
    (3,)
    >>> estimator.sample(2, random_state=0).shape
    (2, 2)

    Columns of integers, or of another grid, are trained with uniform noise of half a step to
    either side: their density is that of the sum, so that at a value it is the value's
    probability, blurred by ``sigma``, over the step.

    The density can memorise few rows: it then resembles that of ``KernelDensity`` with bandwidth
    ``sigma``.  Choose ``sigma``, and perhaps ``steps``, by held-out likelihood::

        search = GridSearchCV(DDEstimator(), {"sigma": [0.05, 0.1, 0.2, 0.4]})
        search.fit(X).best_estimator_.score_samples(X_new)

    Args:
        sigma: noise level at which the density is read, in standard deviations of a column, or of
            its asinh.
        sigma_max: the highest level trained, > ``sigma``, well above 1.
        width: units of each hidden layer.
        depth: number of residual layers.
        steps: gradient steps.
        batch_size: rows of a step, each with two opposite noises; may exceed the rows of X.
        learning_rate: Adam's at the start; it falls to 0 by a cosine.
        partition_samples: samples for log Z, of the ladder at each noise level, >= 200.
        missing: "impute": draws of a column's other values stand for missing values (NaN) in
            training, and its median in rows to score; None refuses missing values.
        dependent: "drop": the density is that of the columns without those that are linear
            combinations of earlier ones; None refuses such columns.
        tails: "keep": columns with heavy tails are only centred and scaled; None takes their asinh
            where it makes held-out values likelier, which ``schema_.notices`` tell.
        base: "gaussian", "mixture", "tree" or None, as of ``tfdde.recipes.table_density``.
        random_state: int, RandomState or None; an int gives the same fit each time.
        verbose: 0, 1 or 2, as in ``keras.Model.fit``; above 0 ``fit`` prints what was done to the
            columns.

    Attributes:
        dde_: the trained ``DDE``, in the units of X: its ``score`` is the gradient of the
            log-density, and its ``anomaly_score`` and ``anomaly_threshold`` find outliers.
        schema_: what is known of the columns; its ``notices`` say what was done to them.
        log_partition_: the ``LogPartition`` of ``dde_``: log Z with its error.
        n_features_in_: number of columns.
        feature_names_in_: names of the columns, if X had any.
    """

    def __init__(
        self,
        sigma: float = 0.1,
        sigma_max: float = 8.0,
        width: int = 128,
        depth: int = 4,
        steps: int = 2_000,
        batch_size: int = 512,
        learning_rate: float = 2e-3,
        partition_samples: int = 5_000,
        missing: str | None = None,
        dependent: str | None = None,
        tails: str | None = None,
        base: str | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.sigma = sigma
        self.sigma_max = sigma_max
        self.width = width
        self.depth = depth
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.partition_samples = partition_samples
        self.missing = missing
        self.dependent = dependent
        self.tails = tails
        self.base = base
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> DDEstimator:  # noqa: N803
        """Train the density and find its log Z.

        With 1,000 rows or more, a tenth of them is held back from training and used for log Z.

        Args:
            X: DataFrame, Arrow table or array-like of shape (rows, columns), at least 2 rows.
            y: ignored.
            sample_weight: array-like of shape (rows,), >= 0: the density is that of data in which
                each row comes ``sample_weight`` times.

        Returns:
            The estimator itself.  A ``UserWarning`` tells if log Z can't be trusted, and names
            columns in which many rows have one value.

        Raises:
            ValueError: wrong shape, NaN or infinity, a parameter out of range, bad weights, or a
                column that is constant, does not hold numbers, or depends on others.
            DivergedError: the loss stopped being finite.
        """
        del y
        sigma = check_positive(self.sigma, "sigma")
        if check_positive(self.sigma_max, "sigma_max") <= sigma:
            raise ValueError(f"`sigma_max` must exceed `sigma` ({sigma}), got {self.sigma_max!r}.")
        steps, batch_size = (check_integer(getattr(self, k), k) for k in ("steps", "batch_size"))
        samples = check_integer(self.partition_samples, "partition_samples", TRUSTED_SAMPLES)
        rate = check_positive(self.learning_rate, "learning_rate")
        check_base(self.base)
        X = self._table(X, ensure_min_samples=2)  # noqa: N806
        weights = check_weights(sample_weight, len(X))
        if weights is not None:  # rows of weight 0 are no rows
            X, weights = X[weights > 0], weights[weights > 0]  # noqa: N806
        rng = check_random_state(self.random_state)
        seeds = [int(seed) for seed in rng.randint(2**31 - 1, size=3)]

        order = rng.permutation(len(X))
        schema = Schema.learn(
            X,
            getattr(self, "feature_names_in_", None),
            missing=self.missing,
            dependent=self.dependent,
            tails=self.tails,
            sample_weight=weights,
        )
        schema.check_resolution(sigma, "X")
        if schema.warnings:
            warnings.warn("\n".join(schema.warnings), UserWarning, stacklevel=2)
        if self.verbose:
            print(*schema.notices, sep="\n", end="\n" * bool(schema.notices))
        rows = schema.training_rows(X[order], seeds[1])
        held_back = int(HELD_BACK * len(rows)) if len(rows) >= ENOUGH else 0
        train, kept = rows[held_back:], slice(held_back or None)
        shares = None if weights is None else weights[order]
        train_shares = None if shares is None else shares[held_back:]
        noise = LogUniform(sigma, self.sigma_max)
        with _initializers_seeded(seeds[0]):
            settings = self.width, self.depth, schema, seeds[1], train_shares, self.base
            dde = table_density(train, noise, *settings)
        schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
        dde.compile(FusedAdam(schedule, use_ema=True))
        batches = stream(train, batch_size, seeds[1], weights=train_shares)
        dde.fit(batches, steps_per_epoch=steps, verbose=self.verbose)
        find_log_z = partial(
            dde.log_partition,
            rows[kept],
            sample_weight=None if shares is None else shares[kept],
            samples=samples,
            seed=seeds[2],
            verbose=self.verbose if self.verbose in (1, 2) else 0,
        )
        find_log_z()
        base = dde.base
        assert base is not None  # the recipe's
        if not (dde.normalized or base.one_gaussian or base.heavy_tailed):
            failed, trained = dde.partition, dde.network.get_weights()
            dde.drop_correction()
            find_log_z()
            if dde.normalized:
                warnings.warn(
                    f"Log Z with the network is not trusted ({failed}): the network is left out, "
                    "and the density is that of its base.",
                    UserWarning,
                    stacklevel=2,
                )
            else:
                dde.network.set_weights(trained)
                dde.partition = failed
        self.dde_ = dde
        self._starts = dde.inside(tf.constant(train[:STARTS])).numpy()
        self._start_weights = None if train_shares is None else train_shares[:STARTS]
        self._anomaly_scores: AnomalyScores | None = None
        return self

    def _table(self, X: Any, **settings: Any) -> np.ndarray:  # noqa: N803
        """The float64 numbers of a table, which may have gaps; refuses columns of other kinds."""
        X = as_frame(X)  # noqa: N806
        if is_frame(X):
            for i, name in enumerate(X.columns):
                check_kind(str(name), X.iloc[:, i])
        settings |= {"dtype": np.float64, "ensure_all_finite": "allow-nan"}
        return validate_data(self, X, **settings)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing is not None
        return tags

    @property
    def schema_(self) -> Schema:
        """Names, centres and scales of the columns, and what was done to them."""
        schema = self.dde_.normalization
        assert isinstance(schema, Schema)  # `fit` has made one
        return schema

    @property
    def log_partition_(self) -> LogPartition | None:
        """Log Z of the standardised columns at ``sigma``, with its error."""
        return self.dde_.partition

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the normalised log-density of the blurred data at each row, in units of X.

        Args:
            X: table of the columns that ``fit`` was given, in the same order.

        Returns:
            float32 array (rows,), in nats.

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: wrong shape, NaN or infinity, or log Z can't be trusted.
        """
        check_is_fitted(self)
        rows = self.schema_.rows(self._table(X, reset=False))
        if not self.dde_.normalized:
            raise ValueError(
                f"This density has no trusted log Z: {self.log_partition_}. Fit with more "
                "`steps`, more `partition_samples` or a larger `sigma`; values up to a constant "
                "are dde_.log_density(schema_.rows(X), normalized=False)."
            )
        # Matrix products round the last rows of a batch otherwise than the rest: a row's value
        # would depend on its place among the others.
        more = np.repeat(rows[-1:], -len(rows) % ALIKE, axis=0)
        values = self.dde_.log_density(np.concatenate([rows, more]), normalized=True)
        return values.numpy()[: len(rows)]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:  # noqa: N803
        """Return the total log-likelihood of the rows, as ``KernelDensity.score`` does.

        ``GaussianMixture.score`` returns the mean instead, and ``DDE.score``, a method of
        ``dde_``, the gradient of the log-density.

        Args:
            X: array-like of shape (rows, columns).
            y: ignored.
            sample_weight: array-like of shape (rows,), >= 0.

        Returns:
            The sum of ``score_samples``, in nats, each times the weight of its row.

        Raises:
            NotFittedError: as ``score_samples``.
            ValueError: as ``score_samples``, or bad weights.
        """
        del y
        values = self.score_samples(X).astype(np.float64)
        weights = check_weights(sample_weight, len(values))
        return float(values.sum() if weights is None else np.dot(values, weights))

    def anomaly_score(self, X: Any, method: str = "rows") -> np.ndarray:  # noqa: N803
        """Return how anomalous rows are: the higher, the more anomalous.

        Args:
            X: array-like of shape (rows, columns).
            method: "rows": minus the log-density of the blurred training rows in closed form.
                "density": minus the log-density of ``dde_``, up to a constant. Others are as of
                ``tfdde.anomalies.AnomalyScores``.

        Returns:
            float64 array (rows,).

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: another ``method``, wrong shape, NaN or infinity.
        """
        check_is_fitted(self)
        rows = self.schema_.rows(self._table(X, reset=False))
        if self._anomaly_scores is None:
            starts = self._starts
            if self._start_weights is not None:
                rng, weights = np.random.default_rng(0), self._start_weights.astype(np.float64)
                starts = starts[rng.choice(len(starts), len(starts), p=weights / weights.sum())]
            self._anomaly_scores = AnomalyScores(self.dde_, starts, standardised=True)
        inside = self.dde_.inside(tf.constant(rows)).numpy()
        return self._anomaly_scores.anomaly_score(inside, method)

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw rows from the fitted density, which is that of the blurred data.

        The samples are training rows with noise of ``sigma``, moved by Hamiltonian Monte Carlo
        under the density.  The moves hardly ever cross between modes far apart, so that the shares
        of these modes are those in the training rows.  Integers, booleans and values on another
        grid are put back on it, between the least and the largest value in X.

        Args:
            n_samples: number of rows.
            random_state: int, RandomState or None.

        Returns:
            float64 array (n_samples, columns), in the units of X, as of ``KernelDensity.sample``
            an array also if X is a DataFrame: ``schema_.names`` are its columns, which are those
            of X without the ones that ``dependent="drop"`` left out.

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: ``n_samples`` is not a positive integer.
        """
        check_is_fitted(self)
        n_samples = check_integer(n_samples, "n_samples")
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        return draw(self.dde_, self._starts, n_samples, self._start_weights, seed)


@contextlib.contextmanager
def _initializers_seeded(seed: int) -> Iterator[None]:
    """Context in which Keras's initializers draw by ``seed``.

    They take their seeds from Python's generator, whose state is the user's and is put back.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
