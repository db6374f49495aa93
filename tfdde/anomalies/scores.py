"""Anomaly scores from a density of all noise levels and the rows that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdde.losses import score_of
from tfdde.models.dde import DDE
from tfdde.models.evaluation import in_chunks
from tfdde.noise import LogUniform
from tfdde.tables.schema import Schema
from tfdde.utils.checks import check_rows

Function = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

METHODS = ("rows", "joint", "density", "score", "time")
LEVELS = np.geomspace(0.05, 2.0, 16)  # of ``RowsDensity``, in mean standard deviations
QUERIES = 1_000  # rows that are left out one by one to choose the level
CHUNK = 1_000  # rows whose distances are in memory at a time
NETWORK = 0.25  # weight of the network's density in the joint score


class RowsDensity:
    """The closed form of denoising: the density of some rows, blurred by N(0, sigma**2 I).

    No function has a smaller denoising loss (eq. 10) on these rows, so it is what a network of any
    size tends to if it is trained for ever.  It is a kernel density, and remembers each row.

    The level is where a row that is left out is likeliest, in the median of the rows.  Copies of a
    row are left out with it: they would drive the level to 0.

    >>> density = tfdde.anomalies.RowsDensity(x)
    >>> density.log_density(x[:3]).shape
    (3,)

    Args:
        rows: array of shape (rows, n), at least two of them distinct.
        sigma: noise level; by default chosen as said.

    Attributes:
        sigma: the noise level.
        left_out: log-densities (queries,) of up to 1,000 rows, each without itself.

    Raises:
        ValueError: wrong shape, NaN or infinity, all rows the same, or a ``sigma`` <= 0.
    """

    def __init__(self, rows: Any, sigma: float | None = None):
        rows = check_rows(rows, "rows", np.shape(rows)[1:2] or (1,), dtype="float64")
        self._mean = rows.mean(axis=0)
        self._rows = rows - self._mean  # distances lose fewest digits around the mean
        scale = float(np.sqrt(rows.var(axis=0).mean()))
        if not scale:
            raise ValueError(f"`rows` must be at least two distinct rows, got {len(rows)} alike.")
        if sigma is not None and not (np.isfinite(sigma) and sigma > 0):
            raise ValueError(f"`sigma` must be a finite number > 0, got {sigma!r}.")
        chosen = np.random.default_rng(0).permutation(len(rows))[:QUERIES]
        distances = self._distances(self._rows[chosen])
        self._same = 1e-10 * rows.shape[1] * scale**2  # squared distance of copies, rounded
        distances[distances <= self._same] = np.inf
        levels = LEVELS * scale if sigma is None else [sigma]
        found = np.stack([self._log_mean(distances, level, len(rows) - 1) for level in levels])
        best = int(np.median(found, axis=1).argmax())
        self.sigma, self.left_out = float(levels[best]), found[best]

    def _distances(self, centred: np.ndarray) -> np.ndarray:
        """Squared distances to the rows, float64 (len(centred), rows)."""
        squares = np.square(centred).sum(axis=1)[:, None] + np.square(self._rows).sum(axis=1)
        return np.maximum(squares - 2.0 * centred @ self._rows.T, 0.0)

    def _log_mean(self, distances: np.ndarray, sigma: float, rows: int) -> np.ndarray:
        n = self._rows.shape[1]
        least = distances.min(axis=1, keepdims=True)
        least[np.isinf(least)] = 0.0  # all others are copies: the sum is 0, its logarithm -inf
        shares = np.exp(((least - distances) / (2.0 * sigma**2)).astype(np.float32))
        with np.errstate(divide="ignore"):
            log_sum = np.log(shares.sum(axis=1, dtype=np.float64)) - least[:, 0] / (2.0 * sigma**2)
        return log_sum - np.log(rows) - n * np.log(sigma * np.sqrt(2 * np.pi))

    def log_density(self, x: Any, leave_one_out: bool = False) -> np.ndarray:
        """Return the normalised log-density of rows (m, n): float64 (m,), in nats.

        With ``leave_one_out``, a row among those of the density is left out for itself: so the
        strange ones among the rows are found. If it has copies, these stay.
        """
        x = check_rows(x, "x", self._rows.shape[1:], dtype="float64") - self._mean
        out = np.empty(len(x))
        for i in range(0, len(x), CHUNK):
            distances = self._distances(x[i : i + CHUNK])
            nearest = distances.argmin(axis=1)[:, None]
            others = len(self._rows)
            if leave_one_out:
                itself = np.take_along_axis(distances, nearest, axis=1)
                itself[itself <= self._same] = np.inf
                np.put_along_axis(distances, nearest, itself, axis=1)
                others -= 1
            out[i : i + CHUNK] = self._log_mean(distances, self.sigma, others)
        return out


class AnomalyScores:
    """Anomaly scores of rows, by a density and the rows that it was trained on.

    A network that has learned for a while is smooth, and far from the rows it extrapolates.  The
    closed form of what it learns knows the rows one by one, and falls as it should far from them.
    The joint score has both.

    >>> dde = tfdde.recipes.table_density(x, tfdde.LogUniform(0.1, 8.0), width=16, depth=1)
    >>> dde.compile("adam")
    >>> history = dde.fit(x, batch_size=128, epochs=5, verbose=0)
    >>> scores = tfdde.anomalies.AnomalyScores(dde, x)
    >>> scores.anomaly_score(x[:3]).shape
    (3,)

    Args:
        dde: a density of flat rows, without conditions.
        rows: its training rows (rows, n), in the units of the data.
        most: so many rows are kept at most, drawn at random.
        standardised: all rows are given as ``dde.inside`` returns them.

    Attributes:
        dde: the density.
        rows_density: the ``RowsDensity`` of the rows in the standardised units of ``dde``. Where
            these are a ``Schema``'s, columns are standardised by mean and deviation instead: the
            scales of inner values and the asinh of columns rank the ADBench tables worse.

    Raises:
        ValueError: a conditional density, images, or rows of another shape.
    """

    def __init__(self, dde: DDE, rows: Any, most: int = 10_000, standardised: bool = False):
        if dde.condition_dim or len(dde.data_shape) != 1:
            raise ValueError(
                "`dde` must be a density of flat rows without conditions, got rows of shape "
                f"{dde.data_shape} and conditions of {dde.condition_dim} entries."
            )
        self._dtype = "float32" if standardised else dde.row_dtype
        rows = check_rows(rows, "rows", dde.data_shape, dtype=self._dtype)
        rows = rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:most])]
        self.dde, self._standardised = dde, standardised
        inside = self._inside(rows)
        self._mean, self._deviation = np.zeros(1), np.ones(1)
        if isinstance(dde.normalization, Schema):
            raw = dde.normalization.outside(inside)
            deviation = raw.std(axis=0)
            # It is 0 if none of these rows has a rare value.
            self._mean, self._deviation = raw.mean(axis=0), np.where(deviation, deviation, 1.0)
        self.rows_density = RowsDensity(self._by_deviations(inside))
        normal = inside[np.random.default_rng(1).permutation(len(inside))[:QUERIES]]
        self._scales = [
            _quartiles(-self.rows_density.left_out),
            _quartiles(self._by_network(normal)),
        ]

    def _inside(self, rows: np.ndarray) -> np.ndarray:
        return rows if self._standardised else self.dde.inside(tf.constant(rows)).numpy()

    def _by_deviations(self, inside: np.ndarray) -> np.ndarray:
        """Rows as ``dde.inside`` returns them, as ``rows_density`` takes them."""
        schema = self.dde.normalization
        raw = schema.outside(inside) if isinstance(schema, Schema) else inside
        return (raw - self._mean) / self._deviation

    def _by_network(self, inside: np.ndarray) -> np.ndarray:
        """Minus the network's log-density in the units of the data, up to log Z."""
        minus = self._at_lowest_level(lambda x, sigma: -self.dde.at(x, sigma), inside)
        return minus - self.dde.log_jacobian(tf.constant(inside)).numpy()

    def _by_score(self, inside: np.ndarray) -> np.ndarray:
        def score_norms(x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
            return sigma * tf.norm(score_of(lambda y: self.dde.at(y, sigma), x), axis=1)

        return self._at_lowest_level(score_norms, inside)

    def _by_time(self, inside: np.ndarray) -> np.ndarray:
        def time_scores(x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
            return sigma * score_of(lambda s: self.dde.at(x, s), sigma)

        return self._at_lowest_level(time_scores, inside)

    def _at_lowest_level(self, function: Function, inside: np.ndarray) -> np.ndarray:
        """``function`` of rows and their levels, all at the noise's ``sigma``: float64 (m,)."""
        level = np.float32(self.dde.noise.sigma)
        values = in_chunks(lambda x: function(x, tf.fill(tf.shape(x)[:1], level)), [inside])
        return values.numpy().astype(np.float64)

    def anomaly_score(self, x: Any, method: str = "rows") -> np.ndarray:
        """Return how anomalous rows are: the higher, the more anomalous.

        Scores of one method can be compared with each other, not with those of another method.

        Args:
            x: rows (m, n), in the units of the data.
            method: "rows": minus the log-density in closed form (``RowsDensity``), up to a
                constant; like the next one in the units of the data.
                "density": minus the log-density of the network, up to a constant.
                "score": the norm of its gradient in standardised units, times sigma.
                "time": its derivative in log sigma: how much noise would have brought the row
                here (compare DTE, Livernoche et al., arXiv 2305.18593). It needs ``LogUniform``
                noise.
                "joint": "rows" and a quarter of "density", each in quartile ranges of the training
                rows, and far beyond them by its logarithm.

        Returns:
            float64 array (m,).

        Raises:
            ValueError: another ``method``, wrong shape, NaN or infinity.
        """
        if method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}.")
        if method == "time" and not isinstance(self.dde.noise, LogUniform):
            raise ValueError(f"`method` 'time' needs LogUniform noise, got {self.dde.noise!r}.")
        x = check_rows(x, "x", self.dde.data_shape, dtype=self._dtype)
        inside = self._inside(x)
        if method == "density":
            return self._by_network(inside)
        if method == "time":
            return self._by_time(inside)
        if method == "score":
            return self._by_score(inside)
        by_rows = -self.rows_density.log_density(self._by_deviations(inside))
        if method == "rows":
            return by_rows
        both = zip((by_rows, self._by_network(inside)), self._scales, strict=True)
        rows, network = (np.arcsinh((values - middle) / width) for values, (middle, width) in both)
        return rows + NETWORK * network


def _quartiles(values: np.ndarray) -> tuple[float, float]:
    """Median and quartile range, or 1 where that is 0, of the finite values."""
    low, middle, high = np.quantile(values[np.isfinite(values)], (0.25, 0.5, 0.75))
    return float(middle), float(high - low) or 1.0
