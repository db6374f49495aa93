"""Train a density and a generator on a 2-D toy, and compare them with the exact density.

    python train/toy.py --dataset checkerboard --sigma 0.2
    python train/toy.py --preset quick --sigma 0.1
    python train/toy.py --preset runs/checkerboard/config.json --output runs/again

First the denoising density estimator s_p of the points is trained at all noise levels from --sigma
to --sigma-max, and compared at --sigma with the exact density on a grid. Then the generator g is
trained on it: with a large sigma every part of the data attracts samples, and a small sigma makes
them sharp. The samples of g have a DDE too, s_q, whose network learns the difference from s_p.
With --sigma-max equal to --sigma there is one level, and s_q has a network like that of s_p: this
is Algorithm 1 of the paper.

All files are written to --output. Ctrl-C stops the training, and --resume continues it.
"""

import argparse
import sys
from pathlib import Path

import keras

import tfdde
from tfdde import datasets, metrics, plots, recipes, runs
from tfdde.optimizers import FusedAdam
from tfdde.runs import command_line

PRESETS = Path(__file__).parent / "presets" / "toy"
DEFAULT = "paper"
EPOCH = 500  # steps between two lines of the log, and between two checkpoints
GROUP = 10  # steps of one compiled call
POOL = 1_000_000  # points that the batches are drawn from


def parse(argv):
    first = command_line.preset_parser(PRESETS, DEFAULT)
    preset = first.parse_known_args(argv)[0].preset
    parser = argparse.ArgumentParser(
        parents=[first],
        description="Train a density, then a generator, on a 2-D toy.",
        epilog="Defaults shown are those of the preset.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command_line.add_run_options(parser, "runs/DATASET", "of weights, points, noise and latents")
    add, count, number = parser.add_argument, runs.positive_int, runs.positive_float
    add("--dataset", choices=datasets.TOYS, default="checkerboard", help="the toy")
    add("--width", type=count, help="units of a layer of the density")
    add("--depth", type=count, help="residual layers of the density")
    add("--generator-width", type=count, help="units of a layer of the generator")
    add("--generator-depth", type=count, help="residual layers of the generator")
    add("--sigma", type=number, default=0.2, help="noise level, in units of the points")
    add("--sigma-max", type=number, default=2.0, help="highest level; equal to --sigma: only one")
    add("--latent-dim", type=count, default=2, help="dimensions of z")
    add("--batch-size", type=count, help="noisy points a step, two to a data point")
    add("--dde-steps", type=count, help="updates of s_q for one of the generator")
    add("--steps", type=count, help="steps of the density")
    add("--generator-steps", type=int, help="steps of the generator; 0: the density alone")
    add("--learning-rate", type=number, default=1e-2, help="Adam's for s_p, falling to 0")
    add("--dde-learning-rate", type=number, default=4e-3, help="Adam's for s_q, falling to 0")
    add("--generator-learning-rate", type=number, default=2e-3, help="Adam's for g, likewise")
    relative = "s_q's network learns s_q - s_p (None: with several levels)"
    add("--relative", action=argparse.BooleanOptionalAction, help=relative)
    command_line.add_generator_options(parser)
    add("--level-power", type=float, default=1.0, help="levels weigh (sigma / --sigma) to this")
    command_line.add_device_option(parser)
    command_line.set_preset(parser, command_line.read_preset(PRESETS, preset, DEFAULT))
    args = parser.parse_args(argv)
    args.output = args.output or f"runs/{args.dataset}"
    if args.sigma_max < args.sigma:
        parser.error(f"--sigma-max {args.sigma_max} is below --sigma {args.sigma}")
    if args.relative is None:
        args.relative = args.sigma_max > args.sigma or args.ratio == "logistic"
    if args.ratio == "logistic" and not args.relative:
        parser.error("--ratio logistic learns s_q - s_p: it can't be with --no-relative")
    command_line.check_generator_options(parser, args)
    if args.generator_steps < 0:
        parser.error(f"--generator-steps must be >= 0, got {args.generator_steps}")
    return args


@runs.command
def main(argv=None):
    args = parse(argv)
    strategy = runs.strategy_for(args.devices)

    # Points (rows, 2).
    x = datasets.sample_toy(args.dataset, POOL, args.seed)
    run = runs.Run(args.output, runs.with_checksum(args, x), args.resume)
    keras.utils.set_random_seed(args.seed)

    many = args.sigma_max > args.sigma
    noise = tfdde.LogUniform(args.sigma, args.sigma_max) if many else tfdde.Constant(args.sigma)
    with strategy.scope():
        density, generator = recipes.toy_models(
            x,
            noise,
            width=args.width,
            depth=args.depth,
            generator_width=args.generator_width,
            generator_depth=args.generator_depth,
            latent_dim=args.latent_dim,
            # The networks see all toys at the size of the checkerboard, which suits their
            # first weights.
            scale=datasets.toy_scale(args.dataset) / datasets.toy_scale("checkerboard"),
            dde_steps=args.dde_steps,
            relative=args.relative,
            ratio=args.ratio,
            forward=args.forward,
            one_stage=args.one_stage,
            level_power=args.level_power,
            seed=args.seed,
        )
        cosine = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.steps)
        # The weights are averaged over about 100 steps.
        averaging = FusedAdam(cosine, use_ema=True, ema_momentum=0.99)
        density.compile(averaging, steps_per_execution=GROUP, jit_compile=args.jit)
        steps, rate = max(1, args.generator_steps), args.generator_learning_rate
        # g's rate falls faster than s_q's, so that s_q catches up with g at the end.
        generator.compile(
            recipes.adam(rate, steps, 1.0, use_ema=True, ema_momentum=args.ema),
            dde_optimizer=recipes.adam(args.dde_learning_rate, steps * args.dde_steps),
            steps_per_execution=GROUP,
            jit_compile=args.jit,
        )

    def batches(start):
        return datasets.stream(x, max(1, args.batch_size // 2), args.seed, start)

    done = run.train("density", density, batches, args.steps, EPOCH)

    # The density, normalised on a grid that holds all of it, beside the exact one.
    half = datasets.toy_scale(args.dataset) + 4 * args.sigma
    side, bounds = 200, (-half, half)
    grid, cell = metrics.grid(*bounds, side)
    exact = datasets.toy_log_density(args.dataset, grid, args.sigma)
    learned = density.log_density(grid, normalized=False).numpy()
    divergence = metrics.grid_kl(exact, learned, cell)
    print(f"KL(exact || normalised DDE) = {divergence:.5f} nats")
    learned = learned - metrics.grid_log_partition(learned, cell)
    plots.density_beside_exact(
        run / "density.png",
        learned.reshape(side, side),
        exact.reshape(side, side),
        bounds,
        sigma=args.sigma,
        divergence=divergence,
    )

    if done and args.generator_steps:
        done = run.train("generator", generator, batches, args.generator_steps, EPOCH)
        points = generator.sample(100_000, seed=args.seed)
        step = int(generator.optimizer.iterations.numpy())
        title = f"{args.dataset}, σ = {args.sigma:g}, step {step} of {args.generator_steps}"
        plots.samples_beside_real(
            run / "samples.png", points, x[:100_000], bounds=bounds, title=title
        )
    logs = {"density": run / "density.csv", "generator": run / "generator.csv"}
    plots.loss_curves(run / "losses.png", logs)
    return done


if __name__ == "__main__":
    sys.exit(main())
