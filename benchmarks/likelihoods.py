"""Held-out log-likelihoods of tfdde and of other estimators, at equal wall-clock budgets.

    python benchmarks/likelihoods.py synthetic --seconds 60
    python benchmarks/likelihoods.py real --seconds 60 --only wine-0 mnist-43 --methods tfdde maf
    python benchmarks/likelihoods.py table

Synthetic: the target is the density blurred by N(0, 0.1**2 I), which is known exactly, so that each
row has its gap to the truth, KL(truth || estimate).  Real: clean held-out rows.  Each method runs
in a process of its own.  Each pair of data set and method adds a row to results/likelihoods.json as
soon as it is measured, and a run with the same budget skips rows that are there.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import peers

# TensorFlow, tfdde and record are imported where they are needed: the processes of the methods
# import this file too, and those of the flows must have no threads but those of torch.

SIGMA = 0.1
TRAIN, VALIDATION, TEST = 50_000, 5_000, 10_000
FAMILIES = {"mixture": "Mixture", "toys": "RotatedToys", "tails": "HeavyTails", "chain": "Chain"}
SYNTHETIC = [f"mixture-{n}" for n in (2, 8, 21, 43)] + [f"toys-{n}" for n in (2, 8, 22, 42)]
SYNTHETIC += [f"tails-{n}" for n in (8, 21)] + [f"chain-{n}" for n in (8, 21)]
SPLITS = 3  # of the small sets
REAL = [f"{name}-{k}" for name in ("wine", "breast_cancer", "digits") for k in range(SPLITS)]
REAL += ["mnist-43"]


def make_family(name, seed=0):
    import families

    kind, n = name.rsplit("-", 1)
    return getattr(families, FAMILIES[kind])(int(n), seed)


def load_real(name, data_dir):
    """Training, validation and test rows, clean."""
    from tfdde import datasets

    kind, number = name.rsplit("-", 1)
    if kind == "mnist":
        table = datasets.load_mnist_components(int(number), data_dir)
    else:
        table = datasets.load_builtin(kind, seed=int(number))
    return table.x_train, table.x_validation, table.x_test


def measure(method, x_train, x_validation, y, seconds, sigma=None, truth=None, seed=0):
    """Fit a method in a fresh process and evaluate it at the rows ``y``.

    Standard errors are those of the mean over rows and, if log Z was estimated, of log Z, in
    quadrature.

    Args:
        method: name in ``peers.METHODS``.
        x_train, x_validation: clean rows (m, n).
        y: test rows: noisy ones with a ``sigma``, clean ones otherwise.
        seconds, sigma, seed: as in ``peers``.
        truth: exact log-density at ``y``, shape (len(y),).

    Returns:
        A dict of numbers for the results, in nats per row.
    """
    from tfdde.utils.statistics import mean_and_error

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        arguments = (method, x_train, x_validation, y, seconds, sigma, seed)
        log_q, facts = process.submit(peers.fit_and_evaluate, *arguments).result()
    log_z_error = facts.get("log_z_standard_error", 0.0)

    row = {"n": y.shape[1], "budget_seconds": seconds, "seconds": facts.pop("seconds")}
    row["cores"] = len(os.sched_getaffinity(0))
    row["log_likelihood"], row["standard_error"] = mean_and_error(log_q, log_z_error)
    if truth is not None:
        row["truth"] = float(truth.mean())
        row["gap"], row["gap_standard_error"] = mean_and_error(truth - log_q, log_z_error)
    return row | {"rows": [len(x_train), len(x_validation), len(y)], "sigma": sigma, "facts": facts}


def read_rows():
    import record

    path = record.RESULTS / "likelihoods.json"
    return json.loads(path.read_text()) if path.exists() else []


def rows_of(what, name, data_dir, seed=0):
    """Training, validation and test rows of a data set, its sigma, and the truth or None."""
    if what == "real":
        return *load_real(name, data_dir), None, None
    family = make_family(name, seed)
    train, validation, test = (
        family.sample(m, 10 * seed + k) for k, m in enumerate((TRAIN, VALIDATION, TEST), 1)
    )
    noise = np.random.default_rng(10 * seed + 4).standard_normal(test.shape, np.float32)
    y = test + np.float32(SIGMA) * noise
    return train, validation, y, SIGMA, family.log_density(y, SIGMA)


def run(what, names, methods, seconds, data_dir, again, seed):
    import record

    have = {(row["name"], row["budget_seconds"]) for row in read_rows()}
    for name in names:
        title = f"{name} (seed {seed})" if seed else name
        todo = [m for m in methods if again or (f"{title}, {m}", seconds) not in have]
        if not todo:
            continue
        x_train, x_validation, y, sigma, truth = rows_of(what, name, data_dir, seed)
        for method in todo:
            row = measure(method, x_train, x_validation, y, seconds, sigma, truth, seed)
            record.add("likelihoods", {"name": f"{title}, {method}", **row})


def table(rows):
    """Markdown: gaps to the truth where it is known, log-likelihoods otherwise.

    Of several splits it is the mean, with the standard error of the splits' mean.
    """
    cells, titles = {}, {}
    for row in rows:
        name, method = row["name"].split(", ")
        if "gap" not in row and not name.startswith("mnist"):
            name = name.rsplit("-", 1)[0]
        titles[name] = "gap to truth" if "gap" in row else "log-likelihood"
        key = "gap" if "gap" in row else "log_likelihood"
        error = row["gap_standard_error" if "gap" in row else "standard_error"]
        cells.setdefault((name, method), []).append((row[key], error))

    def text(values):
        if not values:
            return ""
        means, errors = np.array(values).T
        error = errors[0] if len(means) == 1 else means.std(ddof=1) / math.sqrt(len(means))
        return f"{means.mean():.3f} ± {error:.3f}"

    lines = ["| data | in nats | " + " | ".join(peers.METHODS) + " |"]
    lines += ["|---" * (len(peers.METHODS) + 2) + "|"]
    for name, title in titles.items():
        each = [text(cells.get((name, method), [])) for method in peers.METHODS]
        lines.append(f"| {name} | {title} | " + " | ".join(each) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("synthetic", "real", "table"))
    parser.add_argument("--seconds", type=float, default=60.0, help="budget of each fit")
    parser.add_argument("--only", nargs="+", choices=SYNTHETIC + REAL, metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=peers.METHODS, default=[*peers.METHODS])
    parser.add_argument("--data-dir", help="folder with the IDX files of MNIST")
    parser.add_argument("--seed", type=int, default=0, help="of synthetic families, rows and fits")
    parser.add_argument("--again", action="store_true", help="measure rows that exist anew")
    args = parser.parse_args()
    if args.what == "table":
        print(table(read_rows()))
        return 0
    names = SYNTHETIC if args.what == "synthetic" else REAL
    if wrong := [name for name in args.only or [] if name not in names]:
        parser.error(f"--only must name {args.what} sets ({', '.join(names)}), got {wrong[0]}")
    if args.seed and args.what == "real":
        parser.error("--seed is for synthetic sets")
    names = args.only or names
    run(args.what, names, args.methods, args.seconds, args.data_dir, args.again, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
