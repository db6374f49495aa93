"""What the command lines of the scripts share."""

from __future__ import annotations

import argparse
import signal
import sys
import zlib
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from tfdde.models.trainer import DivergedError
from tfdde.runs import cluster
from tfdde.runs.cluster import RunError
from tfdde.runs.interrupts import Signals
from tfdde.utils.checks import check_integer, check_positive

# Exit codes: of a program that SIGINT ended, of one that SIGTERM did, and of a worker that lost
# another.
INTERRUPTED, TERMINATED, LOST = 130, 143, 3


def command(script: Callable[..., bool]) -> Callable[..., int]:
    """Make a ``main`` of a script: what a user can cause ends in one sentence and an exit code.

    SIGTERM does as Ctrl-C does, outside of the training too.

    Args:
        script: function that returns False if Ctrl-C or SIGTERM ended the training.

    Returns:
        A function of the same arguments that returns 0, 1 (the training diverged), 2 (the
        data or the run folder are not right), 3 (another worker was lost), 130 (Ctrl-C) or 143
        (SIGTERM).
    """

    @wraps(script)
    def main(*args: Any, **kwargs: Any) -> int:
        with Signals() as signals:
            try:
                if script(*args, **kwargs):
                    return 0
            except KeyboardInterrupt:
                pass
            except DivergedError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            except (RunError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            except cluster.LOST as error:
                if cluster.this_cluster().workers == 1:
                    raise
                reason = str(error).strip().partition("\n")[0]
                print(
                    "error: another worker was lost; the last checkpoint is whole: start all of "
                    f"them again with --resume ({type(error).__name__}: {reason}).",
                    file=sys.stderr,
                )
                return LOST
            print("To continue, run the same command with --resume.")
            return TERMINATED if signals.last == signal.SIGTERM else INTERRUPTED

    return main


def with_checksum(args: argparse.Namespace, x: np.ndarray) -> dict[str, Any]:
    """Arguments for ``Run``: a run is then not resumed on other data than ``x``."""
    return vars(args) | {"checksum": zlib.crc32(x.tobytes())}


def positive_int(text: str) -> int:
    """For ``argparse``: an integer >= 1."""
    try:
        return check_integer(int(text), "value")
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}") from None


def positive_float(text: str) -> float:
    """For ``argparse``: a finite number > 0."""
    try:
        return check_positive(float(text), "value")
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a finite number > 0, got {text!r}") from None
