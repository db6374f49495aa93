"""Score files of any size in constant memory, and go on after any interruption.

The scores are first written to a folder beside the output, as ``scores.parquet.parts``::

    manifest.json         the input, the model and the options
    part-000000.parquet   a fixed number of rows: row, log-density or reason, kept columns

Each file is written under a temporary name and renamed when it is complete.  The same call again
skips the parts that are there.  At the end the parts are merged to the output and to the file of
rejected rows, and the folder is removed.  The number of a row says which part it belongs to, so no
row is lost or repeated.  ``scores.parquet.json`` then keeps the manifest, and the same call once
more finds that there is nothing to do.

Files that tfdde did not write are neither replaced nor removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from filecmp import cmp
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfdde.datasets.readers import tfrecords
from tfdde.datasets.readers.blocks import Block, Source, format_of, pa, pc
from tfdde.datasets.readers.headers import PLAIN, check_local, reading
from tfdde.scoring import manifest
from tfdde.scoring.alarms import EXPLAIN, Alarms
from tfdde.scoring.inputs import open_input
from tfdde.scoring.normal import find_normal
from tfdde.scoring.scorer import More, Scorer, check_kept
from tfdde.utils.checks import check_integer
from tfdde.utils.files import atomic

PART_ROWS = 250_000  # rows of a part: the most that an interruption can lose
# Metadata keys of a part: `Block.file` of its last row, and how many values medians stand for.
FILE, IMPUTED = b"file", b"imputed"
# Names of the files in a folder of parts: those of temporary files, and all.
HALF_WRITTEN = re.compile(
    r"\.merged\.\w+|\.rejects\.csv|\.\d+\.(manifest\.json|part-\d{6}\.parquet)"
)
OURS = re.compile(rf"manifest\.json|part-\d{{6}}\.parquet|{HALF_WRITTEN.pattern}")


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
    *,
    threshold: float | None = None,
    explain: str | None = None,
    normal: str | os.PathLike | None = None,
    delimiter: str | None = None,
    decimal: str = ".",
    encoding: str = "utf-8",
) -> int:
    """Score the rows of a file, or continue an interrupted call.

    If the same call has been completed, this one says so and does nothing.

    Args:
        model: see ``Scorer``.
        source: the input; see ``tfdde.datasets.readers.blocks.Source``.
        output: a .csv, .parquet or .tfrecord file with ``row`` (the number of the row in the
            input), the log-density under the scorer's name for it, and the kept columns. Bad rows
            go to ``<output>.rejects.csv`` with ``row`` and ``reason``; without bad rows there is no
            such file. ``<output>.json`` keeps what the output was made from.
        columns: names of the columns that hold the rows; by default those that the model was
            trained on, or if they are not known, all but the next two. If the model was trained
            with ``missing="impute"``, its medians stand for missing values in a table, and the
            counts are printed and kept; otherwise such rows are bad.
        conditions: names of the columns that hold the conditions.
        keep: names of the columns that are copied to the output.
        batch_rows: the most rows of a call of the model.
        part_rows: rows of a part.
        anomaly_score: also write the column ``anomaly_score``; see ``Scorer``.
        threshold: also write ``alarm``: whether the log-density is below that which this share of
            normal rows falls below, in (0, 1); see ``tfdde.anomalies.threshold``.
        explain: "first" to write ``strange_column``, ``strange_share`` and ``usual_value``: the
            column that explains most, its share in nats, and the value that would be usual, as
            ``tfdde.anomalies.explain`` finds them. "all" to write ``share:NAME`` and ``usual:NAME``
            of all columns as well. With a ``threshold`` only alarms are explained; others are null.
        normal: a table of normal rows that the model was not trained on, for both; by default what
            the run or the artifact knows. See ``tfdde.scoring.normal.find_normal``.
        delimiter: the character between the cells of CSV files. By default that of the first line,
            which is told if it is not a comma.
        decimal: the decimal point in CSV files, "." or ",".
        encoding: of CSV files.

    Returns:
        The number of rejected rows.

    Raises:
        OSError: there is no such input or model, or a file that this call did not write is in the
            way.
        ValueError: the arguments don't fit together or to the parts that are there already, a
            file is damaged, or too little is known of normal rows.
    """
    paths = {"model": model, "source": source, "output": output, "normal": normal}
    for argument, path in paths.items():
        if path is not None:
            check_local(path, argument)
    output = Path(output)
    folder, rejects = (output.with_name(output.name + end) for end in (".parts", ".rejects.csv"))
    check_integer(part_rows, "part_rows")
    if format_of(output) is None or output.suffix == ".gz":
        raise ValueError(f"`output` must end in .csv, .parquet or .tfrecord, got {str(output)!r}.")
    if Path(source).is_dir() and Path(source).resolve() in output.resolve().parents:
        raise ValueError(
            f"`output` must not be in the folder of the input, got {str(output)!r}: it would be "
            "read as input."
        )
    _check_wanted(threshold, explain, normal, output)
    begun, finished = folder / "manifest.json", output.with_name(output.name + ".json")
    scorer = Scorer(model, batch_rows, anomaly_score)
    dialect: dict[str, Any] = {"delimiter": delimiter, "decimal": decimal, "encoding": encoding}
    rows = open_input(scorer, source, columns, conditions, keep, **dialect)
    if rows.skipped:
        skipped = ", ".join(sorted({path.name for path in rows.skipped})[:5])
        print(f"Skipped {len(rows.skipped)} files, by their names or folders: {skipped}.")
    about = _about(scorer, rows, part_rows)
    more, names = None, scorer.names
    if threshold is not None or explain is not None:
        known = find_normal(scorer, normal, rows.columns, **dialect)
        of_rows = rows.columns or [str(i) for i in range(scorer.width)]
        alarms = Alarms(scorer, of_rows, known, threshold, explain)
        more, names = alarms.columns, [*names, *alarms.names]
        wanted = {"threshold": threshold, "explain": explain}
        about |= {name: value for name, value in wanted.items() if value is not None}
        about["normal"] = {file.name: manifest.checksum(file) for file in known.files}
        print(alarms.sentence, end="\n" * bool(alarms.sentence))
    check_kept(rows.schema, names, format_of(output) or "")
    if (old := manifest.unchanged(finished, (output, rejects))) and output.exists():
        _remove(folder)  # left if that call was killed after its last file
        if other := manifest.difference(finished, about):
            raise FileExistsError(
                f"{output} exists already and has the scores for {other}: remove it, or choose "
                "another output."
            )
        print(f"{output} is complete already, of the same input, model and options.")
        return old["rejected"]
    if not begun.exists():
        _check_free(output, rejects, finished, folder)
    with _locked(folder):
        if not begun.exists():
            manifest.write(begun, about)
        elif other := manifest.difference(begun, about):
            raise ValueError(
                f"{folder} holds a part of the scores for {other}: repeat the call that began it "
                "to complete them, or remove the folder to begin again."
            )
        schema = scorer.score(_empty(rows, scorer), more).schema
        parts = _write_parts(folder, schema, scorer, more, rows, part_rows)
        rejected = _merge(parts, schema, folder, output, rejects, finished)
        counts = {} if scorer.medians is None else {"imputed": _imputed(parts, rows)}
        manifest.finish(finished, about | counts, (output, rejects), rejected)
        _remove(folder)
    if any(counts.get("imputed", {}).values()):
        each = ", ".join(f"{name!r} {n}" for name, n in counts["imputed"].items() if n)
        print(f"Medians stand for missing values, in so many rows of a column: {each}.")
    print(f"Wrote {output}")
    return rejected


def _check_wanted(threshold: float | None, explain: str | None, normal: Any, output: Path) -> None:
    if explain not in (None, *EXPLAIN):
        raise ValueError(f"`explain` must be one of {', '.join(EXPLAIN)}, got {explain!r}.")
    if threshold is None and explain is None:
        if normal is not None:
            raise ValueError(
                "`normal` must be left out without a `threshold` or `explain`, got "
                f"{os.fspath(normal)!r}."
            )
    elif format_of(output) == "tfrecord":
        raise ValueError(
            "`output` must end in .csv or .parquet with a `threshold` or `explain`, got "
            f"{str(output)!r}: a tf.Example has no empty values."
        )


def _check_free(output: Path, rejects: Path, finished: Path, folder: Path) -> None:
    """Raise FileExistsError if a file that tfdde did not write is where it wants to write one.

    ``rejects`` and ``finished`` may be left from a finished call whose output was removed.
    """
    if output.exists():
        changed = finished.exists() and manifest.is_finished(finished)
        why = " and was changed since it was written" if changed else ""
        raise FileExistsError(f"{output} exists already{why}: remove it, or choose another output.")
    in_the_way: Path | None = None
    if finished.exists() and not manifest.is_finished(finished):
        in_the_way = finished
    elif rejects.exists() and not manifest.wrote(finished, rejects):
        in_the_way = rejects
    elif folder.is_dir():
        # Without a manifest there can only be files that a kill left half-written.
        in_the_way = next((f for f in folder.iterdir() if not HALF_WRITTEN.fullmatch(f.name)), None)
    elif folder.exists():
        in_the_way = folder
    if in_the_way is not None:
        raise FileExistsError(
            f"{in_the_way} exists already and tfdde did not write it for {output}: move it, or "
            "choose another output."
        )


def _remove(folder: Path) -> None:
    """Remove the folder of parts and the files in it that tfdde wrote; the manifest goes last."""
    if not folder.is_dir():
        return
    files = [file for file in folder.iterdir() if OURS.fullmatch(file.name)]
    for file in sorted(files, key=lambda file: file.name == "manifest.json"):
        file.unlink()
    with contextlib.suppress(OSError):  # files of others stay
        folder.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder if need be and hold it against other processes; a kill frees it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process is writing to {folder}.") from None
        for file in folder.iterdir():
            if HALF_WRITTEN.fullmatch(file.name):
                file.unlink()
        yield
    finally:
        os.close(lock)


def _about(scorer: Scorer, source: Source, part_rows: int) -> dict[str, Any]:
    """Return all that the scores depend on, for the manifest."""
    about = {
        "input": [manifest.identity(file) for file in source.files],
        "model": {file.name: manifest.checksum(file) for file in scorer.files},
        "columns": source.columns and list(source.columns),
        "conditions": source.conditions and list(source.conditions),
        "keep": list(source.keep),
        "batch_rows": scorer.batch_rows,
        "part_rows": part_rows,
        "anomaly_score": len(scorer.names) > 1,
    }
    if scorer.medians is not None:
        about["medians"] = scorer.medians.tolist()
    # Earlier versions knew no dialects, and their parts are completed by this one.
    return about | ({"dialect": asdict(source.dialect)} if source.dialect != PLAIN else {})


def _write_parts(
    folder: Path,
    schema: Any,
    scorer: Scorer,
    more: More | None,
    source: Source,
    part_rows: int,
) -> list[Path]:
    """Score all rows whose part is not there yet; return the paths of all parts."""

    def path(number: int) -> Path:
        return folder / f"part-{number:06d}.parquet"

    parts = list(itertools.takewhile(Path.exists, map(path, itertools.count())))
    first, file = len(parts) * part_rows, (0, 0)
    # A log file gets single lines instead of a moving bar.
    bar = keras.utils.Progbar(source.rows(), unit_name="row", verbose=1 + (not sys.stdout.isatty()))
    if parts:
        with reading(parts[-1]):
            number, start = pa.parquet.read_metadata(parts[-1]).metadata[FILE].split()
            file = int(number), int(start)
        bar.update(min(first, bar.target or first))
    pieces = (p for p in _cut(source.blocks(first, file), part_rows) if p.rows[0] >= first)
    for number, group in itertools.groupby(pieces, key=lambda p: int(p.rows[0]) // part_rows):
        parts.append(path(number))
        imputed = np.zeros(scorer.width, np.int64)
        with atomic(parts[-1]) as temporary, pa.parquet.ParquetWriter(temporary, schema) as writer:
            for piece in group:
                writer.write_table(scorer.score(piece, more))
                imputed += scorer.imputed(piece)
                bar.add(len(piece))
            counts = " ".join(map(str, imputed.tolist()))
            writer.add_key_value_metadata({FILE: "{} {}".format(*piece.file), IMPUTED: counts})
    return parts


def _imputed(parts: list[Path], source: Source) -> dict[str, int]:
    """Return how many values of each column medians stand for, in all parts."""
    counts = np.zeros(source.width, np.int64)
    for part in parts:
        with reading(part):
            metadata = pa.parquet.read_metadata(part).metadata
            counts += np.array(metadata[IMPUTED].split(), np.int64)
    names = source.columns or map(str, range(source.width))  # a TFRecord has no names
    return dict(zip(names, counts.tolist(), strict=True))


def _empty(source: Source, scorer: Scorer) -> Block:
    """Return a block without rows, which has the columns of all others."""
    values = np.empty((0, scorer.width + scorer.condition_dim), scorer.dtype)
    return Block(np.empty(0, np.int64), values, [], source.schema.empty_table())


def _cut(blocks: Iterator[Block], part_rows: int) -> Iterator[Block]:
    """Yield the same rows in blocks of which each belongs to one part."""
    for block in blocks:
        start = 0
        while start < len(block):
            stop = min(start + part_rows - int(block.rows[start]) % part_rows, len(block))
            yield block[start:stop]
            start = stop


def _merge(
    parts: list[Path], schema: Any, folder: Path, output: Path, rejects: Path, finished: Path
) -> int:
    """Make the output and the file of rejects from the parts; return the number of rejects."""
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
        _place(bad, rejects, finished)
    elif rejects.exists():
        if not manifest.wrote(finished, rejects):
            raise FileExistsError(f"{rejects} exists already: move it, and repeat the call.")
        rejects.unlink()
    _place(merged, output, finished)
    return rejected


def _place(path: Path, target: Path, finished: Path) -> None:
    """Rename a complete file to its place, unless a file is there that tfdde did not write."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
    # An interrupted call may have placed this very file.
    if target.exists() and not manifest.wrote(finished, target) and not cmp(path, target, False):
        raise FileExistsError(f"{target} exists already: move it, and repeat the call.")
    os.replace(path, target)


def _writer(path: Path, schema: Any) -> Any:
    """Open a writer of pyarrow tables, in the format of the path."""
    kind = format_of(path)
    if kind == "csv":
        return pa.csv.CSVWriter(path, schema)
    return pa.parquet.ParquetWriter(path, schema) if kind == "parquet" else tfrecords.Writer(path)
