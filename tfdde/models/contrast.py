"""Contrast of a density in training with samples of itself, so that no mass stays unseen.

Score matching looks at noisy rows only. Between and around few rows in many columns a network is
then free at low noise, and most of e^s may come to lie there: log Z is off by tens of nats. Here
samples of the density as it was some steps ago, annealed from the highest level down, show where
its mass is. Logistic regression tells noisy rows from them at the same level. Its optimum is the
normalised density of the noisy rows, as that of score matching (noise-contrastive estimation with
the model's earlier self as the noise: Gutmann & Hyvarinen 2012; Goodfellow 2014).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfdde.losses import log_ratio_loss, per_row
from tfdde.noise import LogUniform, between_levels
from tfdde.partition.descent import descend
from tfdde.partition.ladder import ladder_levels
from tfdde.utils.random import Purpose, key

if TYPE_CHECKING:
    from tfdde.models.normalized_density import NormalizedDensity

SAMPLES = 1_000  # at each level
STEPS = 75  # of training, after which new samples are drawn
SAVED = ("samples", "corrections", "log_z", "trained", "drawn_at")


class Drawn(NamedTuple):
    """Some of a density's own samples.

    Attributes:
        y: rows, (count, n).
        sigma: their noise levels, (count,).
        corrections: what the former network adds to the base there, less log Z, (count,).
    """

    y: tf.Tensor
    sigma: tf.Tensor
    corrections: tf.Tensor


class OwnSamples:
    """Samples that a density had at its noise levels some steps ago, and what it was there.

    Until the first ``STEPS`` steps are made, they are samples of the base, which a network
    corrects.

    Args:
        network: of the density, which a copy is made of.
        noise: its levels.
        n: entries of a row.

    Attributes:
        network: the density's network as it was when the samples were drawn.
        samples: (levels * SAMPLES, n), those of the lowest level first.
        corrections: what ``network`` adds to the base there, less log Z of the level.
        log_z: of the levels.
        trained: 1 if the samples are of ``network``, 0 if they are of the base.
        drawn_at: number of iterations at which they were drawn, -1 before.
    """

    def __init__(self, network: keras.Model, noise: LogUniform, n: int):
        self._noise = noise
        self.levels = ladder_levels(noise.minimum, noise.maximum, n)
        self.network = network.from_config(network.get_config())
        count = len(self.levels)
        self.samples = tf.Variable(tf.zeros((count * SAMPLES, n)), trainable=False)
        self.corrections = tf.Variable(tf.zeros(count * SAMPLES), trainable=False)
        self.log_z = tf.Variable(tf.zeros(count), trainable=False)
        self.trained = tf.Variable(0.0, trainable=False)
        self.drawn_at = tf.Variable(-1, dtype=tf.int64, trainable=False)

    def due(self, iteration: int) -> bool:
        """Whether new samples are to be drawn after so many iterations."""
        drawn = int(self.drawn_at.numpy())
        return drawn < 0 or iteration - drawn >= STEPS

    def draw(self, dde: NormalizedDensity, iteration: int) -> None:
        """Draw samples of the present density by annealing through its levels.

        If s is not finite somewhere on the way, the former samples stay.

        Args:
            dde: the density.
            iteration: number of its training steps, which with its seed fixes the samples.
        """
        base, evaluate = dde.base, dde.evaluator
        assert base is not None  # there always is one with many levels
        rng = np.random.default_rng([dde.seed, Purpose.OWN_SAMPLES, iteration])
        self.drawn_at.assign(iteration)
        if iteration < STEPS:  # s is hardly more than the base
            parts = [base.sample(SAMPLES, float(sigma), rng) for sigma in self.levels]
            self.samples.assign(np.concatenate(parts))
            return

        def log_base(y: np.ndarray, sigma: float) -> np.ndarray:
            rows = tf.reshape(y, (-1, *dde.data_shape))
            return base(rows, tf.constant(sigma, tf.float32)).numpy().astype(float)

        def moved(
            y: np.ndarray, sigma: float, rng: np.random.Generator
        ) -> tuple[np.ndarray, np.ndarray]:
            return evaluate.moves.with_values(y, sigma, sigma, 1, int(rng.integers(2**31)))

        top = float(self.levels[-1])
        y = base.sample(SAMPLES, top, rng)
        way = descend(evaluate, y, log_base(y, top), self.levels[::-1], moved, rng)
        reached = list(way)[::-1]
        if not np.isfinite(reached[0].value):  # where the way down has ended
            return
        self.network.set_weights(dde.network.get_weights())
        self.samples.assign(np.concatenate([r.y for r in reached]))
        added = [r.s - log_base(r.y, r.sigma) - r.value for r in reached]
        self.corrections.assign(np.concatenate(added))
        self.log_z.assign([r.value for r in reached])
        self.trained.assign(1.0)

    def losses(
        self, dde: NormalizedDensity, x: tf.Tensor, epsilon: tf.Tensor, sigma: tf.Tensor, own: Drawn
    ) -> tf.Tensor:
        """Logistic regression that tells noisy rows from the samples: 1 where a coin tells as much.

        Args:
            dde: the density.
            x, epsilon: rows and standard normal noise, (batch, *shape).
            sigma: noise levels, (batch,).
            own: as many samples, by ``take``.

        Returns:
            For each row the mean of its loss and that of a sample, (batch,).
        """
        y = x + per_row(sigma, x) * epsilon
        former = self.trained * dde.correction(y, sigma, network=self.network)
        former -= between_levels(self.log_z, self._noise.place(sigma))
        former = tf.concat([former, own.corrections], axis=0)
        rows = tf.reshape(own.y, (-1, *dde.data_shape))
        both = tf.concat([y, rows], axis=0), tf.concat([sigma, own.sigma], axis=0)
        log_ratio = former - dde.correction(*both)  # the base is in both and cancels
        return 0.5 * tf.add_n(tf.split(log_ratio_loss(*tf.split(log_ratio, 2)), 2))

    def take(self, count: tf.Tensor, seed: int, iteration: Any) -> Drawn:
        """Samples in random order."""
        places = tf.random.stateless_uniform(
            (count,),
            key(seed, iteration, Purpose.OWN_SAMPLES),
            0,
            len(self.levels) * SAMPLES,
            tf.int32,
        )
        sigma = tf.gather(tf.constant(self.levels, tf.float32), places // SAMPLES)
        return Drawn(tf.gather(self.samples, places), sigma, tf.gather(self.corrections, places))

    def state(self) -> dict[str, np.ndarray]:
        """All numbers, by name, for a checkpoint."""
        values = {name: getattr(self, name).numpy() for name in SAVED}
        weights = {f"network_{i}": w for i, w in enumerate(self.network.get_weights())}
        return values | weights

    def restore(self, state: Any) -> None:
        """Take the numbers that ``state`` returned."""
        for name in SAVED:
            getattr(self, name).assign(np.asarray(state[name]))
        weights = [np.asarray(state[f"network_{i}"]) for i in range(len(self.network.weights))]
        self.network.set_weights(weights)


class DrawOwnSamples(keras.callbacks.Callback):
    """Draw samples of a density while it is trained, every ``STEPS`` steps; ``fit`` adds it."""

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        iteration = int(self.model.optimizer.iterations.numpy())
        if self.model.own_samples.due(iteration):
            self.model.own_samples.draw(self.model, iteration)
