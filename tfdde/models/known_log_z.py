"""The estimates of log Z that a density keeps, each valid for the weights it was found with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfdde.partition.result import LogPartition, LogPartitions

Condition = tuple[float, ...] | None


class KnownLogZ:
    """Estimates of log Z by condition and noise level, valid for the weights of one fingerprint.

    Whenever an estimate is read, the fingerprint of the present weights is compared. So whatever
    has changed the weights, no estimate of other weights is returned.

    Args:
        fingerprint: returns a hash of all numbers that log Z depends on.
    """

    def __init__(self, fingerprint: Callable[[], str]):
        self._fingerprint = fingerprint
        self._weights: str | None = None
        self._estimates: dict[tuple[Condition, float], LogPartition] = {}

    def adopt_weights(self) -> None:
        """Let estimates without a fingerprint belong to the present weights.

        They are from a file of an earlier version. It is called before its weights may change.
        """
        if self._estimates and self._weights is None:
            self._weights = self._fingerprint()

    def _valid(self) -> dict[tuple[Condition, float], LogPartition]:
        self.adopt_weights()
        current = self._estimates and self._weights == self._fingerprint()
        return self._estimates if current else {}

    def add(self, condition: Condition, estimate: LogPartition) -> None:
        """Keep an estimate, besides those of other conditions and noise levels."""
        self._estimates = self._valid() | {(condition, estimate.sigma): estimate}
        self._weights = self._fingerprint()

    def forget(self) -> None:
        """Discard all estimates."""
        self._estimates = {}

    def discard(self, conditional: bool) -> None:
        """Discard the estimates with a condition, or those without one."""
        kept = {key: z for key, z in self._valid().items() if (key[0] is not None) != conditional}
        self._estimates = kept

    def at(self, sigma: float) -> LogPartition | None:
        """The estimate without a condition at this noise level, or None."""
        return self._valid().get((None, sigma))

    def latest(self, sigma: float) -> LogPartition | None:
        """The estimate without a condition at ``sigma``, otherwise the latest of all levels."""
        levels = {level: z for (condition, level), z in self._valid().items() if condition is None}
        return levels.get(sigma, list(levels.values())[-1]) if levels else None

    def by_condition(self, sigma: float | None = None) -> LogPartitions | None:
        """The estimates of all conditions at one noise level, by default the latest, or None."""
        conditional = [(c, level, z) for (c, level), z in self._valid().items() if c is not None]
        if not conditional:
            return None
        sigma = conditional[-1][1] if sigma is None else sigma
        found = {c: z for c, level, z in conditional if level == sigma}
        return LogPartitions(tuple(found), tuple(found.values())) if found else None

    def of_condition(self, condition: Any) -> list[LogPartition]:
        """The estimates of one condition at all noise levels."""
        key = tuple(np.asarray(condition, np.float32).tolist())
        return [estimate for (c, _), estimate in self._valid().items() if c == key]

    def get_config(self) -> dict[str, Any]:
        """The estimates and the fingerprint of their weights, for a ``.keras`` file."""
        estimates = [
            [condition and list(condition), keras.saving.serialize_keras_object(estimate)]
            for (condition, _), estimate in self._valid().items()
        ]
        return {"weights": self._weights if estimates else None, "estimates": estimates}

    def restore(self, config: dict[str, Any]) -> None:
        """Take what ``get_config`` returned; the weights that it belongs to are loaded later."""
        self._weights, self._estimates = config["weights"], {}
        for condition, serialized in config["estimates"]:
            estimate = keras.saving.deserialize_keras_object(serialized)
            self._estimates[condition and tuple(condition), estimate.sigma] = estimate


def of_earlier_versions(config: dict[str, Any]) -> dict[str, Any]:
    """What ``KnownLogZ.restore`` takes, from the config of a file that has no fingerprint."""
    partition, partitions = (config.pop(name, None) for name in ("partition", "partitions"))
    estimates = [[None, partition]] if partition else []
    if partitions:
        found = keras.saving.deserialize_keras_object(partitions)
        serialized = map(keras.saving.serialize_keras_object, found.estimates)
        estimates += [list(pair) for pair in zip(found.conditions, serialized, strict=True)]
    return {"weights": None, "estimates": estimates}
