"""log Z and held-out log-likelihood of images, beside a flow and a mixture at equal time.

    PYTHONPATH=train python benchmarks/image_density.py digits --seeds 0 1 2
    PYTHONPATH=train python benchmarks/image_density.py digits --seeds 100 --rates 5e-4 1e-3 2e-3
    PYTHONPATH=train python benchmarks/image_density.py mnist --data-dir DIR --no-annealing
    python benchmarks/image_density.py table --of digits

tfdde's density of all noise levels trains as `train/mnist.py` trains it; its log Z is found by
the ladder and by annealing, whose intervals should meet. A RealNVP (Dinh et al. 2017) of stock
Keras layers and scikit-learn's Gaussian mixture each train on the images with noise of one level,
in as many seconds of processor time as tfdde took for training and ladder. Held-out training
images, which none of the three trains on, choose the flow's length of training and the mixture's
number of components. Log-likelihoods are of test images with noise of the level, in nats and in
bits per dimension. Adds rows to results/image_density.json.
"""

import argparse
import json
import math
import sys
import time
from typing import NamedTuple

import keras
import mnist  # type: ignore[import-not-found]  # train/mnist.py
import numpy as np
import record
import tensorflow as tf
from sklearn.mixture import GaussianMixture

from tfdde import datasets
from tfdde.utils.statistics import mean_and_error

METHODS = ("tfdde", "flow", "mixture")
SIGMAS = (0.1, 0.25, 0.5)
COUPLINGS, BATCH = 8, 256


class Settings(NamedTuple):
    """Of a data set and its peers.

    Attributes:
        held_out: training images that no method trains on.
        hidden: units of the flow.
        whiten: let the flow start at the Gaussian of the noisy images, not at independent pixels.
        components, copies, iterations: of the mixture: numbers that are tried, noisy copies of the
            images, and steps of EM at most.
    """

    held_out: int
    hidden: int
    whiten: bool
    components: tuple[int, ...]
    copies: int
    iterations: int


SETTINGS = {
    "digits": Settings(150, 128, False, (1, 2, 4, 8, 16, 32), 10, 100),
    "mnist": Settings(5_000, 256, True, (1, 4, 10), 1, 5),
}


def noisy(x, sigma, seed):
    rng = np.random.default_rng(seed)
    return x + np.float32(sigma) * rng.standard_normal(x.shape, np.float32)


def train_density(dataset, x, seed):
    """The density that train/mnist.py trains, without the generator."""
    args = mnist.parse([f"--dataset={dataset}", f"--seed={seed}"])
    keras.utils.set_random_seed(seed)
    density, _ = mnist.build(args, x)
    batches = datasets.stream(x, args.batch_size // 2, seed)
    density.fit(batches, steps_per_epoch=args.steps, verbose=2)
    return density, dict(zip(("samples", "moves"), mnist.LOG_Z[args.networks], strict=True))


class RealNVP(keras.Model):
    """Affine couplings of alternate halves of the entries, in a random order each."""

    def __init__(self, n, hidden, seed):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.masks = []
        for _ in range(COUPLINGS // 2):
            half = (rng.permutation(n) < n // 2).astype("float32")
            self.masks += [half, 1 - half]
        self.nets = [
            keras.Sequential(
                [
                    keras.layers.Dense(hidden, activation="silu"),
                    keras.layers.Dense(hidden, activation="silu"),
                    keras.layers.Dense(2 * n, kernel_initializer="zeros"),
                ]
            )
            for _ in self.masks
        ]

    def call(self, x):
        log_determinant = 0.0
        for mask, net in zip(self.masks, self.nets, strict=True):
            shift, scale = tf.split(net(x * mask), 2, axis=1)
            scale = (1 - mask) * 2.0 * tf.tanh(scale / 2.0)
            x = mask * x + (1 - mask) * (x * tf.exp(scale) + shift)
            log_determinant += tf.reduce_sum(scale, axis=1)
        normal = -0.5 * tf.reduce_sum(x**2 + math.log(2 * math.pi), axis=1)
        return normal + log_determinant


def real_nvp(x, held_out, sigma, seconds, seed, rate, settings):
    """Train on images (rows, n) with fresh noise; return a log-density and facts."""
    start = time.process_time()
    keras.utils.set_random_seed(seed)
    mean, variances, axes = x.mean(axis=0), x.var(axis=0), np.eye(x.shape[1])
    if settings.whiten:
        variances, axes = np.linalg.eigh(np.cov(x.T.astype(np.float64)))
    scale = np.sqrt(np.maximum(variances, 0.0) + sigma**2)
    log_volume = np.log(scale.astype(np.float64)).sum()
    whitening = tf.constant(axes / scale, tf.float32)
    model = RealNVP(x.shape[1], settings.hidden, seed)
    model(x[:2])
    optimizer = keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.99)
    optimizer.build(model.trainable_variables)
    rows, values = tf.constant(x), tf.constant(noisy(held_out, sigma, [seed, 2]))
    standardised = lambda y: tf.matmul(y - mean, whitening)  # noqa: E731

    @tf.function
    def step():
        picked = tf.random.uniform((BATCH,), 0, len(x), tf.int64)
        batch = tf.gather(rows, picked) + sigma * tf.random.normal((BATCH, x.shape[1]))
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(model(standardised(batch)))
        variables = model.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    log_density = tf.function(lambda y: model(standardised(y)))
    best, steps = (-np.inf, None, 0), 0
    while (share := (time.process_time() - start) / seconds) < 1:
        optimizer.learning_rate.assign(rate * 0.5 * (1 + math.cos(math.pi * share)))
        step()
        steps += 1
        if steps % 100 == 0:
            trained = model.get_weights()
            optimizer.finalize_variable_values(model.trainable_variables)
            value = float(tf.reduce_mean(log_density(values)))
            if value > best[0]:
                best = value, model.get_weights(), steps
            model.set_weights(trained)
    model.set_weights(best[1])

    def result(y):
        return log_density(tf.constant(y)).numpy().astype(np.float64) - log_volume

    return result, {"rate": rate, "steps": steps, "best_step": best[2], "validation": best[0]}


def gaussian_mixture(x, held_out, sigma, seconds, seed, settings):
    """Full covariances, by EM on noisy copies of the images (rows, n)."""
    start, best = time.process_time(), (-np.inf, None)
    copies = np.concatenate([noisy(x, sigma, [seed, 1, k]) for k in range(settings.copies)])
    values = noisy(held_out, sigma, [seed, 2])
    for components in settings.components:
        if best[1] and time.process_time() - start > seconds:
            break
        model = GaussianMixture(components, random_state=seed, max_iter=settings.iterations)
        model.fit(copies)
        best = max(best, (model.score(values), model), key=lambda pair: pair[0])
    return best[1].score_samples, {"components": best[1].n_components}


def row_of(name, values, log_z, n, **facts):
    mean, error = mean_and_error(values, log_z.standard_error if log_z else 0.0)
    bits = [-mean / (n * math.log(2)), error / (n * math.log(2))]
    record.add(
        "image_density",
        {"name": name, "log_likelihood": [mean, error], "bits_per_dimension": bits, **facts},
    )


def measure(args, seed):
    settings = SETTINGS[args.what]
    if args.what == "digits":
        data = datasets.load_digits(seed)
    else:
        data = datasets.load_mnist(args.data_dir)
    held_out, x = data.x_train[: settings.held_out], data.x_train[settings.held_out :]
    n = x[0].size
    flat = [part.reshape(len(part), n) for part in (x, held_out)]
    density, budget = None, args.seconds
    if args.rates is None and "tfdde" in args.methods:
        start = time.process_time()
        density, sizes = train_density(args.what, x, seed)
        trained = time.process_time() - start
    for sigma in SIGMAS:
        y = noisy(data.x_test, sigma, [seed, 3])
        where = f"{args.what}, sigma {sigma:g}, seed {seed}"
        if density:
            start = time.process_time()
            at = {"sigma": sigma, "seed": seed}
            ladder = density.log_partition(data.x_train, **sizes, **at)
            budget = trained + time.process_time() - start
            facts = {"ladder": [ladder.value, ladder.lower, ladder.upper, ladder.trusted]}
            if args.annealing:
                start = time.process_time()
                annealed = density.log_partition(data.x_train, "annealed", **at)
                took = time.process_time() - start
                facts |= {
                    "annealed": [annealed.value, annealed.lower, annealed.upper, annealed.trusted],
                    "annealed_seconds": round(took),
                    "agree": bool(
                        ladder.lower <= annealed.upper and annealed.lower <= ladder.upper
                    ),
                }
            # log_density takes the log Z of the ladder, which comes with every run of the script.
            values = density.log_density(y, sigma, normalized=False).numpy() - ladder.value
            values = values.astype(np.float64)
            row_of(f"tfdde, {where}", values, ladder, n, seconds=round(budget), **facts)
        y = y.reshape(len(y), n)
        for rate in args.rates or [args.rate] * ("flow" in args.methods):
            name = f"RealNVP, {where}" + (f", rate {rate:g}" if args.rates else "")
            found, facts = real_nvp(*flat, sigma, budget, seed, rate, settings)
            row_of(name, found(y), None, n, seconds=round(budget), **facts)
        if not args.rates and "mixture" in args.methods:
            found, facts = gaussian_mixture(*flat, sigma, budget, seed, settings)
            row_of(f"mixture, {where}", found(y), None, n, seconds=round(budget), **facts)


def table(rows, dataset):
    """Markdown: means over seeds with the standard errors of these means, in nats."""
    lines = ["| sigma | method | nats | bits per dimension |", "|---|---|---|---|"]
    for sigma in SIGMAS:
        for method in ("tfdde", "RealNVP", "mixture"):
            key = f"{method}, {dataset}, sigma {sigma:g}, seed "
            found = [r for r in rows if r["name"] in {f"{key}{k}" for k in range(10)}]
            cells = []
            for name in ("log_likelihood", "bits_per_dimension"):
                values = np.array([r[name][0] for r in found])
                error = values.std(ddof=1) / math.sqrt(len(values))
                cells.append(f"{values.mean():.2f} ± {error:.2f}")
            lines.append(f"| {sigma:g} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=(*SETTINGS, "table"))
    parser.add_argument("--of", choices=SETTINGS, default="digits", help="data set of the table")
    parser.add_argument("--data-dir", help="folder with the IDX files of MNIST")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rate", type=float, default=1e-3, help="of the flow")
    parser.add_argument("--rates", nargs="+", type=float, help="tune the flow alone")
    parser.add_argument("--seconds", type=float, default=60.0, help="of peers without tfdde")
    parser.add_argument("--annealing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    args = parser.parse_args()
    if args.what == "table":
        print(table(json.loads((record.RESULTS / "image_density.json").read_text()), args.of))
        return 0
    for seed in args.seeds:
        measure(args, seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
