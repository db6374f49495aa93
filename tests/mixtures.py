"""Exact Gaussian mixtures in NumPy float64: the second implementation to test against."""

import numpy as np


class Mixture:
    """Mixture of isotropic Gaussians; blurring by sigma only adds to the variances."""

    def __init__(self, means, variances, weights):
        self.means = np.asarray(means, float)
        self.variances = np.asarray(variances, float)
        self.weights = np.asarray(weights, float) / np.sum(weights)

    def sample(self, n, seed):
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), n, p=self.weights)
        noise = rng.standard_normal((n, self.means.shape[1]))
        return (self.means[k] + np.sqrt(self.variances[k])[:, None] * noise).astype(np.float32)

    def _log_parts(self, x, sigma):
        v = self.variances + sigma**2
        square = ((x[:, None, :] - self.means) ** 2).sum(-1)
        n = self.means.shape[1]
        return np.log(self.weights) - square / (2 * v) - n / 2 * np.log(2 * np.pi * v)

    def log_density(self, x, sigma=0.0):
        parts = self._log_parts(np.asarray(x, float), sigma)
        top = parts.max(axis=1)
        return top + np.log(np.exp(parts - top[:, None]).sum(axis=1))

    def score(self, x, sigma=0.0):
        x = np.asarray(x, float)
        parts = self._log_parts(x, sigma)
        r = np.exp(parts - self.log_density(x, sigma)[:, None])
        v = self.variances + sigma**2
        return (r[:, :, None] * (self.means - x[:, None, :]) / v[:, None]).sum(axis=1)


def three():
    """A fixed, lopsided mixture in the plane."""
    return Mixture([[-1.0, 0.5], [1.2, 0.3], [0.0, -1.5]], [0.1, 0.3, 0.05], [0.5, 0.3, 0.2])
