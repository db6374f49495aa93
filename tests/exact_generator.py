"""A generator whose s_q - s_p is exact, and the laws of samples that it chooses."""

import keras
import numpy as np

import tfdde

SIGMA, ROWS = 0.5, 20_000


def exact(relative, conditions=0):
    """A generator of N(0, 1) = q for data of N(1, 1) = p, whose s_q - s_p is exact.

    With conditions, it is exact up to 7 times the condition's first entry, in nats.
    """
    variance = 1.0 + SIGMA**2

    def density(mean, correction):
        inputs = [keras.Input((1,))] + [keras.Input((conditions,), name="condition")] * bool(
            conditions
        )
        slope, offset = mean / variance, -(mean**2) / (2.0 * variance)
        if correction:  # log N(x; 0, variance) - log N(x; mean, variance)
            slope, offset = -slope, -offset
        outputs = keras.layers.Dense(1)(keras.layers.Concatenate()(inputs + inputs[:1]))
        network = keras.Model(inputs if conditions else inputs[0], outputs)
        kernel = np.zeros((2 + conditions, 1), np.float32)
        kernel[0] = slope
        if conditions:
            kernel[1] = 7.0
        network.set_weights([kernel, np.float32([offset])])
        base = None
        if not correction:  # adds log N(x; 0, variance)
            base = tfdde.GaussianBase((1,))
            base.adapt(np.float32([[-1.0], [1.0]]))
        return tfdde.DDE(network, tfdde.Constant(SIGMA), base, seed=1)

    z = keras.Input((1,))
    inputs = [z] + [keras.Input((conditions,), name="condition")] * bool(conditions)
    same = keras.layers.Dense(1, use_bias=False)
    columns = keras.layers.Concatenate()(inputs) if conditions else z
    network = keras.Model(inputs if conditions else z, same(columns))
    same.set_weights([np.float32([[1.0]] + [[0.0]] * conditions)])
    p, q = density(1.0, False), density(1.0 if relative else 0.0, relative)
    return tfdde.Generator(network, p, q, latent_dim=1, relative=relative, seed=3)


def check_law_of_many(x):
    """Assert that these samples, ROWS numbers, were each chosen from 100 candidates."""
    # g(z) = x and the noise n are Gaussian, and x + n is tilted to N(1, 1 + sigma**2):
    # E[x | x + n] = (x + n) / (1 + sigma**2), with the variance sigma**2 / (1 + sigma**2).
    error = 1.0 / np.sqrt(ROWS)
    assert abs(x.mean() - 1.0 / (1.0 + SIGMA**2)) < 5 * error + 0.01  # 100 candidates: a bias
    assert abs(x.var() - 1.0) < 5 * np.sqrt(2.0) * error + 0.01


def check_law_of_three(x):
    """Assert that these samples, ROWS numbers, were each chosen from 3 candidates."""
    rng = np.random.default_rng(0)  # the same in NumPy, with the exact densities
    z = rng.standard_normal((200_000, 3))
    y = z + SIGMA * rng.standard_normal(z.shape)
    weights = np.exp((2.0 * y - 1.0) / (2.0 * (1.0 + SIGMA**2)))
    share = weights / weights.sum(axis=1, keepdims=True)
    mean, square = (share * z).sum(axis=1).mean(), (share * z**2).sum(axis=1).mean()
    assert abs(x.mean() - mean) < 6 / np.sqrt(ROWS)
    assert abs((x**2).mean() - square) < 6 * np.sqrt(3.0 / ROWS)
