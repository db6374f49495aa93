"""Scores by Apache Beam against the closed form."""

import numpy as np
import pandas as pd
import pytest
from scored import frame, truth, write

from tfdde.datasets.readers import blocks


@pytest.fixture
def transform(tmp_path):
    """Score with Beam the table in.parquet, and return the two outputs by id."""
    pytest.importorskip("apache_beam")
    import apache_beam as beam

    from tfdde.beam import Score

    def run(*args, **kwargs):
        types = {"scores": ("log_density", "float"), "rejects": ("reason", "string")}
        kept = blocks.pa.parquet.read_schema(tmp_path / "in.parquet").field("id")
        with beam.Pipeline("DirectRunner") as pipeline:
            tables = pipeline | beam.io.ReadFromParquetBatched(str(tmp_path / "in.parquet"))
            scored = tables | Score(*args, **kwargs)
            for name, (column, kind) in types.items():
                schema = blocks.pa.schema([kept, (column, kind)])
                scored[name] | name >> beam.io.WriteToParquetBatched(str(tmp_path / name), schema)
        return [
            pd.concat(map(pd.read_parquet, tmp_path.glob(f"{name}-*"))).set_index("id").sort_index()
            for name in types
        ]

    return run


def test_beam_scores_tables(exact, tmp_path, transform):
    table = frame(1_000)  # in several row groups
    table.loc[417, "b"] = np.inf
    write(tmp_path / "in.parquet", table)
    scores, rejected = transform(exact / "normalized", list("abc"), keep=["id"], batch_rows=64)
    good = table.drop(417).set_index("id").sort_index()
    assert list(scores) == ["log_density"]
    assert scores.index.equals(good.index)
    np.testing.assert_allclose(scores["log_density"], truth(good), atol=2e-5)
    reason = "column 'b' must be finite in float32, got inf"
    assert rejected["reason"].to_dict() == {table["id"][417]: reason}


def test_threads_of_a_process_share_the_model(exact):
    pytest.importorskip("apache_beam")
    from apache_beam.internal import pickler

    from tfdde.beam import _Score

    made = _Score(str(exact / "normalized"), list("abc"), None, ["id"], None)
    threads = [pickler.loads(pickler.dumps(made)) for _ in range(2)]
    for thread in threads:
        thread.setup()
    assert threads[0].scorer is threads[1].scorer
    table = frame(20)
    ids = blocks.pa.array(table["id"], blocks.pa.string()).cast(blocks.pa.string_view())
    columns = {name: blocks.pa.array(table[name]) for name in "abc"} | {"id": ids}
    (scores,) = threads[1].process(blocks.pa.table(columns))
    assert scores.schema.field("id").type == blocks.pa.string()
    assert scores.column("id").to_pylist() == table["id"].tolist()
    np.testing.assert_allclose(scores.column("log_density"), truth(table), atol=2e-5)


def test_elements_are_tables_or_record_batches(exact):
    pytest.importorskip("apache_beam")
    import apache_beam as beam

    from tfdde.beam import _Score

    made = _Score(str(exact / "normalized"), list("abc"), None, ["id"], None)
    made.setup()
    table = frame(4)
    batch = blocks.pa.RecordBatch.from_pandas(table)
    (scores,) = made.process(batch)
    np.testing.assert_allclose(scores.column("log_density"), truth(table), atol=2e-5)
    row = table.iloc[0].to_dict()
    for element, kind in ((row, "dict"), (table, "DataFrame"), (beam.Row(**row), "Row")):
        with pytest.raises(TypeError, match=f"must be pyarrow tables, got {kind}: read them with"):
            next(made.process(element))


def test_beam_refuses_tables_that_do_not_fit(exact, tmp_path, transform):
    write(tmp_path / "in.parquet", frame(5))
    with pytest.raises(Exception, match="`columns` must be 3 of 'the table'.* got 4: a, b, c, id"):
        transform(exact / "normalized")
