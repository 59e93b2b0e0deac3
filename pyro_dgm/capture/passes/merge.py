"""Operations that are done twice, done once."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pyro_dgm.capture.passes.nodes import Memory, is_pure, replace

__all__ = ["merge_equal"]

aten = torch.ops.aten
Node = fx.Node


def merge_equal(graph: fx.GraphModule) -> None:
    """One operation for two that are the same on the same tensors."""
    memory = Memory(graph)
    seen: dict[Any, Node] = {}
    for node in list(graph.graph.nodes):
        if not is_pure(node) or any(map(memory.is_written, (node, *node.all_input_nodes))):
            continue
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        try:
            other = seen.setdefault(key, node)
        except TypeError:
            continue
        if other is not node and memory.may_share(node, other):
            memory.join(other, node)
            replace(node, other)


def _frozen(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        return tuple(_frozen(a) for a in argument)
    if isinstance(argument, dict):
        return tuple((k, _frozen(v)) for k, v in sorted(argument.items()))
    if isinstance(argument, (int, float, bool)):
        return type(argument).__name__, argument
    return argument
