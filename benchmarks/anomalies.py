"""Anomaly scores on the ADBench tables, beside PyOD's detectors.

    python benchmarks/anomalies.py run --folder DIR
    python benchmarks/anomalies.py record --folder DIR

One-class setting, as the field has it: half of the normal rows of a table train; the other half
and all anomalies are scored. Tables are cut to 5,000 training rows, 5,000 normal rows and 5,000
anomalies. Unsupervised setting: a detector is fitted to all rows, of 10,000 at most, without
labels, and scores the same rows. No label is used before the areas in the end, and all tables have
the same settings.

`run` writes a file for each table, seed and method, and skips those that exist. `record` gathers
them in results/anomalies.json.
"""

import argparse
import json
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import record
from anomaly_peers import PEERS
from sklearn.metrics import average_precision_score, roc_auc_score

from tfdde.utils.files import write_json

MOST = 5_000  # training rows, normal rows and anomalies of a table
SETTINGS = ("one_class", "unsupervised")


def split(x, y, setting, seed):
    """Return training rows, rows to score and whether these are anomalies, standardised."""
    rng = np.random.default_rng(seed)
    normal, strange = (rng.permutation(np.flatnonzero(y == label)) for label in (0, 1))
    if setting == "one_class":
        half = len(normal) // 2
        train, normal = normal[:half][:MOST], normal[half:][:MOST]
        test = np.r_[normal, strange[:MOST]]
    else:  # the share of anomalies stays
        test = train = rng.permutation(len(x))[: 2 * MOST]
    x = x.astype(np.float64)
    mean, std = x[train].mean(axis=0), x[train].std(axis=0)
    std[std < 1e-9 * (1 + np.abs(mean))] = 1.0
    rows = (x - mean) / std
    scored = rows[test]
    return scored if train is test else rows[train], scored, y[test]


def denoising(train, rows, seed):
    """Train tfdde's density of all levels; return {name: scores} of its anomaly scores.

    All tables have these settings, which were chosen on other splits (seeds of 100 and more).
    """
    import keras

    import tfdde

    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    train = train.astype(np.float32)
    dde = tfdde.recipes.table_density(train, tfdde.LogUniform(0.1, 8.0), 128, 2, seed=seed)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, STEPS)
    dde.compile(tfdde.optimizers.FusedAdam(schedule, use_ema=True), steps_per_execution=50)
    dde.fit(tfdde.datasets.stream(train, 128, seed), steps_per_epoch=STEPS, verbose=0)
    scores = tfdde.anomalies.AnomalyScores(dde, train)
    return {method: scores.anomaly_score(rows, method) for method in NETWORK}


def closed_form(train, rows, seed):
    """The density of the blurred training rows, which needs no network and no seed."""
    from tfdde.anomalies import RowsDensity

    del seed
    return {"rows": -RowsDensity(train).log_density(rows, leave_one_out=rows is train)}


STEPS = 300
NETWORK = ["joint", "density", "score", "time"]
METHODS = ["rows", *NETWORK, *PEERS]


def path_of(folder, setting, table, seed, method):
    return folder / setting / f"{table}.{seed}.{method}.json"


def run(args):
    files = sorted((args.data_dir / "adbench").glob("*.npz"), key=lambda p: p.stat().st_size)
    for seed in args.seeds:
        for file in files:
            table = file.stem.partition("_")[2]
            if args.tables and table not in args.tables:
                continue
            data = None
            for method in args.methods:
                path = path_of(args.folder, args.setting, table, seed, method)
                if path.exists():
                    continue
                if data is None:
                    with np.load(file, allow_pickle=False) as columns:
                        data = split(columns["X"], columns["y"], args.setting, seed)
                train, rows, y = data
                start = time.perf_counter()
                if method in ("rows", *NETWORK):
                    found = (closed_form if method == "rows" else denoising)(train, rows, seed)
                else:
                    found = {method: PEERS[method](train, rows, seed)}
                seconds = time.perf_counter() - start
                for name, scores in found.items():
                    roc, pr = (100 * f(y, scores) for f in (roc_auc_score, average_precision_score))
                    result = {"roc": roc, "pr": pr, "seconds": seconds}
                    write_json(path_of(args.folder, args.setting, table, seed, name), result)
                    print(f"{table} {seed} {name}: {roc:.1f} {pr:.1f}, {seconds:.1f} s", flush=True)


def gather(args, method):
    """Return {table: {seed: result}} of a method: the files of the seeds and tables asked for."""
    found = {}
    for path in sorted((args.folder / args.setting).glob(f"*.{method}.json")):
        table, seed = path.name[: -len(f".{method}.json")].rsplit(".", 1)
        if int(seed) in args.seeds and (not args.tables or table in args.tables):
            found.setdefault(table, {})[int(seed)] = json.loads(path.read_text())
    return found


def summary(found):
    """Return both areas in percent: means over tables and, of several seeds, the standard error."""
    out = {}
    for key in ("roc", "pr"):
        values = np.array([[found[t][s][key] for s in sorted(found[t])] for t in sorted(found)])
        means = values.mean(axis=0)
        out[key] = [round(float(means.mean()), 2)]
        if len(means) > 1:
            out[key].append(round(float(means.std(ddof=1) / np.sqrt(len(means))), 2))
    return out


def report(args):
    for method in METHODS:
        found = gather(args, method)
        seeds = [set(rows) for rows in found.values()]
        if not found or any(s != seeds[0] for s in seeds):
            print(f"{method}: {sum(map(len, seeds))} files, not all seeds of all tables")
            continue
        result = summary(found)
        seconds = [r["seconds"] for rows in found.values() for r in rows.values()]
        row = {
            "name": ", ".join([args.setting, method, *args.label]),
            "tables": len(found),
            "seeds": sorted(seeds[0]),
            "auc_roc": result["roc"],
            "auc_pr": result["pr"],
            "peers": {name: version(name) for name in ("pyod", "scikit-learn")},
            "seconds": {"mean": round(np.mean(seconds), 2), "most": round(max(seconds), 2)},
        }
        if args.command == "report":
            print(row)
            continue
        row["by_table"] = {
            table: " ".join(f"{rows[s]['roc']:.2f}/{rows[s]['pr']:.2f}" for s in sorted(rows))
            for table, rows in found.items()
        }
        record.add("anomalies", row)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("command", choices=["run", "report", "record"])
    add("--folder", type=Path, required=True, help="of the files of a run")
    add("--data-dir", type=Path, help="folder that holds adbench/; else TFDDE_DATA_DIR")
    add("--setting", choices=SETTINGS, default="one_class")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--seeds", nargs="+", type=int, default=list(range(5)))
    add("--tables", nargs="+", help="names, such as thyroid; default: all")
    add("--label", nargs="*", default=[], help="record: words to add to the names of the rows")
    args = parser.parse_args(argv)
    if args.command == "run":
        import os

        args.data_dir = args.data_dir or Path(os.environ["TFDDE_DATA_DIR"])
        warnings.simplefilter("ignore")
        run(args)
    else:
        report(args)


if __name__ == "__main__":
    main()
