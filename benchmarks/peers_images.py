"""Other generators of images, made of stock Keras layers and trained for a given time."""

import functools

import keras
import numpy as np
import tensorflow as tf
from peers import Clock
from sklearn.linear_model import LogisticRegression

from tfdde.networks import convolutional

LATENT, BATCH, WIDTH = 16, 64, 32
PENALTY, CRITIC_STEPS = 10.0, 3  # of WGAN-GP; 5 steps of the critic learn slower here
CALIBRATION = 10_000  # images of each kind, for the critic's log-ratio
R1 = 1.0  # weight of the non-saturating GAN's penalty
EULER = 50  # steps of the flow's sampler


def _batches(x, seed):
    data = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x), seed=seed).repeat()
    return iter(data.batch(BATCH, drop_remainder=True).prefetch(4))


def _decay(optimizers, rates, share):
    """Return a cosine decay over the time available."""
    for optimizer, rate in zip(optimizers, rates, strict=True):
        optimizer.learning_rate.assign(rate * 0.5 * (1 + np.cos(np.pi * min(share, 1.0))))


def _adversarial(x, seconds, seed, rate, critic_loss, generator_loss, critic_steps):
    """Train tfdde's generator against a critic like tfdde's density.

    ``critic_loss`` is a function of critic, real and made images, ``generator_loss`` one of the
    critic's values at made images.
    """
    layers, shape = keras.layers, x.shape[1:]
    generator = convolutional.conv_generator(LATENT, shape, WIDTH, depth=2, modulated=True)
    critic = keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(WIDTH, 4, 2, "same", activation="silu"),
            layers.Conv2D(2 * WIDTH, 4, 2, "same", activation="silu"),
            layers.Conv2D(2 * WIDTH, 3, 1, "same", activation="silu"),
            layers.Flatten(),
            layers.Dense(256, activation="silu"),
            layers.Dense(1),
        ]
    )
    optimizers = [
        keras.optimizers.Adam(rate, 0.5, 0.9, use_ema=True, ema_momentum=0.99),
        keras.optimizers.Adam(rate, 0.5, 0.9),
    ]
    models = (generator, critic)
    for optimizer, model in zip(optimizers, models, strict=True):
        optimizer.build(model.trainable_variables)

    def descend(loss, tape, k):
        variables = models[k].trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizers[k].apply_gradients(zip(gradients, variables, strict=True))

    @tf.function
    def critic_step(real):
        made = generator(tf.random.normal((BATCH, LATENT)))
        with tf.GradientTape() as tape:
            loss = critic_loss(critic, real, made)
        descend(loss, tape, 1)

    @tf.function
    def generator_step():
        with tf.GradientTape() as tape:
            loss = generator_loss(critic(generator(tf.random.normal((BATCH, LATENT)))))
        descend(loss, tape, 0)

    batches, clock = _batches(x, seed), Clock(seconds)
    while (share := clock.share) < 1:
        _decay(optimizers, (rate, rate), share)
        for _ in range(critic_steps):
            critic_step(next(batches))
        generator_step()
    took = clock.elapsed
    optimizers[0].finalize_variable_values(generator.trainable_variables)
    z = np.random.default_rng(1).standard_normal((100_000, LATENT)).astype("float32")

    @functools.cache
    def log_ratio_slope():
        """Of the log-ratio in the critic's value, by logistic regression."""
        known = np.concatenate([x[:CALIBRATION], sample(CALIBRATION)])
        values = critic.predict(known, batch_size=500, verbose=0)
        real = np.arange(len(known)) < len(known) - CALIBRATION
        return LogisticRegression().fit(values, real).coef_[0, 0]

    def sample(n, candidates=1):
        """Images, each chosen by the critic's log-ratio (Azadi et al. 2019)."""
        made = generator.predict(z[: n * candidates], batch_size=500, verbose=0)
        if candidates == 1:
            return made
        made = made.reshape(n, candidates, *shape)
        flat = critic.predict(made.reshape(-1, *shape), batch_size=500, verbose=0)
        weights = log_ratio_slope() * flat.reshape(n, candidates)
        weights += np.random.default_rng(2).gumbel(size=weights.shape)
        return made[np.arange(n), weights.argmax(axis=1)]

    parameters = {"generator": generator.count_params(), "critic": critic.count_params()}
    return sample, took, parameters


def _values_and_slopes(critic, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        values = critic(images)
    return values, tf.reshape(tape.gradient(values, images), (BATCH, -1))


def wgan_gp(x, seconds, seed, rate=2e-3):
    """Gulrajani et al. 2017."""

    def critic_loss(critic, real, made):
        share = tf.random.uniform((BATCH, 1, 1, 1))
        _, slopes = _values_and_slopes(critic, real + share * (made - real))
        loss = tf.reduce_mean(critic(made)) - tf.reduce_mean(critic(real))
        return loss + PENALTY * tf.reduce_mean((tf.norm(slopes, axis=1) - 1.0) ** 2)

    def generator_loss(values):
        return -tf.reduce_mean(values)

    return _adversarial(x, seconds, seed, rate, critic_loss, generator_loss, CRITIC_STEPS)


def non_saturating(x, seconds, seed, rate=2e-3):
    """Goodfellow et al. 2014, with R1 (Mescheder et al. 2018)."""

    def critic_loss(critic, real, made):
        values, slopes = _values_and_slopes(critic, real)
        loss = tf.reduce_mean(tf.nn.softplus(-values)) + tf.reduce_mean(
            tf.nn.softplus(critic(made))
        )
        return loss + 0.5 * R1 * tf.reduce_mean(tf.reduce_sum(slopes**2, axis=1))

    def generator_loss(values):
        return tf.reduce_mean(tf.nn.softplus(-values))

    return _adversarial(x, seconds, seed, rate, critic_loss, generator_loss, critic_steps=1)


def _velocity(shape, width):
    """A small U-Net of (x, t)."""
    layers = keras.layers
    x, t = keras.Input(shape), keras.Input((1,))
    embedded = layers.Dense(64, activation="silu")(t)

    def block(h, channels, stride=1):
        h = layers.Conv2D(channels, 3, stride, "same")(h)
        shift = layers.Reshape((1, 1, channels))(layers.Dense(channels)(embedded))
        return layers.Activation("silu")(layers.Add()([h, shift]))

    a = block(x, width)
    b = block(a, 2 * width, 2)
    c = block(b, 4 * width, 2)
    wide = layers.Dense(256, activation="silu")(layers.Flatten()(c))
    wide = layers.Reshape(c.shape[1:])(layers.Dense(int(np.prod(c.shape[1:])))(wide))
    c = layers.Add()([block(c, 4 * width), wide])
    b = layers.Concatenate()([b, layers.Conv2DTranspose(2 * width, 4, 2, "same")(c)])
    b = block(b, 2 * width)
    a = layers.Concatenate()([a, layers.Conv2DTranspose(width, 4, 2, "same")(b)])
    a = block(a, width)
    return keras.Model([x, t], layers.Conv2D(shape[-1], 3, padding="same")(a))


def flow_matching(x, seconds, seed, rate=2e-3):
    """Lipman et al. 2023, straight paths from noise to images; Euler steps to sample."""
    net = _velocity(x.shape[1:], 16)
    optimizer = keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.999)
    optimizer.build(net.trainable_variables)

    @tf.function
    def step(images):
        images = 2.0 * images - 1.0
        noise, t = tf.random.normal(tf.shape(images)), tf.random.uniform((BATCH, 1))
        share = t[:, :, None, None]
        with tf.GradientTape() as tape:
            velocity = net([share * images + (1.0 - share) * noise, t])
            loss = tf.reduce_mean((velocity - (images - noise)) ** 2)
        variables = net.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    batches, clock = _batches(x, seed), Clock(seconds)
    while (share := clock.share) < 1:
        _decay([optimizer], [rate], share)
        step(next(batches))
    took = clock.elapsed
    optimizer.finalize_variable_values(net.trainable_variables)

    @tf.function
    def euler(noise):
        y = noise
        for k in tf.range(EULER):
            t = tf.fill((tf.shape(y)[0], 1), tf.cast(k, tf.float32) / EULER)
            y += net([y, t]) / EULER
        return tf.clip_by_value(0.5 + 0.5 * y, 0.0, 1.0)

    def sample(n):
        rng = np.random.default_rng(1)
        noise = rng.standard_normal((n, *x.shape[1:])).astype("float32")
        return np.concatenate([euler(noise[i : i + 500]) for i in range(0, n, 500)])

    return sample, took, {"network": net.count_params()}


METHODS = {
    "wgan_gp": wgan_gp,
    "non_saturating": non_saturating,
    "flow_matching": flow_matching,
}
