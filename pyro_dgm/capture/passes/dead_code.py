"""Operations whose results nobody reads."""

from __future__ import annotations

from torch import fx

__all__ = ["drop_dead_code"]


def drop_dead_code(graph: fx.GraphModule) -> None:
    """Drop operations whose results nobody reads, except those that write, draw, or tell a failed factorisation."""
    # A failed factorisation is told by an operation whose result nobody reads.
    graph.graph.eliminate_dead_code(is_impure_node=lambda n: n.is_impure() or "check_errors" in str(n.target))
