"""Train the density of a table of numbers, and print its held-out log-likelihood.

    python train/tabular.py --data sales.csv --columns price weight age
    python train/tabular.py --dataset wine
    python train/tabular.py --dataset power --data-dir DIR --paper

Columns are standardised, and s(x, sigma) trained at all noise levels from --sigma to --sigma-max
at once; the weights of the epoch with the lowest validation loss are kept. The ladder gives log Z
at each level, and validation rows choose the level at which the test rows are evaluated.

With --paper one level falls from --sigma-max to --sigma, and log Z is from importance sampling.
Ours are the Gaussian base, the averaged and validated weights, and how often sigma is divided by
1.1: every 16 epochs. Everything lands in --output; Ctrl-C at any time, then --resume.
"""

import argparse
import json
import math
import sys
from functools import partial
from pathlib import Path

import keras
import numpy as np

import tfdde
from tfdde import datasets, networks, plots, recipes, runs, tuning
from tfdde.datasets.tables import BUILTIN
from tfdde.noise import Noise
from tfdde.partition.importance import importance
from tfdde.utils import random
from tfdde.utils.files import atomic
from tfdde.utils.statistics import mean_and_error

count, number = runs.positive_int, runs.positive_float
OPTIONS: dict[str, tuple] = {  # with their defaults without and with --paper
    "seed": (int, 0, 0, "of split, weights, batches, noise and log Z"),
    "width": (count, 128, 64, "units of a layer"),
    "depth": (count, 4, 25, "residual layers"),
    "sigma": (number, 0.05, 0.05, "lowest noise level"),
    "sigma-max": (number, 8.0, 0.1, "highest noise level"),
    "batch-size": (count, 512, 512, "rows a step"),
    "steps": (count, 4_000, None, "training steps; None: 400 passes over the rows"),
    "learning-rate": (number, 2e-3, 2.5e-4, "Adam's, falling"),
    "patience": (count, 10, 400, "stop after so many epochs that improved nothing"),
    "samples": (count, 5_000, 50_000, "for log Z, at each level"),
}
PAPER = {  # where its sets differ
    "gas": {"width": 128, "sigma": 0.04},
    "hepmass": {"width": 128, "sigma": 0.02},
    "miniboone": {"sigma": 0.15},
}
EPOCHS = 400  # at most; the paper's are passes over the rows
EPOCH = 50  # steps, at least, between two lines of the log, two validations, two checkpoints
GROUP = 10  # steps of one compiled call, if they divide that number
VALIDATED = 4_096  # noisy rows of a validation; few rows are taken repeatedly, with other noise
MOVES = 5  # of Monte Carlo at each level of the ladder
CHUNK = 5_000  # rows of likelihoods that are only compared or drawn


def parse(argv):
    parser = argparse.ArgumentParser(
        description="Train the density of a table and print its held-out log-likelihood.",
        epilog="In brackets: the default; the paper's, but for gas --width 128 --sigma 0.04, for "
        "hepmass --width 128 --sigma 0.02, for miniboone --sigma 0.15, constant.",
    )
    source, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    source.add_argument("--data", metavar="FILE", help="table: .csv, .parquet, .npy or .npz")
    source.add_argument("--dataset", choices=[*BUILTIN, *datasets.UCI], help="or a known one")
    add("--columns", nargs="+", metavar="NAME", help="columns of --data [all]")
    add("--data-dir", help="folder with the files of power, gas, hepmass or miniboone")
    add("--output", help="folder of this run [runs/NAME, of the data]")
    add("--resume", action="store_true", help="continue the run in --output")
    add("--paper", action="store_true", help="the paper's method and settings")
    add("--jit", action=argparse.BooleanOptionalAction, default=True, help="compile by XLA [yes]")
    for name, (kind, ours, paper, text) in OPTIONS.items():
        add(f"--{name}", type=kind, help=f"{text} [{ours}; {paper}]")
    args = parser.parse_args(argv)
    for name, (_, ours, paper, _) in OPTIONS.items():
        name = name.replace("-", "_")
        if getattr(args, name) is None:
            paper = PAPER.get(args.dataset, {}).get(name, paper)
            setattr(args, name, paper if args.paper else ours)
    if args.columns and not args.data:
        parser.error("--columns needs --data")
    if not args.paper and args.sigma_max <= args.sigma:
        parser.error(f"--sigma-max {args.sigma_max} must exceed --sigma {args.sigma}")
    args.output = args.output or f"runs/{args.dataset or Path(args.data).name.partition('.')[0]}"
    return args


def load(args):
    """The rows in three parts; whatever is wrong with them ends in one sentence."""
    try:
        random.check_seed(args.seed)
        if args.data:
            x, columns = datasets.read_table(args.data, args.columns)
            table = datasets.Table(*datasets.split_rows(x, args.seed), columns)
        elif args.dataset in datasets.UCI:
            table = datasets.load_uci(args.dataset, args.data_dir)
        else:
            table = datasets.load_builtin(args.dataset, args.seed)
        if len(table.x_test) < 2:
            raise ValueError("There must be at least 20 rows: a tenth of them is for the test.")
        # Noise below float32's resolution of the values would vanish in their rounding.
        resolution = np.finfo(np.float32).eps * np.abs(table.x_train).max(axis=0) / args.sigma
        lost = table.x_train.std(axis=0, dtype=np.float64) <= resolution
        if lost.any():
            name = table.columns[lost.argmax()]
            raise ValueError(f"Column {name!r} is constant in float32, or nearly: leave it out.")
    except (ImportError, ValueError) as error:
        raise runs.RunError(str(error)) from None
    return table


def build(args, x):
    """The density, ready to be trained on the rows ``x``."""
    decay = keras.optimizers.schedules
    # The UCI sets are standardised already.
    normalization = None if args.dataset in datasets.UCI else keras.layers.Normalization(axis=-1)
    if args.paper:
        n = x.shape[1]
        network = networks.residual_mlp(n, args.width, args.depth)
        noise: Noise = tfdde.Constant(args.sigma)
        if args.sigma < args.sigma_max:
            noise = tfdde.Decay(args.sigma_max, args.sigma, max(1, args.steps // 25), rate=1.1)
        base = tfdde.GaussianBase(n)
        dde = tfdde.DDE(network, noise, base, normalization, antithetic=True, seed=args.seed)
        dde.adapt(x)
        quarter = max(1, args.steps // 4)
        rate = decay.ExponentialDecay(args.learning_rate, quarter, 0.5, staircase=True)
    else:
        noise = tfdde.LogUniform(args.sigma, args.sigma_max)
        dde = recipes.table_density(x, noise, args.width, args.depth, normalization, args.seed)
        rate = decay.CosineDecay(args.learning_rate, args.steps)
    # The weights are averaged over about 100 steps.
    adam = keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.99)
    dde.compile(adam, steps_per_execution=GROUP, jit_compile=args.jit)
    return dde


def normalise(args, dde, table, path):
    """Read the density at the level, of those with a trusted log Z, that validation likes best."""
    x, x_validation = table.x_train, table.x_validation
    starts = tuning.ladder_starts(x, x_validation)
    if args.paper:
        inside = np.asarray(dde.inside(starts))
        best = importance(dde.at, inside, args.sigma, args.samples, args.seed)
    else:
        curve = tuning.select_sigma(
            dde,
            x_validation[:CHUNK],
            training=x[:CHUNK],
            starts=starts,
            samples=args.samples,
            moves=MOVES,
            seed=args.seed,
        )
        best = curve.partitions[curve.best]
        curves = {"training rows": curve.training, "validation rows": curve.log_likelihood}
        plots.likelihood_by_level(path, list(curve.sigmas), curves, best.sigma)
        dde.noise = tfdde.LogUniform(args.sigma, args.sigma_max, best.sigma)
    dde.partition = best


@runs.command
def main(argv=None):
    args = parse(argv)
    table = load(args)
    x, x_validation, x_test = table.x_train, table.x_validation, table.x_test
    args.steps = args.steps or EPOCHS * math.ceil(len(x) / args.batch_size)
    run = runs.Run(args.output, runs.with_checksum(args, x), args.resume)
    keras.utils.set_random_seed(args.seed)

    dde = build(args, x)
    epoch_steps = max(EPOCH, args.steps // EPOCHS)
    best = runs.KeepBest(
        np.resize(x_validation, (VALIDATED, x.shape[1])),
        args.patience,
        path=run / "checkpoint/best.npz",
        curve=run / "validation.csv",
    )
    batches = partial(datasets.stream, x, args.batch_size, args.seed)
    done = run.train("density", dde, batches, args.steps, epoch_steps, callbacks=[best])
    logs = {"training": run / "density.csv", "validation": run / "validation.csv"}
    plots.loss_curves(run / "losses.png", logs)
    if not done:
        return False

    dde.set_weights(best.weights)
    epochs = len(best.losses)
    print(f"Validation was best after epoch {best.best_epoch + 1} of {epochs}: kept that.")
    normalise(args, dde, table, run / "sigma.png")
    run.save("density", dde)
    log_z, known = dde.partition, dde.normalized
    test, train = (
        dde.log_density(rows, normalized=known).numpy().astype(np.float64)
        for rows in (x_test, x[:CHUNK])
    )
    kind = "log-likelihood" if known else "UNNORMALISED log-density"
    rows = {"training rows": train, "test rows": test}
    plots.histograms(run / "log_density.png", rows, f"{kind} in nats")
    mean, error = mean_and_error(test, log_z.standard_error if known else 0.0)
    # To standardised units: plus the log of their volume in the data's own.
    variance = dde.normalization.get_weights()[1] if dde.normalization else np.ones(1)
    standardized = mean + 0.5 * np.log(variance, dtype=np.float64).sum()
    result = {
        "log_likelihood" if known else "unnormalized_log_density": mean,
        "standard_error": error,
        "in_standardized_units": standardized,
        "sigma": log_z.sigma,
        "log_partition": log_z.get_config(),
        "rows": {"train": len(x), "validation": len(x_validation), "test": len(x_test)},
        "columns": table.columns,
    }
    with atomic(run / "result.json") as beside:
        beside.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"sigma = {log_z.sigma:.3g} (lowest: {args.sigma:g}) standard deviations; {log_z}\n"
        f"Held-out {kind}: {mean:.4f} ± {error:.4f} nats per row in the data's own units, "
        f"{standardized:.4f} in standardised ones ({len(test)} test rows)."
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
