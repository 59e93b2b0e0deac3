"""What commands ask of their options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pyro_dgm.cli.errors import UsageError

if TYPE_CHECKING:
    import typer

__all__ = ["check_output", "given_options"]


def given_options(ctx: typer.Context) -> set[str]:
    """Names of the options that stand on the command line."""
    return {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}


def check_output(output: Path | None, *suffixes: str) -> None:
    """Refuse a file to write of another kind, or in a folder that there is not."""
    if output is None:
        return
    if output.suffix not in suffixes:
        wanted = " or ".join(part for part in (", ".join(suffixes[:-1]), suffixes[-1]) if part)
        raise UsageError(f"--output must end in {wanted}, got {output}")
    if not output.parent.is_dir():
        raise UsageError(f"--output: there is no folder {output.parent}")
