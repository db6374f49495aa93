"""The densities that a search over sigma trains: one recipe, with ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfdde.datasets.batches import stream
from tfdde.models.dde import DDE
from tfdde.noise import Constant, LogUniform
from tfdde.recipes import table_density
from tfdde.runs.keep_best import KeepBest, averaged
from tfdde.tuning.curve import SigmaCurve, ladder_starts, mean_curve, select_sigma, split
from tfdde.utils.checks import check_integer, check_positive, check_rows, check_spread
from tfdde.utils.statistics import mean_and_variance

try:
    import keras_tuner
except ImportError as error:
    raise ImportError(
        "tfdde.tuning.search needs keras-tuner: pip install 'tfdde[tune]'."
    ) from error


EPOCH = 50  # steps, at least
VALIDATED = 4_096  # noisy rows of a validation; few rows are taken repeatedly, with other noise
STOPS = 5  # lengths of training that cross-validation compares, each half the next
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
        jit_compile: by XLA; False suits trainings of a few seconds, which compiling would double.

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
        adam = keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.99)
        dde.compile(adam, jit_compile=self.jit_compile)
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
        held_out = np.resize(kwargs.pop("validation_data"), (VALIDATED, x.shape[1]))
        best = KeepBest(held_out, self.patience, batch_size=VALIDATED)
        callbacks = [best, *kwargs.pop("callbacks", ())]
        history = self._train(model, x, kwargs.get("epochs", 1), callbacks=callbacks, **kwargs)
        model.set_weights(best.weights)
        return history

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

    def follow(
        self, hp: Any, x: Any, epochs: int, read: Callable[[DDE, int], Any], verbose: Any = "auto"
    ) -> dict[int, Any]:
        """Train a density of other rows and read it off on the way, by averaged weights.

        Args:
            hp: hyperparameters of a trial.
            x: rows, (rows, n).
            epochs: of the training.
            read: what is kept of the density and the epochs behind it: all of them, a half, a
                quarter ...
            verbose: of ``DDE.fit``.

        Returns:
            What was read, by the number of epochs.
        """
        stops = {max(1, epochs >> k) for k in range(STOPS)}
        found: dict[int, Any] = {}

        def at_end(epoch: int, logs: Any = None) -> None:
            if epoch + 1 in stops:
                with averaged(model):
                    found[epoch + 1] = read(model, epoch + 1)

        other = self.of(x)
        model = other.build(hp)
        reader = keras.callbacks.LambdaCallback(on_epoch_end=at_end)
        self._train(model, other.x, epochs, callbacks=[reader], epochs=epochs, verbose=verbose)
        return found

    def curve(
        self, x: Any, folds: int = 5, *, epochs: int, samples: int = 5_000, verbose: Any = "auto"
    ) -> tuple[SigmaCurve, int]:
        """``select_sigma`` by cross-validation: for few rows, of which a fifth tells too little.

        The likelihood chooses the length of training, too: of few rows the denoising loss of
        held-out ones is lowest long before.

        Args:
            x: rows, (rows, n).
            folds: densities to train, each without one part of the rows.
            epochs: of the longest training; its halves, quarters ... are compared.
            samples: of each ladder.
            verbose: of ``DDE.fit``.

        Returns:
            The curve over all rows, each under the density that was trained without it, and the
            number of epochs, for ``refit``.

        Raises:
            ValueError: hyperparameters are given as ranges, or ``sigma_max`` is None.
        """
        if ranges := [name for name, v in self.space.items() if isinstance(v, tuple)]:
            raise ValueError(f"`curve` needs numbers for {ranges}, got ranges: search those first.")
        found, counts = [], []
        for training, held_out in split(check_rows(x, "x", self.x.shape[1:]), folds, self.seed):
            given = {"starts": ladder_starts(training, held_out), "samples": samples}

            def read(
                model: DDE, _: int, held_out: Any = held_out, given: Any = given
            ) -> SigmaCurve:
                return select_sigma(model, held_out, seed=self.seed, **given)

            hp = keras_tuner.HyperParameters()
            found.append(self.follow(hp, training, epochs, read, verbose))
            counts.append(len(held_out))
        curves = {stop: mean_curve([each[stop] for each in found], counts) for stop in found[0]}
        trained = max(curves, key=lambda stop: curves[stop].log_likelihood[curves[stop].best])
        return curves[trained], trained

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
