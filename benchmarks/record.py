"""Results of benchmarks in JSON files, with the machine, versions, command and date."""

import datetime
import json
import os
import platform
import resource
import shlex
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import tfdde
from tfdde.utils.files import write_json

RESULTS = Path(__file__).parent / "results"


def machine():
    """Return the processor's name, cores and memory."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0].partition(":")[2].strip() if models else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, no GPU"


def children_time():
    """Seconds of the processor that ended child processes have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def add(benchmark, row):
    """Add ``row`` to results/<benchmark>.json, in place of one with the same "name"."""
    path = RESULTS / f"{benchmark}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    row = {
        **row,
        "machine": machine(),
        "versions": {m.__name__: m.__version__ for m in (tfdde, tf, keras, np)},
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }
    rows = [r for r in rows if r["name"] != row["name"]] + [row]
    write_json(path, rows, indent=1)
    print(json.dumps(row, indent=1))
