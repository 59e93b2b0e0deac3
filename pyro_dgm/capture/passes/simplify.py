"""A recorded graph made smaller: the same function of its inputs, with fewer operations.

What ``vmap`` and ``grad`` record is general: ones that are expanded and multiplied by, dimensions of size one that are
summed over, products on transposed matrices, constants worked out anew at every call.  On small models these are most
of the time.  Every rewriting here is an identity of real numbers, and moves a result by rounding at most.
"""

from __future__ import annotations

from torch import fx

from pyro_dgm.capture.passes.fold import fold_constants
from pyro_dgm.capture.passes.merge import merge_equal
from pyro_dgm.capture.passes.nodes import meta
from pyro_dgm.capture.passes.rewrite import rewrite
from pyro_dgm.capture.passes.writes import write_to_new_tensors

__all__ = ["dead_code", "simplify"]


def simplify(graph: fx.GraphModule) -> None:
    """Rewrite a graph that :func:`pyro_dgm.capture.static_graph.record` made, in place.

    Operations whose results nobody reads go, except those that write, draw, or tell a failed factorisation.
    """
    write_to_new_tensors(graph)
    dead_code(graph)
    fold_constants(graph)
    for _ in range(4):
        before = [n.target for n in graph.graph.nodes]
        rewrite(graph)
        merge_equal(graph)
        dead_code(graph)
        if [n.target for n in graph.graph.nodes] == before:
            break
    for node in graph.graph.nodes:
        shape = getattr(meta(node), "shape", None)
        if node.op == "call_function" and shape is not None:
            node.meta["elements"] = shape.numel()
    graph.graph.lint()
    graph.recompile()


def dead_code(graph: fx.GraphModule) -> None:
    """Drop what nobody reads; a failed factorisation is told by an operation whose result nobody reads: it stays."""
    graph.graph.eliminate_dead_code(is_impure_node=lambda n: n.is_impure() or "check_errors" in str(n.target))
