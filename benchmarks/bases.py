"""What a mixture as the base of a density gains, beside one Gaussian and a mixture alone.

    python benchmarks/bases.py --seconds 60 --seeds 100 101
    python benchmarks/bases.py --seconds 60 --only power-month diamonds --data-dir DIR
    python benchmarks/bases.py table

Three estimators on the same rows: tfdde with ``base="gaussian"``, with ``base="mixture"``, and
scikit-learn's Gaussian mixture with the number of components that BIC chooses.  Synthetic sets are
those of ``likelihoods.py``, with their gap to the truth at sigma = 0.1.  Real tables are clean
held-out rows in nats, all of them on standardised columns.  Integers and other grids get uniform
noise within a step.  log Z is inside the budget, and the budget is of processor time, since other
programs share the core.  Adds a row for each to results/bases.json and skips those that are there.
"""

import argparse
import sys
from pathlib import Path

import likelihoods
import numpy as np

SYNTHETIC = ("mixture-8", "mixture-21", "toys-8", "tails-8", "chain-8", "chain-21")
METHODS = {
    "gaussian": ("tfdde", {"log_z_inside": True, "base": "gaussian"}),
    "mixture": ("tfdde", {"log_z_inside": True, "base": "mixture"}),
    "gaussian_mixture": ("gaussian_mixture", {}),
}
ROWS = likelihoods.TRAIN, likelihoods.VALIDATION, likelihoods.TEST


def power_month(folder, rng):
    """Six columns of household power, with noise as the recipe of POWER has it."""
    file = np.load(folder / "power-month" / "power_48k_minutes.npz")
    x, minutes = file["X"].astype(np.float64), file["t"] // 60 % 1440
    names = [str(name) for name in file["columns"]]
    steps = {"Global_active_power": 0.001, "Voltage": 0.01, "Sub_metering_1": 1.0}
    steps |= {"Sub_metering_2": 1.0, "Sub_metering_3": 1.0}
    columns = [x[:, names.index(name)] + step * rng.random(len(x)) for name, step in steps.items()]
    rows = np.stack([*columns, minutes + rng.random(len(x))], axis=1)
    return rows[np.isfinite(rows).all(axis=1)]


def higgs_sample(folder, rng):
    """The 24 columns that are not b-tags, which take few values."""
    file = np.load(folder / "higgs-sample" / "higgs_7500.npz")
    x = np.concatenate([file["X_train"], file["X_test"]]).astype(np.float64)
    few = [k for k in range(x.shape[1]) if len(np.unique(x[:, k])) < 20]
    return np.delete(x, few, axis=1)


def bsds300(folder, rng):
    """Grey patches of 8 x 8 pixels without their mean: 63 columns, as MAF has them."""
    x = np.load(folder / "bsds300" / "bsds300_patches_8x8_u8.npz")["train"][: sum(ROWS)]
    x = (x + rng.random(x.shape)) / 256
    return (x - x.mean(axis=1, keepdims=True))[:, :-1]


def nycflights13(folder, rng):
    """The ten columns of whole numbers, with uniform noise."""
    x = np.load(folder / "nycflights13" / "flights_complete.npz")["X"]
    return x + rng.random(x.shape)


def diamonds(folder, rng):
    """The seven columns of numbers, with uniform noise within the step of each."""
    x = np.load(folder / "diamonds" / "diamonds.npz")["X"].astype(np.float64)
    return x + rng.random(x.shape) * [0.01, 0.1, 1, 1, 0.01, 0.01, 0.01]


REAL = {
    "power-month": power_month,
    "higgs-sample": higgs_sample,
    "nycflights13": nycflights13,
    "diamonds": diamonds,
    "bsds300": bsds300,
}


def rows_of(name, seed, data_dir):
    """Training, validation and test rows of a set, its sigma, and the truth or None."""
    if name in SYNTHETIC:
        return likelihoods.rows_of("synthetic", name, None, seed)
    rng = np.random.default_rng(seed)
    x = REAL[name](Path(data_dir) / "tables", rng)
    x = x[rng.permutation(len(x))[: sum(ROWS)]].astype(np.float32)
    validation, test = (len(x) * part // sum(ROWS) for part in ROWS[1:])
    return x[validation + test :], x[:validation], x[validation:][:test], None, None


def table(rows):
    """Markdown: gap to the truth, or log-likelihood, of each set and seed."""
    cells = {}
    for row in rows:
        key = "gap" if "gap" in row else "log_likelihood"
        error = row["gap_standard_error" if "gap" in row else "standard_error"]
        place = cells.setdefault((row["data"], row["seed"], key.replace("_", "-")), {})
        place[row["base"]] = f"{row[key]:.3f} ± {error:.3f}"
    lines = ["| data | seed | in nats | " + " | ".join(METHODS) + " |"]
    lines += ["|---" * (len(METHODS) + 3) + "|"]
    for (name, seed, what), by_method in cells.items():
        each = " | ".join(by_method.get(method, "") for method in METHODS)
        lines.append(f"| {name} | {seed} | {what} | {each} |")
    return "\n".join(lines)


def main():
    import record

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each fit")
    parser.add_argument("--only", nargs="+", choices=[*SYNTHETIC, *REAL], default=[*SYNTHETIC])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100], help=">= 100: for tuning")
    parser.add_argument("--data-dir", help="folder with the folder tables")
    args = parser.parse_args()
    if args.what == "table":
        print(table(likelihoods.read_rows("bases")))
        return 0
    if min(args.seeds) < likelihoods.FIRST_TUNING_SEED:
        parser.error(f"--seeds must be >= {likelihoods.FIRST_TUNING_SEED}, got {min(args.seeds)}")
    if args.data_dir is None and (real := set(args.only) & set(REAL)):
        parser.error(f"--data-dir is needed for {', '.join(sorted(real))}")
    for seed in args.seeds:
        for name in args.only:
            have = {row["name"] for row in likelihoods.read_rows("bases")}
            titles = {m: f"{name}, {m}, {args.seconds:g} s, seed {seed}" for m in args.methods}
            if not any(title not in have for title in titles.values()):
                continue
            x_train, x_validation, y, sigma, truth = rows_of(name, seed, args.data_dir)
            for base, title in titles.items():
                if title in have:
                    continue
                method, options = METHODS[base]
                data = x_train, x_validation, y, args.seconds, sigma, truth, seed
                row = likelihoods.measure(method, *data, cpu=True, **options)
                record.add("bases", {"name": title, "data": name, "base": base, "seed": seed} | row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
