"""Data on which log Z is easily wrong: heavy tails, far modes, bad scales, in one and two columns.

Each set is a function of a NumPy generator and a number of rows. ``train`` trains a density of one
by README's recipe, and ``integral`` is the truth that its log Z is compared with.
"""

import itertools

import keras
import numpy as np
from scipy.spatial import cKDTree
from scipy.special import logsumexp

import tfdde


def two_sided(rng, rows):
    return rng.choice([-1.0, 1.0], rows)


def modes(rng, rows, centres, weights, width=1.0):
    """Normal clusters of one width around ``centres``, a list of numbers or of points."""
    centres = np.asarray(centres, float).reshape(len(centres), -1)
    picked = rng.choice(len(centres), rows, p=np.asarray(weights) / np.sum(weights))
    return centres[picked] + width * rng.standard_normal((rows, centres.shape[1]))


def with_an_outlier(rng, rows):
    x = rng.standard_normal(rows)
    x[rows // 2] = 1e4
    return x


def uniform_with_spikes(rng, rows):
    spikes = rng.choice([-2.0, 0.5, 2.9], rows)
    return np.where(rng.random(rows) < 0.4, spikes, rng.uniform(-3, 3, rows))


def correlated_t2(rng, rows):
    normal = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], rows)
    return normal / np.sqrt(rng.chisquare(2, (rows, 1)) / 2)


def crossing(rng, rows):
    """Two heavy-tailed lines that cross at right angles."""
    along, across = rng.standard_t(2, rows), 0.1 * rng.standard_normal(rows)
    first = rng.random(rows) < 0.5
    return np.stack([np.where(first, along, across), np.where(first, across, along)], axis=1)


GRID = [[5.0 * i, 5.0 * j] for i in range(-2, 3) for j in range(-2, 3)]
LU4, LU2 = (0.2, 4.0), (0.2, 2.0)
# Name: a sample of so many rows, and the noise levels that it is trained at.
SETS = {
    "t, 1 degree": (lambda g, n: g.standard_t(1, n), LU4),
    "t, 2 degrees": (lambda g, n: g.standard_t(2, n), LU4),
    "t, 3 degrees": (lambda g, n: g.standard_t(3, n), LU4),
    "log-normal": (lambda g, n: g.lognormal(0, 1, n), LU4),
    "log-normal, sd 1.5": (lambda g, n: g.lognormal(0, 1.5, n), LU4),
    "Pareto, 1.5": (lambda g, n: g.pareto(1.5, n), LU4),
    "two Cauchys": (lambda g, n: 20 * two_sided(g, n) + g.standard_cauchy(n), LU4),
    "Weibull, 0.5": (lambda g, n: g.weibull(0.5, n), LU4),
    "modes at +-50": (lambda g, n: modes(g, n, [-50, 50], [1, 1]), LU2),
    "three far modes": (lambda g, n: modes(g, n, [-100, 0, 300], [7, 2, 1]), LU4),
    "scale 1e-3": (lambda g, n: 1e-3 * g.standard_normal(n), LU4),
    "scale 1e3": (lambda g, n: 1e3 * g.standard_normal(n), LU4),
    "outlier of 1e4": (with_an_outlier, LU4),
    "lattice": (lambda g, n: modes(g, n, range(-20, 21, 4), [1] * 11, 0.1), LU4),
    "uniform with spikes": (uniform_with_spikes, LU4),
    "exponential": (lambda g, n: g.exponential(1, n), LU4),
    "Laplace": (lambda g, n: g.laplace(0, 1, n), LU4),
    "2-D t2, correlated": (correlated_t2, LU4),
    "2-D crossing": (crossing, LU4),
    "2-D lattice": (lambda g, n: modes(g, n, GRID, [1] * 25, 0.1), LU4),
    "2-D far modes": (lambda g, n: modes(g, n, [[-40, 0], [0, 0], [30, 60]], [6, 3, 1]), LU4),
    "2-D scales 1, 1e3": (lambda g, n: g.standard_normal((n, 2)) * [1, 1e3], LU4),
    "2-D checkerboard": (lambda g, n: tfdde.datasets.sample_toy("checkerboard", n, 0), LU4),
}


def sample(name, rows, seed):
    """Float32 rows of a set, shape (rows, columns)."""
    x = SETS[name][0](np.random.default_rng(seed), rows)
    return np.asarray(x, np.float32).reshape(rows, -1)


KINDS = ("softplus 64x8", "silu 48x3", "silu 48x3, one level")


def train(x, levels, kind, epochs=20, seed=0):
    """A density of the rows by README's recipe, with a network of this kind."""
    keras.utils.set_random_seed(seed)
    many = "one level" not in kind
    size = (64, 8) if kind.startswith("softplus") else (48, 3)
    activation = {} if kind.startswith("softplus") else {"activation": "silu"}
    network = tfdde.networks.residual_mlp(x.shape[1], *size, levels=many, **activation)
    noise = tfdde.LogUniform(*levels) if many else tfdde.Constant(levels[0])
    base = tfdde.GaussianBase(x.shape[1])
    dde = tfdde.DDE(network, noise, base, antithetic=True, seed=seed)
    dde.adapt(x)
    steps = epochs * -(-len(x) // 1024)
    dde.compile(tfdde.optimizers.FusedAdam(keras.optimizers.schedules.CosineDecay(1e-2, steps)))
    dde.fit(x, batch_size=1024, epochs=epochs, verbose=0)
    return dde


def true_log_z(dde, x):
    """log Z of a trained density by quadrature."""
    sigma = dde.noise.sigma
    return integral(lambda y: dde.evaluator(y.astype(np.float32), sigma), x, sigma)


NODES, WEIGHTS = np.polynomial.legendre.leggauss(3)


def cell_integrals(log_density, low, high):
    """Log of the integral of exp(log_density) over each box, by Gauss's rule of 3**n points."""
    n = low.shape[1]
    nodes = np.array(list(itertools.product(NODES, repeat=n)))
    log_w = np.log([np.prod(w) for w in itertools.product(WEIGHTS / 2, repeat=n)])
    half = (high - low) / 2
    y = (low + high)[:, None] / 2 + nodes * half[:, None]
    values = log_density(y.reshape(-1, n)).reshape(len(low), -1)
    return logsumexp(values + log_w, axis=1) + np.log(high - low).sum(axis=1)


def split(low, high):
    """The 2**n halves of each box."""
    middle = (low + high) / 2
    lows, highs = [], []
    for side in itertools.product([False, True], repeat=low.shape[1]):
        lows.append(np.where(side, middle, low))
        highs.append(np.where(side, high, middle))
    return np.concatenate(lows), np.concatenate(highs)


def start_cells(x, sigma, reach):
    """Boxes that cover ``reach`` times the rows, fine at their median and coarser outwards."""
    centre = np.median(x, axis=0)
    scale = np.maximum(np.quantile(np.abs(x - centre), 0.5, axis=0), sigma)
    top = np.arcsinh(reach * (np.abs(x - centre).max() + 4 * sigma) / scale)
    count = 4096 if x.shape[1] == 1 else 192
    steps = np.linspace(-1, 1, count + 1)[:, None]
    axes = list((centre + scale * np.sinh(top * steps)).T)
    low = np.stack(np.meshgrid(*(a[:-1] for a in axes), indexing="ij"), -1)
    high = np.stack(np.meshgrid(*(a[1:] for a in axes), indexing="ij"), -1)
    return low.reshape(-1, x.shape[1]), high.reshape(-1, x.shape[1]), axes


def integral(log_density, x, sigma, reach=100.0, tolerance=1e-3, most=1_000_000):
    """log of the integral of exp(log_density), by adaptive quadrature in float64.

    Boxes are halved until each, and so their sum, has settled; those with rows are halved to the
    width of the noise at least.

    Args:
        log_density: of float64 rows (k, n) -> (k,).
        x: the rows of data, (rows, n).
        sigma: noise level, the finest scale.
        reach: how many times as far as the farthest row to integrate.
        tolerance: of the result, in nats.
        most: evaluated boxes.
    """
    low, high, axes = start_cells(x, sigma, reach)
    n = x.shape[1]
    # A network sees the rows in units of their spread, so that nothing is finer than a share of it.
    finest = np.maximum(2 * sigma, (np.quantile(x, 0.9, 0) - np.quantile(x, 0.1, 0)) / 200)
    near = np.unique(np.floor(np.unique(x, axis=0) / (2 * sigma)).astype(int), axis=0) * 2 * sigma
    settled = []
    here = cell_integrals(log_density, low, high)
    evaluated = len(low)
    for _ in range(40):
        fine_low, fine_high = split(low, high)
        parts = cell_integrals(log_density, fine_low, fine_high)
        evaluated += len(parts)
        sums = logsumexp(parts.reshape(2**n, -1), axis=0)
        total = logsumexp(np.concatenate([sums, *settled]))
        change = np.abs(np.exp(sums - total) - np.exp(here - total))
        wide = ((high - low) > finest).any(axis=1)
        occupied = np.zeros(len(low), bool)
        if wide.any():
            occupied[wide] = holds(low[wide], high[wide], near)
        keep = (change > tolerance / 200 / max(len(low), 1) ** 0.5) | occupied
        settled.append(sums[~keep])
        if not keep.any():
            break
        if evaluated > most:
            settled.append(sums[keep])
            break
        again = np.tile(keep, 2**n)
        low, high, here = fine_low[again], fine_high[again], parts[again]
    return float(logsumexp(np.concatenate(settled)))


def holds(low, high, points):
    """Whether each box holds one of the points."""
    tree = cKDTree(points)
    centre, half = (low + high) / 2, (high - low) / 2
    # By the largest side: boxes are nearly square where it matters.
    return tree.query(centre, p=np.inf)[0] <= half.max(axis=1) * 1.01
