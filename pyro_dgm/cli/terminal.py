"""Tables and lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["console", "heading", "plus_minus", "table", "working"]

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
