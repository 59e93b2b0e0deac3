"""An operation replaced by a cheaper one that gives the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pyro_dgm.capture.passes.nodes import (
    Memory,
    call,
    is_pure,
    layout_is_read,
    makes_view,
    meta,
    number_of,
    replace,
    same,
    same_type,
)

__all__ = ["rewrite"]

aten = torch.ops.aten
Node = fx.Node


def rewrite(graph: fx.GraphModule) -> None:
    """Replace operations by cheaper ones, where no write in place can tell them apart.

    A cheaper operation may read a tensor later than the one in its place did, or give the tensor itself where that gave
    a copy.  Both are the same only where nobody writes into the tensors concerned: the graph, or the caller, whom a
    result belongs to.
    """
    memory = Memory(graph)
    for node in list(graph.graph.nodes):
        if not is_pure(node) or layout_is_read(node):
            continue
        # No rule looks further than at the arguments of an argument.
        read = (m for n in node.all_input_nodes for m in (n, *n.all_input_nodes))
        if memory.is_written(node) or any(map(memory.is_written, read)):
            continue
        with graph.graph.inserting_before(node):
            found = _simpler(graph.graph, node)
        if found is None or found is node:
            continue
        if (source := _source(found)) is not None:
            if not memory.may_share(node, source):
                continue
            memory.join(source, found)
        memory.join(found, node)
        replace(node, found)


def _source(node: Node) -> Node | None:
    """The tensor whose memory a replacement lies in, if it is not new."""
    if node.op != "call_function" or not makes_view(node):
        return node if node.users else None
    return node.args[0]  # type: ignore[return-value]


def _simpler(graph: fx.Graph, node: Node) -> Node | None:
    target, args = node.target, node.args
    if target in (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor) and not node.kwargs:
        return _arithmetic(graph, node)
    first = args[0] if args and isinstance(args[0], Node) else None
    if first is None:
        return None
    if target is aten.neg.default and first.target is aten.neg.default:
        return first.args[0]  # type: ignore[return-value]
    if target is aten.pow.Tensor_Scalar and args[1] == 1 and same(first, node):
        return first
    if target is aten.mul.Scalar and same(first, node):
        return call(graph, node, aten.mul.Tensor, first, args[1])
    if target in (aten.expand.default, aten.view.default, aten.reshape.default, aten._unsafe_view.default):
        if same(first, node):
            return first
        if target in (aten.view.default, aten._unsafe_view.default):
            # What it looks at may come to lie otherwise in memory.
            return call(graph, node, aten.reshape.default, *args)
    elif target is aten._to_copy.default:
        if same(first, node) and not set(node.kwargs) - {"dtype"}:
            return first
    elif target in (aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default):
        if same(first, node):
            return first
    elif target is aten.sum.dim_IntList and len(args) == 2 and not node.kwargs and same_type(first, node):
        return _sum(graph, node, first)
    elif target is aten.t.default and len(meta(node).shape) == 2:
        return call(graph, node, aten.permute.default, first, [1, 0])
    elif target is aten.transpose.int and len(meta(node).shape) == 2:
        return call(graph, node, aten.permute.default, first, [1, 0]) if args[1] != args[2] else None
    elif target is aten.permute.default:
        return _permuted(graph, node, first)
    elif target is aten.softplus_backward.default and args[2] == 1 and args[3] >= 15:  # type: ignore[operator]
        if (number := number_of(first)) is not None and same(args[1], node):
            sigmoid = call(graph, node, aten.sigmoid.default, args[1])
            return sigmoid if number == 1 else call(graph, node, aten.mul.Tensor, sigmoid, number)
    return None


def _arithmetic(graph: fx.Graph, node: Node) -> Node | None:
    """A tensor and a number, told from a tensor and a tensor that is one number everywhere."""
    target: Any = node.target
    first, second = node.args
    a, b = _unexpanded(first, second, node), _unexpanded(second, first, node)
    if (a, b) != node.args:
        return call(graph, node, target, a, b)
    if isinstance(a, Node) and number_of(a) is not None and isinstance(b, Node) and number_of(b) is None:
        if target in (aten.mul.Tensor, aten.add.Tensor):
            a, b = b, a
        elif target is aten.sub.Tensor and number_of(a) == 0 and same(b, node):
            return call(graph, node, aten.neg.default, b)
        elif target is aten.sub.Tensor and same(b, node):
            return call(graph, node, aten.rsub.Scalar, b, number_of(a))
    number = number_of(b)
    if not isinstance(a, Node) or number is None:
        if target is aten.add.Tensor:
            for x, y in ((a, b), (b, a)):
                if isinstance(y, Node) and y.target is aten.neg.default and same_type(y, node):
                    return call(graph, node, aten.sub.Tensor, x, y.args[0])
        if target is aten.sub.Tensor and isinstance(b, Node) and b.target is aten.neg.default and same_type(b, node):
            return call(graph, node, aten.add.Tensor, a, b.args[0])
        return None
    if not same_type(a, node):
        return None
    if not same(a, node):
        # The number is given a shape by the tensor that holds it: arithmetic first, on the fewer elements.
        if not isinstance(b, Node) or meta(a).shape == torch.Size():
            return None
        small = graph.call_function(target, (a, number))
        small.meta["tensor_meta"] = meta(a)
        return call(graph, node, aten.expand.default, small, list(meta(node).shape))
    neutral = 0 if target in (aten.add.Tensor, aten.sub.Tensor) else 1
    if number == neutral:
        return a
    if number == -1 and target in (aten.mul.Tensor, aten.div.Tensor):
        return call(graph, node, aten.neg.default, a)
    if target is aten.mul.Tensor and a.target is aten.mul.Tensor and isinstance(a.args[1], (int, float)):
        if same(a.args[0], node):
            return call(graph, node, aten.mul.Tensor, a.args[0], a.args[1] * number)
    if isinstance(b, Node):
        return call(graph, node, target, a, number)
    return None


def _unexpanded(argument: Any, other: Any, node: Node) -> Any:
    """Arithmetic broadcasts by itself, where the other argument has the whole shape."""
    if isinstance(argument, Node) and argument.target is aten.expand.default and isinstance(other, Node):
        source: Any = argument.args[0]
        if meta(other) is not None and meta(other).shape == meta(node).shape and meta(source) is not None:
            if meta(source).shape != torch.Size() and same_type(source, argument):
                return source
    return argument


def _sum(graph: fx.Graph, node: Node, first: Node) -> Node | None:
    """A sum over dimensions of size one is a view; a sign comes out of a sum."""
    shape = meta(first).shape
    dims = node.args[1]
    if first.target is aten.neg.default and len(first.users) == 1:
        inner = call(graph, node, aten.sum.dim_IntList, first.args[0], dims)
        return call(graph, node, aten.neg.default, inner)
    if not dims or any(shape[d] != 1 for d in dims):  # type: ignore[union-attr]
        return None
    if first.target is aten.unsqueeze.default and same(first.args[0], node):
        return first.args[0]  # type: ignore[return-value]
    return call(graph, node, aten.reshape.default, first, list(meta(node).shape))


def _permuted(graph: fx.Graph, node: Node, first: Node) -> Node | None:
    dims = list(node.args[1])  # type: ignore[arg-type]
    if dims == sorted(dims):
        return first
    if first.target is aten.permute.default:
        inner = list(first.args[1])  # type: ignore[arg-type]
        combined = [inner[d] for d in dims]
        source: Any = first.args[0]
        return source if combined == sorted(combined) else call(graph, node, aten.permute.default, source, combined)
    if first.target is aten.mm.default and dims == [1, 0] and len(first.users) == 1:
        # (AB)' = B'A': the result lies as it is read, and so do the passes over it.
        a, b = (_call_transposed(graph, m) for m in first.args)
        return call(graph, node, aten.mm.default, b, a)
    return None


def _call_transposed(graph: fx.Graph, matrix: Any) -> Node:
    new = graph.call_function(aten.permute.default, (matrix, [1, 0]))
    of = meta(matrix)
    new.meta["tensor_meta"] = of._replace(shape=torch.Size(of.shape[::-1]), stride=of.stride[::-1])
    return new
