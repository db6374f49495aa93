"""Quality of generated MNIST or Fashion-MNIST: tfdde beside GANs and flow matching.

    python benchmarks/images.py compare --seconds 600 --classifier FILE --data-dir DIR
    python benchmarks/images.py tfdde --name "tfdde" --preset quick --data-dir DIR
    python benchmarks/images.py wgan_gp --seconds 600 --rate 2e-3 --data-dir DIR
    python benchmarks/images.py real --data-dir DIR
    python benchmarks/images.py table

`tfdde` trains by train/mnist.py, which gets the further arguments; the peers train by stock Keras
for --seconds; `real` are training images, the best that a generator could make. Distances are of
10,000 samples to the 10,000 test images, on the 128 features of a classifier trained here and
refused below 99 % test accuracy (Fashion-MNIST, with --dataset fashion_mnist: 90 %). With
`--split validation` the last 10,000 training images stand in for the test images. Adds a row to
results/images.json.

With `--clock cpu` the seconds are of the processor, so that other work on the machine takes nothing
from a training; it is for runs on one core.

With `--candidates K` a second row is of images that were each chosen from K: by tfdde's log-ratio,
or by the critic of a GAN, which a logistic regression makes a log-ratio.

`compare` trains each peer at each of --rates with seed 100 on the validation split, and then all
methods in turn with each of --seeds, the peers at the rate of the lowest Fréchet distance. What
has a row already is left out, so that it can be stopped and started again. Further arguments go
to train/mnist.py.
"""

import argparse
import csv
import gzip
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import mnist_digits
import numpy as np
import peers_images
import record

from tfdde import datasets, metrics

SAMPLES = 10_000
TIMED = 1_000  # samples
NEIGHBOURS = 5_000  # rows of precision, recall, density, coverage
TUNING_SEED = 100
METHODS = ("tfdde", *peers_images.METHODS)
DATASETS = {
    "mnist": (datasets.load_mnist, {"least": 0.99}),
    "fashion_mnist": (
        datasets.load_fashion_mnist,
        {"least": 0.90, "augmentation": mnist_digits.mirrored, "epochs": 12},
    ),
}


def features_of(classifier):
    """Return a function of images that gives the features before the last dropout."""
    x = keras.Input(classifier.input_shape[1:])
    h, outputs = x, []
    for layer in classifier.layers:
        h = layer(h)
        outputs.append(h)
    model = keras.Model(x, outputs[-3])
    return lambda images: model.predict(images, batch_size=500, verbose=0)


def quality(images, data, classifier):
    """Return all measures of generated images with their errors."""
    features = features_of(classifier)
    real, made = features(data.x_test), features(images)
    few_real, few_made = real[:NEIGHBOURS], made[:NEIGHBOURS]
    measured = {
        "frechet": metrics.frechet_distance(made, real, repeats=20),
        "kernel": metrics.kernel_distance(made, real),
        "precision": metrics.precision(few_real, few_made),
        "recall": metrics.precision(few_made, few_real),
        "density": metrics.density(few_real, few_made),
        "coverage": metrics.coverage(few_real, few_made),
    }
    row = {name: [m.value, m.standard_error] for name, m in measured.items()}
    # Memorised images would be nearer to the training set than test images are.
    known = features(data.x_train[:20_000])
    for name, rows in (("made", few_made), ("test", few_real)):
        row[f"nearest_{name}"] = float(np.median(metrics.nearest_distances(rows, known)))
    return row | mnist_digits.count(classifier, images)


def train_tfdde(args, more):
    """Train a generator by train/mnist.py in another process.

    Returns a sampler of n images from so many candidates, the seconds, the numbers of parameters,
    and each epoch's loss of s_q.
    """
    script = Path(__file__).parent.parent / "train" / f"{args.dataset}.py"
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.output or scratch + "/run"
        where = ["--data-dir", str(args.data_dir)] if args.data_dir else []
        command = [sys.executable, script, "--no-log-z", *more, *where, "--output", folder]
        start, used = time.time(), record.children_time()
        if code := subprocess.run(command).returncode:
            raise SystemExit(code)
        seconds = record.children_time() - used if args.clock == "cpu" else time.time() - start
        generator = keras.saving.load_model(f"{folder}/generator.keras", compile=False)
        with open(f"{folder}/generator.csv", newline="") as file:
            losses = [round(float(line["dde_loss"]), 4) for line in csv.DictReader(file)]
    trained = {
        "generator": generator.generator.count_params(),
        "density": generator.data_dde.network.count_params(),
        "generated_density": generator.generated_dde.network.count_params(),
    }

    def sample(n, candidates=1):
        return generator.sample_from_candidates(n, candidates, seed=1).numpy()

    return sample, seconds, trained, losses


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes(), 1))


def write_validation_split(data, folder):
    """Write the IDX files of a set whose test images are the last of the training images."""
    parts = {
        "train": (data.x_train[:-SAMPLES], data.y_train[:-SAMPLES]),
        "t10k": (data.x_train[-SAMPLES:], data.y_train[-SAMPLES:]),
    }
    for name, (images, labels) in parts.items():
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", np.rint(255 * images[..., 0]))
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)


def compare(args, more):
    """Tune the peers on the validation split, and train all methods in turn."""

    def name(method, rate=None):
        return f"{method}, {args.dataset}" + (f", rate {rate:g}" if rate else "")

    def row(method, seed, *options, rate=None, split="test"):
        """The row of a training, which is done if there is none yet."""
        called = name(method, rate) + (" (validation)" if split == "validation" else "")
        common = ["--dataset", args.dataset, "--name", called, "--seed", str(seed)]
        common += ["--split", split, "--data-dir", str(args.data_dir), "--clock", args.clock]
        common += ["--classifier", str(args.classifier)] if args.classifier else []
        options = [*options, "--rate", str(rate)] if rate else options
        key = f"{called}, seed {seed}"
        path = record.RESULTS / "images.json"
        if not any(r["name"] == key for r in json.loads(path.read_text())):
            command = [sys.executable, __file__, method, *common, *map(str, options)]
            subprocess.run(command, check=True)
        return next(r for r in json.loads(path.read_text()) if r["name"] == key)

    limit, best = ("--seconds", args.seconds), {}
    for method in args.methods:
        if method == "tfdde":
            continue
        distances = {
            rate: row(method, TUNING_SEED, *limit, rate=rate, split="validation")["frechet"][0]
            for rate in args.rates
        }
        best[method] = min(distances, key=distances.get)
    for seed in args.seeds:
        for method in args.methods:
            if method == "tfdde":
                keep = ["--output", f"{args.output}-{seed}"] if args.output else []
                row(method, seed, *keep, *more)
            else:
                row(method, seed, *limit, rate=best[method])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("method", choices=(*METHODS, "real", "compare", "table"))
    parser.add_argument("--dataset", choices=DATASETS, default="mnist")
    parser.add_argument("--name", help="of the row (default: the method)")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, of the peers")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="of the seconds")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of the peers")
    parser.add_argument("--data-dir", help="folder with the IDX files")
    parser.add_argument("--classifier", type=Path, help="where to keep the classifier")
    parser.add_argument("--output", help="keep tfdde's run in this folder (compare: FOLDER-SEED)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    text = "that each image of a second row is chosen from (not: flow_matching)"
    parser.add_argument("--candidates", type=int, default=1, help=text)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args, more = parser.parse_known_args()
    if args.method == "table":
        print(table(json.loads((record.RESULTS / "images.json").read_text())))
        return 0
    if args.candidates > 1 and args.method not in ("tfdde", "wgan_gp", "non_saturating"):
        parser.error(f"--candidates needs a method with a log-ratio or a critic, not {args.method}")
    if args.method == "compare":
        compare(args, more)
        return 0
    load, training = DATASETS[args.dataset]
    data = load(args.data_dir)
    classifier, accuracy = mnist_digits.classifier_of(data, args.classifier, **training)
    if args.split == "validation":
        scratch = tempfile.TemporaryDirectory()  # removed at the end
        args.data_dir = scratch.name
        write_validation_split(data, Path(scratch.name))
        data = load(args.data_dir)
    extra = {}
    if args.method == "tfdde":
        more = [*more, "--seed", str(args.seed)]
        sample, seconds, parameters, extra["losses"] = train_tfdde(args, more)
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    elif args.method == "real":
        order = np.random.default_rng(args.seed).permutation(len(data.x_train))
        sample, seconds, parameters = lambda n: data.x_train[order[:n]], 0, {}
    else:
        keras.utils.set_random_seed(args.seed)
        if args.clock == "cpu":
            peers_images.Clock.now = staticmethod(time.process_time)
        train = peers_images.METHODS[args.method]
        sample, seconds, parameters = train(data.x_train, args.seconds, args.seed, args.rate)
    for candidates in sorted({1, args.candidates}):
        choice = {"candidates": candidates} if candidates > 1 else {}
        sample(TIMED, **choice)
        start = time.time()
        sample(TIMED, **choice)
        took = time.time() - start
        chosen = f", {candidates} candidates" if choice else ""
        row = {
            "name": f"{args.name or args.method}{chosen}, seed {args.seed}",
            "dataset": args.dataset,
            "split": args.split,
            "threads": len(os.sched_getaffinity(0)),
            "seconds": round(seconds),
            "clock": args.clock,
            "parameters": parameters,
            **extra,
            "samples_per_second": round(TIMED / took),
            "test_accuracy": accuracy,
            **quality(sample(SAMPLES, **choice), data, classifier),
        }
        record.add("images", row)
    return 0


def table(rows):
    """Markdown: means over seeds with the standard errors of these means; of one seed its own."""
    methods = {}
    for row in rows:
        name = row["name"].rpartition(", seed ")[0]
        methods.setdefault(name, []).append(row)
    measures = ("frechet", "precision", "recall", "density", "coverage")
    lines = ["| | seeds | " + " | ".join(measures) + " | least digit % | sure % | samples/s |"]
    lines += ["|---" * (len(measures) + 5) + "|"]

    def mean(values, error=None):
        if len(values) > 1:
            error = np.std(values, ddof=1) / np.sqrt(len(values))
        text = f"{np.mean(values):.3g}"
        return text if error is None else f"{text} ± {error:.1g}"

    for name, runs in methods.items():
        cells = [mean([r[m][0] for r in runs], runs[0][m][1]) for m in measures]
        cells.append(mean([min(r["digit_percent"]) for r in runs]))
        cells.append(mean([r["sure_percent"] for r in runs]))
        cells.append(f"{np.median([r['samples_per_second'] for r in runs]):.0f}")
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
