"""What a finished density tells: log-density and score, normalised by a log Z of known error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde import partition
from tfdde.checks import check_conditions, check_pixels, check_rows
from tfdde.conditions import LogPartitions, repeated, rows_by_condition
from tfdde.estimate import CHUNK, Evaluator, LogPartition
from tfdde.losses import score_of
from tfdde.noise import LogUniform, Noise, check_level
from tfdde.training import to_conditions, to_rows


class UnnormalizedWarning(UserWarning):
    """A log-density was returned that is known up to a constant only."""


def in_chunks(function: Callable[..., tf.Tensor], columns: list[Any]) -> tf.Tensor:
    """``function`` of ``columns``: arrays a few thousand rows at a time, tensors in one."""
    if any(tf.is_tensor(column) for column in columns):
        return function(*(tf.convert_to_tensor(column) for column in columns))
    starts = range(0, max(len(columns[0]), 1), CHUNK)
    chunks = [function(*(tf.constant(c[i : i + CHUNK]) for c in columns)) for i in starts]
    return chunks[0] if len(chunks) == 1 else tf.concat(chunks, axis=0)


class Readout:
    """Reading of a density s(x, sigma), or s(x, sigma, condition), that is known up to log Z.

    ``DDE`` gives the density itself, ``at``, in the units of ``normalization``, if there is one.
    """

    data_shape: tuple[int, ...]
    condition_dim: int
    noise: Noise
    partition: LogPartition | None
    partitions: LogPartitions | None
    normalization: keras.layers.Normalization | None
    at: Callable[..., tf.Tensor]

    def inside(self, x: tf.Tensor) -> tf.Tensor:
        """Rows as the density sees them: standardised, if there is a ``normalization``."""
        return x if self.normalization is None else self.normalization(x)

    def _log_scale(self) -> tf.Tensor:
        """Log of the Jacobian determinant of ``inside``: a scalar."""
        if self.normalization is None:
            return tf.constant(0.0)
        variance = tf.convert_to_tensor(self.normalization.variance)
        each = tf.broadcast_to(variance, (1, *self.data_shape))
        return -tf.reduce_sum(tf.math.log(tf.maximum(tf.sqrt(each), keras.config.epsilon())))

    def _outside(self, x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        s = self.at(self.inside(x), sigma, *condition)
        if self.normalization is None:
            return s
        # Of shape (batch, 1), since TFLite lacks the gradient of "+" with a dynamic batch.
        scale = tf.reshape(self._log_scale(), (1,))
        return tf.squeeze(tf.nn.bias_add(tf.reshape(s, (-1, 1)), scale), axis=-1)

    @cached_property
    def evaluator(self) -> Evaluator:
        """s(x, sigma) of rows as ``inside`` makes them, traced once for all estimates of log Z."""
        return Evaluator(self.at, self.data_shape)

    def log_partition(
        self,
        data: Any,
        method: str | None = None,
        *,
        conditions: Any = None,
        sigma: float | None = None,
        samples: int | None = None,
        moves: int = 5,
        seed: int = 0,
    ) -> LogPartition | LogPartitions:
        """Estimate log Z, store it in ``partition`` and so normalise ``log_density``.

        A conditional density has another log Z at each condition: here they are found one by
        one for the distinct rows of ``conditions``, say for labels, each from the data of that
        condition, and stored in ``partitions``.  Continuous conditions hardly ever come twice;
        ``given`` normalises at one of them.

        Args:
            data: array of shape (rows, *data_shape), better not the training data.
            method: "ladder" (needs ``LogUniform`` noise, and is then the default), "importance"
                (the default otherwise) or "annealed"; see ``tfdde.partition``.
            conditions: of the rows, for a conditional density: array of shape
                (rows, condition_dim), or (1, condition_dim) for all rows alike; at most 100
                distinct ones, with 100 rows or more of each.
            sigma: noise level, by default the one that the density is read at.
            samples: at each level; by default 10,000 for the ladder, 50,000 for importance
                sampling, 5,000 each way for annealing.
            moves: Hamiltonian moves at each level of "ladder" and "annealed".
            seed: of the samples.

        Returns:
            The estimate with its error, or those of all conditions.  A ``UserWarning`` says so
            if one can't be trusted.

        Raises:
            ValueError: wrong data or unknown method, the noise does not suit the method, or too
                many conditions or too few rows of one.
        """
        rows = check_pixels(check_rows(data, "data", self.data_shape), "data")
        c = check_conditions(conditions, self.condition_dim, len(rows), single=True)
        rows = self.inside(tf.constant(rows)).numpy()
        settings = self.noise, method, sigma, samples, moves, seed
        found: LogPartition | LogPartitions
        if c is None:
            found = self.partition = partition.estimate(self.evaluator, rows, *settings)
        else:
            estimates = {}
            c = np.broadcast_to(c, (len(rows), self.condition_dim))
            for condition, those in rows_by_condition(rows, c):

                def at(x: tf.Tensor, sigma: tf.Tensor, condition: Any = condition) -> tf.Tensor:
                    return self.at(x, sigma, repeated(condition, x))

                estimates[condition] = partition.estimate(at, those, *settings)
            found = LogPartitions(tuple(estimates), tuple(estimates.values()))
            self.partitions = found
        if not found.trusted:
            advice = "train with tfdde.LogUniform noise and use the ladder"
            if isinstance(self.noise, LogUniform):
                advice = "train longer, or give the network more units"
            warnings.warn(
                f"This estimate can't be trusted, so `log_density` stays unnormalised: {found}. "
                f'Try method="annealed", or {advice}.',
                UserWarning,
                stacklevel=2,
            )
        return found

    @property
    def normalized(self) -> bool:
        """Whether ``log_density`` at its default sigma has a trusted log Z to subtract.

        Of a conditional density: at each condition that ``log_partition`` was asked for.
        """
        if not self.condition_dim:
            return self._normalizer(self.noise.sigma)[0] is not None
        found = self.partitions
        if found is None or not found.trusted:
            return False
        return {each.sigma for each in found.estimates} == {self.noise.sigma}

    def _normalizer(self, sigma: float, conditions: Any = None) -> tuple[Any, str]:
        """A trusted log Z, or None, and what for: a number, or one for each row of conditions."""
        where = f"sigma = {sigma:g}"
        if conditions is None:
            found = self.partition
            return found.value if found and found.trusted and found.sigma == sigma else None, where
        known = self.partitions
        if known is None:
            return None, f"{where} and any condition"
        log_z = in_chunks(lambda c: known.values(c, sigma), [conditions])
        if tf.executing_eagerly():  # otherwise rows without a log Z become NaN
            unknown = np.flatnonzero(np.isnan(log_z))
            if len(unknown):
                return None, f"{where} and condition {np.asarray(conditions)[unknown[0]].tolist()}"
        return log_z, where

    def log_density(
        self,
        x: Any,
        sigma: float | None = None,
        *,
        conditions: Any = None,
        normalized: bool | None = None,
    ) -> tf.Tensor:
        """log(p * N(0, sigma**2 I))(x), with a ``normalization`` in the data's own units.

        Until ``log_partition`` has found a trusted log Z for this sigma it is unnormalised, up
        to one unknown constant of this model: differences between points mean something, a
        single value or another model's does not.  Given conditions, it is log p(x | condition),
        and the unknown constant is another one at each condition: then only differences between
        points at the same condition mean something.

        Args:
            x: array, evaluated some thousand rows at a time, or tensor; (rows, *data_shape).
            sigma: noise level; by default, and without ``LogUniform`` noise always, the one
                that the density is read at.
            conditions: of a conditional density, shape (rows, condition_dim), or
                (1, condition_dim) for all rows alike.
            normalized: True: refuse without a trusted log Z, which conditions must have all.
                False: s itself.  By default normalised if that is possible, otherwise s with an
                ``UnnormalizedWarning``.

        Returns:
            float32 tensor, shape (rows,), in nats.  In a ``tf.function``, where conditions
            can't be looked up beforehand, it is NaN at those without a trusted log Z.

        Raises:
            ValueError: wrong rank or width, NaN or infinity, unscaled pixels, a sigma that was
                not trained, or no trusted log Z where one was asked for; conditions for a
                density that takes none, or none for one that does.
        """
        columns, level = self._columns(x, conditions), check_level(self.noise, sigma)
        log_z, where = None, ""
        if normalized is not False:
            log_z, where = self._normalizer(level, *columns[1:])
        if log_z is None and normalized is not False:
            arguments = "data, conditions=conditions" if self.condition_dim else "data"
            message = (
                f"This log-density is unnormalised: no trusted log Z at {where}. Call "
                f"`log_partition({arguments})` first, or ask for s itself by `normalized=False`."
            )
            if normalized:
                raise ValueError(message)
            warnings.warn(message, UnnormalizedWarning, stacklevel=2)
        sigma_ = tf.constant(level, tf.float32)
        s = in_chunks(lambda x, *c: self._log_density(x, sigma_, *c), columns)
        return s if log_z is None else s - tf.cast(log_z, tf.float32)

    def score(self, x: Any, sigma: float | None = None, *, conditions: Any = None) -> tf.Tensor:
        """Gradient of the log-density at each row, in nats per unit of x.

        Args and errors as for ``log_density``.

        Returns:
            float32 tensor, shape of ``x``.
        """
        level = tf.constant(check_level(self.noise, sigma), tf.float32)
        columns = self._columns(x, conditions)
        return in_chunks(lambda x, *c: self._score(x, level, *c), columns)

    def anomaly_score(self, x: Any, *, conditions: Any = None) -> tf.Tensor:
        """-log-density, the higher the stranger; up to a constant if there is no trusted log Z.

        Of a conditional density that constant would be another one at each condition, so there
        it must have a trusted log Z at each.

        Args and errors as for ``log_density``.

        Returns:
            float32 tensor, shape (rows,), in nats.
        """
        known = True if self.condition_dim else self.normalized
        return -self.log_density(x, conditions=conditions, normalized=known)

    def anomaly_threshold(
        self, x: Any, contamination: float = 0.1, *, conditions: Any = None
    ) -> float:
        """The anomaly score that a share ``contamination`` of the rows ``x`` exceeds.

        Args:
            x: array of normal and abnormal rows as they come, shape (rows, *data_shape).
            contamination: share of abnormal rows, in (0, 0.5], as in scikit-learn.
            conditions: as for ``log_density``.

        Raises:
            ValueError: as ``log_density``, or a share outside (0, 0.5].
        """
        if not 0 < contamination <= 0.5:
            raise ValueError(f"`contamination` must be in (0, 0.5], got {contamination!r}.")
        scores = self.anomaly_score(x, conditions=conditions).numpy()
        return float(np.quantile(scores, 1.0 - contamination))

    def _columns(self, x: Any, conditions: Any) -> list[Any]:
        """The rows and, if there are any, their conditions: arrays, or tensors as they came."""
        rows = to_rows(x, "x", self.data_shape)
        if not tf.is_tensor(x):
            check_pixels(rows, "x", margin=10 * self.noise.sigma)
        return [rows, *to_conditions(conditions, self.condition_dim, rows)]

    @tf.function(reduce_retracing=True)
    def _log_density(self, x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        return self._outside(x, sigma, *condition)

    @tf.function(reduce_retracing=True)
    def _score(self, x: tf.Tensor, sigma: tf.Tensor, *condition: tf.Tensor) -> tf.Tensor:
        return score_of(lambda y: self._outside(y, sigma, *condition), x)
