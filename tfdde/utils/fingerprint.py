"""A hash of a model's weights, to notice that they have changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

EAGER = 10  # calls for the same variables before it pays to trace a function


class Fingerprint:
    """64-bit FarmHash of the values of variables, which TensorFlow soon computes in one call.

    >>> variable, fingerprint = keras.Variable([1.0, 2.0]), tfdde.utils.fingerprint.Fingerprint()
    >>> before = fingerprint([variable])
    >>> _ = variable.assign([1.0, 2.0000002])
    >>> before == fingerprint([variable])
    False
    >>> _ = variable.assign([1.0, 2.0])
    >>> before == fingerprint([variable])
    True
    """

    def __init__(self) -> None:
        self._variables: list[keras.Variable] = []
        self._compiled: Callable[[], tf.Tensor] | None = None
        self._calls = 0

    def __call__(self, variables: Sequence[keras.Variable]) -> str:
        """The hash as a hexadecimal string; inside a ``tf.function`` that of the trace's time."""
        if list(map(id, variables)) != list(map(id, self._variables)):
            self._variables, self._calls, self._compiled = list(variables), 0, None
        with tf.init_scope():
            self._calls += 1
            if self._calls > EAGER and self._compiled is None:
                function = tf.function(self._hashes, autograph=False)
                self._compiled = function.get_concrete_function()
            hashes = self._compiled or self._hashes
            return hashes().numpy().tobytes().hex()

    def _hashes(self) -> tf.Tensor:
        return _farmhash(tf.stack([_farmhash(v.value) for v in self._variables]))


def _farmhash(values: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.Fingerprint(data=tf.reshape(values, (1, -1)), method="farmhash64")
