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
    """Data and samples in pairs of columns, with each column's distribution on the diagonal.

    Cells below the diagonal show data, those above it samples. Of two columns the density is drawn too.

    :param data: ``(N, D)``, in the units of the file.
    :param samples: ``(M, D)``, likewise.
    :param columns: names; the first six are drawn.
    :param log_density: from ``(K, D)`` to ``(K,)``, nats, in the units of the file; drawn for two columns.
    """
    import numpy as np

    data, samples, names = np.asarray(data), np.asarray(samples), list(columns)[:LARGEST]
    data, samples, size = data[:, :LARGEST], samples[:, :LARGEST], len(names)
    limits = [_limits(data[:, i]) for i in range(size)]
    wide = log_density is not None and len(columns) == 2
    side = 2.0 if size > 2 else 2.8
    figure = new_figure(side * size + (4.6 if wide else 0.6), side * size + 0.6)
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1)) if wide else (figure, None)
    axes = left.subplots(size, size, squeeze=False)
    for row in range(size):
        for column in range(size):
            axis = axes[row, column]
            if row == column:
                _draw_marginal(axis, data[:, row], samples[:, row], limits[row])
            else:
                shown, colour = (data, TRAIN) if row > column else (samples, VALIDATION)
                axis.scatter(
                    shown[:POINTS, column], shown[:POINTS, row], s=4, color=colour, alpha=0.5, linewidths=0,
                    rasterized=True,
                )  # fmt: skip
                axis.set_ylim(limits[row])
            axis.set_xlim(limits[column])
            axis.tick_params(labelsize=7)
            if row == size - 1:
                axis.set_xlabel(names[column], fontsize=9)
            else:
                axis.set_xticklabels([])
            if column == 0 and row > 0:
                axis.set_ylabel(names[row], fontsize=9)
            elif row == column:
                axis.set_ylabel("density", fontsize=8)
                axis.yaxis.set_label_position("left" if column == 0 else "right")
                axis.yaxis.set_ticks_position("left" if column == 0 else "right")
            else:
                axis.set_yticklabels([])
    handles = axes[0, 0].get_legend_handles_labels()
    left.legend(*handles, loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    if right is not None:
        assert log_density is not None
        _draw_density(right.subplots(), log_density, limits, names)
    return figure


def _limits(values: Any) -> tuple[float, float]:
    """An interval that holds nearly all values, and some room."""
    import numpy as np

    low, high = np.quantile(values, [0.002, 0.998])
    margin = 0.12 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _draw_marginal(axis: Any, data: Any, samples: Any, limits: tuple[float, float]) -> None:
    import numpy as np

    edges = np.linspace(*limits, 41)
    above = "below the diagonal" if axis.get_subplotspec().get_gridspec().nrows > 1 else ""
    axis.hist(data, edges, density=True, color=TRAIN, alpha=0.7, label=f"data{f' ({above})' if above else ''}")
    label = "samples of the model (above it)" if above else "samples of the model"
    axis.hist(samples, edges, density=True, color=VALIDATION, histtype="step", linewidth=1.3, label=label)


def _draw_density(
    axis: Any, log_density: Callable[[Any], Any], limits: Sequence[tuple[float, float]], names: Sequence[str]
) -> None:
    """The density on a grid."""
    import torch

    from pyro_dgm.analysis.density_grid import DensityGrid

    grid = DensityGrid.make(limits, CELLS, torch.empty(0, 2))
    found = grid.evaluate(log_density, torch.zeros((), dtype=torch.get_default_dtype())).exp()
    (x0, x1), (y0, y1) = limits
    image = axis.imshow(found.numpy(), origin="lower", extent=(x0, x1, y0, y1), aspect="auto", cmap="magma")
    axis.set_xlabel(names[0], fontsize=9)
    axis.set_ylabel(names[1], fontsize=9)
    axis.tick_params(labelsize=7)
    axis.set_title("density of the model", fontsize=9, loc="left")
    bar = axis.figure.colorbar(image, ax=axis)
    bar.set_label("per unit area", fontsize=8)
    bar.ax.tick_params(labelsize=7)
