"""Rewriting of graphs: the same function of the inputs, with fewer operations.

What ``vmap`` and ``grad`` record is general: ones that are expanded and multiplied by, dimensions of size one that are
summed over, products on transposed matrices, constants worked out anew at every call.  On small models these are most
of the time.  Every rewriting here is an identity of real numbers, and moves a result by rounding at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from pyro_dgm.capture.passes.dead_code import drop_dead_code
from pyro_dgm.capture.passes.draws import merge_draws
from pyro_dgm.capture.passes.fold import fold_constants
from pyro_dgm.capture.passes.reduce import reduce
from pyro_dgm.capture.passes.writes import write_to_new_tensors

__all__ = ["PASSES", "Pass", "apply_passes"]

#: rewrites a graph in place
Pass = Callable[[fx.GraphModule], None]

#: what every recorded graph goes through, in this order
PASSES: Sequence[Pass] = (merge_draws, write_to_new_tensors, drop_dead_code, fold_constants, reduce)


def apply_passes(graph: fx.GraphModule, passes: Sequence[Pass] = PASSES) -> None:
    """Rewrite a graph that :func:`pyro_dgm.capture.static_graph.record` made, in place."""
    for rewrite in passes:
        rewrite(graph)
    graph.graph.lint()
    graph.recompile()
