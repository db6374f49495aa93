"""Training on several hosts, the workers of a cluster that TF_CONFIG describes.

Each host runs the same command with its own ``TF_CONFIG``, for example::

    {"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

JOBS = ("chief", "worker")
# Errors that TensorFlow raises on the other workers when one is lost.
LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)


@dataclass(frozen=True)
class Cluster:
    """The number of workers that train together, and the place of this process among them.

    Attributes:
        workers: number of workers.
        rank: of this process; 0 is the chief, which writes the run folder.
    """

    workers: int = 1
    rank: int = 0


def this_cluster() -> Cluster:
    """Return the cluster that ``TF_CONFIG`` describes; without it, one of this process alone.

    Raises:
        ValueError: ``TF_CONFIG`` is not the JSON of a cluster, or has jobs that do not train.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return Cluster()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    try:
        if not text.startswith("{"):
            raise TypeError("it holds no object")
        addresses = resolver.cluster_spec().as_dict()
        kind, index = resolver.task_type, resolver.task_id
        if addresses and (kind is None or index is None):
            raise KeyError("task")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            'TF_CONFIG must be JSON like {"cluster": {"worker": ["host:port", ...]}, "task": '
            f'{{"type": "worker", "index": 0}}}}, got {text!r} ({type(error).__name__}: {error}).'
        ) from None
    if not addresses:
        return Cluster()
    if set(addresses) - set(JOBS) or len(addresses.get("chief", [])) > 1:
        counts = {job: len(hosts) for job, hosts in addresses.items()}
        raise ValueError(f"TF_CONFIG must have at most one chief, and workers, got {counts}.")
    if not 0 <= index < len(addresses.get(kind, [])):
        raise ValueError(f"TF_CONFIG's task is {kind} {index}, which its cluster does not have.")
    first = len(addresses.get("chief", [])) if kind == "worker" else 0
    return Cluster(sum(map(len, addresses.values())), first + index)


def strategy() -> tf.distribute.Strategy:
    """Wait until all workers of the cluster have started; return the strategy they share."""
    shared = tf.distribute.MultiWorkerMirroredStrategy()
    if threading.current_thread() is threading.main_thread():
        # TensorFlow handles SIGTERM from here on: it tells the other workers and goes on. Put the
        # handler of Python back in its place.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return shared


def anywhere(shared: tf.distribute.Strategy) -> Callable[[bool], bool]:
    """Return a function that tells whether the flag of any worker is set.

    Each worker calls it with its own flag, all of them at the same time.
    """
    if not isinstance(shared, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda flag: flag

    @tf.function
    def total(flag: tf.Tensor) -> tf.Tensor:
        return shared.reduce("SUM", shared.run(tf.identity, args=(flag,)), axis=None)

    return lambda flag: bool(total(tf.constant(float(flag))) > 0)


class RunError(ValueError):
    """The run folder or the data do not fit the request; the message says why."""


def strategy_for(devices: Sequence[str] | None) -> tf.distribute.Strategy:
    """Return the strategy for training on devices such as ["GPU:0", "GPU:1"].

    Args:
        devices: names of devices; None: all GPUs, and if ``TF_CONFIG`` names several workers, all
            GPUs of all of them.  Several CPU devices share the one processor, to try a program
            without GPUs.

    Raises:
        RunError: ``TF_CONFIG`` is wrong, or names several workers while ``devices`` are given.
    """
    try:
        workers = this_cluster().workers
    except ValueError as error:
        raise RunError(str(error)) from None
    if workers > 1:
        if devices:
            raise RunError(
                f"--devices must be left out when TF_CONFIG has several workers, got {devices}: "
                "CUDA_VISIBLE_DEVICES chooses the GPUs of each."
            )
        return strategy()
    if devices and (count := sum("CPU" in name.upper() for name in devices)) > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    if devices or len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.get_strategy()
