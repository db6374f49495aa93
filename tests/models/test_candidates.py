"""Samples that are chosen from candidates, against the Gaussians that they must follow."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdde
from tfdde import networks

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


@pytest.mark.parametrize("relative", [True, False])
def test_noisy_samples_are_distributed_as_noisy_data(relative):
    x = exact(relative).sample_from_candidates(ROWS, 100, seed=1).numpy()[:, 0]
    # g(z) = x and the noise n are Gaussian, and x + n is tilted to N(1, 1 + sigma**2):
    # E[x | x + n] = (x + n) / (1 + sigma**2), with the variance sigma**2 / (1 + sigma**2).
    error = 1.0 / np.sqrt(ROWS)
    assert abs(x.mean() - 1.0 / (1.0 + SIGMA**2)) < 5 * error + 0.01  # 100 candidates: a bias
    assert abs(x.var() - 1.0) < 5 * np.sqrt(2.0) * error + 0.01


def test_few_candidates_follow_the_law_of_resampling():
    x = exact(True).sample_from_candidates(ROWS, 3, seed=1).numpy()[:, 0]
    rng = np.random.default_rng(0)  # the same in NumPy, with the exact densities
    z = rng.standard_normal((200_000, 3))
    y = z + SIGMA * rng.standard_normal(z.shape)
    weights = np.exp((2.0 * y - 1.0) / (2.0 * (1.0 + SIGMA**2)))
    share = weights / weights.sum(axis=1, keepdims=True)
    mean, square = (share * z).sum(axis=1).mean(), (share * z**2).sum(axis=1).mean()
    assert abs(x.mean() - mean) < 6 / np.sqrt(ROWS)
    assert abs((x**2).mean() - square) < 6 * np.sqrt(3.0 / ROWS)


def test_an_unknown_constant_of_each_condition_changes_nothing():
    conditions = np.float32([[0.0, 1.0], [2.0, -1.0]] * 500)
    model, plain = exact(True, conditions=2), exact(True)
    chosen = model.sample_from_candidates(1_000, 5, seed=2, conditions=conditions)
    np.testing.assert_allclose(
        chosen, plain.sample_from_candidates(1_000, 5, seed=2), rtol=1e-5, atol=1e-5
    )


def test_one_candidate_is_a_sample_and_seeds_fix_the_choice():
    model = exact(True)
    np.testing.assert_array_equal(
        model.sample_from_candidates(50, 1, seed=4), model.sample(50, seed=4)
    )
    few, many = (model.sample_from_candidates(n, seed=4).numpy() for n in (20, 50))
    np.testing.assert_array_equal(few, many[:20])
    assert (model.sample_from_candidates(20, seed=5).numpy() != few).any()
    assert model.sample_from_candidates(0).shape == (0, 1)


def test_candidates_are_compared_at_the_level_asked_for():
    network = networks.residual_mlp(2, 8, 1, levels=True)
    densities = [
        tfdde.DDE(keras.models.clone_model(network), tfdde.LogUniform(0.1, 2.5), seed=s)
        for s in (1, 2)
    ]
    model = tfdde.Generator(
        networks.residual_mlp(2, 8, 1, output_shape=2), *densities, latent_dim=2, relative=True
    )
    asked = []

    def r(y, sigma, *condition):
        asked.append(sigma)
        return tf.where(sigma > 0.4, -1e9, 1e9) * y[:, 0]  # the largest, or the smallest

    model.generated_dde.correction = r
    low, middle = (
        model.sample_from_candidates(500, 4, seed=1, sigma=s).numpy()[:, 0] for s in (0.1, None)
    )
    plain = model.sample(500, seed=1).numpy()[:, 0]
    assert low.mean() < plain.mean() < middle.mean()
    assert len(asked) == 1  # one trace for all levels


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"candidates": 0}, "`candidates` must be"),
        ({"candidates": 2.5}, "`candidates` must be"),
        ({"n": -1}, "`n` must be"),
        ({"sigma": 0.4}, "`sigma` must be 0.5"),
        ({"sigma": -1.0}, "`sigma` must be"),
        ({"conditions": np.ones((3, 2))}, "conditions"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        exact(True).sample_from_candidates(**{"n": 3, "seed": 0} | arguments)
