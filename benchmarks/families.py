"""Distributions in n dimensions whose blurred log-density is known exactly at every sigma."""

import numpy as np
from scipy.special import expit, gammaln, logsumexp

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


def random_rotation(n, seed):
    """An orthogonal matrix (n, n), uniform over the rotations and reflections."""
    q, r = np.linalg.qr(np.random.default_rng([seed, n]).standard_normal((n, n)))
    return q * np.sign(np.diag(r))


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
        self.rotation = random_rotation(n, seed)
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


class HeavyTails:
    """x = mean + R (t_1, ..., t_k), independent Student t vectors under a random orthogonal R.

    The vectors have at most 5 dimensions each, and in turn 3, 4 and 6 degrees of freedom, so that
    far values come together within a vector, and not at once in all of them.  Their principal
    scales are log-uniform in [0.2, 1], the mean is N(0, 1).  Given its scale w, a vector is
    Gaussian with variances w * scale**2 + sigma**2 in the coordinates that R turns; the integral
    over w, which is inverse gamma, is a sum of equal steps of log w.

    Args:
        n: number of dimensions.
        seed: of the family itself; ``sample`` has a seed for the rows.
    """

    LONGEST, FREEDOM = 5, (3.0, 4.0, 6.0)
    STEP = 0.15  # of log w; halving it changes log-densities by less than 1e-9

    def __init__(self, n, seed=0):
        self.n = n
        self.rotation = random_rotation(n, seed)
        rng = np.random.default_rng([seed, n, 1])
        self.mean = rng.standard_normal(n)
        self.scales = np.exp(rng.uniform(np.log(0.2), 0.0, n))
        self.blocks = np.array_split(np.arange(n), -(-n // self.LONGEST))
        self.freedom = [self.FREEDOM[k % len(self.FREEDOM)] for k in range(len(self.blocks))]

    def sample(self, m, seed):
        """``m`` rows of p itself, without noise: float32 (m, n)."""
        rng = np.random.default_rng(seed)
        t = self.scales * rng.standard_normal((m, self.n))
        for block, freedom in zip(self.blocks, self.freedom, strict=True):
            t[:, block] *= np.sqrt(freedom / rng.chisquare(freedom, (m, 1)))
        return (self.mean + t @ self.rotation.T).astype(np.float32)

    def log_density(self, x, sigma):
        """Log-density of p * N(0, sigma**2 I) at rows (m, n): float64 (m,), in nats."""
        out = np.zeros(len(x))
        for i in range(0, len(x), CHUNK):
            t = (np.asarray(x[i : i + CHUNK], np.float64) - self.mean) @ self.rotation
            for block, freedom in zip(self.blocks, self.freedom, strict=True):
                scales = self.scales[block]
                out[i : i + CHUNK] += _blurred_t(t[:, block], scales, freedom, sigma, self.STEP)
        return out


def _blurred_t(t, scales, freedom, sigma, step):
    """Log-density of Student t with diagonal scales (d,) plus noise at rows t (m, d): (m,)."""
    square, half = np.square(t), freedom / 2
    # Outside of these ends the integrand is below e**-40 of its maximum.
    low = np.log(half / 200)
    high = np.log1p(np.max(square / scales**2)) + 40 / half
    log_w = np.arange(low, high, step)
    log_prior = half * np.log(half) - gammaln(half) - half * (log_w + np.exp(-log_w))
    log_p = np.broadcast_to(log_prior + np.log(step), (len(t), len(log_w))).copy()
    for k, scale in enumerate(scales):
        variance = np.exp(log_w) * scale**2 + sigma**2
        log_p -= 0.5 * (square[:, k, None] / variance + np.log(2 * np.pi * variance))
    return logsumexp(log_p, axis=1)


class Chain:
    """x_k = a sin(b x_{k-1} + c) + (0.2 + 0.4 logistic(d x_{k-1})) epsilon_k, and x_1 ~ N(0, 1).

    a and b are uniform in [1, 2], c in [0, 2 pi), d in [-3, 3].  With noise on top it is a hidden
    Markov chain: log p~(y) is found by the forward recursion on a grid of the hidden x_k.

    Args:
        n: number of dimensions.
        seed: of a, b, c and d; ``sample`` has a seed for the rows.
    """

    EDGE, STEP = 9.0, 0.05  # of the grid; the step is at most half of sigma
    LEAST_SIGMA = 0.02

    def __init__(self, n, seed=0):
        rng = np.random.default_rng([seed, n, 2])
        self.n = n
        self.a, self.b = rng.uniform(1, 2, 2)
        self.c, self.d = rng.uniform(0, 2 * np.pi), rng.uniform(-3, 3)

    def _next(self, x):
        """Mean and standard deviation of the next value."""
        return self.a * np.sin(self.b * x + self.c), 0.2 + 0.4 * expit(self.d * x)

    def sample(self, m, seed):
        """``m`` rows of p itself, without noise: float32 (m, n)."""
        x = np.random.default_rng(seed).standard_normal((m, self.n))
        for k in range(1, self.n):
            mean, std = self._next(x[:, k - 1])
            x[:, k] = mean + std * x[:, k]
        return x.astype(np.float32)

    def log_density(self, x, sigma, step=None):
        """Log-density of p * N(0, sigma**2 I) at rows (m, n): float64 (m,), in nats.

        ``step`` is that of the grid of hidden values, by default fine enough for 1e-7 nats.

        Raises:
            ValueError: sigma < 0.02, or a row so far out that the grid does not hold its hidden
                values, or whose density underflows.
        """
        if not sigma >= self.LEAST_SIGMA:
            raise ValueError(f"`sigma` must be >= {self.LEAST_SIGMA}, got {sigma!r}.")
        step = step or min(self.STEP, 0.5 * sigma)
        grid = np.arange(-self.EDGE, self.EDGE + step / 2, step)
        mean, std = self._next(grid[:, None])
        to_next = step * normal_density(grid, mean, std)  # (now, next)
        first = step * normal_density(grid, 0.0, 1.0)
        out = np.empty(len(x))
        for i in range(0, len(x), CHUNK):
            y = np.asarray(x[i : i + CHUNK], np.float64)
            hidden, total = first, np.zeros(len(y))
            for k in range(self.n):
                if k:
                    hidden = hidden @ to_next
                square = np.square((y[:, k, None] - grid) / sigma) / 2
                least = square.min(axis=1)
                hidden = hidden * np.exp(least[:, None] - square)
                mass = hidden.sum(axis=1)
                lost = ~(hidden[:, [0, -1]].max(axis=1) < 1e-9 * mass)  # also if the mass is 0
                if lost.any():
                    row = y[lost.argmax()]
                    raise ValueError(f"`x` must have rows near the chain, got {row.tolist()}.")
                total += np.log(mass) - least - 0.5 * np.log(2 * np.pi * sigma**2)
                hidden /= mass[:, None]
            out[i : i + CHUNK] = total
        return out


def normal_density(x, mean, std):
    """Density of N(mean, std**2) at x, elementwise."""
    return np.exp(-0.5 * np.square((x - mean) / std)) / (np.sqrt(2 * np.pi) * std)
