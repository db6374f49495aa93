"""Shares of the digits among generated images, counted by a classifier trained here.

    python benchmarks/mnist_digits.py runs/mnist --data-dir DIR

Refuses to count with a classifier of less than 99 % test accuracy.  Adds a row to
results/mnist_digits.json.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import keras
import numpy as np
import record

from tfdde import datasets

SAMPLES = 10_000
EPOCHS = 6
SURE = 0.9


def shifted():
    return keras.layers.RandomTranslation(0.07, 0.07, fill_mode="constant")


def mirrored():
    """Clothes look the same in a mirror, and lie in the middle of their images."""
    return keras.layers.RandomFlip("horizontal")


def train_classifier(data, augmentation, epochs):
    """Train a small convolutional network; return it with its test accuracy."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(data.x_train.shape[1:]),
            augmentation,
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(10),
        ]
    )
    steps = epochs * -(-len(data.x_train) // 128)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(data.x_train, data.y_train, batch_size=128, epochs=epochs, verbose=2)
    return model, model.evaluate(data.x_test, data.y_test, verbose=0)[1]


def classifier_of(data, path=None, least=0.99, augmentation=shifted, epochs=EPOCHS):
    """Return the classifier kept at ``path``, or a new one, and its test accuracy >= ``least``."""
    if path and path.exists():
        classifier = keras.saving.load_model(path)
        accuracy = classifier.evaluate(data.x_test, data.y_test, verbose=0)[1]
    else:
        keras.utils.set_random_seed(0)
        classifier, accuracy = train_classifier(data, augmentation(), epochs)
        if path:
            classifier.save(path)
    if accuracy < least:
        raise SystemExit(f"error: the classifier's test accuracy is {accuracy}, below {least}")
    return classifier, accuracy


def count(classifier, images):
    """Return the percentages of digits and of sure predictions, with binomial errors."""
    logits = classifier.predict(images, batch_size=500, verbose=0)
    probability = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    n = len(images)
    digits = np.bincount(probability.argmax(axis=1), minlength=10) / n
    sure = (probability.max(axis=1) >= SURE).mean()

    def error(share):
        return np.round(100 * np.sqrt(share * (1 - share) / n), 2).tolist()

    return {
        "digit_percent": np.round(100 * digits, 2).tolist(),
        "digit_standard_error": error(digits),
        "sure_percent": round(100 * float(sure), 2),
        "sure_standard_error": error(sure),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of train/mnist.py")
    parser.add_argument("--data-dir", help="folder with the IDX files of MNIST")
    parser.add_argument("--classifier", type=Path, help="where to keep the classifier")
    args = parser.parse_args()
    data = datasets.load_mnist(args.data_dir)
    classifier, accuracy = classifier_of(data, args.classifier)
    row = {"test_accuracy": accuracy, "samples": len(data.x_test)}
    record.add("mnist_digits", {"name": "test digits", **row, **count(classifier, data.x_test)})
    for run in args.runs:
        generator = keras.saving.load_model(run / "generator.keras", compile=False)
        images = generator.sample(SAMPLES, seed=1).numpy()
        with open(run / "generator.csv", newline="") as f:
            epochs = len(list(csv.DictReader(f)))
        row = {
            "name": run.name,
            "test_accuracy": accuracy,
            "samples": SAMPLES,
            **count(classifier, images),
            "training": json.loads((run / "config.json").read_text())["arguments"],
            "epochs": epochs,
        }
        row["training"] = {
            k: v for k, v in row["training"].items() if k not in ("data_dir", "output")
        }
        record.add("mnist_digits", row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
