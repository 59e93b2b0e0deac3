"""Tables and lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["comparison_tables", "console", "heading", "plus_minus", "table", "working"]

#: columns where standard output is no terminal and so has no width of its own
PIPED_WIDTH = 120


def console() -> Any:
    """A rich console on standard output."""
    from rich.console import Console

    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def heading(out: Any, text: str) -> None:
    """A line that begins a part of the output."""
    out.print(f"\n[bold]{text}[/bold]")


def table(title: str, columns: list[str], rows: list[list[str]], caption: str = "", left: int = 1) -> Any:
    """A table of strings; the first ``left`` columns are text, the others numbers."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < left else "right", no_wrap=i < left)
    for row in rows:
        made.add_row(*row)
    return made


def plus_minus(value: float, error: float, digits: int = 2) -> str:
    """``-17.29 ± 0.01``."""
    return f"{value:.{digits}f} ± {error:.{digits}f}"


@contextmanager
def working(out: Any, text: str) -> Iterator[None]:
    """A spinner while something runs, on a terminal; elsewhere one line."""
    if out.is_terminal:
        with out.status(text):
            yield
    else:
        out.print(text)
        yield


def comparison_tables(comparison: Any) -> list[Any]:
    """What ``compare_elbos`` gave, as two tables that fit 80 columns."""
    bounds, gradients = [], []
    for row in comparison.rows:
        bounds.append(
            [
                row["estimator"],
                plus_minus(row["bound"], row["bound_se"], 3),
                plus_minus(row["gap"], row["gap_se"], 3),
                f"{row['ess']:.1f} of {row['num_particles']}",
                f"{1000 * row['seconds']:.1f}",
            ]
        )
        gradients.append(
            [
                row["estimator"],
                *(f"{row[f'{what}_{side}']:{form}}" for what, form in GRADIENTS for side in ("model", "guide")),
            ]
        )
    reference = comparison.reference
    spread = f" ± {reference['standard_error']:.3f}" if reference["standard_error"] else ""
    caption = (
        f"Reference ({reference['name']}): {reference['value']:.3f}{spread} nats per datum. "
        f"{comparison.num_data:g} data, {comparison.num_replicates} replicates, ± one Monte Carlo standard error."
    )
    return [
        table(
            "Bounds (nats per datum)",
            ["estimator", "bound", "gap to reference", "ESS of weights", "ms a step"],
            bounds,
            caption,
        ),
        table(
            "Gradients, of the model's and of the guide's parameters",
            [
                "estimator",
                "SNR\nmodel",
                "SNR\nguide",
                "variance\nmodel",
                "variance\nguide",
                "cosine\nmodel",
                "cosine\nguide",
            ],
            gradients,
            "SNR: signal-to-noise ratio, mean over parameters. Cosine: of one gradient with the mean of many.",
        ),
    ]


#: kind of figure of a gradient and its format
GRADIENTS = (("snr", ".2f"), ("variance", ".2g"), ("cosine", ".3f"))
