"""Ways to write s(x, sigma) as a network, trained on the same data within the same budget.

    python benchmarks/parametrizations.py --seconds 60

x^ is x, centred and scaled to unit variance at every noise level. All networks have three residual
layers of 256 SiLU units; their inputs are x^ and the place of log(sigma) in its range:

plain      s = f, a scalar
base       s = Gaussian base + f, a scalar
energy     s = base - ||x^ - f||**2 / 2, f a vector
product    s = base + <x^, f>, f a vector
mixtures   s = base + a sum of four log-mixtures of 16 logits (``ProductOfMixtures``)

"gap" is the Kullback-Leibler divergence from the exact blurred density. Adds rows to
results/parametrizations.json.
"""

import argparse
import math

import keras
import numpy as np
import peers
import record
import tensorflow as tf
from likelihoods import SIGMA, TEST, TRAIN, VALIDATION, make_family

import tfdde
from tfdde import networks


class Plain(tfdde.DDE):
    """A density without the Gaussian base."""

    def at(self, x, sigma):
        return super().at(x, sigma) - self.base(x, sigma)


class Energy(keras.layers.Layer):
    """-||x - f||**2 / 2."""

    def call(self, inputs):
        x, f = inputs
        return -0.5 * tf.reduce_sum(tf.square(x - f), axis=-1, keepdims=True)


class Product(keras.layers.Layer):
    """<x, f>."""

    def call(self, inputs):
        x, f = inputs
        return tf.reduce_sum(x * f, axis=-1, keepdims=True)


def network_of(name, n):
    def trunk(**kwargs):
        return networks.residual_mlp(n, 256, 3, activation="silu", levels=True, **kwargs)

    if name in ("plain", "base"):
        return trunk()
    if name == "mixtures":
        return trunk(experts=4)
    vector = trunk(output_shape=n)
    layer = Energy() if name == "energy" else Product()
    return keras.Model(vector.inputs, layer([vector.inputs[0], vector.output]))


NAMES = ("plain", "base", "energy", "product", "mixtures")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, each")
    parser.add_argument("--data", nargs="+", default=["mixture-8", "toys-8"])
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for data in args.data:
        family = make_family(data)
        x, fresh = (family.sample(rows, seed) for rows, seed in ((TRAIN, 1), (VALIDATION, 2)))
        y = family.sample(TEST, 3)
        y += np.float32(SIGMA) * np.random.default_rng(4).standard_normal(y.shape, np.float32)
        truth = family.log_density(y, SIGMA)
        for name in args.names:
            keras.utils.set_random_seed(args.seed)
            kind = Plain if name == "plain" else tfdde.DDE
            network = network_of(name, x.shape[1])
            dde = kind(network, tfdde.LogUniform(SIGMA, 8.0), antithetic=True, seed=args.seed)
            dde.adapt(x)
            dde.start_at_independent_components(x)
            steps = peers.train_density(dde, x, peers.Clock(args.seconds), args.seed)
            log_z = dde.log_partition(fresh)
            gap = truth - dde.log_density(y, normalized=True).numpy()
            error = math.hypot(gap.std() / math.sqrt(len(y)), log_z.standard_error)
            row = {"gap": float(gap.mean()), "gap_standard_error": float(error)}
            row |= {"half_variance_of_gap": float(gap.var() / 2), "steps": steps}
            row |= {"log_z": str(log_z), "parameters": network.count_params()}
            seconds = {"seconds": args.seconds}
            record.add("parametrizations", {"name": f"{data}, {name}", **row, **seconds})


if __name__ == "__main__":
    main()
