"""Log-densities of the rows of big files, in constant memory, resumable after any kill.

The output grows in a folder beside it, ``scores.parquet.parts``::

    manifest.json         what it is made of: input, model, options
    part-000000.parquet   so many rows each: row, log-density or reason, columns to keep

each file of which is renamed into place when it is whole.  The same call again skips the parts
that are there.  At the end they become the output and the file of rejects, and the folder goes.
A row is in one part, by its position, so none can be lost or repeated.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde import serving, verify
from tfdde.callbacks import atomic
from tfdde.checks import check_integer
from tfdde.datasets.blocks import Block, Source, format_of, pa, pc
from tfdde.datasets.tables import reading

PART_ROWS = 250_000  # of a part: what a kill may lose
BATCH_VALUES, BATCH_ROWS = 2**18, 2**13  # of a call of the model, at most
UNWRITABLE = {  # formats, and types of arrow some of whose values they can't hold
    ("csv", "binary"),
    ("csv", "large_binary"),
    ("csv", "fixed_size_binary"),
    ("tfrecord", "uint64"),
}
HEAD = 2**20  # bytes of an input file whose checksum the manifest has


class Scorer:
    """A model's log-density, as one concrete function.

    Args:
        model: folder of a version of a SavedModel, its base folder (then the latest version
            counts), or a run folder with ``density.keras``, or that file.
        batch_rows: rows of a call of the model, at most; by default as many as a small network
            takes well.

    Attributes:
        width: entries of a row.
        condition_dim: entries of a condition, 0 if the model takes none.
        name: ``log_density``, or ``unnormalized_log_density`` unless the model is known to have
            a trusted log Z.
        shape: of a row as the model takes it.
        files: those of the model.

    Raises:
        OSError: there is no model.
        ValueError: it can't be loaded, or has no log-density.
    """

    def __init__(self, model: str | os.PathLike, batch_rows: int | None = None):
        path = _model_folder(Path(model))
        if (path / "density.keras").exists():
            known = self._load_keras(path)
        else:
            known = self._load_saved(path)
        self.name = "log_density" if known else "unnormalized_log_density"
        self.width = int(np.prod(self.shape))
        entries = self.width + self.condition_dim
        default = min(max(BATCH_VALUES // entries, 1), BATCH_ROWS)
        self.batch_rows = check_integer(default if batch_rows is None else batch_rows, "batch_rows")

    def _load_keras(self, folder: Path) -> bool:
        density, _ = serving.load_run(folder)
        self.files = [folder / "density.keras"]
        self.shape, self.condition_dim = density.data_shape, density.condition_dim
        specs = {"x": tf.TensorSpec((None, *self.shape), tf.float32)}
        if self.condition_dim:
            specs["condition"] = tf.TensorSpec((None, self.condition_dim), tf.float32)
        function = tf.function(
            lambda x, condition=None: {"log_density": verify.log_density(density, x, condition)}
        )
        self._model, self._function = density, function.get_concrete_function(**specs)
        return density.normalized

    def _load_saved(self, folder: Path) -> bool:
        with reading(folder):
            self._model = tf.saved_model.load(os.fspath(folder))  # its variables live with it
            self._function = self._model.signatures["log_density"]
            inputs = self._function.structured_input_signature[1]
            self.shape = tuple(inputs["x"].shape[1:])
            self.condition_dim = inputs["condition"].shape[1] if "condition" in inputs else 0
        self.files = sorted([folder / "saved_model.pb", *(folder / "variables").glob("*")])
        metadata = folder / "assets.extra" / "metadata.json"
        if not metadata.exists():
            return False
        self.files.append(metadata)
        with reading(metadata):
            return json.loads(metadata.read_text()).get("normalized") is True

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Log-densities float32 (rows,) of ``values``: rows, each followed by its condition."""
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(values), self.batch_rows):
            batch = values[start : start + self.batch_rows]
            x = batch[:, : self.width].reshape(-1, *self.shape)
            inputs = {"x": tf.constant(x)}
            if self.condition_dim:
                inputs["condition"] = tf.constant(batch[:, self.width :])
            parts.append(self._function(**inputs)["log_density"].numpy())
        return np.concatenate(parts)

    def score(self, block: Block) -> Any:
        """Pyarrow table of the rows of a block.

        Returns:
            Columns ``row``, the log-density by its ``name`` (null where there is a reason),
            ``reason`` (why the row is bad, null where it is good) and what the block kept.
        """
        reasons = list(block.reasons)
        good = np.array([reason is None for reason in reasons], bool)
        scores = np.full(len(block), np.nan, np.float32)
        scores[good] = self(block.values[good])
        bad = ~np.isfinite(scores)
        for i in np.flatnonzero(good & bad).tolist():
            reasons[i] = f"log-density is {scores[i]}"
        return pa.table(
            {
                "row": pa.array(block.rows, pa.int64()),
                self.name: pa.array(scores, pa.float32(), mask=bad),
                "reason": pa.array(reasons, pa.string()),
                **{name: block.kept.column(name) for name in block.kept.column_names},
            }
        )


def _model_folder(path: Path) -> Path:
    """The folder that holds ``saved_model.pb`` or ``density.keras``."""
    if path.name == "density.keras" and path.is_file():
        return path.parent
    if not path.is_dir():
        raise FileNotFoundError(f"Model {str(path)!r} does not exist.")
    if (path / "density.keras").exists() or (path / "saved_model.pb").exists():
        return path
    versions = [p.parent for p in path.glob("*/saved_model.pb") if p.parent.name.isdecimal()]
    if not versions:
        raise FileNotFoundError(
            f"Model {str(path)!r} must be a SavedModel, a folder of its versions, or a run folder "
            "with density.keras: there is none in it."
        )
    return max(versions, key=lambda p: int(p.name))


def score_file(
    model: str | os.PathLike,
    source: str | os.PathLike,
    output: str | os.PathLike,
    columns: Sequence[str] | None = None,
    conditions: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    batch_rows: int | None = None,
    part_rows: int = PART_ROWS,
) -> int:
    """Score the rows of a file, or go on where the same call was interrupted.

    Args:
        model: see ``Scorer``.
        source: the input; see ``tfdde.datasets.blocks.Source``, also for the next three.
        output: .csv, .parquet or .tfrecord, with ``row`` (the position in the input), the
            log-density by the model's name for it, and the columns to keep.  Bad rows go to
            ``<output>.rejects.csv``, if there are any, with row and reason.
        columns: names of the columns that hold the rows.
        conditions: those of their conditions.
        keep: those that are passed on.
        batch_rows: rows of a call of the model.
        part_rows: rows of a part.

    Returns:
        The number of rows rejected.

    Raises:
        OSError: there is no such input or model, or the output exists already.
        ValueError: they don't fit together or to the parts that are there already, or a file
            is damaged.
    """
    output = Path(output)
    folder, rejects = (output.with_name(output.name + end) for end in (".parts", ".rejects.csv"))
    check_integer(part_rows, "part_rows")
    if format_of(output) is None or output.suffix == ".gz":
        raise ValueError(f"`output` must end in .csv, .parquet or .tfrecord, got {str(output)!r}.")
    if output.exists() and not (folder / "manifest.json").exists():
        raise FileExistsError(f"{output} exists already: remove it, or choose another output.")
    scorer = Scorer(model, batch_rows)
    rows = Source(Path(source), columns, conditions, keep, scorer.width, scorer.condition_dim)
    check_kept(rows.schema, scorer.name, format_of(output) or "")
    with _locked(folder):
        _check_manifest(folder / "manifest.json", _about(scorer, rows, part_rows))
        schema = scorer.score(_empty(rows, scorer)).schema
        parts = _write_parts(folder, schema, scorer, rows, part_rows)
        return _merge(parts, schema, folder, output, rejects)


def check_kept(schema: Any, name: str, kind: str = "parquet") -> None:
    """Raise ValueError if a kept column is named like others, or a ``kind`` can't hold its type."""
    for field in schema:
        if field.name in ("row", name, "reason"):
            raise ValueError(
                f"`keep` must not name {field.name!r}, a column that the output has by itself."
            )
        if kind != "parquet" and pa.types.is_nested(field.type):
            raise ValueError(
                f"`keep` must name columns of single values, got {field.name!r} of type "
                f"{field.type}: write .parquet, or leave it out."
            )
        if (kind, str(field.type).partition("[")[0]) in UNWRITABLE:
            raise ValueError(
                f"`keep` must not name {field.name!r} of type {field.type}, not all of whose "
                f"values .{kind} can hold: write .parquet, or leave it out."
            )


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
        "input": [_identity(file) for file in source.files],
        "model": {file.name: _checksum(file) for file in scorer.files},
        "columns": source.columns and list(source.columns),
        "conditions": source.conditions and list(source.conditions),
        "keep": list(source.keep),
        "batch_rows": scorer.batch_rows,
        "part_rows": part_rows,
    }


def _checksum(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _identity(file: Path) -> dict[str, Any]:
    about = file.stat()
    with file.open("rb") as f:
        head = hashlib.sha256(f.read(HEAD)).hexdigest()
    return {"name": file.name, "bytes": about.st_size, "modified": about.st_mtime_ns, "head": head}


def _check_manifest(path: Path, about: dict[str, Any]) -> None:
    """Write the manifest, or raise ValueError if there is one of something else."""
    if not path.exists():
        for part in path.parent.glob("part-*"):
            part.unlink()
        with atomic(path) as beside:
            beside.write_text(json.dumps(about, indent=1) + "\n")
        return
    with reading(path):
        old = json.loads(path.read_text())
    for name, value in about.items():
        if old.get(name) != value:
            was = f" ({old.get(name)!r}, not {value!r})" if name not in ("input", "model") else ""
            raise ValueError(
                f"{path.parent} holds a part of the scores for another {name}{was}: repeat the "
                "call that began it to complete them, or remove the folder to begin again."
            )


def _write_parts(
    folder: Path, schema: Any, scorer: Scorer, source: Source, part_rows: int
) -> list[Path]:
    """Score all rows whose part is not there yet; the paths of all parts."""
    parts = []
    # No moving bar in a log file.
    bar = keras.utils.Progbar(source.rows(), unit_name="row", verbose=1 + (not sys.stdout.isatty()))
    pieces = _cut(source.blocks(), part_rows)
    for number, group in itertools.groupby(pieces, key=lambda b: int(b.rows[0]) // part_rows):
        path = folder / f"part-{number:06d}.parquet"
        parts.append(path)
        if path.exists():
            for piece in group:
                bar.add(len(piece))
            continue
        with atomic(path) as beside, pa.parquet.ParquetWriter(beside, schema) as writer:
            for piece in group:
                writer.write_table(scorer.score(piece))
                bar.add(len(piece))
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
    # The output last: when it is there all is done.
    if rejected:
        _place(bad, rejects)
    else:
        rejects.unlink(missing_ok=True)
    _place(merged, output)
    (folder / "manifest.json").unlink()  # what is left without it doesn't count
    shutil.rmtree(folder)
    return rejected


def _place(path: Path, target: Path) -> None:
    with path.open("rb") as f:
        os.fsync(f.fileno())
    os.replace(path, target)


def _writer(path: Path, schema: Any) -> Any:
    kind = format_of(path)
    if kind == "csv":
        return pa.csv.CSVWriter(path, schema)
    return pa.parquet.ParquetWriter(path, schema) if kind == "parquet" else _Examples(path)


class _Examples:
    """Writes tables as tf.Example: whole numbers, floats, or else text; none for null."""

    def __init__(self, path: Path):
        self.file = tf.io.TFRecordWriter(os.fspath(path))

    def __enter__(self) -> _Examples:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.file.close()

    def write_table(self, table: Any) -> None:
        for row in table.to_pylist():
            features = {name: _feature(value) for name, value in row.items() if value is not None}
            example = tf.train.Example(features=tf.train.Features(feature=features))
            self.file.write(example.SerializeToString())


def _feature(value: Any) -> tf.train.Feature:
    if isinstance(value, int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))
    if isinstance(value, float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    text = value if isinstance(value, bytes) else str(value).encode()
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[text]))
