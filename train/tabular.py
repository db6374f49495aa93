"""Train the density of a table of numbers, and print its held-out log-likelihood.

    python train/tabular.py --data sales.csv --columns price weight age
    python train/tabular.py --dataset wine
    python train/tabular.py --dataset power --data-dir DIR --paper
    python train/tabular.py --data sales.csv --preset runs/wine/config.json

Columns of a file are taken as they are: of any scale, with integers and other grids, which get
noise within a step, with heavy tails, whose asinh is learned, and on request with missing values
and dependent columns. What was done to a column is printed.

The columns are standardised, and s(x, sigma) is trained at all noise levels from --sigma to
--sigma-max at once. The weights of the epoch with the lowest validation loss are kept. log Z is
found at each level, and the validation rows choose the level at which the test rows are evaluated.

With --paper one level falls from --sigma-max to --sigma, and log Z is from importance sampling.
The Gaussian base, the averaged and validated weights, and dividing sigma by 1.1 every 16 epochs
are this project's choices. The paper's settings depend on the data set: gas --width 128
--sigma 0.04, hepmass --width 128 --sigma 0.02, miniboone --sigma 0.15 (constant).

All files are written to --output. Ctrl-C stops the training, and --resume continues it.
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import tfdde
from tfdde import anomalies, datasets, plots, recipes, runs, tuning
from tfdde.datasets.tables import BUILTIN
from tfdde.noise import Noise
from tfdde.optimizers import FusedAdam
from tfdde.partition.importance import importance
from tfdde.runs import command_line
from tfdde.runs.keep_best import RISE
from tfdde.runs.table_report import write_report
from tfdde.utils.checks import check_spread

PRESETS = Path(__file__).parent / "presets" / "tabular"
DEFAULT = "levels"
EPOCHS = 400  # at most; the paper's are passes over the rows
MOVES = 10  # of Monte Carlo at each level of the ladder
GAIN = 0.1  # nats that a base must be likelier by to do without the network
CHUNK = 5_000  # rows of likelihoods that are only compared or drawn


def parse(argv):
    first = command_line.preset_parser(PRESETS, None)
    first.add_argument("--paper", action="store_true", help="the paper's method and settings")
    command_line.add_table_options(first, [*BUILTIN, *datasets.UCI])
    first.add_argument("--missing", choices=["impute"], help="what to do about gaps in --data")
    text = "what to do about linearly dependent columns of --data"
    first.add_argument("--dependent", choices=["drop"], help=text)
    text = "what to do about columns of --data with heavy tails; by default their asinh is learned"
    first.add_argument("--tails", choices=["keep"], help=text)
    chosen = first.parse_known_args(argv)[0]
    parser = argparse.ArgumentParser(
        parents=[first],
        description="Train the density of a table and print its held-out log-likelihood.",
        epilog="Defaults shown are those of the preset.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command_line.add_run_options(parser, "runs/NAME", "of split, weights, batches, noise and log Z")
    add, count, number = parser.add_argument, runs.positive_int, runs.positive_float
    add("--width", type=count, help="units of a layer")
    add("--depth", type=count, help="residual layers")
    text = "what the network corrects, one Gaussian or several (None: as held-out rows choose)"
    add("--base", choices=[*recipes.BASES], help=text)
    add("--sigma", type=number, help="lowest noise level")
    add("--sigma-max", type=number, help="highest noise level")
    add("--batch-size", type=count, help="rows a step")
    add("--steps", type=count, help="training steps (None: 400 passes over the rows)")
    add("--learning-rate", type=number, help="Adam's, falling")
    text = "of telling rows from the density's own samples (None: 3.5 for few rows of many columns)"
    add("--contrast-weight", type=float, help=text)
    text = "stop after so many epochs that improved nothing, or when the loss has risen by 2 %%"
    add("--patience", type=count, help=text)
    add("--samples", type=count, help="for log Z, at each level")
    preset = command_line.read_preset(PRESETS, preset_name(chosen), DEFAULT)
    if chosen.data or chosen.dataset:
        preset = {k: v for k, v in preset.items() if k not in ("data", "dataset", "columns")}
    command_line.set_preset(parser, preset)
    args = parser.parse_args(argv)
    name = command_line.check_table_options(parser, args)
    args.output = args.output or f"runs/{name}"
    if args.paper and args.base in ("mixture", "tree"):
        parser.error(f"--base {args.base} is not for --paper, whose base is one Gaussian")
    if args.contrast_weight is not None:
        if args.paper:
            parser.error("--contrast-weight is not for --paper, which has one noise level")
        if not 0 <= args.contrast_weight < math.inf:
            parser.error(f"--contrast-weight must be a number >= 0, got {args.contrast_weight}")
    if not args.paper and args.sigma_max <= args.sigma:
        parser.error(f"--sigma-max {args.sigma_max} must exceed --sigma {args.sigma}")
    return args


def preset_name(chosen):
    """The name of the preset that was chosen; the paper's settings depend on the data set."""
    name = chosen.preset or ("paper" if chosen.paper else DEFAULT)
    of_the_set = f"paper_{chosen.dataset}"
    return of_the_set if name == "paper" and (PRESETS / f"{of_the_set}.json").is_file() else name


def build(args, x, schema=None):
    """The density, ready to be trained on the rows ``x``."""
    schedules, normalization = keras.optimizers.schedules, schema
    if schema is None and args.dataset not in datasets.UCI:  # those are standardised already
        normalization = keras.layers.Normalization(axis=-1)
    settings = args.width, args.depth, normalization, args.seed
    if args.paper:
        noise: Noise = tfdde.Constant(args.sigma)
        if args.sigma < args.sigma_max:
            noise = tfdde.Decay(args.sigma_max, args.sigma, max(1, args.steps // 25), rate=1.1)
        dde = recipes.paper_table_density(x, noise, *settings)
        quarter = max(1, args.steps // 4)
        rate = schedules.ExponentialDecay(args.learning_rate, quarter, 0.5, staircase=True)
    else:
        noise = tfdde.LogUniform(args.sigma, args.sigma_max)
        more = {"base": args.base, "contrast_weight": args.contrast_weight}
        dde = recipes.table_density(x, noise, *settings, **more)
        rate = schedules.CosineDecay(args.learning_rate, args.steps)
    # The weights are averaged over about 100 steps.
    adam = FusedAdam(rate, use_ema=True, ema_momentum=0.99)
    dde.compile(adam, steps_per_execution=recipes.STEPS_PER_CALL, jit_compile=args.jit)
    return dde


def likelier_base(dde, rows, curve):
    """Whether the base alone is likelier at some level than the density at its best trusted one."""
    inside = tf.constant(dde.inside(rows))
    jacobian = dde.log_jacobian(inside)
    of_base = [
        float(np.mean(dde.base(inside, tf.constant(sigma, tf.float32)) + jacobian))
        for sigma in curve.sigmas
    ]
    best = curve.log_likelihood[curve.best]
    return max(of_base) > best + GAIN or not curve.partitions[curve.best].trusted


def normalise(args, dde, table, path):
    """Read the density at the level with the highest likelihood of validation rows.

    Only levels whose log Z is trusted count; with --paper there is one level.
    """
    x, x_validation = table.x_train, table.x_validation
    starts = tuning.ladder_starts(x, x_validation)
    if args.paper:
        inside = np.asarray(dde.inside(starts))
        best = importance(dde.at, inside, args.sigma, args.samples, args.seed)
    else:
        select = partial(
            tuning.select_sigma,
            dde,
            x_validation[:CHUNK],
            training=x[:CHUNK],
            starts=starts,
            samples=args.samples,
            moves=MOVES,
            seed=args.seed,
        )
        curve = select()
        if not dde.base.one_gaussian and likelier_base(dde, x_validation[:CHUNK], curve):
            trained = dde.network.get_weights()
            dde.drop_correction()
            alone = select()
            if alone.partitions[alone.best].trusted:
                curve = alone
                print(
                    "The base is likelier than the density at any level with a trusted log Z: the "
                    "network is left out."
                )
            else:
                dde.network.set_weights(trained)
        best = curve.partitions[curve.best]
        curves = {"training rows": curve.training, "validation rows": curve.log_likelihood}
        plots.likelihood_by_level(path, list(curve.sigmas), curves, best.sigma)
        dde.noise = tfdde.LogUniform(args.sigma, args.sigma_max, best.sigma)
    dde.partition = best


def notes_on(schema):
    """What was done to the columns, and what is still wrong with them, a sentence each."""
    return [*schema.notices, *(f"Warning: {text}" for text in schema.warnings)]


@runs.command
def main(argv=None):
    args = parse(argv)
    with command_line.user_errors():
        if args.data:
            choices = {name: getattr(args, name) for name in ("missing", "dependent", "tails")}
            table = datasets.learn_table(args.data, args.columns, args.seed, **choices)
        else:
            table = datasets.load_table(args.dataset, None, args.data_dir, args.seed)
            deviation = table.x_train.std(axis=0, dtype=np.float64)
            check_spread(table.x_train, deviation, args.sigma, "data", table.columns)
        if schema := table.schema:
            schema.check_resolution(args.sigma, "data")
    x, x_validation, x_test = table.x_train, table.x_validation, table.x_test
    args.steps = args.steps or EPOCHS * math.ceil(len(x) / args.batch_size)
    run = runs.Run(args.output, runs.with_checksum(args, x), args.resume)
    keras.utils.set_random_seed(args.seed)

    if schema and run.chief:
        for text in notes_on(schema):
            print(text)
    dde = build(args, x, schema)
    best = runs.KeepBest(
        np.resize(x_validation, (recipes.VALIDATION_ROWS, x.shape[1])),
        args.patience,
        path=run / "checkpoint/best.npz",
        curve=run / "validation.csv",
        rise=RISE,
    )
    batches = partial(datasets.stream, x, args.batch_size, args.seed)
    epoch_steps = max(recipes.EPOCH_STEPS, args.steps // EPOCHS)
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
    # To standardised units: plus the log of their volume in the data's own.
    inside = dde.inside(tf.constant(x_test))
    log_volume = -float(np.mean(dde.log_jacobian(inside), dtype=np.float64))
    mean, error = run.write_result(
        test,
        log_z,
        {"train": len(x), "validation": len(x_validation), "test": len(x_test)},
        in_standardized_units=float(test.mean() + log_volume),
        columns=table.columns,
        **({"notices": schema.notices, "warnings": schema.warnings} if schema else {}),
    )
    text = (
        f"sigma = {log_z.sigma:.3g} (lowest: {args.sigma:g}) standard deviations; {log_z}\n"
        f"Held-out {kind}: {mean:.4f} ± {error:.4f} nats per row in the data's own units, "
        f"{mean + log_volume:.4f} in standardised ones ({len(test)} test rows)."
    )
    if schema and schema.dequantised:
        text += f"\nIt is that of the columns with noise: {', '.join(schema.dequantised)}."
    print(text)
    to_score = table.to_score()
    if all(map(len, to_score)):
        anomalies.NormalRows(*to_score[:2]).save(run / "normal_rows.npz")
    notes = notes_on(schema) if schema else []
    write_report(run.folder, dde, to_score, table.columns, text, notes, args.seed)
    print(f"Pictures, a threshold and the strangest test rows: {run / 'report.md'}")
    return True


if __name__ == "__main__":
    sys.exit(main())
