"""Train a density and a generator on MNIST with the paper's networks and settings.

    python train/mnist.py
    python train/mnist.py --preset quick     # digits in ten minutes on two cores

Three networks: s_p, the denoising density estimator of the images; s_q, that of what the
generator makes; g, the generator. The noise level falls from --sigma-start to --sigma during
the first part of the training, and s_p is trained along: at a large sigma no digit is out of
the generator's sight. With --sigma-start equal to --sigma it is Algorithm 1 to the letter: s_p
is trained first (--steps) and then frozen.

Everything lands in --output; Ctrl-C at any time, then --resume.
"""

import argparse
import sys

import keras
import numpy as np

import tfdde
from tfdde import datasets, networks, plots, runs

LOADERS = {"mnist": datasets.load_mnist, "fashion_mnist": datasets.load_fashion_mnist}

# The defaults by --preset; an option given on the command line wins.
PRESETS = {
    "paper": {
        "width": 256,
        "depth": 15,
        "sigma": 0.5,
        "sigma_start": 2.0,
        "latent_dim": 16,
        "batch_size": 100,
        "dde_steps": 10,
        "data_steps": 3,
        "steps": 60_000,
        "generator_steps": 20_000,
        "learning_rate": 1e-3,
        "dde_learning_rate": 1e-3,
        "generator_learning_rate": 3e-4,
    },
    "quick": {
        "width": 256,
        "depth": 5,
        "sigma": 0.5,
        "sigma_start": 2.0,
        "latent_dim": 16,
        "batch_size": 128,
        "dde_steps": 2,
        "data_steps": 1,
        "steps": 6_000,
        "generator_steps": 3_500,
        "learning_rate": 1e-3,
        "dde_learning_rate": 1e-3,
        "generator_learning_rate": 3e-4,
    },
}
EPOCH = 100  # generator steps between two lines of the log, two pictures, two checkpoints
LEVELS = 200  # steps in which sigma falls
FALLING = 0.6  # share of the training in which it does


def parse(argv, dataset):
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=PRESETS, default="paper", help="choice of defaults")
    preset = first.parse_known_args(argv)[0].preset
    parser = argparse.ArgumentParser(
        parents=[first],
        description=f"Train a density, then a generator, on {dataset}.",
        epilog="Defaults shown are those of the preset.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, count, number = parser.add_argument, runs.positive_int, runs.positive_float
    add("--data-dir", help="folder with the four IDX files of the dataset")
    add("--output", default=f"runs/{dataset}", help="folder of this run")
    add("--resume", action="store_true", help="continue the run in --output")
    add("--seed", type=int, default=0, help="of weights, batches, noise and latents")
    add("--width", type=count, help="units of a layer, of all three networks")
    add("--depth", type=count, help="layers of the dense block, of all three networks")
    add("--sigma", type=number, help="noise level, in units of a pixel in [0, 1]")
    add("--sigma-start", type=number, help="noise level at first; equal to --sigma: constant")
    add("--latent-dim", type=count, help="dimensions of z")
    add("--batch-size", type=count, help="images a step")
    add("--dde-steps", type=count, help="updates of s_q for one of the generator")
    add("--data-steps", type=count, help="updates of s_p for one of the generator, if along")
    add("--steps", type=count, help="steps of the density, if trained first")
    add("--generator-steps", type=count, help="steps of the generator")
    add("--learning-rate", type=number, help="Adam's for s_p, falling to 0")
    add("--dde-learning-rate", type=number, help="Adam's for s_q, likewise")
    add("--generator-learning-rate", type=number, help="Adam's for g, likewise")
    add("--jit", action=argparse.BooleanOptionalAction, default=False, help="compile by XLA")
    add("--devices", nargs="+", metavar="GPU:0", help="devices to share a batch (all GPUs)")
    parser.set_defaults(**PRESETS[preset])
    args = parser.parse_args(argv)
    if args.sigma_start < args.sigma:
        parser.error(f"--sigma-start {args.sigma_start} is below --sigma {args.sigma}")
    return args


def noise_for(args):
    if args.sigma_start == args.sigma:
        return tfdde.Constant(args.sigma)
    steps = max(1, int(FALLING * args.generator_steps / LEVELS))
    rate = (args.sigma_start / args.sigma) ** (1 / LEVELS)
    return tfdde.Decay(args.sigma_start, args.sigma, steps, rate)


@runs.command
def main(argv=None, dataset="mnist"):
    args = parse(argv, dataset)
    strategy = runs.strategy_for(args.devices)

    # Images (rows, 28, 28, 1) with pixels in [0, 1].
    try:
        data = LOADERS[dataset](args.data_dir)
    except ValueError as error:
        raise runs.RunError(f"the data are damaged: {error}") from None
    x = data.x_train
    run = runs.Run(args.output, vars(args), args.resume)
    keras.utils.set_random_seed(args.seed)

    noise = noise_for(args)
    along = isinstance(noise, tfdde.Decay)

    def dense_block(input_shape, **kwargs):
        return networks.dense_block(input_shape, args.width, args.depth, **kwargs)

    def density_of(seed):
        # The network sees pixels centred and scaled; the base has their mean and covariance.
        network = keras.Sequential(
            [
                keras.Input(x.shape[1:], name="x"),
                keras.layers.Rescaling(2.0, offset=-2.0 * float(x.mean())),
                dense_block(x.shape[1:]),
            ]
        )
        base = tfdde.GaussianBase(x.shape[1:])
        base.adapt(x)
        return tfdde.DDE(network, noise, base, seed=seed)

    with strategy.scope():
        density = density_of(args.seed)
        if not along:
            density.compile(runs.adam(args.learning_rate, args.steps), jit_compile=args.jit)
        images = dense_block(args.latent_dim, output_shape=x.shape[1:], output_activation="sigmoid")
        networks.start_at_principal_components(images, x)
        generator = tfdde.Generator(
            images,
            data_dde=density,
            generated_dde=density_of(args.seed + 1),
            latent_dim=args.latent_dim,
            dde_steps=args.dde_steps,
            data_steps=args.data_steps,
            seed=args.seed + 2,
        )
        data_adam = runs.adam(args.learning_rate, args.generator_steps * args.data_steps)
        generator.compile(
            runs.adam(args.generator_learning_rate, args.generator_steps),
            dde_optimizer=runs.adam(args.dde_learning_rate, args.generator_steps * args.dde_steps),
            data_optimizer=data_adam if along else None,
            jit_compile=args.jit,
        )

    def batches(start):
        return datasets.stream(x, args.batch_size, args.seed, start)

    def draw_samples():
        images = generator.sample(64, seed=args.seed)
        step = int(generator.optimizer.iterations.numpy())
        title = f"{dataset}, σ = {args.sigma:g}, step {step} of {args.generator_steps}"
        plots.samples_beside_real(run / "samples.png", images, data.x_test[:64], title=title)

    done = along or run.train("density", density, batches, args.steps, EPOCH)
    if done:
        watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: draw_samples())
        done = run.train(
            "generator", generator, batches, args.generator_steps, EPOCH, callbacks=[watch]
        )
        draw_samples()
        z = np.random.default_rng(args.seed).standard_normal((2, 8, args.latent_dim))
        lines = [generator.interpolate(z0, z1, steps=10) for z0, z1 in zip(*z, strict=True)]
        plots.interpolation_grid(
            run / "interpolation.png", lines, title=f"{dataset}: lines between two latents"
        )
    if along:
        run.save("density", density)
    logs = {phase: run / f"{phase}.csv" for phase in ("density", "generator")}
    plots.loss_curves(run / "losses.png", logs)
    return done


if __name__ == "__main__":
    sys.exit(main())
