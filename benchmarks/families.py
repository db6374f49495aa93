"""Distributions in n dimensions whose blurred log-density is known exactly at every sigma."""

import numpy as np
from scipy.special import logsumexp

from tfdde import datasets

CHUNK = 4_096  # rows of one evaluation, so that memory stays bounded


class Mixture:
    """Mixture of ten Gaussians with diagonal covariances, drawn at random.

    Means N(0, 1.5**2), standard deviations log-uniform in [0.2, 1], weights Dirichlet(3).

    Args:
        n: number of dimensions.
        seed: of the mixture itself; ``sample`` has a seed for the rows.
    """

    def __init__(self, n, seed=0, components=10):
        rng = np.random.default_rng([seed, n])
        self.n = n
        self.means = rng.normal(0.0, 1.5, (components, n))
        self.stds = np.exp(rng.uniform(np.log(0.2), 0.0, (components, n)))
        self.weights = rng.dirichlet(np.full(components, 3.0))

    def sample(self, m, seed):
        """``m`` rows of p itself, without noise: float32 (m, n)."""
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), m, p=self.weights)
        return (self.means[k] + self.stds[k] * rng.standard_normal((m, self.n))).astype(np.float32)

    def log_density(self, x, sigma):
        """Log-density of p * N(0, sigma**2 I) at rows (m, n): float64 (m,), in nats."""
        variances = self.stds**2 + sigma**2
        log_scale = np.log(self.weights) - 0.5 * np.log(2 * np.pi * variances).sum(axis=1)
        out = np.empty(len(x))
        for i in range(0, len(x), CHUNK):
            y = np.asarray(x[i : i + CHUNK], np.float64)
            square = ((y[:, None] - self.means) ** 2 / variances).sum(axis=-1)
            out[i : i + CHUNK] = logsumexp(log_scale - 0.5 * square, axis=1)
        return out


class RotatedToys:
    """x = R (toy_1, ..., toy_{n/2}), independent 2-D toys under a random orthogonal R.

    The toys repeat in the order checkerboard, two_spirals, rings, eight_gaussians.  A rotation
    leaves isotropic noise as it is, so the blurred log-density is the sum of those of the toys.

    Args:
        n: number of dimensions, even.
        seed: of R; ``sample`` has a seed for the rows.
    """

    def __init__(self, n, seed=0):
        if n < 2 or n % 2:
            raise ValueError(f"`n` must be even and >= 2, got {n!r}.")
        self.n = n
        normal = np.random.default_rng([seed, n]).standard_normal((n, n))
        q, r = np.linalg.qr(normal)
        self.rotation = q * np.sign(np.diag(r))  # uniform over the rotations and reflections
        order = ("checkerboard", "two_spirals", "rings", "eight_gaussians")
        self.toys = [order[i % 4] for i in range(n // 2)]

    def sample(self, m, seed):
        """``m`` rows of p itself, without noise: float32 (m, n)."""
        rng = np.random.default_rng(seed)
        toys = []
        for name in self.toys:
            # Each toy has its own seed; with equal seeds, toys of one name would be copies.
            rows = datasets.sample_toy(name, m, int(rng.integers(2**31)))
            # The arms of two_spirals alternate by rows, which would make toys dependent: shuffle.
            toys.append(rows[rng.permutation(m)])
        return (np.concatenate(toys, axis=1) @ self.rotation.T).astype(np.float32)

    def log_density(self, x, sigma):
        """Log-density of p * N(0, sigma**2 I) at rows (m, n): float64 (m,), in nats."""
        out = np.zeros(len(x))
        for i in range(0, len(x), CHUNK):
            z = np.asarray(x[i : i + CHUNK], np.float64) @ self.rotation
            for k, name in enumerate(self.toys):
                out[i : i + CHUNK] += datasets.toy_log_density(name, z[:, 2 * k : 2 * k + 2], sigma)
        return out
