"""A recipe on the terminal: title, equation, parts, hyper-parameters and reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_dgm.recipes.base import Recipe

__all__ = ["as_rich"]


def as_rich(recipe: Recipe) -> Any:
    """The recipe as a group of rich's renderables."""
    from rich.console import Group
    from rich.markup import escape
    from rich.padding import Padding
    from rich.text import Text

    from pyro_dgm.ops.tables import text_table

    shape = f"data of shape {recipe.event_shape}"
    parts = text_table(
        f"Parts, for {shape}", ("part", "is"), [(name, escape(what)) for name, what in recipe.parts.items()], left=2
    )
    hyper = text_table(
        "Hyper-parameters",
        ("name", "value"),
        [(name, escape(str(value))) for name, value in recipe.hyperparameters.items()],
        left=2,
    )
    return Group(
        Text.assemble((recipe.name, "bold"), f": {recipe.title}"),
        Padding(Text(recipe.equation), (1, 0, 1, 2)),
        parts,
        hyper,
        Text(str(recipe.citation)),
    )
