"""Fuzzing of the readers of users' files: only clear errors, no crash, no hang.

    python benchmarks/fuzz.py idx csv blocks tfrecord config --inputs 250000

For each target, atheris (coverage-guided, libFuzzer) makes inputs in a process of its own, starting
from valid files.  A target fails if it raises anything but the reader's own error of one line, if
one input takes 10 s, or if memory rises by more than 512 MiB after the imports.  Adds rows to
results/fuzz.json: the inputs tried, the seconds, and by how much memory rose.
"""

import argparse
import gzip
import inspect
import json
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tfdde import runs
from tfdde.datasets import images, tables
from tfdde.datasets.readers import blocks, csv_lines, tfrecords

MEMORY_MIB, SECONDS = 512, 10


def write(folder, name, content):
    """Write a file with this content, in place of the file of an earlier input."""
    path = folder / name
    path.write_bytes(content)
    return path


def idx(data, folder):
    """Read an IDX file, compressed if the first byte is odd."""
    name = "x"
    if data[:1] and data[0] % 2:
        data, name = gzip.compress(data[1:], compresslevel=0), "x.gz"
    array = images.read_idx(write(folder, name, data))
    assert array.dtype == np.uint8


def csv(data, folder):
    """Read a table to train on."""
    x, names = tables.read_table(write(folder, "x.csv", data))
    assert x.shape[1] == len(names) and np.isfinite(x).all()


def csv_blocks(data, folder):
    """Read a table to score: each line is a good or a bad row; blank ones in one column only."""
    source = blocks.Source(write(folder, "x.csv", data), None, None, (), None)
    rows = 0
    for block in source:
        good = np.array([reason is None for reason in block.reasons], bool)
        assert np.isfinite(block.values[good]).all()
        rows += len(block)
    lines = data.split(b"\n")[1:]
    if source.width == 1:
        assert rows == len(lines) - (lines[-1:] == [b""])  # no line follows the last line feed
    else:
        assert rows == sum(1 for line in lines if line.strip())


def tfrecord(data, folder):
    """Read records; a corrupt or cut-off record ends them with a reason, not an error."""
    for block in blocks.Source(write(folder, "x.tfrecord", data), None, None, (), 2):
        good = np.array([reason is None for reason in block.reasons], bool)
        assert np.isfinite(block.values[good]).all()


def config(data, folder):
    """Resume a run with this config.json."""
    write(folder, "config.json", data)
    runs.Run(folder, {"sigma": 0.2}, resume=True)


def seeds():
    """Return valid files to start from, by target."""
    import tensorflow as tf

    image = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 2, 2) + bytes(range(8))
    lying = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 9) + bytes(8)
    values = tf.train.Feature(float_list=tf.train.FloatList(value=[1.0, -2.5]))
    example = tf.train.Example(features=tf.train.Features(feature={"x": values}))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "x.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(example.SerializeToString())
        record = path.read_bytes()
    text = b'a,b\n1,2\n3e4,"-5"\n\n6,inf\n'
    return {
        "idx": [b"\0" + image[1:], b"\1" + image, lying],
        "csv": [b"a,b\n1,2\n3e4,-5\n", text],
        "blocks": [text, b"a\r\n1\r\n2\r\n"],
        "tfrecord": [2 * record],
        "config": [b'{"arguments": {"sigma": 0.2}, "versions": {}}', b'{"arguments": null}'],
    }


# Each target: the reader to call, and the errors that it may raise.
TARGETS = {
    "idx": (idx, ValueError),
    "csv": (csv, ValueError),
    "blocks": (csv_blocks, ValueError),
    "tfrecord": (tfrecord, ValueError),
    "config": (config, runs.RunError),
}


def try_one(target, data, folder):
    """Try one input; raise an error unless the reader accepts it or raises a clear error."""
    call, expected = TARGETS[target]
    try:
        call(data, folder)
    except expected as error:
        text = str(error)
        if not text.strip() or "\n" in text:
            raise AssertionError(f"not one clear line: {error!r}") from error


def resident_mib(name):
    """Return the memory of this process in MiB: now (VmRSS) or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024


def fuzz(target, inputs, corpus):
    """Fuzz a target in this process, which libFuzzer ends."""
    import atheris

    for module in (images, tables, blocks, csv_lines, tfrecords, runs):
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                atheris.instrument_func(function)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.exists() else None) as scratch:
        folder = Path(scratch)
        for data in seeds()[target]:
            try_one(target, data, folder)
        before, done = resident_mib("VmRSS"), 0

        def one(data):
            nonlocal done
            try_one(target, data, folder)
            done += 1
            if done % 1000 == 0 or done == inputs:
                rise = resident_mib("VmHWM") - before
                if rise > MEMORY_MIB:
                    raise MemoryError(f"memory rose by {rise:.0f} MiB")
                if done == inputs:
                    print(json.dumps({"inputs": done, "memory_rise_mib": round(rise)}), flush=True)

        flags = [f"-runs={inputs}", f"-timeout={SECONDS}", "-rss_limit_mb=0", "-max_len=4096"]
        atheris.Setup([sys.argv[0], *flags, "-verbosity=0", str(corpus)], one)
        atheris.Fuzz()


def run(target, inputs):
    """Fuzz a target in another process; return its row of results."""
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus"
        corpus.mkdir()
        for i, data in enumerate(seeds()[target]):
            (corpus / str(i)).write_bytes(data)
        start = time.time()
        command = [sys.executable, Path(__file__).resolve(), target, "--inputs", str(inputs)]
        done = subprocess.run(
            [*command, "--corpus", corpus], cwd=scratch, capture_output=True, text=True
        )
        seconds = time.time() - start
        reports = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not reports:
            for crash in Path(scratch).glob("*-*"):
                print(f"input: {crash.read_bytes()!r}", file=sys.stderr)
            raise SystemExit(f"{target}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
    return {"name": target, **json.loads(reports[-1]), "seconds": round(seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="+", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=250_000, help="of each target")
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only-print", action="store_true", help="leave results/ as it is")
    args = parser.parse_args()
    if args.corpus:
        fuzz(args.targets[0], args.inputs, args.corpus)
    import record as results

    for target in args.targets:
        row = run(target, args.inputs)
        if args.only_print:
            print(json.dumps(row))
        else:
            results.add("fuzz", row)


if __name__ == "__main__":
    main()
