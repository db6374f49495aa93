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
import math
import warnings
from collections.abc import Sequence
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
from tfdde.tuning.curve import (
    OverfittingWarning,
    SigmaCurve,
    ladder_starts,
    mean_curve,
    overfitting,
    select_sigma,
    split,
)

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
        self.arguments: dict[str, Any] = {
            "sigma": sigma,
            "sigma_max": sigma_max,
            "width": width,
            "depth": depth,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "patience": patience,
            "seed": seed,
        }

    def of(self, x: Any) -> Densities:
        """The same densities of other rows (rows, n), which scales and base are taken from."""
        rows = check_rows(x, "x", self.x.shape[1:])
        # Not a copy: keras-tuner's HyperModel binds `build` to the very object.
        return type(self)(rows, **self.arguments)

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
        other = self.of(x)
        model = other.build(hp)
        self._train(model, other.x, kwargs.pop("epochs"), epochs=trained, **kwargs)
        return model

    def curve(
        self, x: Any, folds: int = 5, *, epochs: int, samples: int = 5_000, verbose: Any = "auto"
    ) -> tuple[SigmaCurve, int]:
        """``select_sigma`` by cross-validation: for few rows, of which a fifth tells too little.

        Args:
            x: rows, (rows, n).
            folds: densities to train, each without one part of the rows.
            epochs, verbose: of ``DDE.fit``.
            samples: of each ladder.

        Returns:
            The curve over all rows, each under the density that was trained without it, and the
            number of epochs of the lowest mean validation loss, for ``refit``.

        Raises:
            ValueError: hyperparameters are given as ranges, or ``sigma_max`` is None.
        """
        if ranges := [name for name, v in self.space.items() if isinstance(v, tuple)]:
            raise ValueError(f"`curve` needs numbers for {ranges}, got ranges: search those first.")
        hp = keras_tuner.HyperParameters()
        curves, losses, counts = [], [], []
        for training, held_out in split(check_rows(x, "x", self.x.shape[1:]), folds, self.seed):
            model = self.of(training).build(hp)
            kwargs = {"validation_data": held_out, "epochs": epochs, "verbose": verbose}
            losses.append(self.fit(hp, model, training, **kwargs).history["val_loss"])
            starts = ladder_starts(training, held_out)
            curves.append(
                select_sigma(model, held_out, starts=starts, samples=samples, seed=self.seed)
            )
            counts.append(len(held_out))
        return mean_curve(curves, counts), _trained(losses)

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


def _trained(losses: Sequence[list[float]]) -> int:
    """Epochs until the lowest mean of validation losses, as far as all trainings went."""
    last = min(map(len, losses))
    return int(np.mean([each[:last] for each in losses], axis=0).argmin()) + 1


class LikelihoodTuner(keras_tuner.Tuner):
    """Trains a density for each trial, normalises it, and ranks it by held-out log-likelihood.

    A trial reports ``log_likelihood``, the mean over the validation rows in nats, its
    ``standard_error`` of rows and log Z in quadrature, and ``trained``, the epochs until the lowest
    validation loss.  It fails with ``FailedTrialError`` if log Z
    can't be trusted or the training diverges.  ``get_best_models`` returns densities that are
    normalised; the folder of each trial has its as ``density.keras``.

    Of few rows a fifth is too few to choose by: without ``validation_data`` each trial trains one
    density for each of ``folds`` parts of the rows, on the others, so that every row is held out
    once.  ``density.keras`` is then that of the first part; ``refit`` trains on all rows.

    Args:
        oracle: of keras-tuner, with ``OBJECTIVE``: ``RandomSearchOracle``,
            ``BayesianOptimizationOracle``, ``HyperbandOracle`` or another.
        hypermodel: ``Densities``, or another ``keras_tuner.HyperModel``, or a function of the
            hyperparameters that returns a compiled ``DDE``.
        partition: arguments of ``DDE.log_partition``, as {"samples": 20_000}.
        folds: parts of the rows, for a search without ``validation_data``.
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
        folds: int = 5,
        seed: int = 0,
        **kwargs: Any,
    ):
        if getattr(oracle.objective, "name", None) != OBJECTIVE.name:
            raise ValueError(
                f"`oracle` must have the objective tfdde.tuning.search.OBJECTIVE, got "
                f"{oracle.objective!r}."
            )
        self.partition = {"samples": 5_000} | (partition or {})
        self.folds = check_integer(folds, "folds", 2)
        self.seed = seed
        super().__init__(oracle, hypermodel, **kwargs)

    def search(self, x: Any, *, validation_data: Any = None, **kwargs: Any) -> None:
        """Run the trials that are left.

        Args:
            x: training rows, (rows, n), in the data's own units.
            validation_data: held-out rows; None: each of ``folds`` parts of ``x`` in turn.
            kwargs: of the hypermodel's ``fit``, such as ``epochs`` and ``verbose``.

        Raises:
            ValueError: wrong rows.
            RuntimeError: as many trials in a row failed as the oracle allows.
        """
        # At once: an error in a trial is one trial that failed.
        rows = check_rows(x, "x", np.shape(x)[1:])
        if validation_data is None:
            split(rows, self.folds, self.seed)
        else:
            validation_data = check_rows(validation_data, "validation_data", rows.shape[1:])
        super().search(rows, validation_data=validation_data, **kwargs)

    def run_trial(self, trial: Any, x: Any, *, validation_data: Any, **kwargs: Any) -> dict:
        """Train, normalise and evaluate one density, or one a fold; arguments as of ``search``."""
        parts = [(x, validation_data)]
        if validation_data is None:
            parts = split(x, self.folds, self.seed)
        found = [self._run(trial, k, *part, **kwargs) for k, part in enumerate(parts)]
        held_out, training, log_z_errors, losses = zip(*found, strict=True)
        held_out, training = np.concatenate(held_out), np.concatenate(training)
        if message := overfitting(training, held_out):
            warnings.warn(f"trial {trial.trial_id}: {message}", OverfittingWarning, stacklevel=2)
        shares = np.array([len(rows) for _, rows in parts]) / len(held_out)
        mean, error = mean_and_error(held_out, float(np.linalg.norm(shares * log_z_errors)))
        result = {"log_likelihood": mean, "standard_error": error}
        if all(losses):
            result["trained"] = kwargs.get("initial_epoch", 0) + _trained(losses)
        return result

    def _run(
        self, trial: Any, part: int, x: Any, held_out: Any, **kwargs: Any
    ) -> tuple[np.ndarray, np.ndarray, float, list[float]]:
        """Log-densities of held-out and training rows, log Z's error, validation losses."""
        hp, strategy = trial.hyperparameters, self.distribution_strategy
        keras.utils.clear_session()
        keras.utils.set_random_seed(self.seed)
        hypermodel = self.hypermodel
        if isinstance(hypermodel, Densities):
            hypermodel = hypermodel.of(x)
        with strategy.scope() if strategy else contextlib.nullcontext():
            model = hypermodel.build(hp)
        if "tuner/epochs" in hp.values:  # Hyperband's
            kwargs["epochs"] = hp.values["tuner/epochs"]
            kwargs["initial_epoch"] = hp.values["tuner/initial_epoch"]
        if "tuner/trial_id" in hp.values:
            model.load_weights(self._state(hp.values["tuner/trial_id"], part))
        try:
            history = hypermodel.fit(hp, model, x, validation_data=held_out, **kwargs)
        except DivergedError as diverged:
            raise keras_tuner.errors.FailedTrialError(str(diverged)) from diverged
        found = self._normalise(model, ladder_starts(x, held_out))
        if not found.trusted:
            raise keras_tuner.errors.FailedTrialError(f"log Z can't be trusted: {found}")
        with atomic(self._state(trial.trial_id, part)) as beside:
            model.save_weights(beside)
        if not part:
            with atomic(self._folder(trial.trial_id) / "density.keras") as beside:
                model.save(beside)
        values = [
            model.log_density(rows, normalized=False).numpy().astype(np.float64) - found.value
            for rows in (held_out, x[:COMPARED])
        ]
        losses = getattr(history, "history", {}).get("val_loss", [])
        return *values, found.standard_error, losses

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

    def _state(self, trial_id: str, part: int) -> Path:
        return self._folder(trial_id) / f"state-{part}.weights.h5"

    def load_model(self, trial: Any) -> DDE:
        """The normalised density of a completed trial."""
        return keras.models.load_model(self._folder(trial.trial_id) / "density.keras")
