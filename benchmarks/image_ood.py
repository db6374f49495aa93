"""Images of another data set as anomalies: MNIST against Fashion-MNIST, both ways.

    PYTHONPATH=train python benchmarks/image_ood.py measure --data-dir DIR --seeds 0 1 2
    python benchmarks/image_ood.py table

A density of all noise levels trains on one set as `train/mnist.py` trains it, but without the last
5,000 of its training images. AUROC: how often an image of the other set's test images has a higher
anomaly score than one of its own. The scores are -log p~(x, sigma), the norm of its gradient, and
"joint": the Mahalanobis distance of both statistics at all levels from the last 5,000 training
images (compare Morningstar et al. 2021). No image of the other set chooses anything. DIR holds a
folder of IDX files for each set. Adds rows to results/image_ood.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import image_density
import numpy as np
import record
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score

from tfdde import datasets

LOADERS = {"mnist": datasets.load_mnist, "fashion_mnist": datasets.load_fashion_mnist}
SIGMAS = (0.1, 0.25, 0.5, 1.0)
HELD_OUT, TEST = 5_000, 2_000  # images


def statistics(density, x):
    """-log p~ and the logarithm of the norm of the score at each level: (rows, levels), twice."""
    minus, norms = [], []
    for sigma in SIGMAS:
        minus.append(-density.log_density(x, sigma, normalized=False).numpy())
        scores = density.score(x, sigma).numpy().reshape(len(x), -1).astype(np.float64)
        norms.append(np.log(np.linalg.norm(scores, axis=1)))
    return np.stack(minus, axis=1).astype(np.float64), np.stack(norms, axis=1)


def measure(name, other, args, seed):
    own, strange = (LOADERS[d](Path(args.data_dir) / d) for d in (name, other))
    start = time.process_time()
    x = own.x_train[:-HELD_OUT]
    density, _ = image_density.train_density(name, x, seed)
    density.cap_correction(x, seed=seed)  # as log Z makes the script's density
    seconds = time.process_time() - start
    known, test, far = (
        statistics(density, x)
        for x in (own.x_train[-HELD_OUT:], own.x_test[:TEST], strange.x_test[:TEST])
    )

    def auroc(normal, anomalous):
        labels = np.repeat([0, 1], [len(normal), len(anomalous)])
        return roc_auc_score(labels, np.concatenate([normal, anomalous]))

    joint = EmpiricalCovariance().fit(np.concatenate(known, axis=1))
    row = {
        "name": f"{name} against {other}, seed {seed}",
        "own": name,
        "other": other,
        "seed": seed,
        "seconds": round(seconds),
        "sigmas": list(SIGMAS),
        "density": [auroc(test[0][:, k], far[0][:, k]) for k in range(len(SIGMAS))],
        "score": [auroc(test[1][:, k], far[1][:, k]) for k in range(len(SIGMAS))],
        "joint": auroc(*(joint.mahalanobis(np.concatenate(s, axis=1)) for s in (test, far))),
    }
    record.add("image_ood", row)


def table(rows):
    """Markdown: AUROC in percent, means over seeds with their standard errors."""
    pairs = dict.fromkeys((row["own"], row["other"]) for row in rows)
    titles = [f"{own} against {other}" for own, other in pairs]
    lines = ["| score | " + " | ".join(titles) + " |", "|---" * (len(pairs) + 1) + "|"]

    def cells(value):
        texts = []
        for pair in pairs:
            values = [100 * value(r) for r in rows if (r["own"], r["other"]) == pair]
            text = f"{np.mean(values):.1f}"
            if len(values) > 1:
                text += f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.1f}"
            texts.append(text)
        return " | ".join(texts)

    for kind, title in (("density", "-log p̃"), ("score", "norm of the score")):
        for k, sigma in enumerate(SIGMAS):
            lines.append(f"| {title}, σ {sigma:g} | {cells(lambda r: r[kind][k])} |")  # noqa: B023
    lines.append(f"| both at all levels | {cells(lambda r: r['joint'])} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("measure", "table"))
    parser.add_argument("--data-dir", help="folder with a folder of IDX files for each data set")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    if args.what == "table":
        print(table(json.loads((record.RESULTS / "image_ood.json").read_text())))
        return 0
    for seed in args.seeds:
        for name, other in (list(LOADERS), list(LOADERS)[::-1]):
            measure(name, other, args, seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
