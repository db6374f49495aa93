"""The peers of image densities and the scores of images, beside exact densities."""

import image_density
import image_ood
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import tfdde
from tfdde import networks

N, SIGMA = 6, 0.3


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(N, N))
    x = (rng.normal(size=(4_000, N)) @ mixing + 1.0).astype("float32")
    exact = multivariate_normal(np.ones(N), mixing.T @ mixing + SIGMA**2 * np.eye(N))
    return x[:2_500], x[2_500:3_000], image_density.noisy(x[3_000:], SIGMA, 5), exact


@pytest.mark.parametrize("method", ["flow", "mixture"])
def test_peers_find_a_gaussian(rows, method):
    x, held_out, y, exact = rows
    settings = image_density.Settings(500, 8, True, (1, 2), 2, 20)
    if method == "flow":
        found, facts = image_density.real_nvp(x, held_out, SIGMA, 8.0, 0, 1e-3, settings)
        assert facts["steps"] >= facts["best_step"] >= 100
    else:
        found, _ = image_density.gaussian_mixture(x, held_out, SIGMA, 10.0, 0, settings)
    gap = np.mean(exact.logpdf(y) - found(y))
    assert -0.02 < gap < 0.1  # nats; a Jacobian that is wrong costs several


def test_statistics_are_those_of_the_density():
    shape = (8, 8, 1)
    network = networks.conv_density(shape, width=2, depth=1, units=4, levels=True)
    dde = tfdde.DDE(network, tfdde.LogUniform(0.05, 2.0), seed=0)
    x = np.random.default_rng(1).random((5, *shape)).astype("float32")
    minus, norms = image_ood.statistics(dde, x)
    assert minus.shape == norms.shape == (5, len(image_ood.SIGMAS))
    for k, sigma in enumerate(image_ood.SIGMAS):
        s = dde.log_density(x, sigma, normalized=False)
        np.testing.assert_allclose(minus[:, k], -s, rtol=1e-6)
        score = dde.score(x, sigma).numpy().reshape(5, -1)
        np.testing.assert_allclose(norms[:, k], np.log(np.sqrt((score**2).sum(1))), rtol=1e-5)
