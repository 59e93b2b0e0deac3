"""What passes ask of an operation, and how they put another one in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = [
    "call",
    "is_pure",
    "is_written",
    "layout_is_read",
    "makes_view",
    "meta",
    "number_of",
    "replace",
    "same",
    "same_type",
]

aten = torch.ops.aten
Node = fx.Node


def meta(node: Any) -> Any:
    return node.meta.get("tensor_meta") if isinstance(node, Node) else None


def is_pure(node: Node) -> bool:
    """Whether the node is an operation on tensors that writes nothing, draws nothing, and gives one tensor."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags or "check_errors" in str(node.target):
        return False
    schema = node.target._schema
    return not schema.is_mutable and len(schema.returns) == 1 and meta(node) is not None


def makes_view(node: Node) -> bool:
    return any(r.alias_info is not None for r in node.target._schema.returns)  # type: ignore[union-attr]


def is_written(node: Node) -> bool:
    """Whether an operation writes into this tensor."""
    for user in node.users:
        if isinstance(user.target, torch._ops.OpOverload):
            if user.target._schema.is_mutable or (makes_view(user) and is_written(user)):
                return True
    return False


def layout_is_read(node: Node) -> bool:
    """Whether an operation counts on where the tensor's elements lie in memory."""
    return any(user.target in (aten.as_strided.default, aten.as_strided_.default) for user in node.users)


def same(a: Any, b: Any) -> bool:
    """Whether two nodes have one shape and one type."""
    x, y = meta(a), meta(b)
    return x is not None and y is not None and x.shape == y.shape and x.dtype == y.dtype


def same_type(a: Node, b: Node) -> bool:
    return meta(a) is not None and meta(a).dtype == meta(b).dtype


def number_of(node: Any) -> float | None:
    """The number that an argument is: written as one, or held everywhere by a constant tensor."""
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        return node
    return node.meta.get("number") if isinstance(node, Node) else None


def call(graph: fx.Graph, like: Node, target: Any, *args: Any) -> Node:
    new = graph.call_function(target, args)
    new.meta["tensor_meta"] = meta(like)
    return new


def replace(node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)
