"""Training on several hosts: TensorFlow's TF_CONFIG, and what its workers must agree on.

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
# What TensorFlow raises on the other workers when one is lost.
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
    """The workers of a training, and which of them this process is.

    Attributes:
        workers: how many there are.
        rank: of this one; 0 is the chief, which writes the run folder.
    """

    workers: int = 1
    rank: int = 0


def this_cluster() -> Cluster:
    """The cluster that ``TF_CONFIG`` describes; without it, a cluster of this process alone.

    Raises:
        ValueError: ``TF_CONFIG`` is no JSON of such a cluster, or has jobs that do not train.
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
    """Wait for all workers of the cluster, and return the strategy that they share."""
    shared = tf.distribute.MultiWorkerMirroredStrategy()
    if threading.current_thread() is threading.main_thread():
        # TensorFlow has taken SIGTERM, to tell the others of it and to go on; take it back.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return shared


def anywhere(shared: tf.distribute.Strategy) -> Callable[[bool], bool]:
    """A function of a worker's flag: whether any worker's is set.  All must call it together."""
    if not isinstance(shared, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda flag: flag

    @tf.function
    def total(flag: tf.Tensor) -> tf.Tensor:
        return shared.reduce("SUM", shared.run(tf.identity, args=(flag,)), axis=None)

    return lambda flag: bool(total(tf.constant(float(flag))) > 0)


class RunError(ValueError):
    """The run folder, or the data, do not fit what was asked for; the message says why."""


def strategy_for(devices: Sequence[str] | None) -> tf.distribute.Strategy:
    """Strategy for devices such as ["GPU:0", "GPU:1"]; by default all GPUs.

    Several CPU devices share the one processor: a trial without GPUs.  If ``TF_CONFIG`` names
    several workers, all GPUs of all of them.

    Raises:
        RunError: ``TF_CONFIG`` is wrong, or there are ``devices`` beside it.
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
