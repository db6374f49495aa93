"""Log-densities of the rows of big files, in constant memory, resumable after any kill.

The output grows in a folder beside it, ``scores.parquet.parts``::

    manifest.json         what it is made of: input, model, options
    part-000000.parquet   so many rows each: row, log-density or reason, columns to keep

each file of which is renamed into place when it is whole.  The same call again skips the parts
that are there.  At the end they become the output and the file of rejects, and the folder goes.
A row is in one part, by its position, so none can be lost or repeated.  ``scores.parquet.json``
then tells what the output is made of, and the same call finds nothing to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfdde.datasets.readers import tfrecords
from tfdde.datasets.readers.blocks import Block, Source, format_of, pa, pc
from tfdde.datasets.readers.headers import reading
from tfdde.scoring import manifest
from tfdde.scoring.scorer import Scorer, check_kept
from tfdde.utils.checks import check_integer
from tfdde.utils.files import atomic

PART_ROWS = 250_000  # of a part: what a kill may lose
FILE = b"file"  # the key of `Block.file` of the last row of a part


def score_file(
    model: str | os.PathLike,
    source: str | os.PathLike,
    output: str | os.PathLike,
    columns: Sequence[str] | None = None,
    conditions: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    batch_rows: int | None = None,
    part_rows: int = PART_ROWS,
    anomaly_score: bool = False,
) -> int:
    """Score the rows of a file, or go on where the same call was interrupted.

    Where the same call has written the output already, it says so and does nothing.

    Args:
        model: see ``Scorer``.
        source: the input; see ``tfdde.datasets.readers.blocks.Source``, also for the next three.
        output: .csv, .parquet or .tfrecord, with ``row`` (the position in the input), the
            log-density by the model's name for it, and the columns to keep.  Bad rows go to
            ``<output>.rejects.csv``, if there are any, with row and reason.  ``<output>.json``
            tells what it is made of.
        columns: names of the columns that hold the rows.
        conditions: those of their conditions.
        keep: those that are passed on.
        batch_rows: rows of a call of the model.
        part_rows: rows of a part.
        anomaly_score: write the column ``anomaly_score``, too: see ``Scorer``.

    Returns:
        The number of rows rejected.

    Raises:
        OSError: there is no such input or model, or the output exists already and is another.
        ValueError: they don't fit together or to the parts that are there already, or a file
            is damaged.
    """
    output = Path(output)
    folder, rejects = (output.with_name(output.name + end) for end in (".parts", ".rejects.csv"))
    check_integer(part_rows, "part_rows")
    if format_of(output) is None or output.suffix == ".gz":
        raise ValueError(f"`output` must end in .csv, .parquet or .tfrecord, got {str(output)!r}.")
    begun, finished = folder / "manifest.json", output.with_name(output.name + ".json")
    scorer = Scorer(model, batch_rows, anomaly_score)
    rows = Source(Path(source), columns, conditions, keep, scorer.width, scorer.condition_dim)
    check_kept(rows.schema, scorer.names, format_of(output) or "")
    about = _about(scorer, rows, part_rows)
    if output.exists() and not begun.exists():
        rejected = manifest.check_finished(finished, about, (output, rejects))
        shutil.rmtree(folder, ignore_errors=True)  # left if a kill came after the last file
        print(f"{output} is complete already, of the same input, model and options.")
        return rejected
    with _locked(folder):
        if not begun.exists():
            for part in folder.glob("part-*"):  # without a manifest they don't count
                part.unlink()
            manifest.write(begun, about)
        elif other := manifest.difference(begun, about):
            raise ValueError(
                f"{folder} holds a part of the scores for {other}: repeat the call that began it "
                "to complete them, or remove the folder to begin again."
            )
        schema = scorer.score(_empty(rows, scorer)).schema
        parts = _write_parts(folder, schema, scorer, rows, part_rows)
        rejected = _merge(parts, schema, folder, output, rejects)
        manifest.finish(finished, about, (output, rejects), rejected)
        begun.unlink()
        shutil.rmtree(folder)
    print(f"Wrote {output}")
    return rejected


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be, against other processes; a kill frees it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process is writing to {folder}.") from None
        for beside in folder.glob(".*"):  # half-written when a process was killed
            beside.unlink()
        yield
    finally:
        os.close(lock)


def _about(scorer: Scorer, source: Source, part_rows: int) -> dict[str, Any]:
    """What scores depend on: a change of any of it must not go unnoticed."""
    return {
        "input": [manifest.identity(file) for file in source.files],
        "model": {file.name: manifest.checksum(file) for file in scorer.files},
        "columns": source.columns and list(source.columns),
        "conditions": source.conditions and list(source.conditions),
        "keep": list(source.keep),
        "batch_rows": scorer.batch_rows,
        "part_rows": part_rows,
        "anomaly_score": len(scorer.names) > 1,
    }


def _write_parts(
    folder: Path, schema: Any, scorer: Scorer, source: Source, part_rows: int
) -> list[Path]:
    """Score all rows whose part is not there yet; the paths of all parts."""

    def path(number: int) -> Path:
        return folder / f"part-{number:06d}.parquet"

    parts = list(itertools.takewhile(Path.exists, map(path, itertools.count())))
    first, file = len(parts) * part_rows, (0, 0)
    # No moving bar in a log file.
    bar = keras.utils.Progbar(source.rows(), unit_name="row", verbose=1 + (not sys.stdout.isatty()))
    if parts:
        with reading(parts[-1]):
            number, start = pa.parquet.read_metadata(parts[-1]).metadata[FILE].split()
            file = int(number), int(start)
        bar.update(min(first, bar.target or first))
    pieces = (p for p in _cut(source.blocks(first, file), part_rows) if p.rows[0] >= first)
    for number, group in itertools.groupby(pieces, key=lambda p: int(p.rows[0]) // part_rows):
        parts.append(path(number))
        with atomic(parts[-1]) as beside, pa.parquet.ParquetWriter(beside, schema) as writer:
            for piece in group:
                writer.write_table(scorer.score(piece))
                bar.add(len(piece))
            writer.add_key_value_metadata({FILE: "{} {}".format(*piece.file)})
    return parts


def _empty(source: Source, scorer: Scorer) -> Block:
    values = np.empty((0, scorer.width + scorer.condition_dim), np.float32)
    return Block(np.empty(0, np.int64), values, [], source.schema.empty_table())


def _cut(blocks: Iterator[Block], part_rows: int) -> Iterator[Block]:
    """The same rows in blocks that are in one part each."""
    for block in blocks:
        start = 0
        while start < len(block):
            stop = min(start + part_rows - int(block.rows[start]) % part_rows, len(block))
            yield block[start:stop]
            start = stop


def _merge(parts: list[Path], schema: Any, folder: Path, output: Path, rejects: Path) -> int:
    """Make the output and the file of rejects from the parts; how many rows were rejected."""
    merged, bad = folder / f".merged.{format_of(output)}", folder / ".rejects.csv"
    reason = schema.get_field_index("reason")
    rejected = 0
    with (
        _writer(merged, schema.remove(reason)) as good_rows,
        _writer(bad, pa.schema([schema.field("row"), schema.field("reason")])) as bad_rows,
    ):
        for part in parts:
            with pa.parquet.ParquetFile(part, pre_buffer=False) as file:
                for batch in file.iter_batches():
                    table = pa.Table.from_batches([batch])
                    good = pc.is_null(table.column("reason"))
                    good_rows.write_table(table.filter(good).remove_column(reason))
                    wrong = table.filter(pc.invert(good)).select(["row", "reason"])
                    bad_rows.write_table(wrong)
                    rejected += len(wrong)
    if rejected:
        _place(bad, rejects)
    else:
        rejects.unlink(missing_ok=True)
    _place(merged, output)
    return rejected


def _place(path: Path, target: Path) -> None:
    with path.open("rb") as f:
        os.fsync(f.fileno())
    os.replace(path, target)


def _writer(path: Path, schema: Any) -> Any:
    kind = format_of(path)
    if kind == "csv":
        return pa.csv.CSVWriter(path, schema)
    return pa.parquet.ParquetWriter(path, schema) if kind == "parquet" else tfrecords.Writer(path)
