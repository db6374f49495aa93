"""Plugin of pytest with which coverage sees what TensorFlow traces.

    PYTHONPATH=benchmarks pytest -p plain_graphs --cov

AutoGraph runs a translation of each function, in a file of its own. Here it leaves functions alone
but the two that loop over tensors, whose lines then still count as not run.
"""

import functools

import tensorflow as tf
from tensorflow.python.autograph.core import config
from tensorflow.python.autograph.core.config_lib import Convert, DoNotConvert

LOOPS = {"tfdde.models.trainer": "on_iterator", "tfdde.partition.hmc": "_moves"}
config.CONVERSION_RULES = (*map(Convert, LOOPS), DoNotConvert("tfdde"), *config.CONVERSION_RULES)
original = tf.function


def function(func=None, **kwargs):
    if func is None:
        return functools.partial(function, **kwargs)
    module = getattr(func, "__module__", "")
    if module.startswith("tfdde") and func.__name__ != LOOPS.get(module):
        kwargs.setdefault("autograph", False)
    return original(func, **kwargs)


tf.function = function
