"""Train a density and a generator of images: MNIST, or small digits where there is no MNIST.

    python train/mnist.py                    # digits in ten minutes on two cores
    python train/mnist.py --dataset digits   # scikit-learn's, of 8 x 8 pixels, in three minutes
    python train/mnist.py --preset full      # for long trainings
    python train/mnist.py --paper            # the paper's networks and settings
    python train/mnist.py --preset runs/mnist/config.json --output runs/again

The density s_p of the images, a denoising density estimator, knows all noise levels from --sigma
to --sigma-max. So does r = s_q - s_p, the log-ratio of the densities of samples and data: a large
sigma attracts samples to every digit, and a small sigma makes them sharp. --ratio says how r is
learned. With "logistic" the generator needs r only and is trained first; with "denoising" r is
learned as a density s_q is, and s_p is trained first. With --sigma-max equal to --sigma there is
one level, as in Algorithm 1 of the paper, which --paper trains by.

train/fashion_mnist.py and train/stacked_mnist.py do the same with other images.

All files are written to --output. Ctrl-C stops the training, and --resume continues it.
"""

import argparse
import math
import sys
from pathlib import Path

import keras
import numpy as np

import tfdde
from tfdde import datasets, networks, plots, recipes, runs
from tfdde.optimizers import FusedAdam
from tfdde.runs import command_line

PRESETS = Path(__file__).parent / "presets" / "mnist"
DEFAULT = "quick"  # of all data sets but the digits, whose preset is "digits"
NETWORKS = {  # the defaults that depend on --networks
    "conv": {
        "width": 32,
        "depth": 2,
        "learning_rate": 2e-3,
        "dde_learning_rate": 2e-3,
        "generator_learning_rate": 1e-3,
        "jit": False,  # XLA's convolutions are slower on CPUs
    },
    "residual": {
        "width": 128,
        "depth": 3,
        "learning_rate": 4e-3,
        "dde_learning_rate": 2e-3,
        "generator_learning_rate": 2e-3,
        "jit": True,
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
    "digits": lambda data_dir: datasets.load_digits(),
}
LATENTS = {"stacked_mnist": 48}  # 16 for each channel
# For log Z: samples at each level and their moves. With five moves, samples of small digits have
# not quite reached the density, and log Z is too low by more than its error. Larger images have
# more levels, so that fewer moves lead from one to the next.
LOG_Z = {"conv": (700, 2), "residual": (2_000, 20), "dense": (2_000, 20)}
# With power 1, errors of a denoising s_q in fine detail outweigh the shares of the digits.
LEVEL_POWERS = {"denoising": 2.0, "logistic": 1.0}


def parse(argv, dataset=None):
    first = command_line.preset_parser(PRESETS, None)
    text = "short for --preset paper"
    first.add_argument("--paper", action="store_const", const="paper", dest="preset", help=text)
    first.add_argument("--networks", choices=NETWORKS, help="layers: small images, residual")
    first.add_argument("--dataset", choices=LOADERS, help="images to train on (None: mnist)")
    chosen = first.parse_known_args(argv)[0]
    dataset = chosen.dataset or dataset
    name = chosen.preset or ("digits" if dataset == "digits" else DEFAULT)
    preset = command_line.read_preset(PRESETS, name, DEFAULT)
    dataset = dataset or preset.get("dataset") or "mnist"
    parser = argparse.ArgumentParser(
        parents=[first],
        description=f"Train a density and a generator on {dataset}.",
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
    command_line.add_generator_options(parser)
    text = "samples that one of the picture is chosen from, by r"
    add("--candidates", type=count, default=1, help=text)
    text = "estimate log Z and the held-out log-likelihood"
    add("--log-z", action=argparse.BooleanOptionalAction, help=text)
    add("--latent-dim", type=count, default=LATENTS.get(dataset, 16), help="dimensions of z")
    add("--batch-size", type=count, help="noisy images a step, two to an image")
    add("--dde-steps", type=count, help="updates of s_q for one of the generator")
    add("--steps", type=count, help="steps of the density")
    add("--generator-steps", type=count, help="steps of the generator")
    add("--epoch-steps", type=count, help="steps to a line of the log, a picture, a checkpoint")
    add("--learning-rate", type=number, help="Adam's for s_p, falling to 0")
    add("--dde-learning-rate", type=number, help="Adam's for s_q, likewise")
    add("--generator-learning-rate", type=number, help="Adam's for g, likewise")
    command_line.add_device_option(parser)
    kind = chosen.networks or preset.get("networks", "conv")
    if dataset == "stacked_mnist" and "dataset" not in preset:  # which a run's own options have
        preset = preset | {"log_z": False}  # nobody has measured log Z of images in colour
    command_line.set_preset(parser, NETWORKS[kind] | preset | {"dataset": dataset})
    args = parser.parse_args(argv)
    args.output = args.output or f"runs/{dataset}"
    if args.sigma_max < args.sigma:
        parser.error(f"--sigma-max {args.sigma_max} is below --sigma {args.sigma}")
    command_line.check_generator_options(parser, args)
    return args


def load(argv, dataset):
    """The arguments and the images; without MNIST those of the small digits."""
    args = parse(argv, dataset)
    try:
        return args, LOADERS[args.dataset](args.data_dir)
    except ImportError as error:
        raise runs.RunError(str(error)) from None
    except ValueError as error:
        raise runs.RunError(f"the data are damaged: {error}") from None
    except FileNotFoundError:
        if args.dataset != "mnist" or args.data_dir:
            raise
    print(
        "MNIST is neither given (--data-dir), prepared nor reachable: training on scikit-learn's "
        "1,797 digits of 8 x 8 pixels instead.",
        flush=True,
    )
    return load([*(sys.argv[1:] if argv is None else argv), "--dataset=digits"], dataset)


def build(args, x):
    """The density and the generator, ready to be trained on the images ``x``."""
    many = args.sigma_max > args.sigma
    noise = tfdde.LogUniform(args.sigma, args.sigma_max) if many else tfdde.Constant(args.sigma)
    density, generator = recipes.image_models(
        x,
        noise,
        kind=args.networks,
        width=args.width,
        depth=args.depth,
        activation=ACTIVATIONS[args.activation],
        latent_dim=args.latent_dim,
        dde_steps=args.dde_steps,
        ratio=args.ratio,
        forward=args.forward,
        one_stage=args.one_stage,
        level_power=LEVEL_POWERS[args.ratio],
        seed=args.seed,
    )
    cosine = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.steps)
    # The density's weights are averaged over about 100 steps.
    averaged = FusedAdam(cosine, use_ema=True, ema_momentum=0.99)
    density.compile(averaged, jit_compile=args.jit)
    steps = args.generator_steps
    generator.compile(
        recipes.adam(args.generator_learning_rate, steps, use_ema=True, ema_momentum=args.ema),
        dde_optimizer=recipes.adam(args.dde_learning_rate, steps * args.dde_steps),
        jit_compile=args.jit,
    )
    return density, generator


def held_out(args, density, data, run):
    """Estimate log Z, and print and write the log-likelihood of noisy test images.

    The images have the noise of the density's own level, so that the exact density would have
    the highest value of all.
    """
    samples, moves = LOG_Z[args.networks]
    log_z = density.log_partition(data.x_train, samples=samples, moves=moves, seed=args.seed)
    run.save("density", density)
    x = data.x_test
    epsilon = np.random.default_rng([args.seed, 1]).standard_normal(x.shape, np.float32)
    noisy = x + np.float32(args.sigma) * epsilon
    values = density.log_density(noisy, normalized=log_z.trusted).numpy().astype(np.float64)
    mean, error = run.write_result(values, log_z, {"train": len(data.x_train), "test": len(x)})
    print(log_z)
    images = f"{len(x)} test images with noise of sigma = {args.sigma:g}"
    if not log_z.trusted:
        print(f"UNNORMALISED log-density of {images}: {mean:.2f} ± {error:.2f} nats.")
        return
    bits = -1 / (x[0].size * math.log(2))
    print(
        f"Held-out log-likelihood of {images}: {mean:.2f} ± {error:.2f} nats, "
        f"{bits * mean:.3f} ± {abs(bits) * error:.3f} bits per dimension."
    )


@runs.command
def main(argv=None, dataset=None):
    # Images (rows, 28, 28, 1) with pixels in [0, 1]; those of stacked MNIST have three channels.
    args, data = load(argv, dataset)
    dataset, x = args.dataset, data.x_train
    strategy = runs.strategy_for(args.devices)
    run = runs.Run(args.output, runs.with_checksum(args, x), args.resume)
    keras.utils.set_random_seed(args.seed)

    with strategy.scope():
        density, generator = build(args, x)
    steps = args.generator_steps

    def batches(start):
        return datasets.stream(x, max(1, args.batch_size // 2), args.seed, start)

    def draw_samples():
        path = run / "samples.png"
        seen = path.exists()
        images = generator.sample_from_candidates(64, args.candidates, args.seed)
        step = int(generator.optimizer.iterations.numpy())
        title = f"{dataset}, σ = {args.sigma:g}, step {step} of {args.generator_steps}"
        plots.samples_beside_real(path, images, data.x_test[:64], title=title)
        if not seen:
            print(f"Samples, drawn anew every {args.epoch_steps} steps: {path}", flush=True)

    def train_generator():
        watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: draw_samples())
        done = run.train(
            "generator", generator, batches, steps, args.epoch_steps, callbacks=[watch]
        )
        draw_samples()
        z = np.random.default_rng(args.seed).standard_normal((2, 8, args.latent_dim))
        lines = [generator.interpolate(z0, z1, steps=10) for z0, z1 in zip(*z, strict=True)]
        title = f"{dataset}: lines between two latents"
        plots.interpolation_grid(run / "interpolation.png", lines, title=title)
        return done

    def train_density():
        return run.train("density", density, batches, args.steps, args.epoch_steps)

    # The generator needs s_p only if r is learned by denoising.
    phases = [train_density, train_generator]
    done = all(phase() for phase in (phases[::-1] if args.ratio == "logistic" else phases))
    logs = {phase: run / f"{phase}.csv" for phase in ("density", "generator")}
    plots.loss_curves(run / "losses.png", {k: p for k, p in logs.items() if p.exists()})
    if done and args.log_z:
        held_out(args, density, data, run)
    if done:
        run.save("generator", generator)  # with the density as it is now
        folder = run.folder
        choice = f" --candidates {args.candidates}" if args.candidates > 1 else ""
        print(
            f"Pictures: {run / 'samples.png'}, {run / 'interpolation.png'}\n"
            f"Export: python export/savedmodel.py {folder}{choice}\n"
            f"Explore: python -m tfdde.explore {folder} --output {folder / 'page'}"
        )
    return done


if __name__ == "__main__":
    sys.exit(main())
