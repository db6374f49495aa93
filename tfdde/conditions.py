"""Conditions: log Z of each, and networks whose condition is fixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.checks import check_rows
from tfdde.estimate import LogPartition

MOST_CONDITIONS = 100  # that log Z is looked for at once
LEAST_ROWS = 100  # of data at a condition, for its log Z


@keras.saving.register_keras_serializable(package="tfdde")
class FixedCondition(keras.layers.Layer):
    """The same condition for every row of its input: (batch, ...) -> (batch, k).

    Args:
        condition: k numbers.
    """

    def __init__(self, condition: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.condition = tuple(float(v) for v in condition)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return repeated(self.condition, x)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape[0], len(self.condition)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "condition": self.condition}


def repeated(condition: Any, x: tf.Tensor) -> tf.Tensor:
    """One condition of k entries for each row of ``x``: float32 (rows, k)."""
    row = tf.constant(condition, tf.float32)
    return tf.broadcast_to(row, tf.stack([tf.shape(x)[0], row.shape[0]]))


def fix(network: keras.Model, condition: Any, width: int) -> keras.Model:
    """A copy of ``network`` with its condition fixed: of the other inputs alone.

    Args:
        network: Functional model whose last input is the condition.
        condition: float vector (width,).
        width: entries of the condition.

    Raises:
        ValueError: a wrong shape, NaN or infinity.
    """
    if not width:
        raise ValueError("There is no `condition` to fix: the network has no input `condition`.")
    if np.shape(condition) != (width,):
        raise ValueError(
            f"`condition` must be one condition, shape ({width},), got {np.shape(condition)}."
        )
    inputs = [keras.Input(i.shape[1:], name=i.name) for i in network.inputs[:-1]]
    layer = FixedCondition(check_rows(condition, "condition", ()), name="condition")
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    s = copy([*inputs, layer(inputs[0])])
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], s)


@keras.saving.register_keras_serializable(package="tfdde")
@dataclasses.dataclass(frozen=True)
class LogPartitions:
    """Estimates of log Z of a conditional density, at some conditions, in nats.

    Attributes:
        conditions: each a tuple of k numbers that float32 holds exactly.
        estimates: the ``LogPartition`` of each.
    """

    conditions: tuple[tuple[float, ...], ...]
    estimates: tuple[LogPartition, ...]

    @property
    def trusted(self) -> bool:
        """Whether each of them is trusted."""
        return all(each.trusted for each in self.estimates)

    def of(self, condition: Any) -> LogPartition | None:
        """The estimate at this very condition, or None."""
        key = tuple(np.asarray(condition, np.float32).tolist())
        return dict(zip(self.conditions, self.estimates, strict=True)).get(key)

    def values(self, conditions: tf.Tensor, sigma: float) -> tf.Tensor:
        """log Z of each row's condition at ``sigma``, NaN where there is no trusted one.

        Args:
            conditions: float32 (rows, k).
            sigma: noise level.

        Returns:
            float32 (rows,).
        """
        known = [
            (condition, each.value)
            for condition, each in zip(self.conditions, self.estimates, strict=True)
            if each.trusted and each.sigma == sigma
        ]
        result = tf.fill((tf.shape(conditions)[0],), np.float32(np.nan))
        for condition, value in known:
            here = tf.reduce_all(tf.equal(conditions, tf.constant([condition], tf.float32)), axis=1)
            result = tf.where(here, np.float32(value), result)
        return result

    def __str__(self) -> str:
        pairs = zip(self.conditions, self.estimates, strict=True)
        return "\n".join(f"{list(condition)}: {each}" for condition, each in pairs)

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LogPartitions:
        return cls(
            tuple(tuple(condition) for condition in config["conditions"]),
            tuple(LogPartition(**each) for each in config["estimates"]),
        )


def rows_by_condition(
    rows: np.ndarray, conditions: np.ndarray
) -> Iterator[tuple[tuple[float, ...], np.ndarray]]:
    """Each distinct condition with its rows.

    Raises:
        ValueError: more conditions, or fewer rows of one, than log Z can be found for.
    """
    distinct, place, counts = np.unique(conditions, axis=0, return_inverse=True, return_counts=True)
    advice = (
        "dde.given(condition) is a density of its own, whose `log_partition` takes rows at or "
        "near the condition."
    )
    if len(distinct) > MOST_CONDITIONS:
        raise ValueError(
            f"`conditions` must have at most {MOST_CONDITIONS} distinct rows, each with a log Z "
            f"of its own, got {len(distinct)}; {advice}"
        )
    if counts.min() < LEAST_ROWS:
        raise ValueError(
            f"`data` must have at least {LEAST_ROWS} rows of each condition, got {counts.min()} "
            f"of {distinct[counts.argmin()].tolist()}; {advice}"
        )
    place = place.ravel()
    return ((tuple(c.tolist()), rows[place == i]) for i, c in enumerate(distinct))
