"""Updates of a log-ratio network r = log q~ - log p~, and of g by its slope."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfdde.losses import log_ratio_loss, per_row
from tfdde.models.trainer import add_penalty, local_count

LogRatio = Callable[..., tf.Tensor]
Loss = tuple[tf.Tensor, list[tf.Tensor]]


def loss_and_gradients(
    network: keras.Model,
    log_ratio: LogRatio,
    both: tf.Tensor,
    epsilon: tf.Tensor,
    sigma: tf.Tensor,
    total: tf.Tensor,
    *condition: tf.Tensor,
) -> Loss:
    """The sum of ``tfdde.losses.log_ratio_loss``, and the gradient of sum / ``total``.

    Args:
        network: whose weights the gradients are of.
        log_ratio: r(x, sigma, condition), one value for each row.
        both: rows of data followed by as many samples.
        epsilon: standard normal noise of the same shape.
        sigma: noise levels of the rows, shape () or (2 batch,).
        total: number of rows of ``both`` in all replicas.
        condition: of the rows, (2 batch, entries).
    """
    variables = network.trainable_variables
    with tf.GradientTape() as tape:
        r = log_ratio(both + per_row(sigma, both) * epsilon, sigma, *condition)
        loss = tf.reduce_sum(log_ratio_loss(*tf.split(r, 2)))
        loss = add_penalty(loss, network, local_count(both))
        scaled = loss / total
    return loss, tape.gradient(scaled, variables)


def one_stage(
    networks: Sequence[keras.Model],
    samples: Callable[[], tf.Tensor],
    log_ratio: LogRatio,
    weights: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    epsilon: tf.Tensor,
    sigma: tf.Tensor,
    totals: Sequence[tf.Tensor],
    *condition: tf.Tensor,
) -> tuple[Loss, Loss]:
    """Losses and gradients of g and of r, from one pass through both networks.

    r learns to tell x from g(z), and g descends the sum of w r at the same noisy g(z). What flows
    back to a sample is linear in what flows into its own r. So the gradient of the logistic
    loss at a noisy sample, times w / (d loss / d r), is that of w r, and no second pass is needed
    (Shen et al. 2021, "Training Generative Adversarial Networks in One Stage"). No layer of r may
    mix rows.

    Args:
        networks: g, and the network of r.
        samples: returns g(z), as many rows as ``x`` has.
        log_ratio: as for ``loss_and_gradients``.
        weights: w of the samples' r, shape (batch,), which no gradient flows through.
        x: data, shape (batch, *shape).
        epsilon: standard normal noise, shape (2 batch, *shape): of the data, then of the samples.
        sigma: noise levels, shape () or (batch,), of the data and of the samples.
        totals: number of samples, and of data and samples together, in all replicas.
        condition: of the data and of the samples, (batch, entries).
    """
    g, network = networks
    rows = tf.shape(x)[0]
    variables = [v.value for v in network.trainable_variables]
    with tf.GradientTape(watch_accessed_variables=False) as generated:
        generated.watch([v.value for v in g.trainable_variables])
        y = samples()
        penalty = add_penalty(tf.zeros(()), g, local_count(x)) / totals[0]
    columns = [tf.concat([c, c], axis=0) if c.shape.rank else c for c in (sigma, *condition)]
    noise = per_row(columns[0], epsilon) * epsilon
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        noisy = y + noise[rows:]
        tape.watch([*variables, noisy])
        r = log_ratio(tf.concat([x + noise[:rows], noisy], axis=0), *columns)
        at_data, at_samples = tf.split(r, 2)
        losses = log_ratio_loss(at_data, at_samples)
        loss = add_penalty(tf.reduce_sum(losses), network, local_count(epsilon))
        scaled = loss / totals[1]
    *gradients, slopes = tape.gradient(scaled, [*variables, noisy])
    w = weights(at_samples)
    into = -tf.sigmoid(-at_samples) / (math.log(2.0) * totals[1])  # d scaled / d r of the samples
    back = per_row(tf.math.divide_no_nan(w, into * totals[0]), slopes) * slopes
    generator_gradients = generated.gradient(
        [y, penalty], [v.value for v in g.trainable_variables], output_gradients=[back, tf.ones(())]
    )
    divergence = tf.reduce_sum(w * at_samples) + penalty * totals[0]
    return (divergence, generator_gradients), (loss, gradients)
