"""A model's log-density for batches of rows, from a SavedModel or from a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde import serving
from tfdde.datasets.readers.blocks import Block, pa
from tfdde.datasets.readers.headers import reading
from tfdde.serving import verify
from tfdde.tables.schema import Schema
from tfdde.utils.checks import check_integer
from tfdde.utils.files import read_object

More = Callable[[np.ndarray, np.ndarray], dict[str, Any]]
BATCH_VALUES, BATCH_ROWS = 2**18, 2**13  # the most values and rows of a call of the model
UNWRITABLE = {  # file formats with arrow types that they cannot hold unchanged
    ("csv", "binary"),
    ("csv", "large_binary"),
    ("csv", "fixed_size_binary"),
    ("tfrecord", "uint64"),
    ("tfrecord", "double"),  # tf.Example has floats of 32 bits only
}


class Scorer:
    """A model's log-density, as one concrete TensorFlow function.

    Args:
        model: folder of a SavedModel, folder of its versions (the latest counts), run folder with
            ``density.keras``, or that file.
        batch_rows: the most rows of a call of the model; by default up to 8,192.
        anomaly_score: also give the negative log-density, as ``DDE.anomaly_score`` does. Higher
            scores are more anomalous.

    Attributes:
        width: numbers in a row.
        condition_dim: numbers in a condition; 0 if the model takes none.
        name: ``log_density`` if the model is known to have a trusted log Z, else
            ``unnormalized_log_density``.
        names: the columns of values: ``name`` and, if asked for, ``anomaly_score``.
        shape: the shape of a row as the model takes it.
        dtype: of the rows, "float32", or "float64" for columns that need it.
        columns: the names of the columns that the model was trained on, if they are known and are
            not just numbers; else None.
        files: the files of the model.
        folder: where they are.
        facts: the metadata of an artifact; {} without.

    Raises:
        OSError: there is no model.
        ValueError: it can't be loaded or has no log-density; or anomaly scores are asked of a
            conditional density without a trusted log Z, which differs from condition to condition.

    Example:
        >>> from tfdde.scoring import Scorer
        >>> density = tfdde.DDE(tfdde.networks.residual_mlp(2, width=8, depth=1))
        >>> density.save("density.keras")
        >>> scorer = Scorer("density.keras")
        >>> scorer.name, scorer(x[:3]).shape
        ('unnormalized_log_density', (3,))
    """

    def __init__(
        self,
        model: str | os.PathLike,
        batch_rows: int | None = None,
        anomaly_score: bool = False,
    ):
        self.folder = path = _model_folder(Path(model))
        self.columns: list[str] | None = None
        self.facts: dict[str, Any] = {}
        self.medians: np.ndarray | None = None
        if (path / "density.keras").exists():
            normalized = self._load_keras(path)
        else:
            normalized = self._load_saved(path)
        if anomaly_score and self.condition_dim and not normalized:
            raise ValueError(
                "`anomaly_score` must be left out for a conditional density without a trusted "
                f"log Z, got {str(path)!r}."
            )
        self.name = "log_density" if normalized else "unnormalized_log_density"
        self.names = [self.name, *(["anomaly_score"] if anomaly_score else [])]
        self.width = int(np.prod(self.shape))
        entries = self.width + self.condition_dim
        default = min(max(BATCH_VALUES // entries, 1), BATCH_ROWS)
        self.batch_rows = check_integer(default if batch_rows is None else batch_rows, "batch_rows")

    def _load_keras(self, folder: Path) -> bool:
        """Load ``density.keras``; return whether its log-density is normalised."""
        density, _ = serving.load_run(folder)
        self.files = [folder / "density.keras"]
        result = folder / "result.json"
        if result.exists():
            self.columns = _names(read_object(result))
        if isinstance(density.normalization, Schema):
            self.columns = _names({"columns": list(density.normalization.names)})
            self.medians = density.normalization.medians
        self.shape, self.condition_dim = density.data_shape, density.condition_dim
        self.dtype = density.row_dtype
        specs = {"x": tf.TensorSpec((None, *self.shape), self.dtype)}
        if self.condition_dim:
            specs["condition"] = tf.TensorSpec((None, self.condition_dim), tf.float32)
        function = tf.function(
            lambda x, condition=None: {"log_density": verify.log_density(density, x, condition)},
            autograph=False,
        )
        self._model, self._function = density, function.get_concrete_function(**specs)
        return density.normalized

    def _load_saved(self, folder: Path) -> bool:
        """Load a SavedModel; return whether its log-density is normalised, as far as is known."""
        with reading(folder):
            self._model = tf.saved_model.load(os.fspath(folder))  # keeps the variables alive
        signatures = getattr(self._model, "signatures", {})
        if "log_density" not in signatures:
            raise ValueError(
                f"Model {str(folder)!r} has no signature log_density (it has "
                f"{', '.join(sorted(signatures)) or 'none'}): export it with tfdde."
            )
        self._function = signatures["log_density"]
        inputs = self._function.structured_input_signature[1]
        outputs = self._function.structured_outputs
        if not {"x"} <= set(inputs) <= {"x", "condition"} or "log_density" not in outputs:
            raise ValueError(
                f"The signature log_density of model {str(folder)!r} must take x (and condition) "
                f"and return log_density, but takes {', '.join(sorted(inputs))} and returns "
                f"{', '.join(sorted(outputs))}: export it with tfdde."
            )
        self.shape, self.dtype = tuple(inputs["x"].shape[1:]), inputs["x"].dtype.name
        self.condition_dim = inputs["condition"].shape[1] if "condition" in inputs else 0
        self.files = sorted([folder / "saved_model.pb", *(folder / "variables").glob("*")])
        metadata = folder / "assets.extra" / "metadata.json"
        if not metadata.exists():
            return False
        self.files.append(metadata)
        self.facts = read_object(metadata)
        self.columns = _names(self.facts)
        medians = self.facts.get("preprocessing", {}).get("medians")
        self.medians = None if medians is None else np.array(medians, np.float64)
        return self.facts.get("normalized") is True

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the log-densities, float32 (rows,).

        Args:
            values: of ``dtype``, (rows, width + condition_dim): each row followed by its condition.
        """
        results = [np.empty(0, np.float32)]
        for start in range(0, len(values), self.batch_rows):
            batch = values[start : start + self.batch_rows]
            x = batch[:, : self.width].reshape(-1, *self.shape)
            inputs = {"x": tf.constant(x)}
            if self.condition_dim:
                inputs["condition"] = tf.constant(batch[:, self.width :], tf.float32)
            results.append(self._function(**inputs)["log_density"].numpy())
        return np.concatenate(results)

    def score(self, block: Block, more: More | None = None) -> Any:
        """Return a pyarrow table of the scores of a block.

        The model's ``medians`` stand for missing values (NaN). Its columns are ``row``, the
        log-density under its ``name``, ``anomaly_score`` if asked for, those of ``more``,
        ``reason`` (why a row is bad; null for a good one), and those that the block kept. The
        values of bad rows are null.

        Args:
            block: of rows.
            more: makes further columns, by name, of the values of the rows, without gaps, and
                their log-densities, which are not finite for bad rows.
        """
        reasons = list(block.reasons)
        good = np.array([reason is None for reason in reasons], bool)
        scores = np.full(len(block), np.nan, np.float32)
        values = self.filled(block.values)
        scores[good] = self(values[good])
        bad = ~np.isfinite(scores)
        for i in np.flatnonzero(good & bad).tolist():
            reasons[i] = f"log-density is {scores[i]}"
        columns = (pa.array(column, pa.float32(), mask=bad) for column in (scores, -scores))
        return pa.table(
            {
                "row": pa.array(block.rows, pa.int64()),
                **dict(zip(self.names, columns, strict=False)),
                **(more(values, scores) if more else {}),
                "reason": pa.array(reasons, pa.string()),
                **{name: block.kept.column(name) for name in block.kept.column_names},
            }
        )

    def imputed(self, block: Block) -> np.ndarray:
        """Return how many values of each column medians stand for in a block: int64 (width,).

        Bad rows do not count.
        """
        good = np.array([reason is None for reason in block.reasons], bool)
        return np.isnan(block.values[good, : self.width]).sum(axis=0)

    def filled(self, values: np.ndarray) -> np.ndarray:
        """Put the medians, if there are any, in the place of missing values (NaN)."""
        if self.medians is None:
            return values
        values = values.copy()
        x = values[:, : self.width]
        np.copyto(x, self.medians.astype(x.dtype), where=np.isnan(x))
        return values


def _names(facts: dict[str, Any]) -> list[str] | None:
    """Return the names of the columns in a model's facts; None for 0, 1, 2 ... or without names."""
    names = facts.get("columns")
    numbered = isinstance(names, list) and names == [str(i) for i in range(len(names))]
    return names if names and not numbered else None


def _model_folder(path: Path) -> Path:
    """Return the folder that holds ``saved_model.pb`` or ``density.keras``."""
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
    """Raise ValueError if a kept column can't be written.

    Args:
        schema: arrow schema of the kept columns.
        names: the columns of values.
        kind: the format of the output, as ``format_of`` names it.
    """
    for field in schema:
        if field.name in ("row", *names, "reason"):
            raise ValueError(
                f"`keep` must not name {field.name!r}, a name of one of the output's own columns."
            )
        if kind != "parquet" and pa.types.is_nested(field.type):
            raise ValueError(
                f"`keep` must name columns of single values, got {field.name!r} of type "
                f"{field.type}: write .parquet, or leave the column out."
            )
        if (kind, str(field.type).partition("[")[0]) in UNWRITABLE:
            raise ValueError(
                f"`keep` must not name {field.name!r} of type {field.type}, since .{kind} would "
                "alter some of its values: write .parquet, or leave the column out."
            )
