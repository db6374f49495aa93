"""Train a density and a generator on MNIST.

    python train/mnist.py
    python train/mnist.py --preset quick     # digits in ten minutes on two cores
    python train/mnist.py --paper            # the paper's networks and settings
    python train/mnist.py --preset runs/mnist/config.json --output runs/again

First s_p, the denoising density estimator of the images, is trained at all noise levels from
--sigma to --sigma-max. Then the generator g is trained on it: with a large sigma every digit
attracts samples, and a small sigma makes them sharp. The samples of g have a DDE too, s_q, whose
network learns the difference from s_p. With --sigma-max equal to --sigma, as in the paper, there is
one level, and s_q has a network like that of s_p: this is Algorithm 1 of the paper.

train/fashion_mnist.py and train/stacked_mnist.py do the same with other images.

All files are written to --output. Ctrl-C stops the training, and --resume continues it.
"""

import argparse
import sys
from pathlib import Path

import keras
import numpy as np

import tfdde
from tfdde import datasets, networks, plots, recipes, runs
from tfdde.runs import command_line

PRESETS = Path(__file__).parent / "presets" / "mnist"
DEFAULT = "full"
NETWORKS = {  # the defaults that depend on --networks
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
ACTIVATIONS = {"silu": "silu", "softplus": networks.softplus}
LOADERS = {
    "mnist": datasets.load_mnist,
    "fashion_mnist": datasets.load_fashion_mnist,
    "stacked_mnist": datasets.load_stacked_mnist,
}
LATENTS = {"mnist": 16, "fashion_mnist": 16, "stacked_mnist": 48}  # 16 for each channel
EPOCH = 100  # steps between two lines of the log, two pictures, two checkpoints
LEVEL_POWER = 2.0  # with 1, errors of s_q in fine detail outweigh the shares of the digits


def parse(argv, dataset):
    first = command_line.preset_parser(PRESETS, DEFAULT)
    text = "short for --preset paper"
    first.add_argument("--paper", action="store_const", const="paper", dest="preset", help=text)
    first.add_argument("--networks", choices=NETWORKS, help="convolutional, or dense blocks")
    chosen = first.parse_known_args(argv)[0]
    parser = argparse.ArgumentParser(
        parents=[first],
        description=f"Train a density, then a generator, on {dataset}.",
        epilog="Defaults shown are those of the preset.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command_line.add_run_options(
        parser, f"runs/{dataset}", "of weights, batches, noise and latents"
    )
    add, count, number = parser.add_argument, runs.positive_int, runs.positive_float
    add("--data-dir", help="folder with the four IDX files of the dataset")
    add("--width", type=count, help="channels or units of a layer, of all three networks")
    add("--depth", type=count, help="residual layers, or layers of the dense block")
    add("--activation", choices=ACTIVATIONS, help="of s_p and s_q")
    add("--sigma", type=number, help="noise level, in units of a pixel in [0, 1]")
    add("--sigma-max", type=number, help="highest level; equal to --sigma: only one")
    add("--latent-dim", type=count, default=LATENTS[dataset], help="dimensions of z")
    add("--batch-size", type=count, help="noisy images a step, two to an image")
    add("--dde-steps", type=count, help="updates of s_q for one of the generator")
    add("--steps", type=count, help="steps of the density")
    add("--generator-steps", type=count, help="steps of the generator")
    add("--learning-rate", type=number, help="Adam's for s_p, falling to 0")
    add("--dde-learning-rate", type=number, help="Adam's for s_q, likewise")
    add("--generator-learning-rate", type=number, help="Adam's for g, likewise")
    command_line.add_device_option(parser)
    preset = command_line.read_preset(PRESETS, chosen.preset, DEFAULT)
    kind = chosen.networks or preset.get("networks", "conv")
    command_line.set_preset(parser, NETWORKS[kind] | preset)
    args = parser.parse_args(argv)
    args.output = args.output or f"runs/{dataset}"
    if args.sigma_max < args.sigma:
        parser.error(f"--sigma-max {args.sigma_max} is below --sigma {args.sigma}")
    return args


@runs.command
def main(argv=None, dataset="mnist"):
    args = parse(argv, dataset)
    strategy = runs.strategy_for(args.devices)

    # Images (rows, 28, 28, 1) with pixels in [0, 1]; those of stacked MNIST have three channels.
    try:
        data = LOADERS[dataset](args.data_dir)
    except ValueError as error:
        raise runs.RunError(f"the data are damaged: {error}") from None
    x = data.x_train
    run = runs.Run(args.output, runs.with_checksum(args, x), args.resume)
    keras.utils.set_random_seed(args.seed)

    many = args.sigma_max > args.sigma
    noise = tfdde.LogUniform(args.sigma, args.sigma_max) if many else tfdde.Constant(args.sigma)
    with strategy.scope():
        density, generator = recipes.image_models(
            x,
            noise,
            kind=args.networks,
            width=args.width,
            depth=args.depth,
            activation=ACTIVATIONS[args.activation],
            latent_dim=args.latent_dim,
            dde_steps=args.dde_steps,
            level_power=LEVEL_POWER,
            seed=args.seed,
        )
        cosine = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.steps)
        # The weights are averaged over about 100 steps.
        averaging = {"use_ema": True, "ema_momentum": 0.99}
        density.compile(keras.optimizers.Adam(cosine, **averaging), jit_compile=args.jit)
        steps = args.generator_steps
        generator.compile(
            recipes.adam(args.generator_learning_rate, steps, **averaging),
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
        done = run.train("generator", generator, batches, steps, EPOCH, callbacks=[watch])
        draw_samples()
        z = np.random.default_rng(args.seed).standard_normal((2, 8, args.latent_dim))
        lines = [generator.interpolate(z0, z1, steps=10) for z0, z1 in zip(*z, strict=True)]
        title = f"{dataset}: lines between two latents"
        plots.interpolation_grid(run / "interpolation.png", lines, title=title)
    logs = {phase: run / f"{phase}.csv" for phase in ("density", "generator")}
    plots.loss_curves(run / "losses.png", logs)
    return done


if __name__ == "__main__":
    sys.exit(main())
