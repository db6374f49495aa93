"""Provoke faults: kill trainings at random moments, and train on data that deceive log Z.

    python benchmarks/faults.py
    python benchmarks/faults.py --kills 4 --runs 1     # a trial
    python benchmarks/faults.py log_z
    python benchmarks/faults.py log_z --sets "t, 2 degrees" --kinds "silu 48x3"

``kills`` runs train/toy.py with small networks and many checkpoints, in processes that get SIGKILL:
every second one at a random moment of the training, the others while a file is being written. The
weights and logs at the end must be those of the run without kills, bit for bit.

``log_z`` trains densities of heavy-tailed, far-moded and badly scaled rows (``hard_sets.py``) and
compares their log Z with quadrature. Each must be right, within 3 standard errors and 0.001 nats,
or not trusted.
"""

import argparse
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).parent.parent
ARGS = ["--width=8", "--depth=2", "--generator-width=8", "--generator-depth=2", "--dde-steps=2"]
ARGS += ["--batch-size=32", "--no-jit", "--steps=210", "--generator-steps=110"]
EPOCH = 20  # steps between two checkpoints: writing them is a large part of the training
SAVE = 0.01  # seconds, less than it takes to write one
LIMIT = 900  # seconds that a process may take

# Each process starts from one that has imported all and done nothing.
processes = multiprocessing.get_context("forkserver")


def train(folder, resume):
    """In a process of its own: the script, as from the command line."""
    import toy  # type: ignore[import-not-found]  # train/toy.py

    os.chdir(folder.parent)
    toy.EPOCH, toy.POOL = EPOCH, 10_000
    sys.stdout = sys.stderr = (folder.parent / "output.txt").open("a", buffering=1)
    sys.exit(toy.main([*ARGS, f"--output={folder}"] + ["--resume"] * resume))


def start(folder):
    """Start the training, or resume it if it had come so far that there is something to resume."""
    process = processes.Process(target=train, args=(folder, (folder / "config.json").exists()))
    process.start()
    return process


def finish(process):
    """Wait for an undisturbed end."""
    process.join(LIMIT)
    if process.exitcode != 0:
        process.kill()
        raise RuntimeError(f"The training ended with {process.exitcode}: see its output.txt.")


def half_written(folder):
    """The files that `tfdde.utils.files.atomic` has begun."""
    found = [*folder.glob(".*"), *folder.glob("checkpoint/.*")]
    return {p for p in found if re.match(r"\.\d+\.", p.name)}


def written(folder):
    """When the logs were last written: they are, after each epoch."""
    return [p.stat().st_mtime_ns for p in sorted(folder.glob("*.csv"))]


def wait(process, condition, pause):
    """Ask every ``pause`` seconds until ``condition()``, or the process ends."""
    while process.is_alive() and not condition():
        time.sleep(pause)


def kill(folder, epochs, in_save, moment):
    """Start or resume, and send SIGKILL; tell when: "ended", "training" or "saving".

    Args:
        folder: of the run.
        epochs: to let it train before.
        in_save: whether to wait, then, for a file that is being written.
        moment: seconds to wait, then.
    """
    older = half_written(folder)  # of earlier kills
    process = start(folder)
    for _ in range(epochs):
        before = written(folder)
        wait(process, lambda before=before: written(folder) != before, 0.01)
    if in_save:
        wait(process, lambda: half_written(folder) - older, 0.0005)
    time.sleep(moment)
    process.kill()
    process.join()
    if process.exitcode == 0:
        return "ended"
    return "saving" if half_written(folder) - older else "training"


def state(folder):
    """All arrays and logs of a run by name."""
    arrays = {}
    for phase in ("density", "generator"):
        with zipfile.ZipFile(folder / f"{phase}.keras") as archive:
            archive.extract("model.weights.h5", folder / f"{phase}-h5")
        files = [folder / f"checkpoint/{phase}.weights.h5", folder / f"{phase}-h5/model.weights.h5"]
        for path in files:
            with h5py.File(path) as f:

                def visit(name, item, where=path):
                    if isinstance(item, h5py.Dataset):
                        arrays[f"{where.relative_to(folder)}:{name}"] = np.asarray(item)

                f.visititems(visit)
        arrays[f"{phase}.csv"] = np.frombuffer((folder / f"{phase}.csv").read_bytes(), np.uint8)
    return arrays


def log_z(args):
    """Train on the hard sets and compare log Z with quadrature; wrong and trusted is a failure."""
    import hard_sets  # imports TensorFlow, which the processes of `kills` are not to inherit
    import record

    failures = []
    for name in args.sets or hard_sets.SETS:
        x = hard_sets.sample(name, args.rows, args.seed)
        for kind in args.kinds or hard_sets.KINDS:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                dde = hard_sets.train(x, hard_sets.SETS[name][1], kind, seed=args.seed)
                start = time.time()
                estimate = dde.log_partition(x)
                seconds = time.time() - start
            truth = hard_sets.true_log_z(dde, x)
            error = abs(estimate.value - truth)
            right = error <= 3 * estimate.standard_error + 0.001
            if estimate.trusted and not right:
                failures.append(f"{name}, {kind}")
            row = {
                "name": f"log Z, {name}, {kind}, seed {args.seed}",
                "rows": args.rows,
                "log_partition": estimate.get_config(),
                "trusted": estimate.trusted,
                "quadrature": round(truth, 4),
                "right": right,
                "heavy_tailed_base": getattr(dde.base, "heavy_tailed", False),
                "warned_of_low_noise": any("LogUniform.maximum" in str(w.message) for w in caught),
                "seconds": round(seconds, 1),
            }
            record.add("faults", row)
    print(f"trusted and wrong: {failures or 'none'}")
    sys.exit(bool(failures))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=("kills", "log_z"), default="kills")
    parser.add_argument("--kills", type=int, default=30, help="in all")
    parser.add_argument("--runs", type=int, default=5, help="that share them")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--sets", nargs="+", help="of log_z, by default all")
    parser.add_argument("--kinds", nargs="+", help="of networks of log_z, by default all")
    parser.add_argument("--rows", type=int, default=5_000, help="of the sets of log_z")
    args = parser.parse_args()
    if args.what == "log_z":
        log_z(args)
    # Where the first process, too, finds the script and the package.
    paths = [str(ROOT / "train"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    processes.set_forkserver_preload(["toy"])
    rng = random.Random(args.seed)
    each = args.kills // args.runs
    epochs = 16 // each  # at most, so that the last kill still has something to disturb
    with tempfile.TemporaryDirectory() as top:
        whole = Path(top) / "whole"
        finish(start(whole))
        truth = state(whole)
        moments, different = [], []
        for run in range(args.runs):
            folder = Path(top) / str(run)
            for _ in range(each):
                in_save = len(moments) % 2 == 1
                moment = rng.uniform(0, SAVE if in_save else 0.5)
                moments.append(kill(folder, rng.randrange(epochs), in_save, moment))
                print(f"run {run}: {moments[-1]}, at {len(written(folder))} logs", flush=True)
            finish(start(folder))
            found = state(folder)
            different += [
                f"{run}/{name}"
                for name in truth.keys() | found.keys()
                if not np.array_equal(truth.get(name), found.get(name))
            ]
    import record  # imports TensorFlow, which the processes are not to inherit

    row = {
        "name": "SIGKILL",
        "kills": sum(moment != "ended" for moment in moments),
        "while_saving": moments.count("saving"),
        "runs": args.runs,
        "arrays_and_logs_compared": len(truth) * args.runs,
        "different": different,
    }
    record.add("faults", row)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
