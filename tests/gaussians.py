"""Densities that are exactly Gaussian."""

import keras
import numpy as np

import tfdde


def gaussian_dde(x, noise=None, normalization=None):
    """A density whose network is 0: exactly the Gaussian with the rows' mean and covariance."""
    n = x.shape[1]
    inputs, level = keras.Input((n,), name="x"), keras.Input((1,), name="level")
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    noise = noise or tfdde.LogUniform(0.1, 8.0)
    if isinstance(noise, tfdde.LogUniform):
        network = keras.Model([inputs, level], dense(keras.layers.Concatenate()([inputs, level])))
    else:
        network = keras.Model(inputs, dense(inputs))
    dde = tfdde.DDE(network, noise, tfdde.GaussianBase(n), normalization)
    dde.adapt(x.astype(np.float32))
    return dde
