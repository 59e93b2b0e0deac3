"""Tables and lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["console", "heading", "working"]

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


@contextmanager
def working(out: Any, text: str) -> Iterator[None]:
    """A spinner while something runs, on a terminal; elsewhere one line."""
    if out.is_terminal:
        with out.status(text):
            yield
    else:
        out.print(text)
        yield
