"""Fit a mixture of Gaussians with a covariance each to blurred rows, in NumPy.

On rows that lie in clusters it finds in seconds what a network that corrects one Gaussian takes
long to find. The density of rows plus noise of N(0, sigma**2 I) is fitted, so no component is
narrower than the noise, and what is returned is the density without that noise.

>>> rng = np.random.default_rng(0)
>>> x = rng.choice([-2.0, 2.0], (5_000, 1)) * [1.0, 1.0] + rng.normal(size=(5_000, 2)) * [1.0, 0.1]
>>> blurred = tfdde.networks.blurred_rows.blur(x, sigma=0.2)
>>> mixture, held_out = tfdde.networks.full_mixture.fit_if_it_suffices(blurred, most=8)
>>> len(mixture.weights)
2
>>> mixture.variances.round(1).tolist()  # along the axes of each component
[[0.0, 1.0], [0.0, 1.0]]
>>> blurred = tfdde.networks.blurred_rows.blur(rng.normal(size=(5_000, 2)), sigma=0.2)
>>> tfdde.networks.full_mixture.fit_if_it_suffices(blurred, most=8)[0]
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.special import logsumexp

from tfdde.networks.blurred_rows import ROWS, BlurredRows, Weighted

ROWS_PER_COLUMN = 10  # of each component, at least, if there are many rows
# With fewer rows, which a network would soon know by heart, held-out rows choose among all numbers
# of components with so many rows each, and a gain must exceed so many standard errors.
FEW, ROWS_EACH, LEAST_HELD_OUT, ERRORS = 5_000, 16, 20, 2.0
# Twice the components are better if held-out rows gain so many nats each, and such a share of what
# they have gained on one Gaussian.
GAIN, SHARE = 0.02, 0.02
# Up to 32 components are compared on some rows. Where they gain so many nats on one Gaussian, no
# network learns so much soon. All rows then compare more components, by a smaller share.
COMPARED, MUCH, LEAST_ROWS_PER_COLUMN, SMALL_SHARE = 32, 5.0, 5, 0.005
STARTS = 5  # of k-means
STEPS, LAST = 20, 5  # of the EM algorithm, and of it with all rows
# A component's share of a row is looked at again after so many steps if it was below e^-30.
FULL_STEPS, SHUT = 5, -30.0
ENOUGH = 2e-3  # it ends before if a step gains less, in nats per row
LEAST_VARIANCE = 1e-6  # of a component along its axes, in units of the mean variance of a column


class FullMixture(NamedTuple):
    """Gaussians with a covariance each, float64.

    Attributes:
        centre: mean of the rows, (n,).
        axes: orthonormal columns for each component, (components, n, n), or those of all, (n, n).
        weights: (components,).
        means: relative to the centre, along the axes of the component, (components, n).
        variances: along the axes of the component, (components, n).
    """

    centre: np.ndarray
    axes: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def log_parts(
        self, rows: np.ndarray, sigma: float = 0.0, wanted: np.ndarray | None = None
    ) -> np.ndarray:
        """Log of each component's share of the density of rows (k, n) with noise, in nats.

        The products are computed in the precision of the rows.

        Args:
            rows: (k, n).
            sigma: noise level.
            wanted: which are computed, (k, components); None: all.

        Returns:
            (k, components), float64, -inf where not wanted.
        """
        widths = self.variances + sigma**2
        scaled = np.broadcast_to(self.axes, (len(widths), *self.axes.shape[-2:]))
        scaled = scaled / np.sqrt(widths)[:, None, :]
        shifts = self.means / np.sqrt(widths)
        logs = np.log(self.weights) - 0.5 * np.log(2 * math.pi * widths).sum(axis=1)
        y = rows - self.centre.astype(rows.dtype)
        parts = np.full((len(rows), len(logs)), -math.inf)
        for k, log in enumerate(logs):
            these = slice(None) if wanted is None else np.flatnonzero(wanted[:, k])
            u = y[these] @ scaled[k].astype(y.dtype) - shifts[k].astype(y.dtype)
            parts[these, k] = log - 0.5 * np.einsum("ij,ij->i", u, u)
        return parts

    def log_density(self, rows: np.ndarray, sigma: float = 0.0) -> np.ndarray:
        """Log-density of rows (k, n) with noise: float64 (k,), in nats."""
        return logsumexp(self.log_parts(rows, sigma), axis=1)

    def shares(self, rows: np.ndarray, sigma: float = 0.0) -> np.ndarray:
        """Each component's share of the density of rows (k, n) with noise, (k, components)."""
        parts = self.log_parts(rows, sigma)
        return np.exp(parts - logsumexp(parts, axis=1, keepdims=True))

    def halves(self, rows: np.ndarray, sigma: float = 0.0) -> np.ndarray:
        """Shares of rows (k, n) in twice the components, each cut across its widest axis."""
        y, own = rows - self.centre.astype(rows.dtype), self.log_parts(rows, sigma).argmax(axis=1)
        widest = self.variances.argmax(axis=1)
        count = len(self.weights)
        along = np.moveaxis(self.axes, -1, -2)[np.arange(count), widest].astype(y.dtype)
        middle = self.means[np.arange(count), widest].astype(y.dtype)
        upper = np.einsum("ij,ij->i", y, along[own]) > middle[own]
        return np.eye(2 * count)[own + count * upper]


def from_shares(
    rows: np.ndarray,
    shares: np.ndarray,
    centre: np.ndarray,
    sigma: float,
    least: float,
    diagonal: bool = False,
) -> FullMixture:
    """The likeliest components of blurred rows, given their shares of each row.

    Args:
        rows: that have the noise already, (rows, n).
        shares: times the weight of the row, (rows, components).
        centre: (n,).
        sigma: level of the noise; a component's variances with it are at least its square.
        least: variance that a component has at least, with the noise.
        diagonal: whether the columns are independent in each component.
    """
    sums = shares.sum(axis=0) + 1e-9
    y = rows - centre.astype(rows.dtype)
    means = (shares.T.astype(y.dtype) @ y) / sums[:, None]
    if diagonal:
        squares = [
            s @ np.square(y - m.astype(y.dtype)) for s, m in zip(shares.T, means, strict=True)
        ]
        widths = np.maximum(np.array(squares) / sums[:, None], least) - sigma**2
        return FullMixture(centre, np.eye(len(centre)), sums / sums.sum(), means, widths)
    axes, variances = [], []
    for k, mean in enumerate(means):
        own = np.flatnonzero(shares[:, k])
        far = y[own] - mean.astype(y.dtype)
        far *= np.sqrt(shares[own, k])[:, None].astype(y.dtype)
        widths, directions = np.linalg.eigh((far.T @ far).astype(np.float64) / sums[k])
        axes.append(directions)
        variances.append(np.maximum(widths, least) - sigma**2)
    along = np.einsum("kn,knm->km", means, np.array(axes))
    return FullMixture(centre, np.array(axes), sums / sums.sum(), along, np.array(variances))


def fit(
    rows: np.ndarray,
    weights: np.ndarray,
    shares: np.ndarray,
    sigma: float,
    steps: int,
    diagonal: bool = False,
) -> tuple[FullMixture, float]:
    """Run the EM algorithm.

    Of a row and a component that hardly shares it, the share is computed in every fifth step only.
    That is a partial E-step, with which the likelihood still grows (Neal & Hinton 1998).

    Args:
        rows: that have noise of ``sigma`` already, (rows, n).
        weights: of the rows, (rows,).
        shares: of the components in each row, to start at, (rows, components).
        sigma: noise level.
        steps: at most.
        diagonal: whether the columns are independent in each component.

    Returns:
        The mixture without the noise, and the log-likelihood of the rows with it, in nats per row.
    """
    centre = np.average(rows, axis=0, weights=weights)
    spread = np.average(np.square(rows - centre), axis=0, weights=weights).mean()
    least = max(sigma**2, LEAST_VARIANCE * spread)
    value, wanted = -math.inf, None
    for step in range(steps):
        weighted = shares * weights[:, None]
        mixture = from_shares(rows, weighted, centre, sigma, least, diagonal)
        parts = mixture.log_parts(rows, sigma, wanted)
        total = logsumexp(parts, axis=1)
        last, value = value, float(np.average(total, weights=weights))
        if value < last + ENOUGH:
            break
        parts -= total[:, None]
        shares = np.where(parts < SHUT, 0.0, np.exp(parts))
        wanted = None if step % FULL_STEPS == FULL_STEPS - 1 else shares > 0
    return mixture, value


def _clusters(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The best of several k-means: which cluster each row is in, (rows,)."""
    found = []
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # a cluster of equal rows may lose all
        for _ in range(STARTS):
            centres, labels = kmeans2(rows, count, minit="++", seed=rng)
            found.append((np.square(rows - centres[labels]).sum(dtype=np.float64), labels))
    return min(found, key=lambda pair: pair[0])[1]


def fit_if_it_suffices(blurred: BlurredRows, most: int) -> tuple[FullMixture | None, np.ndarray]:
    """Fit mixtures of 1, 2, 4, ... components until held-out rows are no longer clearly likelier.

    If they are likelier to the last, the rows are no mixture of so few Gaussians but lie along
    something curved. One Gaussian is then the better start for a network, which first has to undo
    the bends of a mixture that only comes near. A mixture that is likelier by 5 nats is taken even
    so, and all rows then decide how many components it has.

    Fewer than 5,000 rows teach a network little more. Of these, also the mixtures are fitted whose
    components have independent columns, and the held-out rows choose the likeliest of all.

    The EM algorithm starts at clusters by k-means++ (Arthur & Vassilvitskii 2007), with more than
    32 components at halves of fewer, and the chosen mixture goes on with all rows. All rows have
    noise.

    Args:
        blurred: the rows, some of them held out.
        most: components.

    Returns:
        The mixture without the noise; or None if one Gaussian is as good, or if, of many rows, no
        number of components is enough and the gain is small. Then log-densities of the held-out
        rows, by the mixture before it has seen them, or by one Gaussian, (first,).
    """
    rows, weights, sigma, first, rng = blurred
    training = blurred.training
    choose = _likeliest if len(rows) < FEW else _sufficient
    best, diagonal = choose(training, blurred.held_out, sigma, most, rng)
    mixture = best or _started(training, 1, sigma, rng)[0]
    held_out = mixture.log_density(rows[:first], sigma)
    if best is None:
        return None, held_out
    return fit(rows, weights, best.shares(rows, sigma), sigma, LAST, diagonal)[0], held_out


Choice = tuple[FullMixture | None, bool]  # a mixture, and whether its columns are independent


def _started(
    training: Weighted, count: int, sigma: float, rng: np.random.Generator, diagonal: bool = False
) -> tuple[FullMixture, float]:
    """A mixture from the best of several k-means, and its log-likelihood of the training rows."""
    shares = np.ones((len(training[0]), 1))
    if count > 1:
        shares = np.eye(count)[_clusters(training[0], count, rng)]
    return fit(*training, shares, sigma, STEPS, diagonal)


def _affordable(rows: np.ndarray, rows_per_column: int) -> int:
    """The most components of which each has so many rows per column."""
    return len(rows) // (rows_per_column * (rows.shape[1] + 1))


def _sufficient(
    training: Weighted, held_out: Weighted, sigma: float, most: int, rng: np.random.Generator
) -> Choice:
    """The last number of components with a clear gain, if the next has none.

    Held-out rows may also lose because the components are too many for so few rows. They then
    lose as much as the training rows gain (Akaike 1974). If the mean of both is a clear gain, the
    number does not suffice. A mixture whose gain on one Gaussian is large is taken even so, and all
    rows then decide how many components it has.
    """
    some = training[0][: ROWS - len(held_out[0])], training[1][: ROWS - len(held_out[0])]
    compared = min(most, COMPARED, _affordable(some[0], ROWS_PER_COLUMN))
    best, own, values, count, suffices = None, 0.0, list[float](), 1, False
    while count <= compared:
        mixture, own_value = _started(some, count, sigma, rng)
        value = _likelihood(mixture, held_out, sigma)
        if values and (gain := value - values[-1]) < (least := _least(values, SHARE)):
            suffices = gain + own_value - own < 2 * least
            break
        best, own, count = mixture, own_value, 2 * count
        values.append(value)
    if best is None or values[-1] - values[0] < MUCH:
        return (best if suffices and count > 2 else None), False
    # More components from all rows. k-means of so many would take longer than all the rest.
    most = min(most, _affordable(training[0], LEAST_ROWS_PER_COLUMN))
    while 2 * len(best.weights) <= most:
        mixture = fit(*training, best.halves(training[0], sigma), sigma, STEPS)[0]
        value = _likelihood(mixture, held_out, sigma)
        if value - values[-1] < _least(values, SMALL_SHARE):
            break
        best = mixture
        values.append(value)
    return best, False


def _likelihood(mixture: FullMixture, held_out: Weighted, sigma: float) -> float:
    """Of held-out rows, in nats per row."""
    return float(np.average(mixture.log_density(held_out[0], sigma), weights=held_out[1]))


def _least(values: list[float], share: float) -> float:
    """The least clear gain, after the likelihoods of 1, 2, 4, ... components."""
    return max(GAIN, share * (values[-1] - values[0]))


def _likeliest(
    training: Weighted, held_out: Weighted, sigma: float, most: int, rng: np.random.Generator
) -> Choice:
    """The mixture of the likeliest held-out rows, if they are clearly likelier than by one."""
    best: Choice = None, False
    if len(held_out[0]) < LEAST_HELD_OUT:
        return best
    most = min(most, len(training[0]) // ROWS_EACH)
    one = _started(training, 1, sigma, rng)[0].log_density(held_out[0], sigma)
    most_gained = 0.0
    for diagonal in (False, True):
        count, falls, last = 2, 0, -math.inf
        while count <= most and falls < 2:
            mixture = _started(training, count, sigma, rng, diagonal)[0]
            gains = mixture.log_density(held_out[0], sigma) - one
            gain = float(np.average(gains, weights=held_out[1]))
            least = max(GAIN, ERRORS * float(gains.std()) / math.sqrt(len(gains)))
            if gain > max(least, most_gained):
                best, most_gained = (mixture, diagonal), gain
            falls, last, count = (falls + 1 if gain < last else 0), gain, 2 * count
    return best
