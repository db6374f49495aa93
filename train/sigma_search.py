"""Search the noise level of a table by normalised held-out log-likelihood, with keras-tuner.

    python train/sigma_search.py --dataset digits
    python train/sigma_search.py --dataset checkerboard --search hyperband
    python train/sigma_search.py --data table.csv --width 32 256 --learning-rate 5e-4 5e-3

Each trial trains a density at all levels from its sigma to --sigma-max, normalises it by the ladder
and is ranked by the log-likelihood of the validation rows; a trial whose log Z can't be trusted
fails. For comparison, the density of the lowest sigma is read at all of its levels: this one
training shows the curve on which each trial is a point. The best density is trained again on
training and validation rows together, and the test rows are evaluated once, at the end.

With a few hundred rows or fewer, a 10 % validation split is too small to choose sigma. With
--folds 5 each fifth of the rows validates in turn, at five times the cost.

Give two numbers for a range to search, one for a fixed value. All files are written to --output,
and density.keras there is normalised, ready for export/. Ctrl-C stops the search, and --resume
continues it. Several processes share a search by keras-tuner's variables KERASTUNER_TUNER_ID
(chief, tuner0, ...), KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT, and one --output.
"""

import argparse
import csv
import math
import os
import sys
from typing import Any

import numpy as np

from tfdde import datasets, plots, runs, tuning
from tfdde.datasets.tables import BUILTIN
from tfdde.runs import command_line
from tfdde.utils.checks import check_spread
from tfdde.utils.files import atomic
from tfdde.utils.statistics import QUANTILE

SEARCHES = ("bayesian", "random", "hyperband")
RANGES = ("sigma", "width", "depth", "learning_rate")  # one number or two
FAILURES = 5  # trials in a row that end the search
CURVE = 5_000  # rows of the curve, at most
LAST_SEED = 2**31 - 1  # for seed 0, in whose place keras-tuner draws another at each run


def parse(argv):
    parser = argparse.ArgumentParser(
        description="Search the noise level of a table by held-out log-likelihood.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command_line.add_table_options(parser, [*BUILTIN, *datasets.TOYS, "mnist", *datasets.UCI])
    seed = "of split, search, weights, batches, noise and log Z"
    command_line.add_run_options(parser, "runs/NAME_sigma", seed)
    add, count, number = parser.add_argument, runs.positive_int, runs.positive_float
    add("--rows", type=count, default=10_000, help="of a toy")
    add("--components", type=count, default=43, help="principal components of mnist")
    add("--search", choices=SEARCHES, default="bayesian", help="keras-tuner's oracle")
    add("--trials", type=count, default=10, help="densities to train (hyperband has its own count)")
    add("--epochs", type=count, default=40, help="of a trial, at most, of at least 50 steps")
    add("--patience", type=count, default=10, help="stop after so many that improved nothing")
    add("--batch-size", type=count, default=512, help="rows a step")
    bounds: dict[str, Any] = {"type": number, "nargs": "+", "metavar": "X"}
    add("--sigma", default=[0.02, 1.0], help="noise level, in standard deviations", **bounds)
    add("--sigma-max", type=number, default=8.0, help="highest noise level trained")
    add("--width", default=[128.0], help="units of a layer", **bounds)
    add("--depth", default=[4.0], help="residual layers", **bounds)
    add("--learning-rate", default=[2e-3], help="Adam's, falling to 0", **bounds)
    add("--samples", type=count, default=1_000, help="for log Z, at each level")
    parts = "for few rows: each of so many parts of all but the test rows validates in turn"
    add("--folds", type=count, help=f"{parts} (None: the validation rows)")
    again = "train the best density again, on training and validation rows"
    add("--refit", action=argparse.BooleanOptionalAction, default=True, help=again)
    args = parser.parse_args(argv)
    name = command_line.check_table_options(parser, args)
    args.output = args.output or f"runs/{name}_sigma"
    for option in RANGES:
        low, *high = values = getattr(args, option)
        if len(values) > 2 or (high and high[0] <= low):
            option = option.replace("_", "-")
            parser.error(f"--{option} must be one number or LOW HIGH, got {values}")
    if args.sigma_max <= args.sigma[-1]:
        parser.error(f"--sigma-max {args.sigma_max} must exceed --sigma {args.sigma[-1]}")
    if args.folds == 1:
        parser.error("--folds must be at least 2, got 1")
    return args


def make_tuner(args, x, folder):
    with command_line.user_errors():
        import keras_tuner

        from tfdde.tuning import search
    oracles = keras_tuner.oracles
    make, budget = {
        "bayesian": (oracles.BayesianOptimizationOracle, {"max_trials": args.trials}),
        "random": (oracles.RandomSearchOracle, {"max_trials": args.trials}),
        "hyperband": (oracles.HyperbandOracle, {"max_epochs": args.epochs}),
    }[args.search]
    oracle = make(
        search.OBJECTIVE,
        seed=args.seed or LAST_SEED,
        max_consecutive_failed_trials=FAILURES,
        **budget,
    )
    ranges = {}
    for name in RANGES:
        values = getattr(args, name)
        ranges[name] = tuple(values) if len(values) > 1 else values[0]
    densities = search.Densities(
        x,
        **ranges,
        sigma_max=args.sigma_max,
        batch_size=args.batch_size,
        patience=args.patience,
        seed=args.seed,
        jit_compile=args.jit,
    )
    return search.LikelihoodTuner(
        oracle,
        densities,
        partition={"samples": args.samples, "seed": args.seed},
        folds=args.folds or 5,
        seed=args.seed,
        directory=folder,
        project_name="search",
    )


def table_of(tuner):
    """A row for each trial, best first: name, hyperparameters, likelihood, error, status."""
    rows = []
    for trial in tuner.oracle.trials.values():
        values = {k: v for k, v in trial.hyperparameters.values.items() if "/" not in k}
        error = trial.score and trial.metrics.get_best_value("standard_error")
        rows.append(
            {"trial": trial.trial_id, **values, "log_likelihood": trial.score}
            | {"standard_error": error, "status": trial.status}
        )
    return sorted(
        rows,
        key=lambda row: -math.inf if row["log_likelihood"] is None else row["log_likelihood"],
        reverse=True,
    )


@runs.command
def main(argv=None):
    args = parse(argv)
    with command_line.user_errors():
        table = datasets.load_table(
            args.data or args.dataset,
            args.columns,
            args.data_dir,
            args.seed,
            rows=args.rows,
            components=args.components,
        )
        deviation = table.x_train.std(axis=0, dtype=np.float64)
        check_spread(table.x_train, deviation, args.sigma[0], "data", table.columns)
    x, x_validation, x_test = table.x_train, table.x_validation, table.x_test
    everything = np.concatenate([x, x_validation])
    worker = "chief" not in os.environ.get("KERASTUNER_TUNER_ID", "chief")
    arguments = runs.with_checksum(args, everything)
    run = None if worker else runs.Run(args.output, arguments, args.resume)
    if args.folds:
        with command_line.user_errors():
            # The density that is kept of a trial is that of the first fold.
            x, x_validation = tuning.split(everything, args.folds, args.seed)[0]
    tuner = make_tuner(args, everything if args.folds else x, args.output)
    try:
        if args.folds:
            tuner.search(everything, epochs=args.epochs, verbose=2)
        else:
            tuner.search(x, validation_data=x_validation, epochs=args.epochs, verbose=2)
    except RuntimeError as failure:
        if "consecutive failures" not in str(failure):
            raise
        reason = [t.message for t in tuner.oracle.trials.values() if t.message][-1]
        raise runs.RunError(
            f"{FAILURES} trials in a row failed: {reason.splitlines()[-1]}"
        ) from None
    if run is None:
        return True  # the chief does the rest

    rows = table_of(tuner)
    with atomic(run / "trials.csv") as temporary, temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(
            "  ".join(
                f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )
    if not args.refit:
        dde = tuner.get_best_models()[0]
    else:
        try:
            dde = tuner.refit(everything, epochs=args.epochs, verbose=2)
        except ValueError as error:
            raise runs.RunError(f"{error}; add --no-refit.") from None
    # The density of the trial with the lowest sigma has the longest curve.
    done = [tuner.oracle.trials[row["trial"]] for row in rows if row["status"] == "COMPLETED"]
    lowest = tuner.load_model(min(done, key=lambda t: t.hyperparameters.values.get("sigma", 0.0)))
    curve = tuning.select_sigma(
        lowest,
        x_validation[:CURVE],
        training=x[:CURVE],
        starts=tuning.ladder_starts(x, x_validation),
        samples=args.samples,
        seed=args.seed,
    )
    print(curve)
    points = [
        (row["sigma"], row["log_likelihood"], QUANTILE * row["standard_error"])
        for row in rows
        if row["log_likelihood"] is not None and "sigma" in row
    ]
    plots.likelihood_by_level(
        run / "sigma.png",
        curve.sigmas,
        {"training rows": curve.training, "validation rows": curve.log_likelihood},
        dde.noise.sigma,
        (curve.lower, curve.upper),
        points or None,
    )
    run.save("density", dde)
    test = dde.log_density(x_test, normalized=True).numpy().astype(np.float64)
    mean, test_error = run.write_result(
        test,
        dde.partition,
        {"train": len(x), "validation": len(x_validation), "test": len(x_test)},
        trial=rows[0],
        columns=table.columns,
    )
    print(
        f"sigma = {dde.noise.sigma:.3g} standard deviations; {dde.partition}\n"
        f"Held-out log-likelihood: {mean:.4f} ± {test_error:.4f} nats per row in the data's "
        f"own units ({len(test)} test rows)."
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
