"""A keras-tuner search over sigma by normalised held-out log-likelihood.

The denoising loss can't choose sigma: it falls with sigma, whatever the data.  The likelihood can,
but only if it is normalised, so that a trial ends with log Z and fails if that can't be trusted.

>>> from tfdde.tuning.search import OBJECTIVE, Densities, LikelihoodTuner
>>> oracle = keras_tuner.oracles.BayesianOptimizationOracle(OBJECTIVE, max_trials=20)
>>> tuner = LikelihoodTuner(oracle, Densities(x, sigma=(0.02, 1.0)), directory="search")
>>> tuner.search(x, validation_data=x_validation, epochs=40)
>>> dde = tuner.get_best_models()[0]  # normalised

Run again with the same ``directory`` it goes on where it was.  With keras-tuner's environment
variables (KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT) a chief hands out the
trials and any number of workers run them; they share the directory.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfdde.callbacks import DivergedError, atomic
from tfdde.checks import check_integer, check_positive, check_rows
from tfdde.datasets.stream import stream
from tfdde.density import DDE
from tfdde.estimate import LogPartition, mean_and_error
from tfdde.noise import Constant, LogUniform
from tfdde.recipes import table_density
from tfdde.tuning.curve import OverfittingWarning, ladder_starts, overfitting

try:
    import keras_tuner
except ImportError as error:
    raise ImportError(
        "tfdde.tuning.search needs keras-tuner: pip install 'tfdde[tune]'."
    ) from error

OBJECTIVE = keras_tuner.Objective("log_likelihood", "max")
EPOCH = 50  # steps, at least
VALIDATED = 4_096  # noisy rows of a validation; few rows are taken repeatedly, with other noise
COMPARED = 5_000  # training rows that over-fitting is judged by

Range = float | tuple[float, float]


class Densities(keras_tuner.HyperModel):
    """Densities of a table, one for each sigma, and if asked for each width, depth and rate.

    A pair of bounds is searched, on a logarithmic scale; a number is what it is.  Columns are
    standardised, and sigma is in their standard deviations.

    Args:
        x: training rows (rows, n), which scales, base and first layer are taken from.
        sigma: bounds of the noise level at which the density is read.
        sigma_max: train at all levels from sigma to this one, of which the ladder needs all; None:
            at sigma alone, as in the paper, and then log Z needs another method.
        width, depth: of the network.
        learning_rate: Adam's at the start; it falls to 0 by a cosine over the epochs.
        batch_size: rows of a step.
        patience: epochs without a lower validation loss that end a trial.
        seed: of weights, batches and noise, the same in all trials.

    Raises:
        ValueError: wrong rows, or a bound that is not positive or not below the other.
    """

    def __init__(
        self,
        x: Any,
        sigma: Range = (0.02, 1.0),
        sigma_max: float | None = 8.0,
        width: Range = 128,
        depth: Range = 4,
        learning_rate: Range = 2e-3,
        batch_size: int = 512,
        patience: int = 10,
        seed: int = 0,
    ):
        super().__init__()
        if np.ndim(x) != 2:
            raise ValueError(f"`x` must have shape (rows, n), got {np.shape(x)}.")
        self.x = check_rows(x, "x", np.shape(x)[1:])
        self.space = {"sigma": sigma, "width": width, "depth": depth, "rate": learning_rate}
        for name, bounds in self.space.items():
            low, high = bounds if isinstance(bounds, tuple) else (bounds, math.inf)
            if check_positive(low, name) >= high:
                raise ValueError(f"`{name}` must be a number or (low, high), got {bounds!r}.")
        highest = sigma[1] if isinstance(sigma, tuple) else sigma
        if sigma_max is not None and check_positive(sigma_max, "sigma_max") <= highest:
            raise ValueError(f"`sigma_max` must exceed `sigma` ({highest}), got {sigma_max}.")
        self.sigma_max = sigma_max
        self.batch_size = check_integer(batch_size, "batch_size")
        self.patience = check_integer(patience, "patience")
        self.seed = seed

    def _value(self, hp: Any, name: str, whole: bool = False) -> Any:
        bounds = self.space[name]
        if not isinstance(bounds, tuple):
            return int(bounds) if whole else float(bounds)
        return (hp.Int if whole else hp.Float)(name, *bounds, sampling="log")

    def build(self, hp: Any) -> DDE:
        """A compiled density, adapted to the rows."""
        sigma = self._value(hp, "sigma")
        width, depth = self._value(hp, "width", True), self._value(hp, "depth", True)
        rate = self._value(hp, "rate")
        noise = LogUniform(sigma, self.sigma_max) if self.sigma_max else Constant(sigma)
        layer = keras.layers.Normalization(axis=-1)
        dde = table_density(self.x, noise, width, depth, layer, self.seed)
        dde.compile(keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.99), jit_compile=True)
        return dde

    def fit(self, hp: Any, model: DDE, x: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train with averaged weights, and keep those of the lowest validation loss.

        Args:
            hp: hyperparameters, of which none is used here.
            model: what ``build`` returned.
            x: training rows.
            kwargs: ``validation_data``, ``epochs``, ``initial_epoch``, ``callbacks``, ``verbose``
                of ``DDE.fit``.
        """
        stop = keras.callbacks.EarlyStopping(patience=self.patience, restore_best_weights=True)
        average = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        held_out = np.resize(kwargs.pop("validation_data"), (VALIDATED, x.shape[1]))
        return self._train(
            model,
            x,
            kwargs.get("epochs", 1),
            callbacks=[average, stop, *kwargs.pop("callbacks", ())],
            validation_data=held_out,
            validation_batch_size=VALIDATED,
            **kwargs,
        )

    def refit(self, hp: Any, x: Any, trained: int, **kwargs: Any) -> DDE:
        """A density of other rows, as of training and held-out ones together.

        Args:
            hp: hyperparameters of a trial.
            x: rows, (rows, n).
            trained: epochs to train for, as many as were best in the trial.
            kwargs: ``epochs``, those of the trial's schedule, and ``verbose`` of ``DDE.fit``.
        """
        other = copy.copy(self)
        other.x = check_rows(x, "x", self.x.shape[1:])
        model = other.build(hp)
        self._train(model, other.x, kwargs.pop("epochs"), epochs=trained, **kwargs)
        return model

    def _train(self, model: DDE, x: Any, schedule: int, callbacks: Any = (), **kwargs: Any) -> Any:
        rate = float(model.optimizer.learning_rate)

        def cosine(epoch: int) -> float:
            return rate * 0.5 * (1 + math.cos(math.pi * epoch / schedule))

        return model.fit(
            stream(x, min(self.batch_size, len(x)), self.seed),
            steps_per_epoch=max(EPOCH, math.ceil(len(x) / self.batch_size)),
            callbacks=[keras.callbacks.LearningRateScheduler(cosine), *callbacks],
            **kwargs,
        )


class LikelihoodTuner(keras_tuner.Tuner):
    """Trains a density for each trial, normalises it, and ranks it by held-out log-likelihood.

    A trial reports ``log_likelihood``, the mean over the validation rows in nats, its
    ``standard_error`` of rows and log Z in quadrature, and ``trained``, the epochs until the lowest
    validation loss.  It fails with ``FailedTrialError`` if log Z
    can't be trusted or the training diverges.  ``get_best_models`` returns densities that are
    normalised; the folder of each trial has its as ``density.keras``.

    Args:
        oracle: of keras-tuner, with ``OBJECTIVE``: ``RandomSearchOracle``,
            ``BayesianOptimizationOracle``, ``HyperbandOracle`` or another.
        hypermodel: ``Densities``, or another ``keras_tuner.HyperModel``, or a function of the
            hyperparameters that returns a compiled ``DDE``.
        partition: arguments of ``DDE.log_partition``, as {"samples": 20_000}.
        seed: of weights drawn in ``build``, the same in all trials.
        kwargs: of ``keras_tuner.Tuner``: ``directory``, ``project_name``, ``overwrite``,
            ``distribution_strategy``.
    """

    def __init__(
        self,
        oracle: Any,
        hypermodel: Any,
        *,
        partition: dict[str, Any] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ):
        if getattr(oracle.objective, "name", None) != OBJECTIVE.name:
            raise ValueError(
                f"`oracle` must have the objective tfdde.tuning.search.OBJECTIVE, got "
                f"{oracle.objective!r}."
            )
        self.partition = {"samples": 5_000} | (partition or {})
        self.seed = seed
        super().__init__(oracle, hypermodel, **kwargs)

    def search(self, x: Any, *, validation_data: Any, **kwargs: Any) -> None:
        """Run the trials that are left.

        Args:
            x, validation_data: training and held-out rows, (rows, n), in the data's own units.
            kwargs: of the hypermodel's ``fit``, such as ``epochs`` and ``verbose``.

        Raises:
            ValueError: wrong rows.
            RuntimeError: as many trials in a row failed as the oracle allows.
        """
        # At once: an error in a trial is one trial that failed.
        rows = check_rows(x, "x", np.shape(x)[1:])
        held_out = check_rows(validation_data, "validation_data", rows.shape[1:])
        super().search(rows, validation_data=held_out, **kwargs)

    def run_trial(self, trial: Any, x: Any, *, validation_data: Any, **kwargs: Any) -> dict:
        """Train, normalise and evaluate one density; arguments are those of ``search``."""
        hp, strategy = trial.hyperparameters, self.distribution_strategy
        keras.utils.clear_session()
        keras.utils.set_random_seed(self.seed)
        with strategy.scope() if strategy else contextlib.nullcontext():
            model = self.hypermodel.build(hp)
        if "tuner/epochs" in hp.values:  # Hyperband's
            kwargs["epochs"] = hp.values["tuner/epochs"]
            kwargs["initial_epoch"] = hp.values["tuner/initial_epoch"]
        if "tuner/trial_id" in hp.values:
            model.load_weights(self._folder(hp.values["tuner/trial_id"]) / "state.weights.h5")
        try:
            history = self.hypermodel.fit(hp, model, x, validation_data=validation_data, **kwargs)
        except DivergedError as diverged:
            raise keras_tuner.errors.FailedTrialError(str(diverged)) from diverged
        found = self._normalise(model, ladder_starts(x, validation_data))
        if not found.trusted:
            raise keras_tuner.errors.FailedTrialError(f"log Z can't be trusted: {found}")
        folder = self._folder(trial.trial_id)
        with atomic(folder / "state.weights.h5") as beside:
            model.save_weights(beside)
        with atomic(folder / "density.keras") as beside:
            model.save(beside)
        held_out, training = (
            model.log_density(rows, normalized=False).numpy().astype(np.float64) - found.value
            for rows in (validation_data, x[:COMPARED])
        )
        if message := overfitting(training, held_out):
            where = f"sigma = {model.noise.sigma:.3g}"
            warnings.warn(f"{where}: {message}", OverfittingWarning, stacklevel=2)
        mean, error = mean_and_error(held_out, found.standard_error)
        result = {"log_likelihood": mean, "standard_error": error}
        losses = getattr(history, "history", {}).get("val_loss")
        if losses:
            result["trained"] = kwargs.get("initial_epoch", 0) + int(np.argmin(losses)) + 1
        return result

    def _normalise(self, model: DDE, rows: Any) -> LogPartition:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This estimate can't be trusted")
            model.log_partition(rows, **self.partition)
        assert model.partition is not None  # what it found
        return model.partition

    def refit(self, x: Any, **kwargs: Any) -> DDE:
        """The best trial's density trained again, normalised, on training and held-out rows.

        Worth it if rows are few: a fifth more of them can matter more than what was searched.

        Args:
            x: all rows but those of the test, (rows, n).
            kwargs: ``epochs``, as given to ``search``, and ``verbose``.

        Raises:
            ValueError: wrong rows, or log Z can't be trusted.
        """
        trial = self.oracle.get_best_trials()[0]
        hp = trial.hyperparameters
        kwargs["epochs"] = hp.values.get("tuner/epochs", kwargs.get("epochs", 1))
        keras.utils.clear_session()
        keras.utils.set_random_seed(self.seed)
        model = self.hypermodel.refit(hp, x, int(trial.metrics.get_best_value("trained")), **kwargs)
        if not (found := self._normalise(model, x)).trusted:
            raise ValueError(f"log Z can't be trusted after `refit`: {found}")
        return model

    def _folder(self, trial_id: str) -> Path:
        return Path(self.get_trial_dir(trial_id))

    def load_model(self, trial: Any) -> DDE:
        """The normalised density of a completed trial."""
        return keras.models.load_model(self._folder(trial.trial_id) / "density.keras")
