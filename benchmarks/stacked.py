"""The number of the 1,000 modes of stacked MNIST that a generator reaches, over time.

    python benchmarks/stacked.py --every 600 --data-dir DIR --preset quick

Trains by train/stacked_mnist.py, which gets the further arguments, in a process of its own, and
copies its checkpoint every --every seconds. Of each copy 25,600 samples are counted: each colour's
digit by a classifier trained here and refused below 99 % test accuracy. Adds a row to
results/stacked.json: modes reached, and the shares' KL to uniform in nats, beside those of as many
real images.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import mnist_digits
import numpy as np
import record

from tfdde import datasets, metrics

SAMPLES, MODES = 25_600, 1_000
SCRIPT = Path(__file__).parent.parent / "train" / "stacked_mnist.py"


def train(arguments, folder, copies, every):
    """Run the script in ``folder``; return pairs of seconds and a copy of the checkpoint."""
    snapshots, start = [], time.time()
    with subprocess.Popen([sys.executable, SCRIPT, *arguments, "--output", folder]) as process:
        while process.poll() is None:
            time.sleep(1.0)
            seconds = time.time() - start
            checkpoint = folder / "checkpoint" / "generator.weights.h5"
            if seconds >= every * (len(snapshots) + 1):
                copy = copies / f"{len(snapshots)}.weights.h5"
                if checkpoint.exists():  # it is replaced, never rewritten
                    shutil.copy(checkpoint, copy)
                snapshots.append((seconds, copy))
    if process.returncode:
        raise SystemExit(process.returncode)
    return snapshots, time.time() - start


def modes_of(images, classifier):
    """Return modes reached, KL to uniform and its standard error of images (n, 28, 28, 3)."""
    digits = [
        classifier.predict(images[..., k : k + 1], batch_size=500, verbose=0).argmax(axis=1)
        for k in range(3)
    ]
    covered, kl = metrics.mode_coverage(np.array([100, 10, 1]) @ digits, MODES)
    return {"modes": covered, "kl_nats": kl.value, "kl_standard_error": kl.standard_error}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=float, default=600.0, help="seconds between two counts")
    parser.add_argument("--name", default="stacked MNIST", help="of the row")
    parser.add_argument("--data-dir", help="folder with the IDX files of MNIST")
    parser.add_argument("--classifier", type=Path, help="where to keep the classifier")
    parser.add_argument("--output", type=Path, help="keep the run in this folder")
    args, more = parser.parse_known_args()
    if args.data_dir:
        more += ["--data-dir", args.data_dir]
    classifier, accuracy = mnist_digits.classifier_of(
        datasets.load_mnist(args.data_dir), args.classifier
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.output or Path(scratch) / "run"
        snapshots, seconds = train(more, folder, Path(scratch), args.every)
        generator = keras.saving.load_model(folder / "generator.keras")
        last = modes_of(generator.sample(SAMPLES, seed=1).numpy(), classifier)
        curve = []
        for after, copy in snapshots:
            row = {"seconds": round(after), "step": 0, "modes": 0}
            if copy.exists():
                generator.load_weights(copy)
                row["step"] = int(generator.optimizer.iterations.numpy())
                generator.optimizer.finalize_variable_values(generator.trainable_weights)
                row |= modes_of(generator.sample(SAMPLES, seed=1).numpy(), classifier)
            curve.append(row)
        arguments = json.loads((folder / "config.json").read_text())["arguments"]
    real = datasets.load_stacked_mnist(args.data_dir).x_train[:SAMPLES]
    row = {
        "name": args.name,
        "seconds": round(seconds),
        "samples": SAMPLES,
        "test_accuracy": accuracy,
        **last,
        "real": modes_of(real, classifier),
        "curve": curve,
        "training": {k: v for k, v in arguments.items() if k not in ("data_dir", "output")},
    }
    record.add("stacked", row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
