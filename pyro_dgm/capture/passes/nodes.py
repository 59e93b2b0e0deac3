"""What passes ask of an operation, and how they put another one in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = [
    "Memory",
    "call",
    "is_pure",
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
    """Whether the result of an operation shares memory with an argument."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # one of several results
    if node.target is aten._unsafe_view.default:
        return True  # its schema does not say so
    return any(r.alias_info is not None for r in node.target._schema.returns)


class Memory:
    """Which tensors of a graph share memory, which of that memory is written, and which is returned.

    All inputs count as one piece of memory, since two of them may be views of the same tensor.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self._parent: dict[Any, Any] = {}
        self._written: set[Any] = set()
        self._returned: set[Any] = set()
        self._outside: set[Any] = set()
        for node in graph.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self.join("inputs" if node.op == "placeholder" else node, node)
                self._outside.add(self._root(node))
            elif node.op == "output":
                self._returned.update(self._root(n) for n in node.all_input_nodes)
            else:
                for n in _written_by(node):
                    self._written.add(self._root(n))
                if makes_view(node):
                    for n in node.all_input_nodes:
                        self.join(n, node)

    def is_written(self, node: Node) -> bool:
        """Whether an operation of the graph writes into the memory of a tensor."""
        return self._root(node) in self._written

    def is_returned(self, node: Node) -> bool:
        """Whether the memory of a tensor is among the results, where the caller may write into it."""
        return self._root(node) in self._returned

    def may_share(self, node: Node, other: Node) -> bool:
        """Whether a tensor may be returned in the memory of another one, if it is returned: the caller may write there.

        Inputs, constants and other results have to stay as they are.
        """
        a, b = self._root(node), self._root(other)
        return a == b or a not in self._returned or not (b in self._outside or b in self._returned)

    def join(self, node: Any, other: Any) -> None:
        """Note that two tensors share memory."""
        a, b = self._root(node), self._root(other)
        if a == b:
            return
        self._parent[b] = a
        for kind in (self._written, self._returned, self._outside):
            if b in kind:
                kind.add(a)

    def _root(self, node: Any) -> Any:
        while (parent := self._parent.get(node, node)) is not node:
            node = parent
        return node


def _written_by(node: Node) -> list[Node]:
    """The arguments that an operation writes into."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    if "batch_norm" in node.target._schema.name:  # writes running statistics, whatever its schema says
        return [n for n in node.all_input_nodes if n.op == "placeholder"]
    if not node.target._schema.is_mutable:
        return []
    found: list[Node] = []
    for i, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            fx.map_arg(value, found.append)
    return found


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
