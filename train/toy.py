"""Train a density and a generator on a 2-D toy, and hold them against the exact density.

    python train/toy.py --dataset checkerboard --sigma 0.2
    python train/toy.py --preset quick --sigma 0.1

First the denoising density estimator of the points at noise level --sigma, compared with the
exact density on a grid. Then the generator g with two DDEs of its own, s_p of the points and
s_q of what g makes, while the noise level falls from --sigma-start to --sigma: at a large sigma
no part of the data is out of the generator's sight. With --sigma-start equal to --sigma, s_p is
the first density, frozen: Algorithm 1 to the letter.

Everything lands in --output; Ctrl-C at any time, then --resume.
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
        "generator_width": 32,
        "generator_depth": 25,
        "sigma": 0.2,
        "sigma_start": 1.0,
        "latent_dim": 2,
        "batch_size": 2048,
        "dde_steps": 10,
        "steps": 6_000,
        "generator_steps": 6_000,
        "learning_rate": 1e-2,
        "dde_learning_rate": 5e-3,
        "generator_learning_rate": 2e-3,
    },
    "quick": {
        "width": 64,
        "depth": 8,
        "generator_width": 128,
        "generator_depth": 4,
        "sigma": 0.2,
        "sigma_start": 1.0,
        "latent_dim": 8,
        "batch_size": 2048,
        "dde_steps": 3,
        "steps": 2_000,
        "generator_steps": 5_000,
        "learning_rate": 1e-2,
        "dde_learning_rate": 5e-3,
        "generator_learning_rate": 2e-3,
    },
}
EPOCH = 500  # steps between two lines of the log, and two checkpoints
POOL = 1_000_000  # points that the batches are drawn from
LEVELS = 100  # steps in which sigma falls
FALLING = 0.6  # share of the generator's training in which it does


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
    add("--width", type=count, help="units of a layer, of the densities")
    add("--depth", type=count, help="residual layers of the densities")
    add("--generator-width", type=count, help="units of a layer of the generator")
    add("--generator-depth", type=count, help="residual layers of the generator")
    add("--sigma", type=number, help="noise level, in units of the points")
    add("--sigma-start", type=number, help="generator's first level; equal to --sigma: constant")
    add("--latent-dim", type=count, help="dimensions of z")
    add("--batch-size", type=count, help="noisy points a step, two to a point of the data")
    add("--dde-steps", type=count, help="updates of s_q for one of the generator")
    add("--steps", type=count, help="steps of the density")
    add("--generator-steps", type=int, help="steps of the generator; 0: the density alone")
    add("--learning-rate", type=number, help="Adam's for the density, falling to 0")
    add("--dde-learning-rate", type=number, help="Adam's for s_p and s_q, falling to 0")
    add("--generator-learning-rate", type=number, help="Adam's for g, likewise")
    add("--jit", action=argparse.BooleanOptionalAction, default=True, help="compile by XLA")
    add("--devices", nargs="+", metavar="GPU:0", help="devices to share a batch (all GPUs)")
    parser.set_defaults(**PRESETS[preset])
    args = parser.parse_args(argv)
    args.output = getattr(args, "output", f"runs/{args.dataset}")
    if args.sigma_start < args.sigma:
        parser.error(f"--sigma-start {args.sigma_start} is below --sigma {args.sigma}")
    if args.generator_steps < 0:
        parser.error(f"--generator-steps must be >= 0, got {args.generator_steps}")
    return args


def adam(learning_rate, steps):
    schedule = keras.optimizers.schedules.PolynomialDecay(learning_rate, steps, 0.0, power=0.5)
    # Little momentum: what s_q and g follow is moving.
    return keras.optimizers.Adam(schedule, beta_1=0.5, beta_2=0.99)


def noise_for(args):
    if args.sigma_start == args.sigma:
        return tfdde.Constant(args.sigma)
    steps = max(1, int(FALLING * args.generator_steps / LEVELS))
    rate = (args.sigma_start / args.sigma) ** (1 / LEVELS)
    return tfdde.Decay(args.sigma_start, args.sigma, steps, rate)


@runs.command
def main(argv=None):
    args = parse(argv)
    strategy = runs.strategy_for(args.devices)

    # Points (rows, 2).
    x = datasets.sample_toy(args.dataset, POOL, args.seed)
    run = runs.Run(args.output, vars(args), args.resume)
    keras.utils.set_random_seed(args.seed)

    noise = noise_for(args)
    along = isinstance(noise, tfdde.Decay)

    def density_of(noise, seed):
        base = tfdde.GaussianBase(2)
        base.adapt(x)
        network = networks.residual_mlp(2, args.width, args.depth)
        return tfdde.DDE(network, noise, base, antithetic=True, seed=seed)

    with strategy.scope():
        density = density_of(tfdde.Constant(args.sigma), args.seed)
        cosine = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.steps)
        # The weights are averaged over about 100 steps.
        averaging = keras.optimizers.Adam(cosine, use_ema=True, ema_momentum=0.99)
        density.compile(averaging, jit_compile=args.jit)
        generator = tfdde.Generator(
            networks.residual_mlp(
                args.latent_dim, args.generator_width, args.generator_depth, output_shape=2
            ),
            data_dde=density_of(noise, args.seed + 1) if along else density,
            generated_dde=density_of(noise, args.seed + 2),
            latent_dim=args.latent_dim,
            dde_steps=args.dde_steps,
            seed=args.seed + 3,
        )
        steps = args.generator_steps
        generator.compile(
            adam(args.generator_learning_rate, max(1, steps)),
            dde_optimizer=adam(args.dde_learning_rate, max(1, steps * args.dde_steps)),
            data_optimizer=adam(args.dde_learning_rate, max(1, steps)) if along else None,
            jit_compile=args.jit,
        )

    def batches(start):
        return datasets.stream(x, max(1, args.batch_size // 2), args.seed, start)

    done = run.train("density", density, batches, args.steps, EPOCH)

    # The density, normalised on a grid that holds all of it, beside the exact one.
    side, bounds = 200, (-4.5 - 4 * args.sigma, 4.5 + 4 * args.sigma)
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
