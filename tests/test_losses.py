"""The paper's objectives against exact mixtures (eq. 1-4, 10, 11)."""

import numpy as np
import pytest
import tensorflow as tf
from mixtures import three

from tfdde import losses

SIGMA = 0.4


def exact_log_density(mixture, sigma):
    """The mixture's blurred log-density in TensorFlow float64, for automatic gradients."""
    means, v = tf.constant(mixture.means), tf.constant(mixture.variances + sigma**2)
    log_weights = tf.constant(np.log(mixture.weights))

    def log_density(x):
        square = tf.reduce_sum((x[:, None, :] - means) ** 2, axis=-1)
        parts = log_weights - square / (2 * v) - tf.math.log(2 * np.pi * v)
        return tf.reduce_logsumexp(parts, axis=1)

    return log_density


@pytest.fixture
def draws():
    mixture = three()
    rng = np.random.default_rng(1)
    x = tf.constant(mixture.sample(200_000, seed=0), tf.float64)
    return mixture, x, tf.constant(rng.standard_normal(x.shape))


def test_score_of_equals_the_closed_form_and_finite_differences():
    mixture = three()
    x = mixture.sample(50, seed=3).astype(float)
    score = losses.score_of(exact_log_density(mixture, SIGMA), tf.constant(x)).numpy()
    np.testing.assert_allclose(score, mixture.score(x, SIGMA), atol=1e-10)
    h = 1e-5
    for d in range(2):
        step = np.eye(2)[d] * h
        difference = mixture.log_density(x + step, SIGMA) - mixture.log_density(x - step, SIGMA)
        np.testing.assert_allclose(score[:, d], difference / (2 * h), atol=1e-6)


def test_losses_of_one_row_by_hand():
    x = tf.constant([[1.0, 2.0]])
    epsilon, sigma = tf.constant([[0.5, -1.0]]), tf.constant(0.2)
    y = np.array([1.1, 1.8])  # x + sigma * epsilon
    # r(y) = 2 y; f(y) = -y; s(y) = -|y|^2 / 2, whose score is f.
    dae = losses.dae_loss(lambda v: 2 * v, x, epsilon, sigma)
    field = losses.vector_field_loss(lambda v: -v, x, epsilon, sigma)
    dde = losses.dde_loss(lambda v: -tf.reduce_sum(v**2, axis=1) / 2, x, epsilon, sigma)
    np.testing.assert_allclose(dae, [np.mean((2 * y - [1, 2]) ** 2)], rtol=1e-6)
    expected = 0.2**2 / 2 * np.sum((-y + np.array([0.1, -0.2]) / 0.2**2) ** 2)
    np.testing.assert_allclose(field, [expected], rtol=1e-5)
    np.testing.assert_allclose(dde, field, rtol=1e-6)


def test_knowing_nothing_costs_one(draws):
    _, x, epsilon = draws
    for sigma in (0.01, 0.4, 3.0):
        loss = losses.vector_field_loss(tf.zeros_like, x, epsilon, tf.constant(sigma, tf.float64))
        assert abs(np.mean(loss) - 1) < 4 * np.std(loss) / np.sqrt(len(loss))


def perturbations():
    return [lambda x: 0.3 * tf.sin(2 * x), lambda x: 0.2 * tf.tanh(x[:, ::-1])]


def test_eq_4_exact_score_minimises_the_vector_field_loss(draws):
    """At the score the loss has no slope in any direction, and a perturbation h adds E|h|^2."""
    mixture, x, epsilon = draws
    sigma = tf.constant(SIGMA, tf.float64)

    def score(y):
        return tf.constant(mixture.score(y.numpy(), SIGMA))

    best = losses.vector_field_loss(score, x, epsilon, sigma).numpy()
    for h in perturbations():
        worse = losses.vector_field_loss(lambda y, h=h: score(y) + h(y), x, epsilon, sigma)
        added = SIGMA**2 / 2 * np.sum(h(x + SIGMA * epsilon).numpy() ** 2, axis=1)
        slope = worse.numpy() - best - added  # zero on average, if the score is the optimum
        assert abs(slope.mean()) < 4 * slope.std() / np.sqrt(len(slope))
        assert added.mean() > 8 * slope.std() / np.sqrt(len(slope))  # the test can fail


def test_eq_2_optimal_autoencoder_is_the_score(draws):
    """r*(x) = x + sigma^2 score minimises eq. 1."""
    mixture, x, epsilon = draws
    sigma = tf.constant(SIGMA, tf.float64)

    def optimum(y):
        return y + SIGMA**2 * tf.constant(mixture.score(y.numpy(), SIGMA))

    best = losses.dae_loss(optimum, x, epsilon, sigma).numpy()
    for h in perturbations():
        worse = losses.dae_loss(lambda y, h=h: optimum(y) + h(y), x, epsilon, sigma).numpy()
        slope = worse - best - np.mean(h(x + SIGMA * epsilon).numpy() ** 2, axis=1)
        assert abs(slope.mean()) < 4 * slope.std() / np.sqrt(len(slope))


def test_eq_11_exact_log_density_minimises_the_dde_loss(draws):
    mixture, x, epsilon = draws
    x, epsilon = x[:50_000], epsilon[:50_000]
    sigma = tf.constant(SIGMA, tf.float64)
    exact = exact_log_density(mixture, SIGMA)
    best = losses.dde_loss(lambda y: exact(y) + 7.0, x, epsilon, sigma).numpy()
    np.testing.assert_allclose(best, losses.dde_loss(exact, x, epsilon, sigma), rtol=1e-10)
    for potential in (
        lambda y: 0.2 * tf.reduce_sum(tf.cos(2 * y), 1),
        lambda y: 0.1 * y[:, 0] ** 2,
    ):
        h = losses.score_of(potential, x + SIGMA * epsilon).numpy()
        worse = losses.dde_loss(lambda y, u=potential: exact(y) + u(y), x, epsilon, sigma).numpy()
        slope = worse - best - SIGMA**2 / 2 * np.sum(h**2, axis=1)
        assert abs(slope.mean()) < 4 * slope.std() / np.sqrt(len(slope))


def test_time_score_of_exact_mixtures(draws):
    """d log p~ / d log(sigma) is the mean of ||epsilon||**2 - n given y (Guth et al. 2025)."""
    mixture, x, epsilon = draws
    sigma = tf.fill((x.shape[0],), tf.constant(SIGMA, tf.float64))
    means, variances = tf.constant(mixture.means), tf.constant(mixture.variances)

    def s(y, levels):
        v = variances + levels[:, None] ** 2
        square = tf.reduce_sum((y[:, None, :] - means) ** 2, axis=-1)
        parts = tf.constant(np.log(mixture.weights)) - square / (2 * v) - tf.math.log(2 * np.pi * v)
        return tf.reduce_logsumexp(parts, axis=1)

    def wrong(y, levels):
        return s(y, levels) + 0.3 * tf.math.log(levels) + 0.1 * tf.sin(y[:, 0])

    space, time = losses.joint_loss(s, x, epsilon, sigma)
    one_level = losses.dde_loss(lambda y: s(y, sigma), x, epsilon, tf.constant(SIGMA, tf.float64))
    np.testing.assert_allclose(space, one_level, rtol=1e-9)
    space_of_wrong, time_of_wrong = losses.joint_loss(wrong, x, epsilon, sigma)
    # At the optimum the excess of another s is the square of its difference, here of 0.3 in
    # d / dlog(sigma) and 0.1 cos(y) in the score, and nothing else.
    excess = time_of_wrong - time
    error = 4 * np.std(excess) / np.sqrt(len(excess))
    np.testing.assert_allclose(np.mean(excess), 0.3**2 / 4, atol=error)
    y = x + SIGMA * epsilon
    expected = np.mean(SIGMA**2 * (0.1 * np.cos(y[:, 0])) ** 2) / 2
    excess = space_of_wrong - space
    error = 4 * np.std(excess) / np.sqrt(len(excess))
    np.testing.assert_allclose(np.mean(excess), expected, atol=error)
    # And the mean of the regression's target is the derivative, against finite differences.
    h = 1e-4
    up, down = (mixture.log_density(y.numpy(), SIGMA * np.exp(d)) for d in (h, -h))
    residual = (up - down) / (2 * h) - (np.square(epsilon).sum(1) - 2)
    for test in (np.ones(len(y)), np.sin(y[:, 0]), np.cos(2 * y[:, 1])):
        product = residual * test
        assert abs(product.mean()) < 4 * product.std() / np.sqrt(len(product))
