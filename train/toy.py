"""Train a density and a generator on a 2-D toy, and hold them against the exact density.

    python train/toy.py --dataset checkerboard --sigma 0.2
    python train/toy.py --preset quick --sigma 0.1

First the denoising density estimator s_p of the points at all noise levels from --sigma to
--sigma-max, compared at --sigma with the exact density on a grid. Then the generator g against
it: at a large sigma no part of the data is out of its sight, a small one makes it sharp. What g
makes has a DDE too, s_q, of which a network learns the difference from s_p. With --sigma-max
equal to --sigma there is one level, and s_q a network like s_p's: Algorithm 1 to the letter.

Everything lands in --output; Ctrl-C at any time, then --resume.
"""

import argparse
import sys

import keras

import tfdde
from tfdde import datasets, metrics, networks, plots, recipes, runs

# The defaults by --preset; an option given on the command line wins.
PRESETS = {
    "paper": {
        "width": 32,
        "depth": 25,
        "generator_width": 32,
        "generator_depth": 25,
        "batch_size": 2_048,
        "dde_steps": 10,
        "steps": 6_000,
        "generator_steps": 6_000,
    },
    "quick": {
        "width": 64,
        "depth": 8,
        "generator_width": 128,
        "generator_depth": 4,
        "batch_size": 1_024,
        "dde_steps": 3,
        "steps": 12_000,
        "generator_steps": 10_000,
    },
}
EPOCH = 500  # steps between two lines of the log, and two checkpoints
GROUP = 10  # steps of one compiled call
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
    relative = "s_q's network learns s_q - s_p (default: with several levels)"
    switch, suppress = argparse.BooleanOptionalAction, argparse.SUPPRESS
    add("--relative", action=switch, default=suppress, help=relative)
    add("--level-power", type=float, default=1.0, help="levels weigh (sigma / --sigma) to this")
    add("--ema", type=number, default=0.998, help="momentum of the averages of g's weights")
    add("--jit", action=switch, default=True, help="compile by XLA")
    add("--devices", nargs="+", metavar="GPU:0", help="devices to share a batch (all GPUs)")
    parser.set_defaults(**PRESETS[preset])
    args = parser.parse_args(argv)
    args.output = getattr(args, "output", f"runs/{args.dataset}")
    if args.sigma_max < args.sigma:
        parser.error(f"--sigma-max {args.sigma_max} is below --sigma {args.sigma}")
    args.relative = getattr(args, "relative", args.sigma_max > args.sigma)
    if args.ema >= 1:
        parser.error(f"--ema must be below 1, got {args.ema}")
    if args.generator_steps < 0:
        parser.error(f"--generator-steps must be >= 0, got {args.generator_steps}")
    return args


def rescaled(network, inputs, outputs):
    """The network of ``inputs`` x, its output times ``outputs``."""
    if inputs == outputs == 1.0:
        return network
    x, *others = [keras.Input(i.shape[1:], name=i.name) for i in network.inputs]
    y = network([keras.layers.Rescaling(inputs)(x), *others] if others else x)
    return keras.Model([x, *others] if others else x, keras.layers.Rescaling(outputs)(y))


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

    # Networks see all toys at the size of the first four, for which their first weights are.
    scale = datasets.toy_scale(args.dataset) / datasets.toy_scale("checkerboard")

    def density_of(network, seed):
        network = rescaled(network, 1 / scale, 1.0)
        base = tfdde.GaussianBase(2)
        base.adapt(x)
        return tfdde.DDE(network, noise, base, antithetic=True, time_weight=0.2, seed=seed)

    with strategy.scope():
        network = networks.residual_mlp(2, args.width, args.depth, levels=many)
        density = density_of(network, args.seed)
        cosine = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.steps)
        # The weights are averaged over about 100 steps.
        averaging = keras.optimizers.Adam(cosine, use_ema=True, ema_momentum=0.99)
        density.compile(averaging, steps_per_execution=GROUP, jit_compile=args.jit)
        if many:
            generated = networks.residual_mlp(2, 64, 4, activation="silu", levels=True, experts=2)
        else:
            generated = networks.residual_mlp(2, args.width, args.depth)
        shape = {"width": args.generator_width, "depth": args.generator_depth, "output_shape": 2}
        network = networks.residual_mlp(args.latent_dim, activation="silu", **shape)
        generator = tfdde.Generator(
            rescaled(network, 1.0, scale),
            data_dde=density,
            generated_dde=density_of(generated, args.seed + 2),
            latent_dim=args.latent_dim,
            dde_steps=args.dde_steps,
            relative=args.relative,
            level_power=args.level_power,
            seed=args.seed + 3,
        )
        steps = max(1, args.generator_steps)
        # Two time scales: g's rate falls faster than s_q's, which so catches up with it.
        generator.compile(
            recipes.adam(
                args.generator_learning_rate, steps, 1.0, use_ema=True, ema_momentum=args.ema
            ),
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
