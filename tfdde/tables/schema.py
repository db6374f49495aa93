"""What is known of the columns of a table: a part of the density that takes rows as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdde.tables.columns import Column, far_notice, learn_column, rounding, with_tails
from tfdde.tables.dependence import dependent_columns, sentence
from tfdde.tables.evening import even_out, log_slopes
from tfdde.tables.frames import as_frame, is_frame, numbers_of

SINGLE = 1e-4  # share of a column's scale that rounding to float32 may cost, times four
FLOAT32 = (1e-30, 1e30)  # scales that float32 holds with room for squares


@keras.saving.register_keras_serializable(package="tfdde")
class Schema(keras.layers.Layer):
    """The names, centres and scales of a table's columns, as the ``normalization`` of a ``DDE``.

    ``learn`` finds them. Centring and scaling are done in float64 where float32 would lose the
    values, as it does with seconds since 1970. So the density takes rows in their own units,
    whatever these are, and is a density in these units. Of a column with heavy tails it takes the
    asinh, a smooth function that is nearly a logarithm far from the centre, and its density has the
    factor that this needs.

    >>> rng = np.random.default_rng(0)
    >>> import pandas as pd
    >>> table = {"seconds": 1.7e9 + rng.random(500), "amount": 1e-12 * rng.normal(size=500)}
    >>> schema = tfdde.tables.Schema.learn(pd.DataFrame(table))
    >>> schema.names, schema.row_dtype
    (('seconds', 'amount'), 'float64')
    >>> rows = schema.rows(pd.DataFrame(table)[["amount", "seconds"]])  # put in order by name
    >>> schema.inside(rows).numpy().std(axis=0).round(2).tolist()
    [1.0, 1.0]
    >>> noise = tfdde.LogUniform(0.1, 8.0)
    >>> dde = tfdde.recipes.table_density(rows, noise, width=16, depth=1, normalization=schema)
    >>> dde.score(rows[:3]).shape
    TensorShape([3, 2])

    Args:
        columns: of a row, in order.
        given: names of all columns of the table, of which ``columns`` may be a part; by default
            those of ``columns``.
        impute: whether ``rows`` puts medians in the place of missing values.
        notices: sentences on what was done to the columns.
        warnings: sentences on what is still wrong with them.

    Attributes:
        names: of ``columns``.
        row_dtype: what rows must be given in: "float64" if float32 would lose their values.
        medians: of ``columns``, which stand for missing values; None without ``impute``.
        tailed: for each of ``columns`` whether it has heavy tails, so that its asinh is taken.
    """

    def __init__(
        self,
        columns: Sequence[Column | Mapping[str, Any]],
        given: Sequence[str] | None = None,
        impute: bool = False,
        notices: Sequence[str] = (),
        warnings: Sequence[str] = (),
        **kwargs: Any,
    ):
        super().__init__(**({"trainable": False, "dtype": "float32", "autocast": False} | kwargs))
        self.columns = tuple(c if isinstance(c, Column) else Column(**c) for c in columns)
        self.names = tuple(column.name for column in self.columns)
        self.given = self.names if given is None else tuple(given)
        self.impute = bool(impute)
        self.medians = np.array([c.median for c in self.columns]) if self.impute else None
        self.notices, self.warnings = tuple(notices), tuple(warnings)
        self.location = np.array([column.location for column in self.columns])
        self.scale = np.array([column.scale for column in self.columns])
        self.tailed = np.array([column.tail_mean is not None for column in self.columns])
        self.tail_mean = np.array([column.tail_mean or 0.0 for column in self.columns])
        self.tail_deviation = np.array([column.tail_deviation or 1.0 for column in self.columns])
        low, high = FLOAT32
        single = all(
            rounding(column, np.float32) < SINGLE
            and low < column.scale < high
            and abs(column.location) < high
            for column in self.columns
        )
        self.row_dtype = "float32" if single else "float64"
        self.built = True

    @classmethod
    def learn(
        cls,
        data: Any,
        names: Sequence[str] | None = None,
        *,
        missing: str | None = None,
        dependent: str | None = None,
        tails: str | None = None,
        sample_weight: np.ndarray | None = None,
    ) -> Schema:
        """Learn the schema of a table.

        Args:
            data: pandas DataFrame, Arrow table, structured array, or array (rows, columns);
                ``tfdde.datasets.read_columns`` reads files.
            names: columns to take, in this order; of an array the names of all columns.
            missing: "impute": draws of a column's other values, and in rows to score its median,
                stand for missing values (NaN), which by default are refused.
            dependent: "drop": columns that are linear combinations of earlier ones are left out;
                by default they are refused.
            tails: "keep": columns with heavy tails are only centred and scaled, as all others; by
                default their asinh is taken if that makes held-out values likelier, see
                ``tfdde.tables.tails``.
            sample_weight: of the rows, (rows,), not negative.

        Raises:
            ValueError: a column does not hold numbers, is constant, infinite, has missing values
                or depends on others; or an argument is not one of the above.
        """
        for value, argument, choice in (
            (missing, "missing", "impute"),
            (dependent, "dependent", "drop"),
            (tails, "tails", "keep"),
        ):
            if value not in (None, choice):
                raise ValueError(f"`{argument}` must be None or {choice!r}, got {value!r}.")
        x, found = numbers_of(data, names)
        if len(x) < 2 or not found:
            raise ValueError(f"`data` must have at least 2 rows and a column, got shape {x.shape}.")
        check_values(x, found, missing is not None)
        columns: list[Column] = []
        notices: list[str] = []
        warnings: list[str] = []
        for name, values in zip(found, x.T, strict=True):
            known = ~np.isnan(values)
            if not known.all():
                notices.append(
                    f"Column {name!r} misses {(~known).sum()} of {len(x)} values: draws of the "
                    "others stand for them in training, the median in rows to score."
                )
            weights = None if sample_weight is None else sample_weight[known]
            column, done, wrong = learn_column(name, values[known], weights)
            columns.append(column)
            notices, warnings = [*notices, *done], [*warnings, *wrong]
        z = (x - [c.location for c in columns]) / [c.scale for c in columns]
        depends = dependent_columns(z[~np.isnan(z).any(axis=1)])
        if depends and dependent is None:
            raise ValueError(
                f"{sentence(found, depends)} Leave {'one' if len(depends) == 1 else 'some'} of "
                'them out, or pass dependent="drop".'
            )
        for j, parts in depends.items():
            others = ", ".join(repr(found[i]) for i in parts)
            notices.append(f"Column {found[j]!r} is left out: it is a combination of {others}.")
        kept = [j for j in range(len(columns)) if j not in depends]
        for j in kept if tails is None else []:
            known = ~np.isnan(x[:, j])
            weights = None if sample_weight is None else sample_weight[known]
            if changed := with_tails(columns[j], x[known, j], weights):
                columns[j], done_to_tails = changed
                notices = [n for n in notices if n != far_notice(found[j])] + [done_to_tails]
        chosen = [columns[j] for j in kept]
        return cls(chosen, found, missing is not None, notices, warnings)

    def rows(self, data: Any) -> np.ndarray:
        """Return the rows of a table as the density takes them, to score them.

        Args:
            data: a table whose columns have names, which are put in order and may be more than
                the schema's; or an array of all columns that ``learn`` was given.

        Returns:
            Array (rows, columns) of ``row_dtype``.

        Raises:
            ValueError: a column is missing, does not hold numbers, or has missing values.
        """
        x = self._numbers(data)
        if self.medians is not None:
            x = np.where(np.isnan(x), self.medians, x)
        return x.astype(self.row_dtype)

    def training_rows(self, data: Any, seed: int) -> np.ndarray:
        """Return the rows of a table to learn from, or to measure a likelihood at.

        Draws of the other values of a column stand for missing ones. Values on a grid get uniform
        noise of half a step to either side, so that they have a density at all.

        Args:
            data: as for ``rows``.
            seed: of the draws and the noise.
        """
        x = filled(self._numbers(data), np.random.default_rng([seed, 1]))
        steps = [column.step or 0.0 for column in self.columns]
        x += steps * np.random.default_rng([seed, 2]).uniform(-0.5, 0.5, x.shape)
        return x.astype(self.row_dtype)

    def on_grids(self, x: np.ndarray) -> np.ndarray:
        """Put values of columns on a grid to its nearest value, in the range that was learned.

        Args:
            x: rows in units of the table, float64 (rows, columns).

        Raises:
            ValueError: the schema is of an early version, which did not keep that range.
        """
        x = np.array(x, np.float64)
        for values, column in zip(x.T, self.columns, strict=True):
            if column.step is None:
                continue
            if column.least is None or column.largest is None:
                raise ValueError(
                    f"Column {column.name!r} lies on a grid, but its range is not known: the "
                    "schema is of an early version. Learn it, and the density, anew."
                )
            span = column.largest - column.least
            cells = round(span / column.step)
            places = np.rint((values - column.least) / span * cells)
            values[:] = column.least + np.clip(places, 0, cells) * (span / cells)
        return x

    @property
    def dequantised(self) -> tuple[str, ...]:
        """Names of the columns whose values lie on a grid: noise is added to them in training."""
        return tuple(column.name for column in self.columns if column.step is not None)

    def _numbers(self, data: Any) -> np.ndarray:
        frame = as_frame(data)
        if is_frame(frame):
            x, _ = numbers_of(frame, self.names)
        else:
            x, _ = numbers_of(frame, self.given)
            x = x[:, [self.given.index(name) for name in self.names]]
        check_values(x, self.names, self.impute)
        return x

    def inside(self, x: Any) -> tf.Tensor:
        """Standardise rows: float32 (rows, columns), the units that sigma is in."""
        x = tf.convert_to_tensor(x)
        location, scale = (tf.constant(v[None], x.dtype) for v in (self.location, self.scale))
        z = (x - location) / scale
        if self.tailed.any():
            mean, deviation = self._tails(x.dtype)
            z = even_out(z, self.tailed[None], mean, deviation)
        return tf.cast(z, tf.float32)

    def outside(self, z: Any) -> np.ndarray:
        """Return standardised rows in units of the table, float64 (rows, columns)."""
        z = np.asarray(z, np.float64)
        y = np.where(self.tailed, z * self.tail_deviation + self.tail_mean, 0.0)
        return np.where(self.tailed, np.sinh(y), z) * self.scale + self.location

    def log_scale(self) -> float:
        """Log of the Jacobian determinant of ``inside``, without the part of ``log_slopes``."""
        return -float(np.log(self.scale * self.tail_deviation).sum())

    def log_slopes(self, inside: tf.Tensor) -> tf.Tensor:
        """Log of the derivatives of the asinh of columns with heavy tails, summed: (rows,).

        Args:
            inside: rows as ``inside`` returns them.
        """
        return log_slopes(inside, self.tailed[None], *self._tails(inside.dtype))

    def _tails(self, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
        """Means and deviations of the columns' asinh, (1, columns)."""
        mean, deviation = (
            tf.constant(v[None], dtype) for v in (self.tail_mean, self.tail_deviation)
        )
        return mean, deviation

    def check_resolution(self, sigma: float, name: str) -> None:
        """Raise ValueError if noise of ``sigma`` is lost in the rounding of the rows."""
        kind = np.dtype(self.row_dtype).type
        lost = {column.name: rounding(column, kind) for column in self.columns}
        worst = max(lost, key=lambda column: lost[column])
        if sigma < lost[worst]:
            raise ValueError(
                f"`sigma` must be at least {1.5 * lost[worst]:.1g}, got {sigma:g}: noise below "
                f"that is lost in the rounding of column {worst!r} of `{name}` to "
                f"{self.row_dtype}."
            )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.inside(x)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "columns": [dataclasses.asdict(column) for column in self.columns],
            "given": list(self.given),
            "impute": self.impute,
            "notices": list(self.notices),
            "warnings": list(self.warnings),
        }


def check_values(x: np.ndarray, names: Sequence[str], impute: bool) -> None:
    """Raise ValueError, with names and counts, for infinity, and for NaN unless imputed."""
    for name, values in zip(names, x.T, strict=True):
        infinite = np.flatnonzero(np.isinf(values))
        if len(infinite):
            raise ValueError(
                f"Column {name!r} must be finite, got infinity in {len(infinite)} of {len(x)} "
                f"rows, the first at row {infinite[0]}."
            )
    if impute:
        return
    gaps = [
        f"{name!r} in {count} of {len(x)} rows"
        for name, count in zip(names, np.isnan(x).sum(axis=0), strict=True)
        if count
    ]
    if gaps:
        raise ValueError(
            f"Values are missing (NaN) in {', '.join(gaps[:10])}{', ...' * (len(gaps) > 10)}: "
            'leave these rows out, or fit with missing="impute".'
        )


def filled(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put draws of a column's other values in the place of missing ones (NaN)."""
    x = x.copy()
    for values in x.T:
        gaps = np.isnan(values)
        if gaps.any():
            values[gaps] = rng.choice(values[~gaps], gaps.sum())
    return x
