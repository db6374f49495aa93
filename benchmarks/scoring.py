"""Speed and memory of export/score.py: fresh processes that score Parquet files of many rows.

    python benchmarks/scoring.py

8 columns, a network of 4 residual layers of 64 units. `rows_per_second` leaves out the start of
the process, which is measured by a file of one row; `peak_mib` is its largest resident memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import record

import tfdde
from tfdde import serving

SCRIPT = Path(__file__).parent.parent / "export" / "score.py"
COLUMNS = [f"x{i}" for i in range(8)]
CHUNK = 2**20  # rows of a row group


def write(path, rows):
    """Standard normal rows."""
    schema = pa.schema([(name, pa.float32()) for name in COLUMNS])
    rng = np.random.default_rng(0)
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, CHUNK):
            x = rng.standard_normal((len(COLUMNS), min(CHUNK, rows - start)), np.float32)
            writer.write_table(pa.table(list(x), COLUMNS))


def score(model, source, output):
    """Seconds and peak memory in MiB of a process that scores a file."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, SCRIPT, model, "--input", source, "--output", output],
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("export/score.py failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        keras.utils.set_random_seed(0)
        density = tfdde.DDE(tfdde.networks.residual_mlp(len(COLUMNS), width=64, depth=4))
        model, _ = serving.export_savedmodel(folder / "model", density)
        start = 0.0
        for rows in [1, *args.rows]:
            source, output = folder / "in.parquet", folder / "out.parquet"
            write(source, rows)
            seconds, peak = score(model, source, output)
            if pa.parquet.read_metadata(output).num_rows != rows:
                sys.exit(f"{rows} rows went in, others came out")
            output.unlink()
            if rows == 1:
                start = seconds
                continue
            record.add(
                "scoring",
                {
                    "name": f"parquet, {rows} rows",
                    "rows": rows,
                    "seconds": round(seconds, 2),
                    "start_seconds": round(start, 2),
                    "rows_per_second": round((rows - 1) / (seconds - start)),
                    "peak_mib": round(peak),
                },
            )


if __name__ == "__main__":
    main()
