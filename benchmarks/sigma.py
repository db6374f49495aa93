"""The noise level that tfdde chooses and bandwidths of kernel densities, compared with the truth.

    python benchmarks/sigma.py --seeds 0 1
    python benchmarks/sigma.py --only mixture-8 --rows 1000
    python benchmarks/sigma.py --only mixture-2 --rows 100 --search-few
    python benchmarks/sigma.py table

tfdde keeps a fifth of N rows of a known density for validation (with 100 rows, each of five parts
in turn), and is then trained again on all N rows with the settings so chosen. With 100 rows a
search, with five trainings a trial, takes twenty minutes, and the curve three. All methods
standardise the columns.
The truth is the log-likelihood of 20,000 fresh rows under the density itself, under its exact blur
p_sigma, and, at each bandwidth, under the exact kernel density of the N rows, which a denoising
density would be that has memorised its rows. The best level of p_sigma is 0, and that of the
kernels is found on the fresh rows; the best level of a density that has learned more than its rows
lies in between.
"""

import argparse
import json
import math
import sys
import tempfile

import families
import keras
import keras_tuner
import numpy as np
import peers
import record
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

from tfdde import tuning
from tfdde.tuning.search import Densities
from tfdde.tuning.tuner import OBJECTIVE, LikelihoodTuner
from tfdde.utils.statistics import QUANTILE, mean_and_error

TEST = 20_000
NAMES = [f"{kind}-{n}" for kind in ("gaussian", "mixture") for n in (2, 8)]
ROWS = (100, 1_000, 10_000)
FEW = 100  # rows that are cross-validated
GRID = np.geomspace(0.03, 2.0, 40)  # of bandwidths, in standard deviations
TRIALS, EPOCHS, LOW = 6, 40, 0.05  # of the search; epochs of 50 steps; the lowest sigma
FEW_TRIALS, FEW_EPOCHS = 4, 32  # where each trial is five trainings


def family_of(name, seed):
    kind, n = name.rsplit("-", 1)
    return families.Mixture(int(n), seed, components=1 if kind == "gaussian" else 10)


def blurred(family, y, noise):
    """Return the exact log-density at rows y, blurred by noise of standard deviations (n,)."""
    stds, family.stds = family.stds, np.sqrt(family.stds**2 + noise**2)
    values = family.log_density(y, 0.0)
    family.stds = stds
    return values


def measure(name, count, seed, search_few=False):
    family = family_of(name, seed)
    n = family.n
    x, y = family.sample(count, 1_000 * seed + count), family.sample(TEST, 1_000 * seed + 1)
    scale = peers.Scaler(x)
    rows, test = scale(x), scale(y)
    truth = family.log_density(y, 0.0)

    # Kernels of the N rows by cross-validation, rules of thumb and oracle, with shared distances.
    folds = GridSearchCV(KernelDensity(), {"bandwidth": GRID}, cv=5)
    folds.fit(rows[np.random.default_rng(seed).permutation(count)[:2_000]])
    # At most 2,000 rows; for N rows the bandwidth is scaled by N**(-1 / (n + 4)).
    shrink = (min(count, 2_000) / count) ** (1 / (n + 4))
    bandwidths = {
        "cross-validation": folds.best_params_["bandwidth"] * shrink,
        "silverman": (count * (n + 2) / 4) ** (-1 / (n + 4)),
        "scott": count ** (-1 / (n + 4)),
    }
    kernel = peers.kernel_log_density(rows, test, [*GRID, *bandwidths.values()])
    kernel += scale.log_jacobian
    kernel, ruled = kernel[: len(GRID)], kernel[len(GRID) :]
    best = int(kernel.mean(axis=1).argmax())
    paired = kernel[best] - kernel
    errors = paired.std(axis=1, ddof=1) / math.sqrt(TEST)
    within = GRID[paired.mean(axis=1) <= QUANTILE * errors + 1e-12]
    result = {
        "rows": count,
        "n": n,
        "truth": float(truth.mean()),
        "kernel_optimum": {
            "sigma": float(GRID[best]),
            "interval": [float(within.min()), float(within.max())],
            "log_likelihood": float(kernel[best].mean()),
        },
    }
    for (rule, bandwidth), values in zip(bandwidths.items(), ruled, strict=True):
        result[rule] = row_of(values, truth, bandwidth)

    # tfdde: one density of all levels, and a search.
    few = count <= FEW
    trials, epochs = (FEW_TRIALS, FEW_EPOCHS) if few else (TRIALS, EPOCHS)
    cut = count // 5
    train, held_out = (x, None) if few else (x[cut:], x[:cut])
    keras.utils.set_random_seed(seed)
    hp = keras_tuner.HyperParameters()
    densities = Densities(train, LOW, seed=seed)
    if few:
        curve, trained = densities.curve(x, epochs=epochs, verbose=0)
    else:
        dde = densities.build(hp)
        history = densities.fit(hp, dde, train, validation_data=held_out, epochs=epochs, verbose=0)
        starts = tuning.ladder_starts(train, held_out)
        curve = tuning.select_sigma(dde, held_out, starts=starts, samples=10_000, seed=seed)
        trained = int(np.argmin(history.history["val_loss"])) + 1
    keras.utils.set_random_seed(seed)
    again = densities.refit(hp, x, trained, epochs=epochs, verbose=0)
    for rule, k in (("curve", curve.best), ("one_standard_error", curve.one_standard_error)):
        log_z = again.log_partition(x, sigma=curve.sigmas[k])
        s = again.log_density(y, log_z.sigma, normalized=False).numpy()
        values = s.astype(np.float64) - log_z.value
        blur = blurred(family, y, log_z.sigma * scale.std)
        result[rule] = row_of(values, truth, log_z.sigma, log_z.standard_error)
        result[rule]["blurred_truth"] = float(blur.mean())
    if few and not search_few:
        return result
    with tempfile.TemporaryDirectory() as folder:
        oracle = keras_tuner.oracles.BayesianOptimizationOracle(
            OBJECTIVE, max_trials=trials, seed=seed + 1, max_consecutive_failed_trials=trials
        )
        tuner = LikelihoodTuner(
            oracle,
            Densities(train, (LOW, 1.0), seed=seed),
            partition={"samples": 5_000 if few else 10_000},
            seed=seed,
            directory=folder,
        )
        tuner.search(train, validation_data=held_out, epochs=epochs, verbose=0)
        won = tuner.refit(x, epochs=epochs, verbose=0)
    values = won.log_density(y, normalized=False).numpy().astype(np.float64) - won.partition.value
    result["search"] = row_of(values, truth, won.noise.sigma, won.partition.standard_error)
    # The two ways at the level that the search chose.
    at = np.interp(np.log(won.noise.sigma), np.log(curve.sigmas), curve.log_likelihood)
    result["search"]["curve_there"] = float(at)
    trial = tuner.oracle.get_best_trials()[0]
    result["search"]["validation"] = [trial.score, trial.metrics.get_best_value("standard_error")]
    return result


def row_of(values, truth, sigma, log_z_error=0.0):
    value, error = mean_and_error(values, log_z_error)
    gap, gap_error = mean_and_error(truth - values, log_z_error)
    return {
        "sigma": float(sigma),
        "log_likelihood": value,
        "standard_error": error,
        "gap": gap,
        "gap_standard_error": gap_error,
    }


def table(rows):
    """Return a Markdown table of each rule's gap to the truth in nats, and its level."""
    rules = ("search", "curve", "cross-validation", "silverman", "scott")
    lines = ["| data | N | " + " | ".join(rules) + " | kernel optimum |"]
    lines += ["|---" * (len(rules) + 3) + "|"]
    for row in rows:
        cells = [
            f"{row[r]['gap']:.3f} ± {row[r]['gap_standard_error']:.3f} (σ {row[r]['sigma']:.2f})"
            if r in row
            else ""
            for r in rules
        ]
        optimum = row["kernel_optimum"]
        low, high = optimum["interval"]
        cells.append(
            f"{row['truth'] - optimum['log_likelihood']:.3f} (σ {optimum['sigma']:.2f}, "
            f"{low:.2f}–{high:.2f})"
        )
        name = row["name"].partition(", N")[0]
        lines.append(f"| {name} | {row['rows']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--search-few", action="store_true", help="search of 100 rows, too")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    path = record.RESULTS / "sigma.json"
    have = json.loads(path.read_text()) if path.exists() else []
    if args.what == "table":
        print(table(have))
        return 0
    done = {row["name"] for row in have}
    for seed in args.seeds:
        for name in args.only:
            for count in args.rows:
                title = f"{name} (seed {seed}), N = {count}"
                if title not in done:
                    row = measure(name, count, seed, args.search_few)
                    record.add("sigma", {"name": title, **row})
    return 0


if __name__ == "__main__":
    sys.exit(main())
