"""A keras-tuner search over sigma by normalised held-out log-likelihood.

The denoising loss can't choose sigma, since it falls as sigma grows, whatever the data.  The
likelihood can, but only if it is normalised; so each trial ends with log Z, and fails if that can't
be trusted.

>>> import keras_tuner
>>> from tfdde.tuning.search import OBJECTIVE, Densities, LikelihoodTuner
>>> oracle = keras_tuner.oracles.BayesianOptimizationOracle(OBJECTIVE, max_trials=20)
>>> densities = Densities(x[:400], sigma=(0.02, 1.0))
>>> tuner = LikelihoodTuner(oracle, densities, directory="search")
>>> tuner.search(x[:400], validation_data=x[400:], epochs=40)  # doctest: +SKIP
>>> dde = tuner.get_best_models()[0]  # doctest: +SKIP

A second search with the same ``directory`` continues the first.  With keras-tuner's environment
variables (KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT) a chief hands out the
trials, and any number of workers run them; they share the directory.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfdde.models.dde import DDE
from tfdde.models.fit_callbacks import DivergedError
from tfdde.partition.result import LogPartition
from tfdde.tuning import search_record
from tfdde.tuning.curve import OverfittingWarning, ladder_starts, overfitting, split
from tfdde.tuning.hypermodel import Densities, keras_tuner
from tfdde.utils.checks import check_integer, check_rows
from tfdde.utils.files import atomic
from tfdde.utils.statistics import mean_and_error

__all__ = ["OBJECTIVE", "Densities", "LikelihoodTuner"]
# Arguments of keras_tuner.Tuner that have an effect here, and those of a search for log Z.
HEEDED = {"directory", "project_name", "overwrite", "tuner_id", "distribution_strategy"}
PARTITION_ARGUMENTS = {"method", "sigma", "samples", "moves", "seed"}
OBJECTIVE = keras_tuner.Objective("log_likelihood", "max")
COMPARED = 5_000  # training rows whose likelihood is compared with that of held-out rows


class LikelihoodTuner(keras_tuner.Tuner):
    """Train a density for each trial, normalise it, and rank it by held-out log-likelihood.

    A trial reports ``log_likelihood``, the mean over the validation rows in nats; its
    ``standard_error``, that of the rows and that of log Z in quadrature; and ``trained``, the
    number of epochs until the lowest validation loss.  It fails with ``FailedTrialError`` if log Z
    can't be trusted or the training diverges.  ``get_best_models`` returns normalised densities;
    the folder of each trial has its own as ``density.keras``.

    With few rows, a validation split is too small to choose sigma.  Without ``validation_data``
    the tuner cross-validates: each trial trains one density for each of ``folds`` parts of the
    rows, on the other parts, so that every row is held out once, and takes the length of training
    with the highest likelihood.  ``density.keras`` is then the density that was trained without
    the first part; ``refit`` trains on all rows.

    Args:
        oracle: of keras-tuner, with ``OBJECTIVE``: ``RandomSearchOracle``,
            ``BayesianOptimizationOracle``, ``HyperbandOracle`` or another.
        hypermodel: ``Densities``, or another ``keras_tuner.HyperModel``, or a function of the
            hyperparameters that returns a compiled ``DDE``.
        partition: arguments of ``DDE.log_partition``, such as {"samples": 20_000}.
        folds: number of parts of the rows, for a search without ``validation_data``.
        seed: of the weights drawn in ``build``, the same in all trials.
        kwargs: of ``keras_tuner.Tuner``: ``directory``, ``project_name``, ``overwrite``,
            ``tuner_id``, ``distribution_strategy``.  Its other arguments are refused.

    Raises:
        ValueError: another objective, a wrong argument, or a ``directory`` with a search that was
            started with other ranges or settings.
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
        objective = getattr(oracle, "objective", None)
        wanted = OBJECTIVE.name, OBJECTIVE.direction
        if (getattr(objective, "name", None), getattr(objective, "direction", None)) != wanted:
            raise ValueError(
                "`oracle` must have the objective tfdde.tuning.search.OBJECTIVE, the maximum of "
                f"log_likelihood, got {objective}."
            )
        if ignored := sorted(kwargs.keys() - HEEDED):
            raise ValueError(
                f"`{ignored[0]}` must not be given: each trial trains one density, or one for each "
                f"fold, as `hypermodel` builds and compiles it. Of keras_tuner.Tuner's arguments "
                f"LikelihoodTuner takes {', '.join(sorted(HEEDED))}."
            )
        if unknown := sorted(set(partition or {}) - PARTITION_ARGUMENTS):
            raise ValueError(
                f"`partition` must have arguments of DDE.log_partition, "
                f"{', '.join(sorted(PARTITION_ARGUMENTS))}, got {unknown[0]!r}."
            )
        self.partition = {"samples": 1_000} | (partition or {})
        self.folds = check_integer(folds, "folds", 2)
        self.seed = check_integer(seed, "seed", 0)
        self._max_epochs = getattr(oracle, "max_epochs", None)  # Hyperband's
        super().__init__(oracle, hypermodel, **kwargs)
        self._record = Path(self.project_dir) / "search.json"
        if self._record.exists():
            search_record.check(self._record, self._settings)

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        """Return what the results of trials depend on, but for the data of ``search``."""
        settings = {"partition": self.partition, "seed of the tuner": self.seed}
        if isinstance(self.hypermodel, Densities):
            rows = search_record.checksum(self.hypermodel.x)
            return settings | self.hypermodel.arguments | {"rows of the hypermodel": rows}
        space = keras_tuner.HyperParameters()
        self.hypermodel.build(space)
        ranges = {f"the range of {hp.name}": hp.get_config() for hp in space.space}
        return settings | ranges

    def search(self, x: Any, *, validation_data: Any = None, **kwargs: Any) -> None:
        """Run the remaining trials.

        Args:
            x: training rows, (rows, n), in the data's own units.
            validation_data: held-out rows; None: each of the ``folds`` parts of ``x`` in turn.
            kwargs: of the hypermodel's ``fit``: ``epochs``, which Hyperband has from its oracle,
                ``verbose`` and, with ``validation_data``, ``callbacks``.

        Raises:
            ValueError: wrong rows or arguments, or the folder has a search of other data.
            RuntimeError: as many trials in a row failed as the oracle allows.
        """
        # Checked here, because keras-tuner counts an error within a trial as a failed trial.
        ours = isinstance(self.hypermodel, Densities)
        shape = self.hypermodel.x.shape[1:] if ours else np.shape(x)[1:]
        rows = check_rows(x, "x", shape)
        heeded = {"epochs", "verbose"} | ({"callbacks"} if validation_data is not None else set())
        if ours and (unknown := sorted(kwargs.keys() - heeded)):
            raise ValueError(f"`search` takes {', '.join(sorted(heeded))}, got `{unknown[0]}`.")
        if validation_data is None:
            if not ours or self._max_epochs is not None:
                raise ValueError(
                    "`validation_data` may be None only for `Densities`, and not with Hyperband."
                )
            split(rows, self.folds, self.seed)
        else:
            validation_data = check_rows(validation_data, "validation_data", rows.shape[1:])
        epochs = check_integer(kwargs.get("epochs", self._max_epochs or 1), "epochs")
        if epochs != (self._max_epochs or epochs):
            raise ValueError(
                f"`epochs` must be {self._max_epochs}, the oracle's `max_epochs`, or be left out, "
                f"got {epochs}."
            )
        facts = self._settings | {
            "x": search_record.checksum(rows),
            "validation_data": search_record.checksum(validation_data),
            "folds": self.folds if validation_data is None else None,
            "epochs": epochs,
        }
        search_record.check(self._record, facts, keep=True)
        super().search(rows, validation_data=validation_data, **kwargs)

    def run_trial(self, trial: Any, x: Any, *, validation_data: Any, **kwargs: Any) -> dict:
        """Train, normalise and evaluate a density, or one for each fold.

        Arguments are those of ``search``.
        """
        run = self._validate if validation_data is not None else self._cross_validate
        try:
            result, held_out, training = run(trial, x, validation_data, **kwargs)
        except DivergedError as diverged:
            raise keras_tuner.errors.FailedTrialError(str(diverged)) from diverged
        except (TypeError, ValueError) as error:
            if not isinstance(self.hypermodel, Densities):
                raise
            # Whatever the hyperparameters are: the next trial would end so, too.
            raise keras_tuner.errors.FatalValueError(str(error)) from error
        if message := overfitting(training, held_out):
            warnings.warn(f"trial {trial.trial_id}: {message}", OverfittingWarning, stacklevel=2)
        return result

    def _validate(
        self, trial: Any, x: Any, validation_data: Any, **kwargs: Any
    ) -> tuple[dict, np.ndarray, np.ndarray]:
        hp, strategy = trial.hyperparameters, self.distribution_strategy
        keras.utils.clear_session()
        keras.utils.set_random_seed(self.seed)
        with strategy.scope() if strategy else contextlib.nullcontext():
            model = self.hypermodel.build(hp)
        _check_model(model, x)
        if "tuner/epochs" in hp.values:  # Hyperband's
            kwargs["epochs"] = hp.values["tuner/epochs"]
            kwargs["initial_epoch"] = hp.values["tuner/initial_epoch"]
        if "tuner/trial_id" in hp.values:
            model.load_weights(self._folder(hp.values["tuner/trial_id"]) / "state.weights.h5")
        history = self.hypermodel.fit(hp, model, x, validation_data=validation_data, **kwargs)
        held_out, training, log_z = self._read(model, x, validation_data)
        if not log_z.trusted:
            raise keras_tuner.errors.FailedTrialError(f"log Z can't be trusted: {log_z}")
        folder = self._folder(trial.trial_id)
        with atomic(folder / "state.weights.h5") as temporary:
            model.save_weights(temporary)
        with atomic(folder / "density.keras") as temporary:
            model.save(temporary)
        mean, error = mean_and_error(held_out, log_z.standard_error)
        result = {"log_likelihood": mean, "standard_error": error}
        losses = getattr(history, "history", {}).get("val_loss")
        if losses:
            result["trained"] = kwargs.get("initial_epoch", 0) + int(np.argmin(losses)) + 1
        return result, held_out, training

    def _cross_validate(
        self, trial: Any, x: Any, _: Any, *, epochs: int = 1, verbose: Any = "auto"
    ) -> tuple[dict, np.ndarray, np.ndarray]:
        parts = split(x, self.folds, self.seed)
        shares = np.array([len(rows) for _, rows in parts]) / len(x)
        folder = self._folder(trial.trial_id)
        folder.mkdir(parents=True, exist_ok=True)
        folds_read = []
        for k, part in enumerate(parts):
            keras.utils.clear_session()
            keras.utils.set_random_seed(self.seed)

            def read(model: DDE, epoch: int, k: int = k, part: Any = part) -> Any:
                values = self._read(model, *part)
                if not k:
                    with atomic(folder / f"density-{epoch}.keras") as temporary:
                        model.save(temporary)
                return values

            strategy = self.distribution_strategy
            with strategy.scope() if strategy else contextlib.nullcontext():
                settings = trial.hyperparameters, part[0], epochs
                folds_read.append(self.hypermodel.follow(*settings, read, verbose))
        results = {}
        for stop in folds_read[0]:
            readings = (read_at[stop] for read_at in folds_read)
            held_out, training, partitions = zip(*readings, strict=True)
            if all(z.trusted for z in partitions):
                values = np.concatenate(held_out)
                log_z = float(np.linalg.norm(shares * [z.standard_error for z in partitions]))
                mean, error = mean_and_error(values, log_z)
                result = {"log_likelihood": mean, "standard_error": error, "trained": stop}
                results[stop] = result, values, np.concatenate(training)
        if not results:
            untrusted = next(z for z in partitions if not z.trusted)
            raise keras_tuner.errors.FailedTrialError(
                f"log Z can't be trusted in a fold: {untrusted}"
            )
        best = max(results, key=lambda stop: results[stop][0]["log_likelihood"])
        for stop in folds_read[0]:
            path = folder / f"density-{stop}.keras"
            path.replace(folder / "density.keras") if stop == best else path.unlink()
        return results[best]

    def _read(
        self, model: DDE, x: Any, held_out: Any
    ) -> tuple[np.ndarray, np.ndarray, LogPartition]:
        """Return log-densities of held-out and training rows, and log Z."""
        log_z = self._normalise(model, ladder_starts(x, held_out))
        held_out, training = (
            model.log_density(rows, normalized=False).numpy().astype(np.float64) - log_z.value
            for rows in (held_out, x[:COMPARED])
        )
        return held_out, training, log_z

    def _normalise(self, model: DDE, rows: Any) -> LogPartition:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This estimate can't be trusted")
            model.log_partition(rows, **self.partition)
        assert model.partition is not None  # `log_partition` has set it
        return model.partition

    def refit(self, x: Any, **kwargs: Any) -> DDE:
        """Train the best trial's density again on training and held-out rows, and normalise it.

        With few rows this matters: a fifth more rows can improve a density more than the search.

        A hypermodel other than ``Densities`` is fitted as in a trial, without validation.

        Args:
            x: all rows but those of the test, (rows, n).
            kwargs: ``epochs``, by default those of ``search``, and ``verbose``.

        Raises:
            ValueError: wrong rows, or log Z can't be trusted.
        """
        trial = self.oracle.get_best_trials()[0]
        hp = trial.hyperparameters
        searched = search_record.read(self._record).get("epochs", 1)
        kwargs["epochs"] = hp.values.get("tuner/epochs", kwargs.get("epochs", searched))
        keras.utils.clear_session()
        keras.utils.set_random_seed(self.seed)
        if isinstance(self.hypermodel, Densities):
            trained = int(trial.metrics.get_best_value("trained"))
            model = self.hypermodel.refit(hp, x, trained, **kwargs)
        else:
            model = self.hypermodel.build(hp)
            _check_model(model, x)
            self.hypermodel.fit(hp, model, x, **kwargs)
        if not (log_z := self._normalise(model, x)).trusted:
            raise ValueError(f"log Z can't be trusted after `refit`: {log_z}")
        return model

    def _folder(self, trial_id: str) -> Path:
        return Path(self.get_trial_dir(trial_id))

    def load_model(self, trial: Any) -> DDE:
        """Return the normalised density of a completed trial."""
        return keras.models.load_model(self._folder(trial.trial_id) / "density.keras")


def _check_model(model: Any, x: np.ndarray) -> None:
    """Raise one of keras-tuner's fatal errors unless a hypermodel built a density of rows ``x``."""
    if not isinstance(model, DDE):
        raise keras_tuner.errors.FatalTypeError(
            f"`hypermodel` must build a compiled tfdde.DDE, got {type(model).__name__}."
        )
    if model.data_shape != x.shape[1:]:
        raise keras_tuner.errors.FatalValueError(
            f"`x` must have shape (rows, {', '.join(map(str, model.data_shape))}), as the density "
            f"that `hypermodel` builds, got {x.shape}."
        )
