"""Rewriting, merging and dropping, in turn until nothing changes."""

from __future__ import annotations

from torch import fx

from pyro_dgm.capture.passes.dead_code import drop_dead_code
from pyro_dgm.capture.passes.merge import merge_equal
from pyro_dgm.capture.passes.rewrite import rewrite

__all__ = ["reduce"]


def reduce(graph: fx.GraphModule) -> None:
    """Rewrite, merge and drop operations: each makes work for the others."""
    for _ in range(4):
        before = [n.target for n in graph.graph.nodes]
        rewrite(graph)
        merge_equal(graph)
        drop_dead_code(graph)
        if [n.target for n in graph.graph.nodes] == before:
            break
