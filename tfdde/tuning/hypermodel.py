"""The densities that a search over sigma trains: one recipe with ranges of its settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfdde.datasets.batches import stream
from tfdde.models.dde import DDE
from tfdde.noise import Constant, LogUniform
from tfdde.optimizers import FusedAdam
from tfdde.recipes import EPOCH_STEPS, STEPS_PER_CALL, VALIDATION_ROWS, table_density
from tfdde.runs.keep_best import RISE, KeepBest, averaged
from tfdde.tuning.curve import SigmaCurve, ladder_starts, mean_curve, select_sigma, split
from tfdde.utils.checks import check_integer, check_positive, check_rows, check_spread
from tfdde.utils.statistics import mean_and_variance

try:
    import keras_tuner
except ImportError as error:
    raise ImportError(
        "tfdde.tuning.search needs keras-tuner: pip install 'tfdde[tune]'."
    ) from error


STOPS = 5  # lengths of training that cross-validation compares, each half the next
Range = float | tuple[float, float]


class Densities(keras_tuner.HyperModel):
    """Densities of a table for the search over sigma and, if wanted, width, depth and rate.

    A pair of bounds is a range to search on a logarithmic scale; a number is a fixed value.  The
    columns are standardised, and sigma is in units of their standard deviations.

    Args:
        x: training rows, shape (rows, n), from which scales, base and first layer are taken.
        sigma: the noise level at which the density is read, or its bounds.
        sigma_max: the density is trained at all levels from sigma to this one, as the ladder
            needs it; None: it is trained at sigma alone, as in the paper, and log Z needs another
            method.
        width, depth: units of a layer and number of residual layers, or their bounds.
        learning_rate: Adam's at the start, or its bounds; it falls to 0 by a cosine over the
            epochs.
        batch_size: rows of a step.
        patience: number of epochs without a lower validation loss after which a trial ends; it
            also ends once the loss is 2 % above its lowest value.
        seed: of weights, batches and noise, the same in all trials.
        jit_compile: compile by XLA; False suits trainings of a few seconds, whose time the
            compilation would double.

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
        jit_compile: bool = True,
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
        lowest = sigma[0] if isinstance(sigma, tuple) else sigma
        check_spread(self.x, np.sqrt(mean_and_variance(self.x)[1]), lowest, "x")
        self.sigma_max = sigma_max
        self.batch_size = check_integer(batch_size, "batch_size")
        self.patience = check_integer(patience, "patience")
        self.seed, self.jit_compile = seed, jit_compile
        self.arguments: dict[str, Any] = {
            "sigma": sigma,
            "sigma_max": sigma_max,
            "width": width,
            "depth": depth,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "patience": patience,
            "seed": seed,
            "jit_compile": jit_compile,
        }

    def of(self, x: Any) -> Densities:
        """Return the hypermodel with the same settings for other rows, shape (rows, n)."""
        rows = check_rows(x, "x", self.x.shape[1:])
        # copy.copy fails here, since keras-tuner's HyperModel binds `build` to one object.
        return type(self)(rows, **self.arguments)

    def _value(self, hp: Any, name: str, whole: bool = False) -> Any:
        bounds = self.space[name]
        if not isinstance(bounds, tuple):
            return int(bounds) if whole else float(bounds)
        return (hp.Int if whole else hp.Float)(name, *bounds, sampling="log")

    def build(self, hp: Any) -> DDE:
        """Return a compiled density that is adapted to the rows."""
        sigma = self._value(hp, "sigma")
        width, depth = self._value(hp, "width", True), self._value(hp, "depth", True)
        rate = self._value(hp, "rate")
        noise = LogUniform(sigma, self.sigma_max) if self.sigma_max else Constant(sigma)
        layer = keras.layers.Normalization(axis=-1)
        dde = table_density(self.x, noise, width, depth, layer, self.seed)
        adam = FusedAdam(rate, use_ema=True, ema_momentum=0.99)
        dde.compile(adam, jit_compile=self.jit_compile)
        return dde

    def fit(self, hp: Any, model: DDE, x: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train, and keep the averaged weights of the epoch with the lowest validation loss.

        Args:
            hp: hyperparameters; ``fit`` uses none of them.
            model: the density that ``build`` returned.
            x: training rows.
            kwargs: ``validation_data``, ``epochs``, ``initial_epoch``, ``callbacks``, ``verbose``
                of ``DDE.fit``.
        """
        held_out = np.resize(kwargs.pop("validation_data"), (VALIDATION_ROWS, x.shape[1]))
        best = KeepBest(held_out, self.patience, batch_size=VALIDATION_ROWS, rise=RISE)
        callbacks = [best, *kwargs.pop("callbacks", ())]
        history = self._train(model, x, kwargs.get("epochs", 1), callbacks=callbacks, **kwargs)
        model.set_weights(best.weights)
        return history

    def refit(self, hp: Any, x: Any, trained: int, **kwargs: Any) -> DDE:
        """Return a density trained on other rows, such as training and held-out rows together.

        Args:
            hp: hyperparameters of a trial.
            x: rows, (rows, n).
            trained: number of epochs to train for, that of the best epoch of the trial.
            kwargs: ``epochs`` of the trial, over which the learning rate falls, and ``verbose`` of
                ``DDE.fit``.
        """
        other = self.of(x)
        model = other.build(hp)
        self._train(model, other.x, kwargs.pop("epochs"), epochs=trained, **kwargs)
        return model

    def follow(
        self, hp: Any, x: Any, epochs: int, read: Callable[[DDE, int], Any], verbose: Any = "auto"
    ) -> dict[int, Any]:
        """Train a density on other rows, and read it after all epochs, a half, a quarter ...

        Args:
            hp: hyperparameters of a trial.
            x: rows, (rows, n).
            epochs: number of epochs.
            read: function of the density, with its averaged weights, and of the number of epochs.
            verbose: of ``DDE.fit``.

        Returns:
            The results of ``read`` by the number of epochs.
        """
        stops = {max(1, epochs >> k) for k in range(STOPS)}
        results: dict[int, Any] = {}

        def at_end(epoch: int, logs: Any = None) -> None:
            if epoch + 1 in stops:
                with averaged(model):
                    results[epoch + 1] = read(model, epoch + 1)

        other = self.of(x)
        model = other.build(hp)
        reader = keras.callbacks.LambdaCallback(on_epoch_end=at_end)
        self._train(model, other.x, epochs, callbacks=[reader], epochs=epochs, verbose=verbose)
        return results

    def curve(
        self, x: Any, folds: int = 5, *, epochs: int, samples: int = 1_000, verbose: Any = "auto"
    ) -> tuple[SigmaCurve, int]:
        """Find the curve of ``select_sigma`` by cross-validation, which suits few rows.

        The likelihood chooses the length of training, too: with few rows, the denoising loss of
        held-out rows is lowest long before their likelihood is highest.

        Args:
            x: rows, (rows, n).
            folds: number of densities to train, each without one part of the rows.
            epochs: of the longest training; its half, quarter ... are compared with it.
            samples: number of samples of each ladder.
            verbose: of ``DDE.fit``.

        Returns:
            The curve over all rows, each row under the density that was trained without it, and
            the number of epochs for ``refit``.

        Raises:
            ValueError: hyperparameters are given as ranges, or ``sigma_max`` is None.
        """
        if ranges := [name for name, v in self.space.items() if isinstance(v, tuple)]:
            raise ValueError(f"`curve` needs numbers for {ranges}, got ranges: search those first.")
        folds_read, counts = [], []
        for training, held_out in split(check_rows(x, "x", self.x.shape[1:]), folds, self.seed):
            settings = {"starts": ladder_starts(training, held_out), "samples": samples}

            def read(
                model: DDE, _: int, held_out: Any = held_out, settings: Any = settings
            ) -> SigmaCurve:
                return select_sigma(model, held_out, seed=self.seed, check_all=True, **settings)

            hp = keras_tuner.HyperParameters()
            folds_read.append(self.follow(hp, training, epochs, read, verbose))
            counts.append(len(held_out))
        curves = {
            stop: mean_curve([results[stop] for results in folds_read], counts)
            for stop in folds_read[0]
        }
        trained = max(curves, key=lambda stop: curves[stop].log_likelihood[curves[stop].best])
        return curves[trained], trained

    def _train(self, model: DDE, x: Any, schedule: int, callbacks: Any = (), **kwargs: Any) -> Any:
        rate = float(model.optimizer.learning_rate)
        steps = max(EPOCH_STEPS, math.ceil(len(x) / self.batch_size))
        model.group_steps(math.gcd(STEPS_PER_CALL, steps))

        def cosine(epoch: int) -> float:
            return rate * 0.5 * (1 + math.cos(math.pi * epoch / schedule))

        return model.fit(
            stream(x, min(self.batch_size, len(x)), self.seed),
            steps_per_epoch=steps,
            callbacks=[keras.callbacks.LearningRateScheduler(cosine), *callbacks],
            **kwargs,
        )
