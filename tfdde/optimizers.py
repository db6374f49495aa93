"""Adam with one operation for each weight, in place of some fifty of Keras's own."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfdde")
class FusedAdam(keras.optimizers.Adam):
    """``keras.optimizers.Adam`` whose update of a weight is one operation of TensorFlow.

    The formulas, the arguments and the saved variables are Keras's; only ``amsgrad`` is refused.
    A step of a small network has fewer than half of the operations, so that it is traced and run
    in less time. ``DDE.compile`` and ``Generator.compile`` take it for the name "adam".

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2014), the formulation
    with one rate for all entries, just before section 2.1.

    >>> optimizer = tfdde.optimizers.FusedAdam(1e-3, use_ema=True)
    >>> optimizer.get_config()["use_ema"]
    True

    Args:
        *args, **kwargs: as of ``keras.optimizers.Adam``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.amsgrad:
            raise ValueError(
                "`amsgrad` must be False for FusedAdam, got True. keras.optimizers.Adam has it."
            )

    def _backend_update_step(
        self, grads: list[tf.Tensor], trainable_variables: list[Any], learning_rate: Any
    ) -> None:
        """Make what all weights share once: the rate, corrected for the start of the averages."""
        step = tf.cast(self.iterations + 1, tf.float32)
        mean, square = 1.0 - tf.pow(self.beta_1, step), 1.0 - tf.pow(self.beta_2, step)
        shared = {
            "lr": tf.cast(learning_rate, tf.float32) * tf.sqrt(square) / mean,
            "beta1": tf.constant(self.beta_1),
            "beta2": tf.constant(self.beta_2),
            "epsilon": tf.constant(self.epsilon),
            "beta1_power": tf.constant(0.0),  # the rate is corrected already
            "beta2_power": tf.constant(0.0),
        }
        super()._backend_update_step(grads, trainable_variables, shared)

    def update_step(
        self, gradient: Any, variable: Any, learning_rate: dict[str, tf.Tensor]
    ) -> None:
        """Update one weight by its gradient and what all weights share."""
        place = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[place].value.handle,
            v=self._velocities[place].value.handle,
            grad=tf.cast(gradient, variable.dtype),
            **{name: tf.cast(value, variable.dtype) for name, value in learning_rate.items()},
        )

    def _update_model_variables_moving_average(self, trainable_variables: list[Any]) -> None:
        """Move the averages of the weights; after the first step they are the weights."""
        first = tf.equal(self.iterations, 0)
        share = tf.where(first, 1.0, 1.0 - self.ema_momentum)
        for variable, average in zip(
            trainable_variables, self._model_variables_moving_average, strict=True
        ):
            value = average.value
            tf.raw_ops.ResourceApplyGradientDescent(
                var=value.handle,
                alpha=tf.cast(share, value.dtype),
                delta=value - variable.value,
            )


def get(optimizer: Any) -> keras.optimizers.Optimizer:
    """Return ``keras.optimizers.get(optimizer)``, and FusedAdam for the name "adam"."""
    if isinstance(optimizer, str) and optimizer.lower() == "adam":
        return FusedAdam()
    return keras.optimizers.get(optimizer)
