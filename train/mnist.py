"""Train a density and a generator on MNIST.

    python train/mnist.py
    python train/mnist.py --preset quick     # digits in ten minutes on two cores
    python train/mnist.py --paper            # the paper's networks and settings

First s_p, the denoising density estimator of the images at all noise levels from --sigma to
--sigma-max. Then g, the generator, against it: at a large sigma no digit is out of its sight, a
small one makes it sharp. What g makes has a DDE too, s_q, of which a network learns the difference
from s_p. With --sigma-max equal to --sigma, as in the paper, there is one level, and s_q a network
like s_p's: Algorithm 1 to the letter.

Everything lands in --output; Ctrl-C at any time, then --resume.
"""

import argparse
import sys
from typing import Any

import keras
import numpy as np

import tfdde
from tfdde import datasets, networks, plots, recipes, runs
from tfdde.networks import convolutional, initial_weights

ACTIVATIONS = {"silu": "silu", "softplus": networks.softplus}
LOADERS = {
    "mnist": datasets.load_mnist,
    "fashion_mnist": datasets.load_fashion_mnist,
    "stacked_mnist": datasets.load_stacked_mnist,
}
LATENTS = 16  # dimensions of z for each channel

# The defaults by --networks and --preset; an option given on the command line wins.
NETWORKS: dict[str, dict[str, Any]] = {
    "conv": {
        "width": 32,
        "depth": 2,
        "learning_rate": 4e-3,
        "dde_learning_rate": 2e-3,
        "generator_learning_rate": 1e-3,
        "jit": False,  # XLA's convolutions are slower on CPUs
    },
    "dense": {
        "width": 256,
        "depth": 15,
        "learning_rate": 1e-3,
        "dde_learning_rate": 1e-3,
        "generator_learning_rate": 3e-4,
        "jit": True,
    },
}
LEVELS = {"networks": "conv", "sigma": 0.25, "sigma_max": 4.0, "activation": "silu", "dde_steps": 1}
PRESETS: dict[str, dict[str, Any]] = {
    "full": {**LEVELS, "batch_size": 128, "steps": 20_000, "generator_steps": 60_000},
    "quick": {**LEVELS, "batch_size": 32, "steps": 3_600, "generator_steps": 6_000},
    "paper": {
        "networks": "dense",
        "sigma": 0.5,
        "sigma_max": 0.5,
        "activation": "softplus",
        "dde_steps": 10,
        "batch_size": 100,
        "steps": 60_000,
        "generator_steps": 20_000,
    },
}
EPOCH = 100  # steps between two lines of the log, two pictures, two checkpoints
LEVEL_POWER = 2.0  # at 1, what s_q has not learned of fine detail outweighs the shares of digits


def parse(argv, dataset):
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=PRESETS, default="full", help="choice of defaults")
    first.add_argument(
        "--paper",
        action="store_const",
        const="paper",
        dest="preset",
        help="the paper's networks and settings, short for --preset paper",
    )
    first.add_argument("--networks", choices=NETWORKS, help="convolutional, or dense blocks")
    chosen = first.parse_known_args(argv)[0]
    preset = PRESETS[chosen.preset]
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
    add("--width", type=count, help="channels or units of a layer, of all three networks")
    add("--depth", type=count, help="residual layers, or layers of the dense block")
    add("--activation", choices=ACTIVATIONS, help="of s_p and s_q")
    add("--sigma", type=number, help="noise level, in units of a pixel in [0, 1]")
    add("--sigma-max", type=number, help="highest level; equal to --sigma: only one")
    channels = 3 if dataset == "stacked_mnist" else 1
    add("--latent-dim", type=count, default=LATENTS * channels, help="dimensions of z")
    add("--batch-size", type=count, help="noisy images a step, two to an image")
    add("--dde-steps", type=count, help="updates of s_q for one of the generator")
    add("--steps", type=count, help="steps of the density")
    add("--generator-steps", type=count, help="steps of the generator")
    add("--learning-rate", type=number, help="Adam's for s_p, falling to 0")
    add("--dde-learning-rate", type=number, help="Adam's for s_q, likewise")
    add("--generator-learning-rate", type=number, help="Adam's for g, likewise")
    add("--jit", action=argparse.BooleanOptionalAction, help="compile by XLA")
    add("--devices", nargs="+", metavar="GPU:0", help="devices to share a batch (all GPUs)")
    parser.set_defaults(**NETWORKS[chosen.networks or preset["networks"]] | preset)
    args = parser.parse_args(argv)
    if args.sigma_max < args.sigma:
        parser.error(f"--sigma-max {args.sigma_max} is below --sigma {args.sigma}")
    return args


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
    run = runs.Run(args.output, runs.with_checksum(args, x), args.resume)
    keras.utils.set_random_seed(args.seed)

    many = args.sigma_max > args.sigma
    noise = tfdde.LogUniform(args.sigma, args.sigma_max) if many else tfdde.Constant(args.sigma)

    conv, activation = args.networks == "conv", ACTIVATIONS[args.activation]
    shape, size = x.shape[1:], (args.width, args.depth)

    covariance = tfdde.GaussianBase(shape)
    covariance.adapt(x)  # seconds; both densities' bases are it

    def density_of(seed):
        base = tfdde.GaussianBase(shape)
        base.set_weights(covariance.get_weights())
        if conv:
            network = convolutional.conv_density(shape, *size, activation=activation, levels=many)
        else:
            network = networks.dense_block(shape, *size, activation=activation, levels=many)
            initial_weights.along_covariance(network, base, args.sigma, seed)
        # Time-score matching would help to normalise s_p, which nothing here needs.
        return tfdde.DDE(network, noise, base, antithetic=True, time_weight=0.0, seed=seed)

    def images_of():
        if conv:
            return convolutional.conv_generator(args.latent_dim, shape, args.width)
        network = networks.dense_block(
            args.latent_dim, *size, output_shape=shape, output_activation="sigmoid"
        )
        initial_weights.at_principal_components(network, x)
        return network

    with strategy.scope():
        density = density_of(args.seed)
        cosine = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.steps)
        # The weights are averaged over about 100 steps.
        averaging = keras.optimizers.Adam(cosine, use_ema=True, ema_momentum=0.99)
        density.compile(averaging, jit_compile=args.jit)
        steps = args.generator_steps
        generator = tfdde.Generator(
            images_of(),
            data_dde=density,
            generated_dde=density_of(args.seed + 1),
            latent_dim=args.latent_dim,
            dde_steps=args.dde_steps,
            relative=many,
            level_power=LEVEL_POWER,
            seed=args.seed + 2,
        )
        generator.compile(
            recipes.adam(args.generator_learning_rate, steps, use_ema=True, ema_momentum=0.99),
            dde_optimizer=recipes.adam(args.dde_learning_rate, steps * args.dde_steps),
            jit_compile=args.jit,
        )

    def batches(start):
        return datasets.stream(x, max(1, args.batch_size // 2), args.seed, start)

    def draw_samples():
        images = generator.sample(64, seed=args.seed)
        step = int(generator.optimizer.iterations.numpy())
        title = f"{dataset}, σ = {args.sigma:g}, step {step} of {args.generator_steps}"
        plots.samples_beside_real(run / "samples.png", images, data.x_test[:64], title=title)

    done = run.train("density", density, batches, args.steps, EPOCH)
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
    logs = {phase: run / f"{phase}.csv" for phase in ("density", "generator")}
    plots.loss_curves(run / "losses.png", logs)
    return done


if __name__ == "__main__":
    sys.exit(main())
