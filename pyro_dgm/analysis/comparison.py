"""The table that :func:`pyro_dgm.compare_elbos` gives, and what tables of results have in common."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

__all__ = ["Comparison"]

#: quantity of a gradient, its heading and its format
_GRADIENTS = (("snr", "SNR", ".2f"), ("variance", "variance", ".2g"), ("cosine", "cosine", ".3f"))


class Comparison:
    """A row for each estimator; :func:`~pyro_dgm.compare_elbos` says what the columns mean.

    :ivar rows: mappings from column to value, in the order in which the estimators were given.
    :ivar num_data: data in the batch, by which losses and gradients were divided.
    :ivar num_replicates: evaluations of each estimator.
    :ivar reference: ``name``, ``value`` and ``standard_error`` (nats per datum) of what gaps are measured from.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], *, num_data: float, num_replicates: int, reference: dict[str, Any]
    ) -> None:
        self.rows, self.num_data, self.num_replicates, self.reference = list(rows), num_data, num_replicates, reference

    def __getitem__(self, estimator: str | int) -> dict[str, Any]:
        return find_row(self.rows, "estimator", estimator)

    def __len__(self) -> int:
        return len(self.rows)

    def to_frame(self) -> Any:
        """The table as a :class:`pandas.DataFrame`, indexed by estimator."""
        import pandas

        return pandas.DataFrame(self.rows).set_index("estimator")

    def __rich__(self) -> Any:
        """Two tables, bounds with cost and gradients, each of which fits 80 columns."""
        from rich.console import Group

        bounds, gradients = [], []
        for row in self.rows:
            cells = [
                _plus_minus(row["bound"], row["bound_se"]),
                _plus_minus(row["gap"], row["gap_se"]),
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
        columns = ["bound", "gap to\nreference", "ESS of\nweights", "ms\na step", "MB\na step"]
        sides = [f"{heading}\n{side}" for _, heading, _ in _GRADIENTS for side in ("model", "guide")]
        return Group(
            rich_table("Bounds (nats per datum) and cost", "estimator", columns, bounds, caption),
            rich_table(
                "Gradients, of the model's and of the guide's parameters",
                "estimator",
                sides,
                gradients,
                "SNR: signal-to-noise ratio, mean over parameters. Cosine: of one gradient with the mean of many.",
            ),
        )

    def __str__(self) -> str:
        return as_text(self)

    def __repr__(self) -> str:
        return f"Comparison({[r['estimator'] for r in self.rows]})"

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


def _plus_minus(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def find_row(rows: Sequence[dict[str, Any]], column: str, wanted: str | int) -> dict[str, Any]:
    """The row of a number, or that has this name in a column."""
    if isinstance(wanted, int):
        return rows[wanted]
    for row in rows:
        if row[column] == wanted:
            return row
    raise KeyError(f"no {column} {wanted!r}; there are {[r[column] for r in rows]}")


def as_text(renderable: Any, width: int = 100) -> str:
    """What rich makes of it, without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


def rich_table(title: str, first: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Any:
    """A table of strings whose first column, under that heading, has names."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
