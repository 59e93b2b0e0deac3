"""The program ``pyro-dgm`` and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from pyro_dgm.cli.compare import compare
from pyro_dgm.cli.demo import demo
from pyro_dgm.cli.doctor import doctor
from pyro_dgm.cli.fit import fit
from pyro_dgm.cli.recipes import recipes
from pyro_dgm.cli.sample import sample

__all__ = ["app", "main"]

app = typer.Typer(
    name="pyro-dgm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from pyro_dgm import __version__

        typer.echo(f"pyro-dgm {__version__}")
        raise typer.Exit


@app.callback()
def pyro_dgm_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Deep generative models as Pyro programs: fit under any objective, draw from any posterior, compare estimators.

    **First steps**

    - `pyro-dgm demo`  (fit, compare and sample on real digits; writes a report)
    - `pyro-dgm fit --objective 'DReG(16)' --output runs/a`
    - `pyro-dgm fit nsf --data table.csv`  (a published method on your own data; `pyro-dgm recipes list` has all)

    - `pyro-dgm sample runs/a --rows 0:8 --method hmc`
    - `pyro-dgm compare runs/a`

    **Exit codes**: 0 done; 1 a check failed, a loss was not finite, or a file is missing; 2 bad usage; 130
    interrupted
    """


for _command in (demo, fit, sample, compare, doctor):
    app.command()(_command)
app.add_typer(recipes, name="recipes")


def main() -> None:
    """Entry point of ``pyro-dgm``."""
    app(prog_name="pyro-dgm")
