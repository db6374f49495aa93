"""Train a density and a generator on a 2-D toy, and hold them against the exact density.

    python train/toy.py --dataset checkerboard --sigma 0.2
    python train/toy.py --preset quick

First the denoising density estimator s_p of the points, then, with s_p frozen, the generator
by Algorithm 1. Everything lands in --output; Ctrl-C at any time, then --resume.
"""

import argparse
import sys

import keras

import tfdde
from tfdde import datasets, metrics, networks, plots, runs

# The defaults by --preset; an option given on the command line wins.
PRESETS = {
    "paper": {
        "width": 32,
        "depth": 25,
        "sigma": 0.2,
        "latent_dim": 2,
        "batch_size": 2048,
        "dde_steps": 10,
        "steps": 6_000,
        "generator_steps": 6_000,
        "learning_rate": 1e-3,
        "dde_learning_rate": 1e-3,
        "generator_learning_rate": 1e-3,
    },
    "quick": {
        "width": 32,
        "depth": 8,
        "sigma": 0.2,
        "latent_dim": 2,
        "batch_size": 512,
        "dde_steps": 5,
        "steps": 3_000,
        "generator_steps": 2_000,
        "learning_rate": 2e-3,
        "dde_learning_rate": 1e-3,
        "generator_learning_rate": 1e-3,
    },
}
EPOCH = 500  # steps between two lines of the log, and two checkpoints
POOL = 1_000_000  # points that the batches are drawn from


def parse(argv):
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=PRESETS, default="paper", help="choice of defaults")
    preset = first.parse_known_args(argv)[0].preset
    parser = argparse.ArgumentParser(
        parents=[first],
        description="Train a density, then a generator, on a 2-D toy.",
        epilog="Defaults shown are those of the preset.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, count, number = parser.add_argument, runs.positive_int, runs.positive_float
    add("--dataset", choices=datasets.TOYS, default="checkerboard", help="the toy")
    add("--output", help="folder of this run (default: runs/DATASET)", default=argparse.SUPPRESS)
    add("--resume", action="store_true", help="continue the run in --output")
    add("--seed", type=int, default=0, help="of weights, points, noise and latents")
    add("--width", type=count, help="units of a layer, of all three networks")
    add("--depth", type=count, help="residual layers of all three networks")
    add("--sigma", type=number, help="noise level, in units of the points")
    add("--latent-dim", type=count, help="dimensions of z")
    add("--batch-size", type=count, help="points a step")
    add("--dde-steps", type=count, help="updates of s_q for one of the generator")
    add("--steps", type=count, help="steps of the density")
    add("--generator-steps", type=count, help="steps of the generator")
    add("--learning-rate", type=number, help="Adam's for s_p, falling to 0 as a cosine")
    add("--dde-learning-rate", type=number, help="Adam's for s_q, likewise")
    add("--generator-learning-rate", type=number, help="Adam's for g, likewise")
    add("--jit", action=argparse.BooleanOptionalAction, default=True, help="compile by XLA")
    add("--devices", nargs="+", metavar="GPU:0", help="devices to share a batch (all GPUs)")
    parser.set_defaults(**PRESETS[preset])
    args = parser.parse_args(argv)
    args.output = getattr(args, "output", f"runs/{args.dataset}")
    return args


def adam(learning_rate, steps, **kwargs):
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    return keras.optimizers.Adam(schedule, **kwargs)


@runs.command
def main(argv=None):
    args = parse(argv)
    strategy = runs.strategy_for(args.devices)

    # Points (rows, 2).
    x = datasets.sample_toy(args.dataset, POOL, args.seed)
    run = runs.Run(args.output, vars(args), args.resume)
    keras.utils.set_random_seed(args.seed)

    def network(input_shape, **kwargs):
        return networks.residual_mlp(input_shape, args.width, args.depth, **kwargs)

    with strategy.scope():
        # s_p, the density of the points; its weights are averaged over about 1000 steps.
        noise = tfdde.Constant(args.sigma)
        density = tfdde.DDE(network(2), noise, seed=args.seed)
        density.compile(
            adam(args.learning_rate, args.steps, use_ema=True, ema_momentum=0.999),
            jit_compile=args.jit,
        )
        # g, and s_q, the density of what g makes.
        generator = tfdde.Generator(
            network(args.latent_dim, output_shape=2),
            data_dde=density,
            generated_dde=tfdde.DDE(network(2), noise, seed=args.seed + 1),
            latent_dim=args.latent_dim,
            dde_steps=args.dde_steps,
            seed=args.seed + 2,
        )
        generator.compile(
            adam(args.generator_learning_rate, args.generator_steps),
            dde_optimizer=adam(args.dde_learning_rate, args.generator_steps * args.dde_steps),
            jit_compile=args.jit,
        )

    def batches(start):
        return datasets.stream(x, args.batch_size, args.seed, start)

    done = run.train("density", density, batches, args.steps, EPOCH)

    # The density, normalised on a grid that holds all of it, beside the exact one.
    side, bounds = 200, (-4.5 - 4 * args.sigma, 4.5 + 4 * args.sigma)
    grid, cell = metrics.grid(*bounds, side)
    exact = datasets.toy_log_density(args.dataset, grid, args.sigma)
    learned = density.log_density(grid).numpy()
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

    if done:
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
