"""Data beside samples of a model: columns in pairs, and the density itself where there are two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyro_dgm.cli.figures import TRAIN, VALIDATION, new_figure

__all__ = ["LARGEST", "pair_figure"]

#: columns that are drawn at most
LARGEST = 6
#: points of a scatter plot
POINTS = 2000
#: cells of the picture of a density along either side
CELLS = 160


def pair_figure(
    data: Any, samples: Any, columns: Sequence[str], log_density: Callable[[Any], Any] | None = None
) -> Any:
    """Data and samples in pairs of columns.

    Of two columns: data, samples and, where it is known, the density, side by side. Of more: each column's distribution
    on the diagonal, data below it and samples above it. Of one: its distribution.

    :param data: ``(N, D)``, in the units of the file.
    :param samples: ``(M, D)``, likewise.
    :param columns: names; the first six are drawn.
    :param log_density: from ``(K, D)`` to ``(K,)``, nats, in the units of the file; drawn for two columns.
    """
    import numpy as np

    data, samples, names = np.asarray(data), np.asarray(samples), list(columns)
    limits = [_limits(data[:, i]) for i in range(min(len(names), LARGEST))]
    if len(names) == 2:
        return _side_by_side(data, samples, names, limits, log_density)
    return _corner(data[:, :LARGEST], samples[:, :LARGEST], names[:LARGEST], limits)


def _side_by_side(
    data: Any,
    samples: Any,
    names: Sequence[str],
    limits: Sequence[tuple[float, float]],
    log_density: Callable[[Any], Any] | None,
) -> Any:
    panels = 2 if log_density is None else 3
    figure = new_figure(4.2 * panels, 4.0)
    axes = figure.subplots(1, panels)
    for axis, points, colour, title in (
        (axes[0], data, TRAIN, "data"),
        (axes[1], samples, VALIDATION, "samples of the model"),
    ):
        _scatter(axis, points[:, 0], points[:, 1], colour)
        axis.set_xlim(limits[0])
        axis.set_ylim(limits[1])
        axis.set_title(title, fontsize=10, loc="left")
    if log_density is not None:
        _draw_density(axes[2], log_density, limits)
    for axis in axes:
        axis.set_xlabel(names[0], fontsize=9)
        axis.set_ylabel(names[1], fontsize=9)
        axis.tick_params(labelsize=8)
        axis.locator_params(nbins=6)
    return figure


def _corner(data: Any, samples: Any, names: Sequence[str], limits: Sequence[tuple[float, float]]) -> Any:
    size = len(names)
    figure = new_figure(1.9 * size + 0.8 if size > 1 else 5.0, 1.9 * size + 0.9 if size > 1 else 3.6)
    axes = figure.subplots(size, size, squeeze=False)
    for row in range(size):
        for column in range(size):
            axis = axes[row, column]
            axis.tick_params(labelsize=7)
            axis.locator_params(nbins=5)
            if row == column:
                _draw_marginal(axis, data[:, row], samples[:, row], limits[row], alone=size == 1)
                axis.set_title(names[row], fontsize=9)
            elif row > column:
                _scatter(axis, data[:, column], data[:, row], TRAIN)
            else:
                _scatter(axis, samples[:, column], samples[:, row], VALIDATION)
            axis.set_xlim(limits[column])
            if row != column:
                axis.set_ylim(limits[row])
            if row == size - 1:
                axis.set_xlabel(names[column], fontsize=9)
            else:
                axis.set_xticklabels([])
            if column == 0 and row > 0:
                axis.set_ylabel(names[row], fontsize=9)
            elif row != column:
                axis.set_yticklabels([])
    axes[0, 0].set_ylabel("density", fontsize=9)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return figure


def _scatter(axis: Any, x: Any, y: Any, colour: str) -> None:
    axis.scatter(x[:POINTS], y[:POINTS], s=5, color=colour, alpha=0.6, linewidths=0, rasterized=True)


def _limits(values: Any) -> tuple[float, float]:
    """An interval that holds nearly all values, and some room."""
    import numpy as np

    low, high = np.quantile(values, [0.002, 0.998])
    margin = 0.12 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _draw_marginal(axis: Any, data: Any, samples: Any, limits: tuple[float, float], alone: bool) -> None:
    import numpy as np

    edges = np.linspace(*limits, 41)
    below, above = ("", "") if alone else (" (below the diagonal)", " (above it)")
    axis.hist(data, edges, density=True, color=TRAIN, alpha=0.8, label=f"data{below}")
    label = f"samples of the model{above}"
    axis.hist(samples, edges, density=True, color=VALIDATION, histtype="step", linewidth=1.3, label=label)
    if not alone:
        axis.set_yticks([])


def _draw_density(axis: Any, log_density: Callable[[Any], Any], limits: Sequence[tuple[float, float]]) -> None:
    """The density on a grid."""
    import torch

    from pyro_dgm.analysis.density_grid import DensityGrid

    grid = DensityGrid.make(limits, CELLS, torch.empty(0, 2))
    found = grid.evaluate(log_density, torch.zeros((), dtype=torch.get_default_dtype())).exp()
    (x0, x1), (y0, y1) = limits
    image = axis.imshow(found.numpy(), origin="lower", extent=(x0, x1, y0, y1), aspect="auto", cmap="magma")
    axis.set_title("density of the model", fontsize=10, loc="left")
    bar = axis.figure.colorbar(image, ax=axis)
    bar.set_label("density, per unit of both columns", fontsize=8)
    bar.ax.tick_params(labelsize=7)
