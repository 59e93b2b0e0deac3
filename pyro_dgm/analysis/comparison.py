"""The table that :func:`pyro_dgm.compare_elbos` gives."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

__all__ = ["Comparison"]

#: heading, unit, columns shown together, format
_COLUMNS = (
    ("bound", "nats/datum", ("bound",), "{:.3f}"),
    ("gap", "nats/datum", ("gap",), "{:.3f}"),
    ("SNR", "model / guide", ("snr_model", "snr_guide"), "{:.2f}"),
    ("variance", "model / guide", ("variance_model", "variance_guide"), "{:.2g}"),
    ("cosine", "model / guide", ("cosine_model", "cosine_guide"), "{:.3f}"),
    ("ESS", "of K", ("ess",), "{:.1f}"),
    ("time", "ms/step", ("seconds",), "{:.2f}"),
    ("memory", "MB/step", ("peak_mb",), "{:.3g}"),
)


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
        if isinstance(estimator, int):
            return self.rows[estimator]
        for row in self.rows:
            if row["estimator"] == estimator:
                return row
        raise KeyError(f"no estimator {estimator!r}; there are {[r['estimator'] for r in self.rows]}")

    def __len__(self) -> int:
        return len(self.rows)

    def to_frame(self) -> Any:
        """The table as a :class:`pandas.DataFrame`, indexed by estimator."""
        import pandas

        return pandas.DataFrame(self.rows).set_index("estimator")

    def __rich__(self) -> Any:
        from rich import box
        from rich.table import Table

        table = Table(caption=self._caption(), caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
        table.add_column("estimator", overflow="fold")
        for heading, unit, _, _ in _COLUMNS:
            table.add_column(f"{heading}\n{unit}", justify="right", no_wrap=True)
        for row in self.rows:
            cells = [" / ".join(self._cell(row, c, form) for c in columns) for _, _, columns, form in _COLUMNS]
            table.add_row(row["estimator"], *cells)
        return table

    @staticmethod
    def _cell(row: dict[str, Any], column: str, form: str) -> str:
        if column in ("bound", "gap"):
            return f"{form.format(row[column])} ± {row[column + '_se']:.1g}"
        return form.format(row[column] * (1000 if column == "seconds" else 1))

    def _caption(self) -> str:
        error = self.reference["standard_error"]
        spread = f" ± {error:.1g}" if error else ""
        return (
            f"reference ({self.reference['name']}): {self.reference['value']:.3f}{spread} nats per datum; "
            f"{self.num_data:g} data, {self.num_replicates} replicates, ± one standard error"
        )

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=240, color_system=None)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"Comparison({[r['estimator'] for r in self.rows]})"

    def plot(self) -> Any:
        """Gap, signal-to-noise ratios, effective sample size and cost, as a :class:`matplotlib.figure.Figure`.

        The figure is its own (not pyplot's): save it with ``.savefig``, or show it as a notebook cell's value.
        """
        from matplotlib.figure import Figure

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
        axes[1].set_xlabel("gradient signal-to-noise ratio\n(mean over parameters)")
        axes[1].legend(fontsize="small")
        axes[2].barh(places, [r["ess_fraction"] for r in self.rows])
        axes[2].set_xlim(0, 1)
        axes[2].set_xlabel("effective sample size\n(fraction of particles)")
        axes[3].barh(places, [1000 * r["seconds"] for r in self.rows])
        axes[3].set_xlabel("time of a loss and its gradient\n(ms)")
        axes[0].set_yticks(list(places), names)
        axes[0].invert_yaxis()
        return figure
