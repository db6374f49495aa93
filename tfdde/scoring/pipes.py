"""Score from standard input, to standard output, or both."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tfdde.scoring.file_scores import score_file


def score_pipe(
    model: str | os.PathLike, source: str | os.PathLike, output: str | os.PathLike, **options: Any
) -> int:
    """Score the rows of a CSV from standard input, or write the scores to standard output as CSV.

    The text passes through a temporary folder, and an interrupted call cannot be continued. What
    ``score_file`` says goes to standard error. If the output is standard output, the rejected rows
    go to standard error, too.

    Args:
        model: as for ``score_file``.
        source: "-" for standard input, else as for ``score_file``.
        output: "-" for standard output, else as for ``score_file``.
        options: as for ``score_file``.

    Returns:
        The number of rejected rows.

    Raises:
        OSError, ValueError: as ``score_file``.
    """
    standard_output = sys.stdout
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        if os.fspath(source) == "-":
            source = Path(folder) / "standard-input.csv"
            with source.open("wb") as f:
                shutil.copyfileobj(sys.stdin.buffer, f)
        if os.fspath(output) != "-":
            return score_file(model, source, output, **options)
        scores = Path(folder) / "standard-output.csv"
        rejected = score_file(model, source, scores, **options)
        if rejected:
            print(scores.with_name(f"{scores.name}.rejects.csv").read_text(), end="")
        with scores.open("rb") as f:
            shutil.copyfileobj(f, standard_output.buffer)
        standard_output.flush()
    return rejected
