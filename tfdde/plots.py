"""Plots of densities, samples and training curves, each written to one PNG file.

They need matplotlib (``pip install tfdde[train]``), which is imported on first use. Figures are
made without pyplot, so they need no display and change no global state. Each file is written under
a temporary name and renamed, so no viewer sees an incomplete file.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfdde.utils.files import atomic

Path_ = str | os.PathLike
Bounds = tuple[float, float]
FEW = 20  # values of a column that get a bin each


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _save(figure: Any, path: Path_) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def density_beside_exact(
    path: Path_,
    log_density: Any,
    exact: Any,
    bounds: Bounds,
    *,
    sigma: float,
    divergence: float | None = None,
) -> None:
    """Draw heat maps of a learned 2-D density and the exact one, with one colour scale.

    Args:
        path: the PNG to write.
        log_density: normalised learned log-density in nats, shape (m, m); the first index
            follows the second coordinate.
        exact: exact log-density in nats, same shape.
        bounds: ends of the grid, the same for both coordinates, in units of the data.
        sigma: noise level of both, for the title.
        divergence: KL(exact || learned) in nats, for the title.

    Raises:
        ValueError: the two are not matrices of one shape.
    """
    learned, exact = np.exp(np.asarray(log_density)), np.exp(np.asarray(exact))
    if learned.ndim != 2 or learned.shape != exact.shape:
        raise ValueError(
            "`log_density` and `exact` must be matrices of the same shape, "
            f"got {learned.shape} and {exact.shape}."
        )
    figure = _figure(9, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    title = "learned" if divergence is None else f"learned, KL = {divergence:.4f} nats"
    for axis, values, label in zip(axes, (learned, exact), (title, "exact"), strict=True):
        image = axis.imshow(
            values,
            origin="lower",
            extent=(*bounds, *bounds),
            vmin=0.0,
            vmax=exact.max(),  # one scale: equal colours are equal densities
            cmap="magma",
        )
        axis.set(title=label, xlabel="$x_1$")
    axes[0].set_ylabel("$x_2$")
    figure.colorbar(image, ax=axes, label="density (1 / unit²)")
    figure.suptitle(f"Density of data + noise, σ = {sigma:g}")
    _save(figure, path)


def samples_beside_real(
    path: Path_, samples: Any, real: Any, *, bounds: Bounds | None = None, title: str = ""
) -> None:
    """Draw generated samples beside real ones.

    Args:
        path: the PNG to write.
        samples: generated rows, shape (rows, 2) for a histogram, or images
            (rows, height, width, channels) with pixels in [0, 1] for a grid.
        real: real rows of the same kind.
        bounds: ends of both axes of a histogram, in units of the data; by default those
            of ``real``.
        title: title of the whole figure.

    Raises:
        ValueError: the rows are neither 2-D points nor images, or not alike.
    """
    samples, real = np.asarray(samples), np.asarray(real)
    if samples.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"`samples` and `real` must have rows of one shape, got {samples.shape[1:]} "
            f"and {real.shape[1:]}."
        )
    figure = _figure(9, 4.8)
    axes = figure.subplots(1, 2)
    for axis, rows, label in zip(axes, (samples, real), ("generated", "real"), strict=True):
        axis.set_title(f"{label}, {len(rows)} samples")
        if real.ndim == 4:
            _show_images(axis, _tile(rows, _columns(len(rows))))
        elif real.ndim == 2 and real.shape[1] == 2:
            low, high = bounds or (real.min(), real.max())
            # Densities on one colour scale, since the numbers of samples may differ.
            edges = np.linspace(low, high, 151)
            axis.imshow(
                _histogram(rows, edges),
                origin="lower",
                extent=(low, high, low, high),
                vmin=0.0,
                vmax=_histogram(real, edges).max(),
                cmap="magma",
            )
            axis.set(xlabel="$x_1$", ylabel="$x_2$")
        else:
            raise ValueError(
                "`samples` must have shape (rows, 2) or (rows, height, width, channels), "
                f"got {samples.shape}."
            )
    figure.suptitle(title)
    _save(figure, path)


def image_grid(path: Path_, images: Any, *, columns: int | None = None, title: str = "") -> None:
    """Draw images in a grid.

    Args:
        path: the PNG to write.
        images: shape (rows, height, width, channels), 1 or 3 channels, pixels in [0, 1].
        columns: images in a row of the grid; by default the grid is about square.
        title: title of the figure.

    Raises:
        ValueError: ``images`` has another shape.
    """
    images = np.asarray(images)
    tiled = _tile(images, columns or _columns(len(images)))
    figure = _figure(6, 6 * tiled.shape[0] / tiled.shape[1] + (0.4 if title else 0))
    axis = figure.subplots()
    _show_images(axis, tiled)
    axis.set_title(title)
    _save(figure, path)


def interpolation_grid(path: Path_, images: Any, *, title: str = "") -> None:
    """Draw rows of images; each row leads from one latent to another.

    Args:
        path: the PNG to write.
        images: shape (lines, steps, height, width, channels), pixels in [0, 1].
        title: title of the figure.

    Raises:
        ValueError: ``images`` has another shape.
    """
    images = np.asarray(images)
    if images.ndim != 5:
        raise ValueError(
            f"`images` must have shape (lines, steps, height, width, channels), got {images.shape}."
        )
    image_grid(path, images.reshape(-1, *images.shape[2:]), columns=images.shape[1], title=title)


def loss_curves(path: Path_, logs: Mapping[str, Path_]) -> None:
    """Draw the losses by epoch, each in a panel of its own, since their units may differ.

    Args:
        path: the PNG to write.
        logs: the CSV log of each phase by its title. A file that does not exist or has no epoch is
            left out; if none is left, no plot is written.
    """
    curves = [
        (f"{title}: {name}", table["epoch"] + 1, values)
        for title, table in ((title, read_log(log)) for title, log in logs.items())
        for name, values in table.items()
        if name != "epoch"
    ]
    if not curves:
        return
    figure = _figure(4 * len(curves), 3.4)
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (title, epochs, values) in zip(axes, curves, strict=True):
        axis.plot(epochs, values, ".-")
        axis.set(title=title, xlabel="epoch")
        axis.locator_params(axis="x", integer=True)
    _save(figure, path)


def likelihood_by_level(
    path: Path_,
    sigmas: Any,
    curves: Mapping[str, Any],
    chosen: float,
    interval: tuple[Any, Any] | None = None,
    trials: Any = None,
) -> None:
    """Draw mean log-likelihoods by noise level, and mark the chosen level.

    Args:
        path: the PNG to write.
        sigmas: noise levels, shape (levels,).
        curves: by the name of each set of rows, its mean in nats at each level, shape (levels,).
        chosen: the level to mark.
        interval: lower and upper ends of the interval around the last curve, (levels,) each.
        trials: for densities that were each trained for one sigma: sigma, log-likelihood and half
            the width of its interval, shape (trials, 3).
    """
    figure = _figure(5.5, 3.6)
    axis = figure.subplots()
    for name, values in curves.items():
        axis.plot(sigmas, values, ".-", label=name)
    if interval is not None:
        axis.fill_between(sigmas, *interval, alpha=0.3, color=axis.lines[-1].get_color())
    if trials is not None:
        sigma, value, half = np.asarray(trials, np.float64).T
        axis.errorbar(sigma, value, half, fmt="k.", capsize=2, label="trials, 95 %")
    axis.axvline(chosen, color="grey", linestyle=":", label=f"chosen: σ = {chosen:.3g}")
    axis.set(xscale="log", xlabel="noise level σ", ylabel="log-likelihood of a row in nats")
    axis.legend()
    _save(figure, path)


def histograms(
    path: Path_, values: Mapping[str, Any], label: str, mark: tuple[float, str] | None = None
) -> None:
    """Draw histograms of one quantity for several sets of rows, with common bins, as densities.

    Args:
        path: the PNG to write.
        values: by the name of each set, finite numbers of shape (rows,). The lowest percent of all
            values is drawn in the first bin, so that an outlier does not stretch the axis.
        label: the label of the axis.
        mark: a value to mark, and what it is.
    """
    rows = {name: np.asarray(v, np.float64) for name, v in values.items()}
    everything = np.concatenate(list(rows.values()))
    low, high = np.quantile(everything, 0.01), everything.max()
    edges = np.linspace(low, high if high > low else low + 1.0, 41)
    figure = _figure(5.5, 3.6)
    axis = figure.subplots()
    for name, v in rows.items():
        clipped = np.maximum(v, low)
        axis.hist(clipped, edges, density=True, alpha=0.5, label=f"{name}, {len(v)} rows")
    if mark is not None:
        axis.axvline(max(mark[0], low), color="black", linestyle=":", label=mark[1])
    axis.set(xlabel=f"{label} (first bin: all below)", ylabel="share of rows per unit")
    axis.legend()
    _save(figure, path)


def marginals(path: Path_, data: Any, samples: Any, names: Sequence[str]) -> None:
    """Draw the distribution of each column, of data and of samples, a panel for each.

    Args:
        path: the PNG to write.
        data, samples: rows (m, n) and (k, n), in the units of the table. The values of a column
            beyond those of 99 % of the data are drawn in the outermost bins.
        names: of the columns.

    Raises:
        ValueError: the two have not one column for each name.
    """
    data, samples = _tables(data, samples, names)
    across = min(4, len(names))
    down = math.ceil(len(names) / across)
    figure = _figure(3 * across, 2.3 * down + 0.4)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, name, real, drawn in zip(axes, names, data.T, samples.T, strict=False):
        edges = _edges(real)
        for label, values in (("data", real), ("samples", drawn)):
            clipped = np.clip(values, edges[0], edges[-1])
            axis.hist(clipped, edges, density=True, alpha=0.5, label=label)
        axis.set_xlabel(_plain(name))
        axis.set_yticks([])
        axis.locator_params(axis="x", nbins=4)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    axes[0].legend()
    _save(figure, path)


def pairs(path: Path_, data: Any, samples: Any, names: Sequence[str]) -> None:
    """Draw each pair of columns: data below the diagonal, samples above it, with the same axes.

    Args:
        path: the PNG to write.
        data, samples: rows (m, n) and (k, n), in the units of the table. The axes reach over 99 %
            of the data.
        names: of the columns, two or more.

    Raises:
        ValueError: the two have not one column for each name, or there is only one.
    """
    data, samples = _tables(data, samples, names)
    n = len(names)
    if n < 2:
        raise ValueError(f"`names` must be of 2 columns or more, got {list(names)}.")
    figure = _figure(2.3 * n, 2.3 * n)
    axes = figure.subplots(n, n)
    bounds = [(edges[0], edges[-1]) for edges in map(_edges, data.T)]
    for i, j in np.ndindex(n, n):
        axis = axes[i, j]
        if i == j:
            axis.text(0.5, 0.5, _plain(names[i]), ha="center", va="center", wrap=True)
            axis.set_axis_off()
            continue
        rows, colour = (data, "C0") if i > j else (samples, "C1")
        axis.plot(rows[:, j], rows[:, i], ".", markersize=2, alpha=0.5, color=colour)
        axis.set(xlim=bounds[j], ylim=bounds[i])
        axis.locator_params(nbins=3)
    figure.suptitle("data (blue, below) and samples (orange, above)")
    _save(figure, path)


def _tables(data: Any, samples: Any, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    data, samples = (np.asarray(rows, np.float64) for rows in (data, samples))
    for name, rows in (("data", data), ("samples", samples)):
        if rows.ndim != 2 or rows.shape[1] != len(names):
            raise ValueError(f"`{name}` must have shape (rows, {len(names)}), got {rows.shape}.")
    return data, samples


def _plain(name: str) -> str:
    """The name of a column, in which dollars are no mathematics."""
    return name.replace("$", r"\$")


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of bins: between the values if these are few, else equal ones of 99 % of them."""
    distinct = np.unique(values)
    if len(distinct) <= FEW:
        middles = (distinct[1:] + distinct[:-1]) / 2
        gap = np.diff(distinct).min() / 2 if len(distinct) > 1 else 0.5
        return np.concatenate([[distinct[0] - gap], middles, [distinct[-1] + gap]])
    low, high = np.quantile(values, (0.005, 0.995))
    return np.linspace(low, high, 31) if high > low else distinct[[0, -1]]


def read_log(path: Path_) -> dict[str, np.ndarray]:
    """Return the columns of a CSV log of numbers by name; {} without a file or rows."""
    path = Path(path)
    if not path.exists():
        return {}
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]} if rows else {}


def _histogram(rows: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the density of 2-D points in a grid; the first index follows the second coordinate."""
    counts = np.histogram2d(rows[:, 1], rows[:, 0], bins=[edges, edges])[0]
    return counts / (max(len(rows), 1) * (edges[1] - edges[0]) ** 2)


def _columns(count: int) -> int:
    return max(1, math.ceil(math.sqrt(count)))


def _tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Return one image (height, width, channels) of all ``images``, with white lines between."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise ValueError(
            "`images` must have shape (rows, height, width, channels) with 1 or 3 channels, "
            f"got {images.shape}."
        )
    lines = math.ceil(len(images) / columns)
    _, height, width, channels = images.shape
    framed = np.ones((lines * columns, height + 2, width + 2, channels))
    framed[: len(images), 1:-1, 1:-1] = np.clip(images, 0.0, 1.0)
    grid = framed.reshape(lines, columns, height + 2, width + 2, channels)
    return grid.swapaxes(1, 2).reshape(lines * (height + 2), columns * (width + 2), channels)


def _show_images(axis: Any, image: np.ndarray) -> None:
    axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()
