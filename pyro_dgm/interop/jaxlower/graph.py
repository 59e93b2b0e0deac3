"""A recorded graph made functional, and decomposed into operations that have rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyro_dgm.capture.passes.functional_graph import functional_graph as pure_graph

__all__ = ["CHECKS", "drop_unread_inputs", "functional_graph"]

aten = torch.ops.aten

#: not in the core set as torch has them below autograd
_RESIZING = (
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "grid_sampler_2d",
)

#: operations that only raise, and whose results nobody reads
CHECKS = ("_linalg_check_errors", "_assert_async", "_assert_scalar", "_assert_tensor_metadata")


def functional_graph(graph: fx.GraphModule, inputs: Sequence[Tensor], rules: Collection[Any]) -> fx.GraphModule:
    """The same operations without writes in place, each that has no rule decomposed as torch's core ATen set has it.

    :param graph: recorded operations.
    :param inputs: tensors of its inputs' shapes; they are not written.
    :param rules: operations that are to stay whole.
    :raises CannotCapture: if the graph writes to one of its inputs, which a pure function cannot.
    """
    table = {op: fn for op, fn in _decompositions().items() if op not in rules}
    return pure_graph(graph, inputs, table)


def drop_unread_inputs(graph: fx.GraphModule, keep: int) -> list[int]:
    """Take out inputs after the first ``keep`` that nothing reads (an encoder's weights); gives which are left."""
    left = []
    for i, node in enumerate([n for n in graph.graph.nodes if n.op == "placeholder"]):
        if i < keep:
            continue
        if node.users:
            left.append(i)
        else:
            graph.graph.erase_node(node)
    graph.recompile()
    return left


def _decompositions() -> dict[Any, Any]:
    from torch._decomp import core_aten_decompositions, get_decompositions

    return {**get_decompositions([getattr(aten, name) for name in _RESIZING]), **core_aten_decompositions()}
