"""Speed and memory of export/score.py: fresh processes that score Parquet files of many rows.

    python benchmarks/scoring.py

8 columns, a network of 4 residual layers of 64 units. `seconds` is of all that comes after the
imports, `process_seconds` with them, `cpu_seconds` on all cores; `peak_mib` is the largest
resident memory, `imported_mib` that of the imports alone. `explained` are rows whose columns'
shares are asked for, all of them.
"""

import argparse
import json
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

COLUMNS = [f"x{i}" for i in range(8)]
CHUNK = 2**20  # rows of a row group


def write(path, rows):
    """Write standard normal rows."""
    schema = pa.schema([(name, pa.float32()) for name in COLUMNS])
    rng = np.random.default_rng(0)
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, CHUNK):
            x = rng.standard_normal((len(COLUMNS), min(CHUNK, rows - start)), np.float32)
            writer.write_table(pa.table(list(x), COLUMNS))


MEASURED = """
import json, re, sys, time
from pathlib import Path
from tfdde import scoring

def usage():
    # Not getrusage, whose peak is at least that of the parent.
    peak = re.search("VmHWM:\\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1]
    return int(peak) / 1024, time.process_time()

(imported, cpu), start = usage(), time.perf_counter()
scoring.score_file(*sys.argv[1:4], **json.loads(sys.argv[4]))
seconds, (peak, end) = time.perf_counter() - start, usage()
print(json.dumps([seconds, end - cpu, round(imported), round(peak)]))
"""


def score(model, source, output, rows, **options):
    """Measure a process that scores a file, with these options of `score_file`."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, model, source, output, json.dumps(options)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    total = time.perf_counter() - start
    if pa.parquet.read_metadata(output).num_rows != rows:
        sys.exit(f"{rows} rows went in, others came out")
    seconds, cpu, imported, peak = json.loads(done.stdout.splitlines()[-1])
    return {
        "seconds": round(seconds, 2),
        "process_seconds": round(total, 2),
        "cpu_seconds": round(cpu, 2),
        "rows_per_second": round(rows / seconds),
        "imported_mib": imported,
        "peak_mib": peak,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="*", default=[10**5, 10**6, 10**7])
    parser.add_argument("--explained", type=int, nargs="*", default=[10**3, 10**4])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        keras.utils.set_random_seed(0)
        density = tfdde.DDE(tfdde.networks.residual_mlp(len(COLUMNS), width=64, depth=4))
        model, _ = serving.export_savedmodel(folder / "model", density)
        source, output = folder / "in.parquet", folder / "out.parquet"
        for rows in args.rows:
            write(source, rows)
            measured = score(model, source, output, rows)
            output.unlink()
            record.add("scoring", {"name": f"parquet, {rows} rows", "rows": rows, **measured})
        normal = folder / "normal.parquet"
        write(normal, 1_000)
        for rows in args.explained:
            write(source, rows)
            measured = score(model, source, output, rows, explain="first", normal=str(normal))
            output.unlink()
            name = f"parquet, {rows} rows, explained"
            record.add("scoring", {"name": name, "rows": rows, "explained": rows, **measured})


if __name__ == "__main__":
    main()
