"""The hash of weights is one and the same, computed eagerly or compiled."""

import keras
import numpy as np
import tensorflow as tf

from tfdde.utils.fingerprint import EAGER, Fingerprint


def test_first_eagerly_and_then_compiled():
    variables = [keras.Variable(np.arange(6.0).reshape(2, 3)), keras.Variable(1.0)]
    fingerprint = Fingerprint()
    first = fingerprint(variables)
    for calls in range(2, EAGER + 3):
        variables[1].assign(float(calls))
        changed = fingerprint(variables)
        assert changed != first
        assert changed == Fingerprint()(variables)  # of a first call, which is eager
        variables[1].assign(1.0)
        assert Fingerprint()(variables) == first
    assert fingerprint(variables) == first
    assert tf.function(lambda: tf.constant(fingerprint(variables)))().numpy().decode() == first
    assert fingerprint(variables[:1]) == Fingerprint()(variables[:1]) != first  # others
