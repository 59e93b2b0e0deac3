"""``pyro-dgm recipes``: published methods by name."""

from __future__ import annotations

from typing import Annotated

import typer

from pyro_dgm.cli.errors import UsageError, guarded
from pyro_dgm.cli.fit import fit

__all__ = ["recipes"]

recipes = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Published methods by name: list, show, fit.",
)  # fmt: skip


@recipes.command("list")
@guarded
def list_recipes() -> None:
    """List all recipes, with their references.

    **Examples**

    - `pyro-dgm recipes list`

    **Exit codes**: 0 done
    """
    from rich.markup import escape

    from pyro_dgm.cli.terminal import console
    from pyro_dgm.ops.tables import text_table
    from pyro_dgm.recipes import RECIPES

    rows = []
    for name in sorted(RECIPES):
        citation = RECIPES[name].citation
        first, *others = citation.authors.split(", ")
        authors = f"{first} et al." if len(others) > 1 else " and ".join([first, *others])
        where = f"arXiv:{citation.arxiv}" if citation.arxiv else citation.venue or ""
        rows.append((name, escape(RECIPES[name].title), escape(f"{authors} ({citation.year}), {where}")))
    console().print(text_table(f"{len(rows)} recipes", ("name", "method", "reference"), rows, left=3))


@recipes.command()
@guarded
def show(
    name: Annotated[str, typer.Argument(help="Name of a recipe; pyro-dgm recipes list has all.")],
    event_shape: Annotated[str, typer.Option(help="Shape of one datum, as 2 or 28,28.")] = "8,8",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A hyper-parameter of the recipe (JSON); repeatable."),
    ] = None,
) -> None:
    """Show a recipe: its equation, parts, hyper-parameters and reference.

    **Examples**

    - `pyro-dgm recipes show nsf`
    - `pyro-dgm recipes show tarflow --event-shape 1,28,28 --set patch_size=4`

    **Exit codes**: 0 done; 2 bad usage
    """
    from pyro_dgm.cli.errors import bad_usage_if_raised
    from pyro_dgm.cli.specs import parse_settings
    from pyro_dgm.cli.terminal import console
    from pyro_dgm.recipes import get

    try:
        shape = tuple(int(size) for size in event_shape.split(","))
    except ValueError as error:
        raise UsageError(f"--event-shape: {event_shape!r} is no list of sizes such as 28,28") from error
    with bad_usage_if_raised(f"recipe {name}"):
        made = get(name, shape, hyperparameters=parse_settings(settings or []))
    console().print(made)


recipes.command("fit")(fit)
