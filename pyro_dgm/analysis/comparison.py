"""The table that :func:`pyro_dgm.compare_elbos` gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_dgm.ops.tables import ResultTable, plus_minus, text_table

__all__ = ["Comparison"]

#: quantity of a gradient, its heading and its format
_GRADIENTS = (("snr", "SNR", ".2f"), ("variance", "variance", ".2g"), ("cosine", "cosine", ".3f"))


class Comparison(ResultTable):
    """A row for each estimator; :func:`~pyro_dgm.compare_elbos` says what the columns mean.

    :ivar rows: mappings from column to value, in the order in which the estimators were given.
    :ivar num_data: data in the batch, by which losses and gradients were divided.
    :ivar num_replicates: evaluations of each estimator.
    :ivar reference: ``name``, ``value`` and ``standard_error`` (nats per datum) of what gaps are measured from.
    """

    index = "estimator"

    def __init__(
        self, rows: Sequence[dict[str, Any]], *, num_data: float, num_replicates: int, reference: dict[str, Any]
    ) -> None:
        super().__init__(rows)
        self.num_data, self.num_replicates, self.reference = num_data, num_replicates, reference

    def __rich__(self) -> Any:
        """Two tables, bounds with cost and gradients, each of which fits 80 columns."""
        from rich.console import Group

        bounds, gradients = [], []
        for row in self.rows:
            cells = [
                plus_minus(row["bound"], row["bound_se"], 3),
                plus_minus(row["gap"], row["gap_se"], 3),
                f"{row['ess']:.1f} of {row['num_particles']}",
                f"{1000 * row['seconds']:.1f}",
                f"{row['peak_mb']:.3g}",
            ]
            bounds.append([row["estimator"], *cells])
            both = [(f"{key}_{side}", form) for key, _, form in _GRADIENTS for side in ("model", "guide")]
            gradients.append([row["estimator"], *(f"{row[key]:{form}}" for key, form in both)])
        spread = f" ± {self.reference['standard_error']:.3f}" if self.reference["standard_error"] else ""
        caption = (
            f"Reference ({self.reference['name']}): {self.reference['value']:.3f}{spread} nats per datum. "
            f"{self.num_data:g} data, {self.num_replicates} replicates, ± one Monte Carlo standard error."
        )
        columns = ["estimator", "bound", "gap to\nreference", "ESS of\nweights", "ms\na step", "MB\na step"]
        sides = [f"{heading}\n{side}" for _, heading, _ in _GRADIENTS for side in ("model", "guide")]
        return Group(
            text_table("Bounds (nats per datum) and cost", columns, bounds, caption),
            text_table(
                "Gradients, of the model's and of the guide's parameters",
                ["estimator", *sides],
                gradients,
                "SNR: signal-to-noise ratio, mean over parameters. Cosine: of one gradient with the mean of many.",
            ),
        )

    def plot(self) -> Any:
        """Gap, signal-to-noise ratios, effective sample size and cost, as a :class:`matplotlib.figure.Figure`.

        The figure is its own (not pyplot's): save it with ``.savefig``, or show it as a notebook cell's value.
        """
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

        names = [r["estimator"] for r in self.rows]
        places = range(len(names))
        figure = Figure(figsize=(11, 1.6 + 0.35 * len(names)), layout="constrained")
        axes = figure.subplots(1, 4, sharey=True)
        errors = [r["gap_se"] for r in self.rows]
        axes[0].errorbar([r["gap"] for r in self.rows], places, xerr=errors, fmt="o", capsize=3)
        axes[0].axvline(0.0, color="0.6", linewidth=1)
        axes[0].set_xlabel(f"gap to reference\n({self.reference['name']}), nats per datum")
        for side, marker in (("model", "s"), ("guide", "o")):
            axes[1].plot([r[f"snr_{side}"] for r in self.rows], places, marker, label=side)
        axes[1].set_xscale("log")
        axes[1].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        axes[1].xaxis.set_major_formatter(ScalarFormatter())
        axes[1].xaxis.set_minor_formatter(NullFormatter())
        axes[1].set_xlabel("gradient signal-to-noise ratio\n(mean over parameters)")
        axes[1].legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
        axes[2].barh(places, [r["ess_fraction"] for r in self.rows])
        axes[2].set_xlim(0, 1)
        axes[2].set_xlabel("effective sample size\n(fraction of particles)")
        axes[3].barh(places, [1000 * r["seconds"] for r in self.rows])
        axes[3].set_xlabel("time of a loss and its gradient\n(ms)")
        axes[0].set_yticks(list(places), names)
        axes[0].invert_yaxis()
        return figure
