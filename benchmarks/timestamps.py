"""Error of an artifact's log-density for rows far from 0, read as float32 and as float64.

    python benchmarks/timestamps.py

Two columns: a uniform number u of mean 0 and variance 1/12, and (u + 1/2)**2 - 1/3, both plus an
offset. A density of the standardised rows (sigma = 0.1) is trained once, without the offset. For
each offset it gets a ``Normalization`` by that offset, and is exported. The truth is the density
itself at rows that NumPy standardised in float64; errors are the largest of 10,000 rows, in nats.
``accepted`` tells whether training takes such rows as they are. Adds a row to
results/precision.json.
"""

import argparse
import tempfile

import keras
import numpy as np
import record
import tensorflow as tf

import tfdde
from tfdde import networks, serving
from tfdde.utils.checks import check_spread

SIGMA, ROWS = 0.1, 10_000
OFFSETS = [0.0, 1e3, 5e4, 1e6, 1.7e9]  # exact in float32


def rows(count, seed):
    u = np.random.default_rng(seed).uniform(size=count)
    return np.stack([u - 1 / 2, u**2 - 1 / 3], axis=1)


def train(standardised, epochs):
    base = tfdde.GaussianBase(2)
    network = networks.residual_mlp(2, width=32, depth=3)
    dde = tfdde.DDE(network, tfdde.Constant(SIGMA), base, seed=0)
    dde.adapt(standardised)
    dde.compile(tfdde.optimizers.FusedAdam(2e-3))
    dde.fit(standardised, batch_size=256, epochs=epochs, verbose=0)
    dde.log_partition(standardised, samples=5_000)
    return dde


def is_accepted(x, scale):
    try:
        check_spread(x.astype(np.float32), scale, SIGMA, "x")
    except ValueError:
        return False
    return True


def errors(dde, scale, offset):
    """Return the row of one offset."""
    x = rows(ROWS, 2) + offset
    truth = dde.log_density((x - offset) / scale).numpy() - np.log(scale).sum()
    layer = keras.layers.Normalization(mean=[offset] * 2, variance=scale**2)
    raw = tfdde.DDE(dde.network, dde.noise, dde.base, normalization=layer)
    raw.partition = dde.partition
    found = {"offset": offset, "accepted": is_accepted(x, scale)}
    with tempfile.TemporaryDirectory() as folder:
        path, _ = serving.export_savedmodel(folder, raw)
        signatures = tf.saved_model.load(str(path)).signatures
        for name, kind in (("log_density", np.float32), ("log_density_float64", np.float64)):
            got = signatures[name](x=tf.constant(x.astype(kind)))["log_density"].numpy()
            found[f"{np.dtype(kind)}_nats"] = float(f"{np.abs(got - truth).max():.2g}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    x = rows(50_000, 1)
    scale = x.std(axis=0)
    dde = train(x / scale, args.epochs)
    table = [errors(dde, scale, offset) for offset in OFFSETS]
    record.add("precision", {"name": "timestamps", "sigma": SIGMA, "rows": ROWS, "offsets": table})


if __name__ == "__main__":
    main()
