"""A model's log-density, for batches of rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde import serving
from tfdde.datasets.readers.blocks import Block, pa
from tfdde.datasets.readers.headers import reading
from tfdde.serving import verify
from tfdde.utils.checks import check_integer
from tfdde.utils.files import read_object

BATCH_VALUES, BATCH_ROWS = 2**18, 2**13  # of a call of the model, at most
UNWRITABLE = {  # formats, and types of arrow some of whose values they can't hold
    ("csv", "binary"),
    ("csv", "large_binary"),
    ("csv", "fixed_size_binary"),
    ("tfrecord", "uint64"),
}


class Scorer:
    """A model's log-density, as one concrete function.

    Args:
        model: folder of a version of a SavedModel, its base folder (then the latest version
            counts), or a run folder with ``density.keras``, or that file.
        batch_rows: rows of a call of the model, at most; by default as many as a small network
            takes well.
        anomaly_score: give -log-density, too, the higher the stranger; ``DDE.anomaly_score``.

    Attributes:
        width: entries of a row.
        condition_dim: entries of a condition, 0 if the model takes none.
        name: ``log_density``, or ``unnormalized_log_density`` unless the model is known to have
            a trusted log Z.
        names: of the columns of values: that one, and ``anomaly_score``.
        shape: of a row as the model takes it.
        files: those of the model.

    Raises:
        OSError: there is no model.
        ValueError: it can't be loaded, has no log-density, or no anomaly score: a conditional
            density's log Z differs from condition to condition, and must be known.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        batch_rows: int | None = None,
        anomaly_score: bool = False,
    ):
        path = _model_folder(Path(model))
        if (path / "density.keras").exists():
            known = self._load_keras(path)
        else:
            known = self._load_saved(path)
        if anomaly_score and self.condition_dim and not known:
            raise ValueError(
                "`anomaly_score` must be left out for a conditional density without a trusted "
                f"log Z, got {str(path)!r}."
            )
        self.name = "log_density" if known else "unnormalized_log_density"
        self.names = [self.name, *(["anomaly_score"] if anomaly_score else [])]
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
        return read_object(metadata).get("normalized") is True

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
            ``anomaly_score`` if asked for, ``reason`` (why the row is bad, null where it is
            good) and what the block kept.
        """
        reasons = list(block.reasons)
        good = np.array([reason is None for reason in reasons], bool)
        scores = np.full(len(block), np.nan, np.float32)
        scores[good] = self(block.values[good])
        bad = ~np.isfinite(scores)
        for i in np.flatnonzero(good & bad).tolist():
            reasons[i] = f"log-density is {scores[i]}"
        values = (pa.array(each, pa.float32(), mask=bad) for each in (scores, -scores))
        return pa.table(
            {
                "row": pa.array(block.rows, pa.int64()),
                **dict(zip(self.names, values, strict=False)),
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


def check_kept(schema: Any, names: Sequence[str], kind: str = "parquet") -> None:
    """Raise ValueError if a kept column is named like others, or a ``kind`` can't hold its type."""
    for field in schema:
        if field.name in ("row", *names, "reason"):
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
