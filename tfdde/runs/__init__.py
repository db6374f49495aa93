"""The folder of one training run: checkpoints, interrupts, several hosts, the command line."""

from tfdde.runs.checkpoint import Checkpoint
from tfdde.runs.cluster import RunError, strategy_for
from tfdde.runs.command_line import (
    INTERRUPTED,
    LOST,
    TERMINATED,
    add_candidate_options,
    command,
    positive_float,
    positive_int,
    print_any_character,
    with_checksum,
)
from tfdde.runs.keep_best import KeepBest
from tfdde.runs.run import Run

__all__ = [
    "INTERRUPTED",
    "LOST",
    "TERMINATED",
    "Checkpoint",
    "KeepBest",
    "Run",
    "RunError",
    "add_candidate_options",
    "command",
    "positive_float",
    "positive_int",
    "print_any_character",
    "strategy_for",
    "with_checksum",
]
