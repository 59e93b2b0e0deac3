"""The table that :func:`pyro_dgm.analysis.compare_energies` gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_dgm.analysis.density_grid import DensityGrid
from pyro_dgm.ops.tables import ResultTable, text_table

__all__ = ["EnergyComparison"]


class EnergyComparison(ResultTable):
    """A row for each objective; :func:`~pyro_dgm.analysis.compare_energies` says what the columns mean.

    :ivar rows: mappings from column to value, in the order in which the objectives were given.
    :ivar programs: the trained programs, by name.
    :ivar densities: the log-densities on the grid, normalised there, by name: ``(grid_size, grid_size)``, a row for
        each second coordinate; those that failed are not among them.
    :ivar target: the known log-density on the grid, or ``None``.
    :ivar points: the grid's points, ``(grid_size * grid_size, 2)``.
    :ivar num_data: data that were trained on.
    :ivar epochs: how often.
    """

    index = "objective"

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        *,
        programs: Mapping[str, Any],
        densities: Mapping[str, Tensor],
        target: Tensor | None,
        data: Tensor,
        grid: DensityGrid,
        epochs: int,
    ) -> None:
        super().__init__(rows)
        self.programs, self.densities, self.target = dict(programs), dict(densities), target
        self.points, self.num_data, self.epochs = grid.points, len(data), epochs
        self._grid, self._data = grid, data

    def __rich__(self) -> Any:
        """One table, which fits 100 columns."""
        known = self.target is not None
        scored = any(not math.isnan(row["log_likelihood"]) for row in self.rows)
        columns = ["objective"]
        columns += ["KL to\nmodel", "total\nvariation", "KL to model\nof blurred"] if known else []
        columns += ["held-out\nlog-likelihood"] if scored else []
        columns += ["log Z\non grid", "log Z\nlearnt", "CPU s"]
        keys = (["kl", "tv", "kl_blurred"] if known else []) + (["log_likelihood"] if scored else [])
        cells, notes = [], []
        for row in self.rows:
            values = [_number(row[key]) for key in keys]
            if row["failure"]:
                values[:1] = ["failed"]
                notes.append(f"{row['objective']} failed: {row['failure']}")
            if not math.isnan(row["blur"]):
                notes.append(
                    f"{row['objective']} learns the density of data with noise {row['blur']:g}: compare KL of blurred."
                )
            cells.append(
                [row["objective"], *values, *(_number(row[key]) for key in ("log_z", "log_z_learned")),
                 f"{row['seconds']:.1f}"]
            )  # fmt: skip
        (a, b), (c, d) = self._grid.bounds
        caption = (
            f"Nats; {self.num_data} data, {self.epochs} epochs. Densities are normalised on a grid of "
            f"{self._grid.size} x {self._grid.size} over [{a:.3g}, {b:.3g}] x [{c:.3g}, {d:.3g}]."
        )
        return text_table("Densities learnt by each objective", columns, cells, " ".join([caption, *notes]))

    def plot(self, figure: Any = None) -> Any:
        """All densities beside the target, or the data where it is not known, on one colour scale.

        :param figure: to draw on, ``plt.figure()`` say, which is made as large as it needs to be; by default one of its
            own (not pyplot's): save it with ``.savefig``, or show it as a notebook cell's value.
        :returns: the :class:`matplotlib.figure.Figure`.
        """
        from matplotlib.figure import Figure

        count = 1 + len(self.rows)
        columns = min(4, count)
        lines = -(-count // columns)
        figure = Figure() if figure is None else figure
        figure.set_size_inches(2.7 * columns + 0.8, 2.75 * lines + 0.3)
        figure.set_layout_engine("constrained")
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        extent = (*self._grid.bounds[0], *self._grid.bounds[1])
        shown = [self.target] if self.target is not None else list(self.densities.values())
        top = max(float(log_p.exp().max()) for log_p in shown)
        style = {"origin": "lower", "extent": extent, "vmin": 0.0, "vmax": top, "aspect": "auto", "cmap": "viridis"}
        flat = axes.ravel()
        if self.target is not None:
            flat[0].set_title("target", fontsize="medium")
            image = flat[0].imshow(self.target.exp().numpy(), **style)
        else:
            flat[0].set_title("data", fontsize="medium")
            flat[0].plot(*self._data[:2000].cpu().numpy().T, ".", markersize=2, alpha=0.5)
        above = False
        for panel, row in zip(flat[1:], self.rows, strict=False):
            name = row["objective"]
            log_p = self.densities.get(name)
            if log_p is None:
                panel.set_title(name, fontsize="medium")
                panel.text(0.5, 0.5, "failed", ha="center", va="center", transform=panel.transAxes)
                continue
            said = f"KL {row['kl']:.3f}, TV {row['tv']:.3f}" if self.target is not None else ""
            panel.set_title(f"{name}\n{said}".rstrip(), fontsize="medium")
            image = panel.imshow(log_p.exp().numpy(), **style)
            above = above or float(log_p.exp().max()) > top
        for panel in flat[count:]:
            panel.set_axis_off()
        for panel in axes[:, 0]:
            panel.set_ylabel("$x_2$")
        for i, panel in enumerate(flat[:count]):
            if i + columns >= count:
                panel.set_xlabel("$x_1$")
                panel.tick_params(labelbottom=True)
        figure.colorbar(image, ax=axes, label="density", extend="max" if above else "neither", aspect=40)
        return figure


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
