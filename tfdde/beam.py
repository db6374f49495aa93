"""Scores as a transform of Apache Beam, for tables that need more than one machine.

In a pipeline::

    import apache_beam as beam
    from tfdde.beam import Score

    # The kept columns have the types of the input.
    schema = pyarrow.schema([("id", pyarrow.string()), ("log_density", pyarrow.float32())])
    with beam.Pipeline() as pipeline:
        tables = pipeline | beam.io.ReadFromParquetBatched("in/*.parquet")
        scored = tables | Score("model", columns=["a", "b"], keep=["id"])
        scored.scores | beam.io.WriteToParquetBatched("out/scores", schema)

Elements are pyarrow tables of many rows. Single rows would be ten times as slow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfdde.datasets.readers import blocks
from tfdde.datasets.readers.blocks import pc
from tfdde.scoring.scorer import Scorer, check_kept

try:
    import apache_beam as beam
    from apache_beam.utils import shared
except ImportError:
    raise ImportError("tfdde.beam needs Apache Beam: pip install 'tfdde[beam]'.") from None


REJECTS = "rejects"  # the tag of the second output


class Score(beam.PTransform):
    """Compute the log-density of each row of each table.

    The input is a collection of pyarrow tables, as ``beam.io.ReadFromParquetBatched`` gives them.
    The output is a pair of collections of pyarrow tables: ``scores`` has the kept columns and the
    log-density under the model's name for it; ``rejects`` has the kept columns of the bad rows and
    ``reason``. Rows have no numbers here: keep a column that identifies them. Tables without rows
    are left out.

    Args:
        model: as for ``tfdde.scoring.Scorer``. Each worker process loads it once, so it must be in
            a file system that all workers share.
        columns: names of the columns that hold the rows, in the model's order; by default those
            that the model was trained on, or if they are not known, all but those of
            ``conditions`` and ``keep``.
        conditions: names of the columns that hold the conditions.
        keep: names of the columns that are copied to the outputs.
        batch_rows: the most rows of a call of the model.

    Raises:
        TypeError: in a worker, if an element is not a pyarrow table or record batch.
        ValueError: in a worker, if a table lacks a column, has one that is not numeric, or has
            another number of columns than the model takes.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        columns: Sequence[str] | None = None,
        conditions: Sequence[str] | None = None,
        keep: Sequence[str] = (),
        batch_rows: int | None = None,
    ):
        super().__init__()
        self.arguments = os.fspath(model), columns, conditions, list(keep), batch_rows

    def expand(self, tables: Any) -> Any:
        """See the class."""
        score = beam.ParDo(_Score(*self.arguments))
        return tables | "Score" >> score.with_outputs(REJECTS, main="scores")


class _Score(beam.DoFn):
    def __init__(
        self,
        model: str,
        columns: Sequence[str] | None,
        conditions: Sequence[str] | None,
        keep: list[str],
        batch_rows: int | None,
    ):
        super().__init__()
        self.model, self.columns, self.conditions = model, columns, conditions
        self.keep, self.batch_rows = keep, batch_rows
        self.shared = shared.Shared()  # a process has many of these, one for each thread

    def setup(self) -> None:
        self.scorer = self.shared.acquire(lambda: Scorer(self.model, self.batch_rows))

    def process(self, table: Any) -> Iterator[Any]:
        if isinstance(table, blocks.pa.RecordBatch):
            table = blocks.pa.Table.from_batches([table])
        if not isinstance(table, blocks.pa.Table):
            raise TypeError(
                f"Elements must be pyarrow tables, got {type(table).__name__}: read them with "
                "beam.io.ReadFromParquetBatched, or make them of many rows with "
                "pyarrow.Table.from_pylist or from_pandas."
            )
        scorer, what = self.scorer, "the table"
        columns, conditions = blocks.choose(
            table.column_names,
            self.columns or scorer.columns,
            self.conditions,
            self.keep,
            scorer.width,
            scorer.condition_dim,
            what,
        )
        used = [*columns, *conditions]
        for name in used:
            blocks.check_numeric(name, table.schema.field(name).type, what)
        gaps = 0 if scorer.medians is None else scorer.width
        values, reasons = blocks.numbers(table, used, dtype=scorer.dtype, gaps=gaps)
        kept = table.select(self.keep)
        kept = kept.cast(blocks.plain(kept.schema))
        check_kept(kept.schema, scorer.names)
        block = blocks.Block(np.arange(len(table)), values, reasons, kept)
        scored = scorer.score(block)
        for name, count in zip(columns, scorer.imputed(block).tolist(), strict=True):
            if count:
                beam.metrics.Metrics.counter("tfdde", f"imputed {name}").inc(count)
        good = pc.is_null(scored.column("reason"))
        for name, rows, tag in (
            (scorer.name, scored.filter(good), None),
            ("reason", scored.filter(pc.invert(good)), REJECTS),
        ):
            if len(rows):
                result = rows.select([*self.keep, name])
                yield beam.pvalue.TaggedOutput(tag, result) if tag else result
