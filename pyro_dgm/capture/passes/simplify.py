"""A recorded graph made smaller: the same function of its inputs, with fewer operations.

What ``vmap`` and ``grad`` record is general: ones that are expanded and multiplied by, dimensions of size one that are
summed over, products on transposed matrices, constants worked out anew at every call.  On small models these are most
of the time.  Every rewriting here is an identity of real numbers, and moves a result by rounding at most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["simplify"]

aten = torch.ops.aten
Node = fx.Node

#: constructors by the shape of a tensor that is not constant itself: the number that fills them, or where it stands
_LIKE = {
    aten.ones_like.default: 1,
    aten.zeros_like.default: 0,
    aten.new_zeros.default: 0,
    aten.new_ones.default: 1,
    aten.full_like.default: None,
    aten.new_full.default: None,
}
#: constants of more elements than this that are not one number are left to be worked out
LARGEST_CONSTANT = 2**20


def simplify(graph: fx.GraphModule) -> None:
    """Rewrite a graph that :func:`pyro_dgm.capture.static_graph.record` made, in place.

    Operations whose results nobody reads go, except those that write, draw, or tell a failed factorisation.
    """
    _without_writes(graph)
    dead_code(graph)
    _fold_constants(graph)
    for _ in range(4):
        before = [n.target for n in graph.graph.nodes]
        _rewrite(graph)
        _merge_equal(graph)
        dead_code(graph)
        if [n.target for n in graph.graph.nodes] == before:
            break
    for node in graph.graph.nodes:
        shape = getattr(_meta(node), "shape", None)
        if node.op == "call_function" and shape is not None:
            node.meta["elements"] = shape.numel()
    graph.graph.lint()
    graph.recompile()


def dead_code(graph: fx.GraphModule) -> None:
    """Drop what nobody reads; a failed factorisation is told by an operation whose result nobody reads: it stays."""
    graph.graph.eliminate_dead_code(is_impure_node=lambda n: n.is_impure() or "check_errors" in str(n.target))


def _meta(node: Any) -> Any:
    return node.meta.get("tensor_meta") if isinstance(node, Node) else None


def _pure(node: Node) -> bool:
    """Whether the node is an operation on tensors that writes nothing, draws nothing, and gives one tensor."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags or "check_errors" in str(node.target):
        return False
    schema = node.target._schema
    return not schema.is_mutable and len(schema.returns) == 1 and _meta(node) is not None


def _makes_view(node: Node) -> bool:
    return any(r.alias_info is not None for r in node.target._schema.returns)  # type: ignore[union-attr]


def _replace(node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _without_writes(graph: fx.GraphModule) -> None:
    """Turn writes into a fresh tensor that nobody else looks at into operations that give another tensor."""
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        name = target._schema.name.split("::")[1]
        if not target._schema.is_mutable or not name.endswith("_") or target.namespace != "aten":
            continue
        if torch.Tag.nondeterministic_seeded in target.tags:
            continue
        written = node.args[0]
        fresh = (
            isinstance(written, Node)
            and written.op == "call_function"
            and isinstance(written.target, torch._ops.OpOverload)
            and not _makes_view(written)
        )
        others = [u for u in written.users if u is not node] if fresh else []
        if not fresh or any(order[u] > order[node] or u.op == "output" or _makes_view(u) for u in others):
            continue
        packet = getattr(aten, name[:-1], None)
        plain = getattr(packet, target._overloadname, None) if packet is not None else None
        if plain is None:
            continue
        node.target = plain


def _fold_constants(graph: fx.GraphModule) -> None:
    """Work out now what does not depend on the inputs."""
    known: dict[Node, Tensor] = {}

    def value(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda n: known[n])

    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            held: Any = graph
            for part in str(node.target).split("."):
                held = getattr(held, part)
            # What record left inside is a number of the program's, read by a copy of it.
            if isinstance(held, Tensor):
                known[node] = held
            continue
        if not _pure(node) or _written(node) or _layout_is_read(node):
            continue
        if all(n in known for n in node.all_input_nodes):
            with torch.no_grad():
                operation: Any = node.target
                result = operation(*value(node.args), **value(node.kwargs))
        elif node.target in _LIKE and "val" in node.meta and all(n in known for n in node.all_input_nodes[1:]):
            fill = _LIKE[node.target]
            if fill is None:
                fill = value(node.args[-1])
            # The operation takes the device of its argument where it is given none: the recording knows which.
            made = node.meta["val"]
            result = torch.full((), fill, dtype=made.dtype, device=made.device).expand(made.shape)
        else:
            continue
        number = _number(result)
        if number is not None and result.dim() > 0:
            result = torch.full((), number, dtype=result.dtype, device=result.device).expand(result.shape)
        elif number is None and result.numel() > LARGEST_CONSTANT:
            continue
        known[node] = result
    count = 0
    for node, result in known.items():
        if node.op == "get_attr" or all(user in known for user in node.users):
            continue
        while hasattr(graph, f"_constant_{count}"):
            count += 1
        graph.register_buffer(f"_constant_{count}", result, persistent=False)
        with graph.graph.inserting_before(node):
            attribute = graph.graph.get_attr(f"_constant_{count}")
        attribute.meta["tensor_meta"] = _meta(node)
        attribute.meta["number"] = _number(result)
        _replace(node, attribute) if not _read_by(node, known) else node.replace_all_uses_with(
            attribute, delete_user_cb=lambda user: user not in known
        )


def _read_by(node: Node, known: dict[Node, Tensor]) -> bool:
    return any(user in known for user in node.users)


def _number(value: Tensor) -> float | None:
    """The one number that a tensor holds everywhere, if so."""
    if value.numel() == 0 or value.is_complex() or value.dtype == torch.bool:
        return None
    flat = value.reshape(-1) if value.numel() <= LARGEST_CONSTANT else None
    if any(value.stride()) and value.numel() > 1:
        if flat is None or not bool((flat == flat[0]).all()):
            return None
    number = value[(0,) * value.dim()].item()
    return number if number == number and abs(number) != float("inf") else None


def _of(node: Any) -> float | None:
    """The number that an argument is: written as one, or held everywhere by a constant tensor."""
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        return node
    return node.meta.get("number") if isinstance(node, Node) else None


def _rewrite(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if not _pure(node) or _layout_is_read(node):
            continue
        with graph.graph.inserting_before(node):
            found = _simpler(graph.graph, node)
        if found is not None and found is not node:
            node.replace_all_uses_with(found)
            graph.graph.erase_node(node)


def _call(graph: fx.Graph, like: Node, target: Any, *args: Any) -> Node:
    new = graph.call_function(target, args)
    new.meta["tensor_meta"] = _meta(like)
    return new


def _same(a: Any, b: Any) -> bool:
    """Whether two nodes have one shape and one type."""
    x, y = _meta(a), _meta(b)
    return x is not None and y is not None and x.shape == y.shape and x.dtype == y.dtype


def _simpler(graph: fx.Graph, node: Node) -> Node | None:
    target, args = node.target, node.args
    if target in (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor) and not node.kwargs:
        return _arithmetic(graph, node)
    first = args[0] if args and isinstance(args[0], Node) else None
    if first is None:
        return None
    if target is aten.neg.default and first.target is aten.neg.default:
        return first.args[0]  # type: ignore[return-value]
    if target is aten.pow.Tensor_Scalar and args[1] == 1 and _same(first, node):
        return first
    if target is aten.mul.Scalar and _same(first, node):
        return _call(graph, node, aten.mul.Tensor, first, args[1])
    if target in (aten.expand.default, aten.view.default, aten.reshape.default, aten._unsafe_view.default):
        if _same(first, node):
            return first
        if target in (aten.view.default, aten._unsafe_view.default) and not _written(node):
            # What it looks at may come to lie otherwise in memory.
            return _call(graph, node, aten.reshape.default, *args)
    elif target is aten._to_copy.default:
        if _same(first, node) and not set(node.kwargs) - {"dtype"}:
            return first
    elif target in (aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default):
        if _same(first, node) and not _written(first) and not _written(node):
            return first
    elif target is aten.sum.dim_IntList and len(args) == 2 and not node.kwargs and _same_type(first, node):
        return _sum(graph, node, first)
    elif target is aten.t.default and len(_meta(node).shape) == 2:
        return _call(graph, node, aten.permute.default, first, [1, 0])
    elif target is aten.transpose.int and len(_meta(node).shape) == 2:
        return _call(graph, node, aten.permute.default, first, [1, 0]) if args[1] != args[2] else None
    elif target is aten.permute.default:
        return _permuted(graph, node, first)
    elif target is aten.softplus_backward.default and args[2] == 1 and args[3] >= 15:  # type: ignore[operator]
        if (number := _of(first)) is not None and _same(args[1], node):
            sigmoid = _call(graph, node, aten.sigmoid.default, args[1])
            return sigmoid if number == 1 else _call(graph, node, aten.mul.Tensor, sigmoid, number)
    return None


def _same_type(a: Node, b: Node) -> bool:
    return _meta(a) is not None and _meta(a).dtype == _meta(b).dtype


def _arithmetic(graph: fx.Graph, node: Node) -> Node | None:
    """A tensor and a number, told from a tensor and a tensor that is one number everywhere."""
    target: Any = node.target
    first, second = node.args
    a, b = _unexpanded(first, second, node), _unexpanded(second, first, node)
    if (a, b) != node.args:
        return _call(graph, node, target, a, b)
    if isinstance(a, Node) and _of(a) is not None and isinstance(b, Node) and _of(b) is None:
        if target in (aten.mul.Tensor, aten.add.Tensor):
            a, b = b, a
        elif target is aten.sub.Tensor and _of(a) == 0 and _same(b, node):
            return _call(graph, node, aten.neg.default, b)
        elif target is aten.sub.Tensor and _same(b, node):
            return _call(graph, node, aten.rsub.Scalar, b, _of(a))
    number = _of(b)
    if not isinstance(a, Node) or number is None:
        if target is aten.add.Tensor:
            for x, y in ((a, b), (b, a)):
                if isinstance(y, Node) and y.target is aten.neg.default and _same_type(y, node):
                    return _call(graph, node, aten.sub.Tensor, x, y.args[0])
        if target is aten.sub.Tensor and isinstance(b, Node) and b.target is aten.neg.default and _same_type(b, node):
            return _call(graph, node, aten.add.Tensor, a, b.args[0])
        return None
    if not _same_type(a, node):
        return None
    if not _same(a, node):
        # The number is given a shape by the tensor that holds it: arithmetic first, on the fewer elements.
        if not isinstance(b, Node) or _meta(a).shape == torch.Size():
            return None
        small = graph.call_function(target, (a, number))
        small.meta["tensor_meta"] = _meta(a)
        return _call(graph, node, aten.expand.default, small, list(_meta(node).shape))
    neutral = 0 if target in (aten.add.Tensor, aten.sub.Tensor) else 1
    if number == neutral:
        return a
    if number == -1 and target in (aten.mul.Tensor, aten.div.Tensor):
        return _call(graph, node, aten.neg.default, a)
    if target is aten.mul.Tensor and a.target is aten.mul.Tensor and isinstance(a.args[1], (int, float)):
        if _same(a.args[0], node):
            return _call(graph, node, aten.mul.Tensor, a.args[0], a.args[1] * number)
    if isinstance(b, Node):
        return _call(graph, node, target, a, number)
    return None


def _unexpanded(argument: Any, other: Any, node: Node) -> Any:
    """Arithmetic broadcasts by itself, where the other argument has the whole shape."""
    if isinstance(argument, Node) and argument.target is aten.expand.default and isinstance(other, Node):
        source: Any = argument.args[0]
        if _meta(other) is not None and _meta(other).shape == _meta(node).shape and _meta(source) is not None:
            if _meta(source).shape != torch.Size() and _same_type(source, argument):
                return source
    return argument


def _sum(graph: fx.Graph, node: Node, first: Node) -> Node | None:
    """A sum over dimensions of size one is a view; a sign comes out of a sum."""
    shape = _meta(first).shape
    dims = node.args[1]
    if first.target is aten.neg.default and len(first.users) == 1:
        inner = _call(graph, node, aten.sum.dim_IntList, first.args[0], dims)
        return _call(graph, node, aten.neg.default, inner)
    if not dims or any(shape[d] != 1 for d in dims):  # type: ignore[union-attr]
        return None
    if first.target is aten.unsqueeze.default and _same(first.args[0], node):
        return first.args[0]  # type: ignore[return-value]
    return _call(graph, node, aten.reshape.default, first, list(_meta(node).shape))


def _permuted(graph: fx.Graph, node: Node, first: Node) -> Node | None:
    dims = list(node.args[1])  # type: ignore[arg-type]
    if dims == sorted(dims):
        return first
    if first.target is aten.permute.default:
        inner = list(first.args[1])  # type: ignore[arg-type]
        combined = [inner[d] for d in dims]
        source: Any = first.args[0]
        return source if combined == sorted(combined) else _call(graph, node, aten.permute.default, source, combined)
    if first.target is aten.mm.default and dims == [1, 0] and len(first.users) == 1:
        # (AB)' = B'A': the result lies as it is read, and so do the passes over it.
        a, b = (_call_transposed(graph, m) for m in first.args)
        return _call(graph, node, aten.mm.default, b, a)
    return None


def _call_transposed(graph: fx.Graph, matrix: Any) -> Node:
    new = graph.call_function(aten.permute.default, (matrix, [1, 0]))
    meta = _meta(matrix)
    new.meta["tensor_meta"] = meta._replace(shape=torch.Size(meta.shape[::-1]), stride=meta.stride[::-1])
    return new


def _written(node: Node) -> bool:
    """Whether an operation writes into this tensor."""
    for user in node.users:
        if isinstance(user.target, torch._ops.OpOverload):
            if user.target._schema.is_mutable or (_makes_view(user) and _written(user)):
                return True
    return False


def _layout_is_read(node: Node) -> bool:
    """Whether an operation counts on where the tensor's elements lie in memory."""
    return any(user.target in (aten.as_strided.default, aten.as_strided_.default) for user in node.users)


def _merge_equal(graph: fx.GraphModule) -> None:
    """One operation for two that are the same on the same tensors."""
    seen: dict[Any, Node] = {}
    for node in list(graph.graph.nodes):
        if not _pure(node) or _written(node) or any(_written(n) for n in node.all_input_nodes):
            continue
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        try:
            other = seen.setdefault(key, node)
        except TypeError:
            continue
        if other is not node:
            _replace(node, other)


def _frozen(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        return tuple(_frozen(a) for a in argument)
    if isinstance(argument, dict):
        return tuple((k, _frozen(v)) for k, v in sorted(argument.items()))
    if isinstance(argument, (int, float, bool)):
        return type(argument).__name__, argument
    return argument
