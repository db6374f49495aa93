"""The paper's training objectives, one value for each row.

Noise enters as standard normal ``epsilon``, with eta = sigma * epsilon. The score-matching
objectives are multiplied by sigma**2 / n, where n is the number of entries of a row. A constant
s, whose score is 0, then has the loss 1, whatever sigma and n are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

Function = Callable[[tf.Tensor], tf.Tensor]

CLIP = 4.0  # nats of a log-ratio, beyond which it adds nothing to the weight of a sample
MOST_WEIGHT = 4.0  # of a sample, as a multiple of the mean weight


def score_of(log_density: Function, x: tf.Tensor) -> tf.Tensor:
    """Gradient of a scalar function at each row.

    >>> log_normal = lambda x: -0.5 * tf.reduce_sum(x**2, axis=1)
    >>> tfdde.losses.score_of(log_normal, tf.constant([[1.0, 2.0]])).numpy().tolist()
    [[-1.0, -2.0]]

    Args:
        log_density: maps (batch, ...) to one value for each row.
        x: points, shape (batch, ...).

    Returns:
        The gradient, shape of ``x``; it is differentiable in the function's weights.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        value = log_density(x)
    return tape.gradient(value, x)


def per_row(sigma: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Reshape sigma, a scalar or one level a row, so that it multiplies the rows of ``x``."""
    return sigma if sigma.shape.rank == 0 else tf.reshape(sigma, (-1,) + (1,) * (len(x.shape) - 1))


def _mean_square(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(x), axis=tuple(range(1, len(x.shape))))


def dae_loss(
    autoencoder: Function, x: tf.Tensor, epsilon: tf.Tensor, sigma: tf.Tensor
) -> tf.Tensor:
    """Denoising autoencoder, eq. 1: ||r(x + eta) - x||**2 / n, shape (batch,).

    Its optimum obeys eq. 2: (r(x) - x) / sigma**2 is the score of p * N(0, sigma**2 I).
    """
    return _mean_square(autoencoder(x + per_row(sigma, x) * epsilon) - x)


def vector_field_loss(
    field: Function, x: tf.Tensor, epsilon: tf.Tensor, sigma: tf.Tensor
) -> tf.Tensor:
    """Score matching of a vector field, eq. 3: ||f + eta / sigma**2||**2 sigma**2 / n, (batch,).

    Its optimum is the score of p * N(0, sigma**2 I) (eq. 4).
    """
    sigma = per_row(sigma, x)
    return _mean_square(sigma * field(x + sigma * epsilon) + epsilon)


def dde_loss(
    log_density: Function, x: tf.Tensor, epsilon: tf.Tensor, sigma: tf.Tensor
) -> tf.Tensor:
    """Denoising density estimator, eq. 10: ||grad s + eta / sigma**2||**2 sigma**2 / n, (batch,).

    Its optimum is s = log(p * N(0, sigma**2 I)) + C (eq. 11).
    """
    return vector_field_loss(lambda y: score_of(log_density, y), x, epsilon, sigma)


def joint_loss(
    log_density: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    epsilon: tf.Tensor,
    sigma: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Eq. 10 and time-score matching of s(x, sigma), from one gradient.

    Time-score matching is (ds/dlog(sigma) - (||epsilon||**2 - n))**2 / 2n (Guth, Kadkhodaie &
    Simoncelli 2025, with t = sigma**2); it is 1, too, for a constant s. Its optimum is
    s(x, sigma) = log(p * N(0, sigma**2 I))(x) + C with one C for all sigma. The score at one
    sigma does not determine the weights of modes that are far apart; larger levels do.

    Args:
        log_density: s(x, sigma), one value for each row.
        x: data, shape (batch, *shape).
        epsilon: standard normal noise of the same shape.
        sigma: noise levels, shape (batch,).

    Returns:
        The two losses of each row, shape (batch,).
    """
    log_sigma = tf.math.log(sigma)
    width = per_row(sigma, x)
    y = x + width * epsilon
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([y, log_sigma])
        s = log_density(y, tf.exp(log_sigma))
    score, slope = tape.gradient(s, [y, log_sigma])
    n = float(x.shape[1:].num_elements())
    square = tf.reduce_sum(tf.square(epsilon), axis=tuple(range(1, len(x.shape))))
    return _mean_square(width * score + epsilon), tf.square(slope - (square - n)) / (2 * n)


def log_ratio_loss(at_data: tf.Tensor, at_samples: tf.Tensor) -> tf.Tensor:
    """Logistic regression that tells noisy data from noisy samples, by their log-ratio r.

    softplus(r) / log 2 at noisy data and softplus(-r) / log 2 at as many noisy samples of the
    same levels. The minimiser is r = log q~ - log p~, with the constant that score matching
    leaves open (density-ratio estimation: Sugiyama, Suzuki & Kanamori 2012). A constant 0 has
    the loss 1.

    >>> at_data = tf.constant([0.0, -3.0])  # data where p~ is e^3 times q~ say little against r
    >>> loss = tfdde.losses.log_ratio_loss(at_data, -at_data)
    >>> [round(float(value), 2) for value in loss]
    [1.0, 0.07, 1.0, 0.07]

    Args:
        at_data: r(x + eta, sigma) of data x, shape (batch,), in nats.
        at_samples: r(g(z) + eta, sigma) of samples g(z), shape (batch,), in nats.

    Returns:
        The losses of the data and then of the samples, shape (2 batch,).
    """
    return tf.nn.softplus(tf.concat([at_data, -at_samples], axis=0)) / math.log(2.0)


def forward_kl_weights(log_ratio: tf.Tensor) -> tf.Tensor:
    """Weights of samples of q~ that turn the gradient of KL(q~ || p~) into that of KL(p~ || q~).

    p~ / q~ = e^-r, as a multiple of its mean over the samples and at most ``MOST_WEIGHT`` of it.
    Weighted by it, samples count most where there are too few of them, so that g does not lose
    modes (compare the weights h of f-distillation, Xu, Nie & Vahdat 2025).

    Args:
        log_ratio: r = log q~ - log p~ at samples of q~, shape (batch,), in nats.

    Returns:
        Shape (batch,); no gradient flows through them.
    """
    ratio = tf.exp(tf.clip_by_value(-log_ratio, -CLIP, CLIP))
    weights = tf.math.divide_no_nan(ratio, tf.reduce_mean(ratio))
    return tf.stop_gradient(tf.minimum(weights, MOST_WEIGHT))
