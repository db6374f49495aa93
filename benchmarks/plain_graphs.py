"""Plugin of pytest that lets coverage see the functions that TensorFlow traces.

    PYTHONPATH=benchmarks pytest -p plain_graphs --cov

AutoGraph translates each traced function into another file and runs that. With this plugin it
translates only the two functions that loop over tensors; their lines still count as not run.
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
