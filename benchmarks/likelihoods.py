"""Held-out log-likelihoods of tfdde and of other estimators, at equal wall-clock budgets.

    python benchmarks/likelihoods.py synthetic --seconds 60
    python benchmarks/likelihoods.py real --seconds 60 --only wine-0 diamonds-0 --data-dir DIR
    python benchmarks/likelihoods.py tune --seconds 60 600 --seeds 100 101
    python benchmarks/likelihoods.py report --seconds 60 600 --seeds 0 1 2 3 4
    python benchmarks/likelihoods.py table

Synthetic: the target is the density blurred by N(0, 0.1**2 I), which is known exactly, so that each
row has its gap to the truth, KL(truth || estimate).  Real: clean held-out rows, of the splits 0, 1
and 2; the tables of ``real_tables.py`` are not part of the repository.  Each method runs in a
process of its own; with ``--clock cpu`` its budget is of processor time.  Each pair of data set and
method adds a row to results/likelihoods.json as soon as it is measured, and a run with the same
budget skips rows that are there.

``tune`` and ``report`` repeat the synthetic sets with several seeds of family, rows and fits, with
the time for log Z inside the budget (results/likelihood_seeds.json).  ``tune`` measures all four
settings of each flow, on seeds of 100 and more; ``report`` takes the best of each data set and
budget there, on seeds below 100.  The methods take turns, and rows that are there are skipped.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import peers
import real_tables

# TensorFlow, tfdde and record are imported where they are needed: the processes of the methods
# import this file too, and those of the flows must have no threads but those of torch.

SIGMA = 0.1
TRAIN, VALIDATION, TEST = real_tables.ROWS
FAMILIES = {"mixture": "Mixture", "toys": "RotatedToys", "tails": "HeavyTails", "chain": "Chain"}
SYNTHETIC = [f"mixture-{n}" for n in (2, 8, 21, 43)] + [f"toys-{n}" for n in (2, 8, 22, 42)]
SYNTHETIC += [f"tails-{n}" for n in (8, 21)] + [f"chain-{n}" for n in (8, 21)]
SPLITS = 3  # of the real sets but MNIST
OPTIONS = {method: {"log_z_inside": True} for method in ("tfdde", "tfdde_one_gaussian")}
REAL = [f"{name}-{k}" for name in ("wine", "breast_cancer", "digits") for k in range(SPLITS)]
REAL += [f"{name}-{k}" for name in real_tables.TABLES for k in range(SPLITS)] + ["mnist-43"]


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
    elif kind in real_tables.TABLES:
        return real_tables.split(kind, int(number), Path(data_dir) / "tables")
    else:
        table = datasets.load_builtin(kind, seed=int(number))
    return table.x_train, table.x_validation, table.x_test


def measure(method, x_train, x_validation, y, seconds, sigma=None, truth=None, seed=0, **options):
    """Fit a method in a fresh process and evaluate it at the rows ``y``.

    Standard errors are those of the mean over rows and, if log Z was estimated, of log Z, in
    quadrature.

    Args:
        method: name in ``peers.METHODS``.
        x_train, x_validation: clean rows (m, n).
        y: test rows: noisy ones with a ``sigma``, clean ones otherwise.
        seconds, sigma, seed: as in ``peers``.
        truth: exact log-density at ``y``, shape (len(y),).
        options: of the method.

    Returns:
        A dict of numbers for the results, in nats per row.
    """
    from tfdde.utils.statistics import mean_and_error

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        arguments = (method, x_train, x_validation, y, seconds, sigma, seed, options)
        log_q, facts = process.submit(peers.fit_and_evaluate, *arguments).result()
    log_z_error = facts.get("log_z_standard_error", 0.0)

    row = {"n": y.shape[1], "budget_seconds": seconds, "seconds": facts.pop("seconds")}
    row["cores"] = len(os.sched_getaffinity(0))
    row["log_likelihood"], row["standard_error"] = mean_and_error(log_q, log_z_error)
    if truth is not None:
        row["truth"] = float(truth.mean())
        row["gap"], row["gap_standard_error"] = mean_and_error(truth - log_q, log_z_error)
    return row | {"rows": [len(x_train), len(x_validation), len(y)], "sigma": sigma, "facts": facts}


def read_rows(file="likelihoods"):
    import record

    path = record.RESULTS / f"{file}.json"
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


def run(what, names, methods, seconds, data_dir, again, seed, cpu):
    import record

    have = {(row["name"], row["budget_seconds"]) for row in read_rows()}
    for name in names:
        title = f"{name} (seed {seed})" if seed else name
        todo = [m for m in methods if again or (f"{title}, {m}", seconds) not in have]
        if not todo:
            continue
        x_train, x_validation, y, sigma, truth = rows_of(what, name, data_dir, seed)
        for method in todo:
            data = x_train, x_validation, y, seconds, sigma, truth, seed
            many = what == "real" and len(x_train) >= peers.SMALL
            options = OPTIONS.get(method, {}) if many else {}
            row = measure(method, *data, cpu=cpu, **options)
            record.add("likelihoods", {"name": f"{title}, {method}", **row})


SEEDS = "likelihood_seeds"  # the results of ``tune`` and ``report``
FIRST_TUNING_SEED = 100


def best_setting(rows, name, method, seconds):
    """The flow's setting with the least mean gap over the tuning seeds, 0 for other methods.

    Raises:
        ValueError: a setting has not been measured on each tuning seed, or there is none.
    """
    if method not in peers.SETTINGS:
        return 0
    gaps = {}
    for row in rows:
        here = (row["data"], row["method"], row["budget_seconds"]) == (name, method, seconds)
        if here and row["seed"] >= FIRST_TUNING_SEED:
            gaps.setdefault(row["setting"], {})[row["seed"]] = row["gap"]
    count = len(peers.SETTINGS[method])
    if len(gaps) < count or len({frozenset(by_seed) for by_seed in gaps.values()}) > 1:
        raise ValueError(
            f"`report` needs all {count} settings of {method} on {name} in {seconds:g} s, on the "
            f"same seeds: run `tune` first. There are {len(gaps)} settings."
        )
    return min(gaps, key=lambda setting: np.mean(list(gaps[setting].values())))


def run_seeds(what, names, methods, budgets, seeds):
    """Measure each method on each set, seed and budget; in turns, and what is there is skipped."""
    import record

    have = {row["name"] for row in read_rows(SEEDS)}
    for turn, seed in enumerate(seeds):
        for seconds, name in itertools.product(budgets, names):
            first = turn % len(methods)
            todo = []
            for method in methods[first:] + methods[:first]:
                settings = range(len(peers.SETTINGS.get(method, [0])))
                if what == "report":
                    settings = [best_setting(read_rows(SEEDS), name, method, seconds)]
                for setting in settings:
                    title = f"{name}, {method}, {seconds:g} s, seed {seed}, setting {setting}"
                    if title not in have:
                        todo.append((title, method, setting))
            if not todo:
                continue
            x_train, x_validation, y, sigma, truth = rows_of("synthetic", name, None, seed)
            for title, method, setting in todo:
                options = dict(OPTIONS.get(method, {}))
                if method in peers.SETTINGS:
                    options["setting"] = setting
                data = x_train, x_validation, y, seconds, sigma, truth, seed
                row = measure(method, *data, **options)
                about = {"data": name, "method": method, "seed": seed, "setting": setting}
                record.add(SEEDS, {"name": title, **about, **row})


def mean_and_spread(values):
    """The mean of some seeds' values with its standard error, in words; of one the value alone."""
    if len(values) == 1:
        return f"{values[0]:.3f} (1 seed)"
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {error:.3f} ({len(values)} seeds)"


def seeds_table(rows):
    """Markdown: gaps of ``report``, and those of tfdde less the others' on the same seeds."""
    gaps = {}
    for row in rows:
        if row["seed"] < FIRST_TUNING_SEED:
            place = gaps.setdefault((row["data"], row["budget_seconds"]), {})
            place.setdefault(row["method"], {})[row["seed"]] = row["gap"]
    methods = list(peers.METHODS)
    lines = ["| data | seconds | gap to truth | " + " | ".join(methods) + " |"]
    lines += ["|---" * (len(methods) + 3) + "|"]
    for (name, seconds), by_method in gaps.items():
        means, differences = [], []
        ours = by_method.get("tfdde", {})
        for method in methods:
            theirs = by_method.get(method, {})
            both = sorted(ours.keys() & theirs.keys()) if method != "tfdde" else []
            means.append(mean_and_spread(list(theirs.values())) if theirs else "")
            less = [ours[seed] - theirs[seed] for seed in both]
            differences.append(mean_and_spread(less) if less else "")
        start = f"| {name} | {seconds:g} | "
        lines.append(start + "mean | " + " | ".join(means) + " |")
        lines.append(start + "tfdde less it, paired | " + " | ".join(differences) + " |")
    return "\n".join(lines)


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
    parser.add_argument("what", choices=("synthetic", "real", "tune", "report", "table"))
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0], help="of each fit")
    parser.add_argument("--only", nargs="+", choices=SYNTHETIC + REAL, metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=peers.METHODS, default=[*peers.METHODS])
    parser.add_argument("--data-dir", help="folder with the IDX files of MNIST and with tables/")
    text = "that the budget is of: cpu is processor time, for cores that other programs share"
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=text)
    parser.add_argument("--seed", type=int, default=0, help="of synthetic families, rows and fits")
    parser.add_argument("--seeds", type=int, nargs="+", help="of tune (>= 100) and report (< 100)")
    parser.add_argument("--again", action="store_true", help="measure rows that exist anew")
    args = parser.parse_args()
    if args.what == "table":
        print(table(read_rows()) + "\n\n" + seeds_table(read_rows(SEEDS)))
        return 0
    names = REAL if args.what == "real" else SYNTHETIC
    if wrong := [name for name in args.only or [] if name not in names]:
        parser.error(f"--only must name {args.what} sets ({', '.join(names)}), got {wrong[0]}")
    if args.seed and args.what == "real":
        parser.error("--seed is for synthetic sets")
    names = args.only or names
    tables = [name for name in names if name.rsplit("-", 1)[0] in real_tables.TABLES]
    if tables and args.data_dir is None:
        parser.error(f"--data-dir is needed for {tables[0]}")
    if args.what in ("tune", "report"):
        tuning = args.what == "tune"
        seeds = args.seeds or ([100, 101] if tuning else [0, 1, 2, 3, 4])
        if wrong := [seed for seed in seeds if (seed >= FIRST_TUNING_SEED) != tuning]:
            limit = f"{'>=' if tuning else '<'} {FIRST_TUNING_SEED}"
            parser.error(f"--seeds of {args.what} must be {limit}, got {wrong[0]}")
        if args.seed or args.again or args.clock == "cpu":
            parser.error(f"--seed, --again and --clock are not for {args.what}")
        run_seeds(args.what, names, args.methods, args.seconds, seeds)
        return 0
    if len(args.seconds) > 1 or args.seeds:
        parser.error(f"several --seconds and --seeds are for tune and report, not {args.what}")
    cpu = args.clock == "cpu"
    run(args.what, names, args.methods, args.seconds[0], args.data_dir, args.again, args.seed, cpu)
    return 0


if __name__ == "__main__":
    sys.exit(main())
