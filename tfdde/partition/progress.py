"""What an estimate of log Z costs, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import keras

from tfdde.partition.hmc import LEAPFROGS

_Step = TypeVar("_Step")


def cost(levels: int, samples: int, moves: int) -> str:
    """What samples at noise levels cost, in words.

    >>> tfdde.partition.progress.cost(15, 1_000, moves=5)
    '15 noise levels, 1,000 samples at each, 315,000 evaluations of s and its gradient'
    """
    evaluations = levels * samples * (1 + LEAPFROGS * moves)
    work = f"{evaluations:,} evaluations of s and its gradient"
    return f"{levels} noise levels, {samples:,} samples at each, {work}"


def followed(
    steps: Iterable[_Step], count: int, announcement: str, verbose: int
) -> Iterator[_Step]:
    """Yield steps; tell what they cost once the second has shown how long they take.

    The first may take longer, because TensorFlow traces what it computes.

    >>> steps = tfdde.partition.progress.followed("abc", 3, "3 letters", verbose=2)
    >>> list(steps)
    log Z: 3 letters, about 0 s
    3/3 - 0s - ...
    ['a', 'b', 'c']

    Args:
        steps: of which each takes about as long.
        count: of them.
        announcement: what they cost, in words.
        verbose: 0 for nothing, otherwise as of ``keras.utils.Progbar``.
    """
    if not verbose:
        yield from steps
        return
    start = before = time.perf_counter()
    bar = None
    for k, step in enumerate(steps, 1):
        yield step
        now = time.perf_counter()
        if bar is None and k == min(2, count):
            seconds = now - start + (now - before) * (count - k)
            print(f"log Z: {announcement}, about {seconds:.0f} s", flush=True)
            bar = keras.utils.Progbar(count, verbose=verbose, unit_name="level")
        if bar is not None:
            bar.update(k)
        before = now
