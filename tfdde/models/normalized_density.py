"""A density that is read, and normalised by log Z."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from tfdde.losses import score_of
from tfdde.models.correction_cap import MANY_ENTRIES, caps_of, doubted
from tfdde.models.evaluation import in_chunks, traced
from tfdde.models.known_log_z import KnownLogZ, of_earlier_versions
from tfdde.models.smoothed_density import SmoothedDensity
from tfdde.noise import LogUniform
from tfdde.partition.estimate import estimate, estimate_by_condition
from tfdde.partition.evaluator import Evaluator
from tfdde.partition.from_above import is_for
from tfdde.partition.from_base import Base
from tfdde.partition.result import LogPartition, LogPartitions
from tfdde.utils.checks import (
    check_conditions,
    check_pixels,
    check_rows,
    check_weights,
    to_conditions,
    to_rows,
)
from tfdde.utils.fingerprint import Fingerprint


class UnnormalizedWarning(UserWarning):
    """``log_density`` returned values that are known only up to a constant."""


class NormalizedDensity(SmoothedDensity):
    """What ``DDE`` is read by: log-density, score and anomaly score, and the log Z they need.

    The arguments are those of ``DDE``.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        hash_of = Fingerprint()
        self._known_log_z = KnownLogZ(lambda: hash_of(self._all_weights()))
        self._traced_with = self.parts_in_traces()

    # Reading the density.

    def log_density(
        self,
        x: Any,
        sigma: float | None = None,
        *,
        conditions: Any = None,
        normalized: bool | None = None,
    ) -> tf.Tensor:
        """log(p * N(0, sigma**2 I))(x), in the data's own units.

        Until ``log_partition`` has found a trusted log Z for this sigma, the values are
        unnormalised: they contain one unknown constant of this model. Differences between points
        then mean something; a single value, or the difference to another model's, does not. With
        conditions it is log p(x | condition), and each condition has its own unknown constant:
        only differences between points at the same condition mean something.

        Args:
            x: array, evaluated some thousand rows at a time, or tensor; (rows, *data_shape).
            sigma: noise level. By default, and always without ``LogUniform`` noise, it is the
                noise's own ``sigma``.
            conditions: of a conditional density, shape (rows, condition_dim), or
                (1, condition_dim) for all rows alike.
            normalized: True: raise an error without a trusted log Z (of each condition). False:
                return s itself. By default normalised if possible, otherwise s with an
                ``UnnormalizedWarning``.

        Returns:
            float32 tensor, shape (rows,), in nats. Inside a ``tf.function``, where conditions
            can't be looked up beforehand, it is NaN at conditions without a trusted log Z.

        Raises:
            ValueError: wrong rank or width, NaN or infinity, unscaled pixels, a sigma that was
                not trained, or no trusted log Z where one was asked for; conditions for a
                density that takes none, or none for one that does.
        """
        level = self._level(sigma)
        columns = self._columns(x, conditions, level)
        log_z, place = None, ""
        if normalized is not False:
            log_z, place = self._trusted_log_z(level, *columns[1:])
        if log_z is None and normalized is not False:
            arguments = "data, conditions=conditions" if self.condition_dim else "data"
            message = (
                f"This log-density is unnormalised: no trusted log Z at {place}. Call "
                f"`log_partition({arguments})` first, or pass `normalized=False` to get s itself."
            )
            if normalized:
                raise ValueError(message)
            warnings.warn(message, UnnormalizedWarning, stacklevel=2)
        level_tensor = tf.constant(level, tf.float32)
        s = in_chunks(lambda x, *c: self._log_density(x, level_tensor, *c), columns)
        return s if log_z is None else s - tf.cast(log_z, tf.float32)

    def score(self, x: Any, sigma: float | None = None, *, conditions: Any = None) -> tf.Tensor:
        """Gradient of the log-density at each row, in nats per unit of x.

        Args and errors are those of ``log_density``.

        Returns:
            float32 tensor, shape of ``x``.
        """
        level = self._level(sigma)
        columns, tensor = self._columns(x, conditions, level), tf.constant(level, tf.float32)
        return in_chunks(lambda x, *c: self._score(x, tensor, *c), columns)

    def anomaly_score(self, x: Any, *, conditions: Any = None) -> tf.Tensor:
        """Minus the log-density: the higher, the more anomalous the row.

        Without a trusted log Z it is known up to a constant. In a conditional density that
        constant would differ from condition to condition, so there each condition must have a
        trusted log Z.

        Args and errors are those of ``log_density``.

        Returns:
            float32 tensor, shape (rows,), in nats.
        """
        normalized = True if self.condition_dim else self.normalized
        return -self.log_density(x, conditions=conditions, normalized=normalized)

    def anomaly_threshold(
        self, x: Any, contamination: float = 0.1, *, conditions: Any = None
    ) -> float:
        """The anomaly score that a share ``contamination`` of the rows ``x`` exceeds.

        Args:
            x: array of normal and abnormal rows in their natural mix, (rows, *data_shape).
            contamination: share of abnormal rows, in (0, 0.5], as in scikit-learn.
            conditions: as for ``log_density``.

        Raises:
            ValueError: as ``log_density``, or a share outside (0, 0.5].
        """
        if not 0 < contamination <= 0.5:
            raise ValueError(f"`contamination` must be in (0, 0.5], got {contamination!r}.")
        scores = self.anomaly_score(x, conditions=conditions).numpy()
        return float(np.quantile(scores, 1.0 - contamination))

    def _columns(self, x: Any, conditions: Any, level: float) -> list[Any]:
        """The rows and, if there are any, their conditions: checked arrays, or tensors.

        Pixels may have the noise of ``level``.
        """
        self._follow_parts()
        rows = to_rows(x, "x", self.data_shape, self.row_dtype)
        values_known = not tf.is_tensor(x) or tf.executing_eagerly()
        if values_known and len(self.data_shape) == 3:
            margin = 10 * max(level, self.noise.sigma)
            check_pixels(np.asarray(rows), "x", margin=margin)
        return [rows, *to_conditions(conditions, self.condition_dim, rows)]

    @cached_property
    def _log_density(self) -> Callable[..., tf.Tensor]:
        return self._traced(self.in_data_units)

    @cached_property
    def _score(self) -> Callable[..., tf.Tensor]:
        def score(x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
            score = score_of(lambda y: self.in_data_units(y, sigma, *condition), x)
            return tf.cast(score, tf.float32)

        return self._traced(score)

    def _traced(self, function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
        return traced(function, self.data_shape, self.row_dtype, self.condition_dim)

    def parts_in_traces(self) -> tuple[Any, ...]:
        return self.base and self.base.kind, self.caps

    def _trace_anew(self) -> None:
        for name in ("_evaluator", "_proposal", "_log_density", "_score"):
            self.__dict__.pop(name, None)
        super()._trace_anew()

    # log Z.

    def cap_correction(self, x: Any, seed: int = 0) -> None:
        """Cap what the network adds to the base slightly above what it adds at noisy rows.

        Elsewhere than at noisy rows a network may add thousands of nats, and then e^s has its mass
        where no row is. s of rows like these stays the same, except for a few that exceed the
        cap. The caps are saved with the density and exported. Training on, or setting weights,
        removes them. ``log_partition`` calls this method on its own for rows of more than 100
        entries, where the checks of log Z would not be enough.

        >>> network = tfdde.networks.residual_mlp(2, width=16, depth=2, levels=True)
        >>> dde = tfdde.DDE(network, tfdde.LogUniform(0.1, 8.0), seed=0)
        >>> dde.adapt(x)
        >>> dde.cap_correction(x)
        >>> len(dde.caps)
        17

        Args:
            x: training rows, shape (rows, *data_shape), of which 2,000 are taken.
            seed: of their order and noise.

        Raises:
            ValueError: wrong shape, NaN, infinity, no rows, a conditional density, or one
                without ``LogUniform`` noise.
        """
        if not self._can_be_capped:
            kind = "a conditional density" if self.condition_dim else repr(self.noise)
            raise ValueError(
                f"`cap_correction` needs LogUniform noise and no conditions, got {kind}."
            )
        rows = check_pixels(check_rows(x, "x", self.data_shape, dtype=self.row_dtype), "x")
        self._cap(self.inside(tf.constant(rows)).numpy(), seed)

    def cap_if_many_entries(self, inside: np.ndarray, seed: int) -> None:
        """``cap_correction`` if log Z of rows with so many entries can't be trusted without it.

        Args:
            inside: rows as ``inside`` returns them.
            seed: as of ``cap_correction``.
        """
        if self.caps is None and self._can_be_capped and inside[0].size > MANY_ENTRIES:
            self._cap(inside, seed)

    @property
    def _can_be_capped(self) -> bool:
        return isinstance(self.noise, LogUniform) and not self.condition_dim

    def _cap(self, inside: np.ndarray, seed: int) -> None:
        assert isinstance(self.noise, LogUniform)
        evaluate = Evaluator(self.correction, self.data_shape)
        self.caps = caps_of(evaluate, inside, self.noise, seed)
        self._known_log_z.forget()
        self._follow_parts()

    def _uncap(self) -> None:
        if self.caps is not None:
            self.caps = None
            self._known_log_z.forget()
            self._follow_parts()

    @property
    def partition(self) -> LogPartition | None:
        """The estimate of log Z that ``log_partition`` found at the noise's own ``sigma``.

        Without one at this level it is the latest one, or None. It is saved with the model. All
        estimates are discarded when the weights of network, base or normalization have changed.
        """
        return self._known_log_z.latest(self.noise.sigma)

    @partition.setter
    def partition(self, estimate: LogPartition | None) -> None:
        self._known_log_z.discard(conditional=False)
        if estimate is not None:
            self._known_log_z.add(None, estimate)

    @property
    def partitions(self) -> LogPartitions | None:
        """The same for a conditional density: the estimates at all conditions, or None."""
        at_sigma = self._known_log_z.by_condition(self.noise.sigma)
        return at_sigma or self._known_log_z.by_condition()

    @partitions.setter
    def partitions(self, estimates: LogPartitions | None) -> None:
        self._known_log_z.discard(conditional=True)
        if estimates is not None:
            for condition, found in zip(estimates.conditions, estimates.estimates, strict=True):
                self._known_log_z.add(condition, found)

    @property
    def normalized(self) -> bool:
        """Whether ``log_density`` at its default sigma has a trusted log Z to subtract.

        For a conditional density: at each condition that ``log_partition`` was asked for.
        """
        if not self.condition_dim:
            return self._trusted_log_z(self.noise.sigma)[0] is not None
        known = self._known_log_z.by_condition(self.noise.sigma)
        return known is not None and known.trusted

    def _all_weights(self) -> list[keras.Variable]:
        """The variables that s depends on."""
        parts = (self.network, self.base, self.normalization)
        return [variable for part in parts if part is not None for variable in part.weights]

    def before_weights_change(self) -> None:
        self._known_log_z.adopt_weights()
        self._uncap()

    def _trusted_log_z(self, sigma: float, conditions: Any = None) -> tuple[Any, str]:
        """A trusted log Z, or None if there is none, and where it was looked for, in words.

        Without conditions it is a number, otherwise a tensor of one number a row.
        """
        place = f"sigma = {sigma:g}"
        if conditions is None:
            estimate = self._known_log_z.at(sigma)
            return (estimate.value if estimate and estimate.trusted else None), place
        known = self._known_log_z.by_condition(sigma)
        if known is None:
            return None, f"{place} and any condition"
        log_z = in_chunks(lambda c: known.values(c, sigma), [conditions])
        if tf.executing_eagerly():  # in a graph the rows without a log Z stay NaN
            unknown = np.flatnonzero(np.isnan(log_z))
            if len(unknown):
                return None, f"{place} and condition {np.asarray(conditions)[unknown[0]].tolist()}"
        return log_z, place

    @property
    def evaluator(self) -> Evaluator:
        """s(x, sigma) of rows as ``inside`` makes them, traced once for all estimates of log Z."""
        self._follow_parts()
        return self._evaluator

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self.at, self.data_shape, by_row=True)

    @property
    def proposal(self) -> Base | None:
        """The base, for log Z by importance sampling from it: in 4 to 100 columns, else None."""
        self._follow_parts()
        return self._proposal

    @cached_property
    def _proposal(self) -> Base | None:
        if self.base is None or not is_for(math.prod(self.data_shape)):
            return None
        return Base(self.base, Evaluator(self.base, self.data_shape))

    def log_partition(
        self,
        data: Any,
        method: str | None = None,
        *,
        conditions: Any = None,
        sample_weight: Any = None,
        sigma: float | None = None,
        samples: int | None = None,
        moves: int = 5,
        seed: int = 0,
        precision: float | None = None,
        verbose: int = 0,
    ) -> LogPartition | LogPartitions:
        """Estimate log Z, keep it and so normalise ``log_density``.

        Estimates at other noise levels and conditions are kept, too, until the weights change.

        In a conditional density each condition has its own log Z. This method finds them one by
        one for the distinct rows of ``conditions``, such as labels, each from the data of that
        condition. Continuous conditions hardly ever repeat: ``given`` returns a density at one of
        them, which can be normalised.

        Args:
            data: array of shape (rows, *data_shape), preferably not the training data.
            method: "ladder" (needs ``LogUniform`` noise), "importance" or "annealed"; see
                ``tfdde.partition``. By default "ladder" with ``LogUniform`` noise, or in 4 to 100
                columns importance sampling from ``base`` where it is near enough; otherwise
                "importance".
            conditions: of the rows, for a conditional density: array of shape
                (rows, condition_dim), or (1, condition_dim) for all rows alike; at most 100
                distinct ones, with at least 100 rows of each.
            sample_weight: of the rows, shape (rows,), as for ``fit``; rows of weight 0 are left
                out.
            sigma: noise level, by default the noise's own ``sigma``.
            samples: at each level; by default 10,000 for the ladder, 50,000 for importance
                sampling, 5,000 in each direction for annealing. With ``precision`` at most so
                many, by default 50,000.
            moves: Hamiltonian moves at each level of "ladder" and "annealed".
            seed: of the samples.
            precision: half-width in nats of the 95 % interval; the ladder (or sampling from the
                base) then takes as many samples as that needs (``tfdde.partition.to_precision``),
                at least 500 at each level.
            verbose: 0 is silent; 1 says what the ladder and its check cost and shows a progress
                bar, 2 shows a line instead of the bar. The other methods are silent.

        Returns:
            The estimate with its error, or those of all conditions. A ``UserWarning`` is issued
            if one of them is not trusted, or not as precise as asked.

        Raises:
            ValueError: wrong data, an unknown method, noise that does not suit the method, too
                many conditions, too few rows of one, or a ``precision`` for another method than
                the ladder.
        """
        rows = check_rows(data, "data", self.data_shape, dtype=self.row_dtype)
        rows = check_pixels(rows, "data")
        self.check_resolution(rows, "data")
        self._level(sigma)
        c = check_conditions(conditions, self.condition_dim, len(rows), single=True)
        weights = check_weights(sample_weight, len(rows))
        if c is not None:
            c = np.broadcast_to(c, (len(rows), self.condition_dim))
        if weights is not None:
            some = weights > 0
            rows, weights = rows[some], weights[some].astype(np.float64)
            c = None if c is None else c[some]
        rows = self.inside(tf.constant(rows)).numpy()
        self.cap_if_many_entries(rows, seed)
        settings = self.noise, method, sigma, samples, moves, seed
        self._warn_of_low_noise(rows)
        result: LogPartition | LogPartitions
        if c is None:
            how = weights, precision, verbose, self.proposal
            result = estimate(self.evaluator, rows, *settings, *how)
            result = doubted(result, self.caps, rows[0].size)
            self._known_log_z.add(None, result)
        else:
            result = estimate_by_condition(self.at, rows, c, *settings, weights, precision, verbose)
            estimates = tuple(doubted(z, self.caps, rows[0].size) for z in result.estimates)
            result = LogPartitions(result.conditions, estimates)
            for condition, found in zip(result.conditions, estimates, strict=True):
                self._known_log_z.add(condition, found)
        if not result.trusted:
            advice = "train with tfdde.LogUniform noise and use the ladder"
            if isinstance(self.noise, LogUniform):
                advice = "train longer, or give the network more units"
            warnings.warn(
                f"This estimate can't be trusted, so `log_density` stays unnormalised: {result}. "
                f'Try method="annealed", or {advice}.',
                UserWarning,
                stacklevel=2,
            )
        return result

    def take_log_z(self, other: NormalizedDensity, condition: Any) -> None:
        """Keep what is known of another density's log Z at one condition, at all levels."""
        for known in other._known_log_z.of_condition(condition):
            self._known_log_z.add(None, known)

    # Saving and loading.

    def get_config(self) -> dict[str, Any]:
        known = {"caps": self.caps, "log_z": self._known_log_z.get_config()}
        return super().get_config() | known

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config = dict(config)
        log_z = config.pop("log_z", None) or of_earlier_versions(config)
        caps = config.pop("caps", None)
        density = super().from_config(config, custom_objects)
        density.caps = caps and tuple(caps)
        density._known_log_z.restore(log_z)
        return density
