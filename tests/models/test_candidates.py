"""Samples that are chosen from candidates, against the Gaussians that they must follow."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from exact_generator import ROWS, check_law_of_many, check_law_of_three, exact

import tfdde
from tfdde import networks


@pytest.mark.parametrize("relative", [True, False])
def test_noisy_samples_are_distributed_as_noisy_data(relative):
    x = exact(relative).sample_from_candidates(ROWS, 100, seed=1).numpy()[:, 0]
    check_law_of_many(x)


def test_few_candidates_follow_the_law_of_resampling():
    x = exact(True).sample_from_candidates(ROWS, 3, seed=1).numpy()[:, 0]
    check_law_of_three(x)


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


def test_a_level_that_a_decay_has_not_reached_is_told_of():
    noise = tfdde.Decay(1.0, 0.5, decay_steps=1, rate=1.5)  # steps at 1, 0.667 and 0.5
    densities = [tfdde.DDE(networks.residual_mlp(2, 4, 1), noise) for _ in range(2)]
    network = networks.residual_mlp(2, 4, 1, output_shape=2)
    model = tfdde.Generator(network, *densities, latent_dim=2, dde_steps=1)
    model.compile(data_optimizer="adam")
    rows = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    model.fit(rows, batch_size=8, epochs=1, verbose=0)
    with pytest.warns(UserWarning, match=r"compared at sigma = 0.5, .* come down to 0.667"):
        model.sample_from_candidates(3, 2, seed=0)
    model.sample_from_candidates(3, 1, seed=0)
    model.fit(rows, batch_size=8, epochs=1, verbose=0)
    model.sample_from_candidates(3, 2, seed=0)


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


def test_another_kind_of_base_is_followed(tmp_path):
    """As by a generator that was loaded, and so traces anew."""
    noise = tfdde.LogUniform(0.2, 4.0)
    p, q = (
        tfdde.DDE(
            networks.residual_mlp(2, 8, 1, levels=True),
            noise,
            tfdde.GaussianBase(2, most_components=4),
            seed=k,
        )
        for k in (1, 2)
    )
    network = networks.residual_mlp(3, 8, 1, output_shape=2)
    model = tfdde.Generator(network, p, q, latent_dim=3, relative=False, seed=3)
    model.compile("adam")
    x = np.random.default_rng(0).normal(size=(512, 2)).astype("float32")
    x[::2] += 9.0
    model.fit(x, batch_size=128, verbose=0)
    before = model.sample_from_candidates(200, 8, seed=1)
    p.base.adapt(x)
    assert p.base.components > 1
    model.save(tmp_path / "model.keras")
    fresh = keras.models.load_model(tmp_path / "model.keras")
    after = model.sample_from_candidates(200, 8, seed=1)
    np.testing.assert_array_equal(after, fresh.sample_from_candidates(200, 8, seed=1))
    assert (after.numpy() != before.numpy()).any()
    for each in (model, fresh):
        each.fit(x, batch_size=128, verbose=0)
    for one, other in zip(model.get_weights(), fresh.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
