"""A recorded graph without writes in place: what can be differentiated, vectorised and translated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_dgm.capture.static_graph import CannotCapture, record

__all__ = ["functional_graph", "without_writes"]

aten = torch.ops.aten


def without_writes(fn: Callable[..., Tensor], *inputs: Mapping[str, Tensor]) -> Callable[..., Tensor]:
    """A function as the operations that it does, without writes in place, for ``torch.func`` to transform.

    Pyro's and torch's own distributions write in place here and there (``OrderedLogistic``, ``Multinomial``), or have
    autograd functions that know nothing of vmap (``DiscreteHMM``).

    :param fn: from dicts of tensors to a tensor.
    :param inputs: of the shapes that it will be called with.
    :raises CannotCapture: if its operations depend on values, or cannot be recorded; the result is not held against it.
    """
    names = [list(part) for part in inputs]
    first = [t.detach().clone() for part in inputs for t in part.values()]

    def flat(*tensors: Tensor) -> list[Tensor]:
        rest = iter(tensors)
        return [fn(*({k: next(rest) for k in part} for part in names))]

    recorded = record(flat, first)
    graph = functional_graph(recorded.graph, [*first, *recorded.externals], {})

    def pure(*parts: Mapping[str, Tensor]) -> Tensor:
        given = (part[k] for part, keys in zip(parts, names, strict=True) for k in keys)
        return graph(*given, *recorded.externals)[0]

    return pure


def functional_graph(
    graph: fx.GraphModule, inputs: Sequence[Tensor], decompositions: Mapping[Any, Any]
) -> fx.GraphModule:
    """The same operations without writes in place.

    :param graph: recorded operations.
    :param inputs: tensors of its inputs' shapes; they are not written.
    :param decompositions: operations to take apart, and how.
    :raises CannotCapture: if the graph writes to one of its inputs, which a pure function cannot.
    """
    _keep_gradients_of_data_writes(graph)
    copies = [t.detach().clone() for t in inputs]
    with torch.no_grad():
        pure = make_fx(torch.func.functionalize(graph), decomposition_table=dict(decompositions))(*copies)
    placeholders = [n for n in pure.graph.nodes if n.op == "placeholder"]
    for node in pure.graph.nodes:
        if not _writes(node):
            continue
        if node.args[0] in placeholders:
            shape = tuple(inputs[placeholders.index(node.args[0])].shape)
            raise CannotCapture(
                f"it writes in place to a tensor of shape {shape} from outside (running statistics of a module in "
                "training mode?), which a pure function cannot; call .eval() on it"
            )
        raise CannotCapture(f"{node.target} writes in place and could not be made functional")
    _number_masks(pure)
    _select_by_masks(pure)
    _write_plainly(pure)
    pure.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    pure.recompile()
    return pure


def _keep_gradients_of_data_writes(graph: fx.GraphModule) -> None:
    """``x.data.add_(jitter)`` changes x behind autograd's back: x keeps its gradient.

    Made functional, the sum would be of the detached x.  Where something is written through it, a detached tensor is
    therefore x itself; a tensor that is detached and only read stays without gradient.
    """
    for node in graph.graph.nodes:
        if node.target is not aten.detach.default:
            continue
        views, written = [node], False
        while views and not written:
            view = views.pop()
            users = [user for user in view.users if user.args and user.args[0] is view]
            written = any(_writes(user) for user in users)
            views += [user for user in users if _is_view(user)]
        if written:
            node.target = aten.alias.default
    graph.recompile()


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def _number_masks(graph: fx.GraphModule) -> None:
    """Boolean masks as indices become the numbers of their true places, where they depend on no input.

    The shape of ``x[mask]`` depends on values, which neither JAX nor vmap has a way to say; of a mask that the program
    builds from numbers (the lower triangle of a matrix) the values are known here.
    """
    for node in list(graph.graph.nodes):
        if node.target not in (aten.index.Tensor, aten.index_put.default):
            continue
        indices: list[Any] = []
        for index in node.args[1]:
            if index is None or index.meta["val"].dtype is not torch.bool:
                indices.append(index)
                continue
            mask = _constant(graph, index)
            if mask is None:
                indices = []
                break
            for i, numbers in enumerate(mask.nonzero(as_tuple=True)):
                name = f"{index.name}_places_{i}"
                graph.register_buffer(name, numbers)
                with graph.graph.inserting_before(node):
                    place = graph.graph.get_attr(name)
                place.meta["val"] = numbers
                indices.append(place)
        if indices:
            node.args = (node.args[0], indices, *node.args[2:])


def _select_by_masks(graph: fx.GraphModule) -> None:
    """``x[mask] = number`` as a choice between the number and x: no shape then depends on the mask's values."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.index_put.default or len(node.args) > 3:
            continue
        x, indices, number = node.args
        if len(indices) != 1 or indices[0] is None or number.meta["val"].dim():
            continue
        mask, shape = indices[0], x.meta["val"].shape
        if mask.meta["val"].dtype is not torch.bool or mask.meta["val"].shape != shape:
            continue
        with graph.graph.inserting_before(node):
            chosen = graph.graph.call_function(aten.where.self, (mask, number, x))
        chosen.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(chosen)


def _write_plainly(graph: fx.GraphModule) -> None:
    """What became of writes into parts of a tensor, in a form that vmap takes: places counted from the front, and what
    is written expanded rather than copied."""
    for node in list(graph.graph.nodes):
        if node.target is aten.slice_scatter.default:
            defaults = [None, None, 0, None, None, 1]
            x, source, dim, start, end, step = cast(Any, [*node.args, *defaults[len(node.args) :]])
            first, stop, _ = slice(start, end).indices(x.meta["val"].shape[dim])
            node.args, node.kwargs = (x, source, dim, first, stop, step), {}
        if node.target is aten.copy.default:
            into, source = cast(Any, node.args)[:2]
            wanted, given = into.meta["val"], source.meta["val"]
            with graph.graph.inserting_before(node):
                if given.dtype is not wanted.dtype:
                    source = graph.graph.call_function(aten._to_copy.default, (source,), {"dtype": wanted.dtype})
                    source.meta["val"] = given.to(wanted.dtype)
                full = graph.graph.call_function(aten.expand.default, (source, list(wanted.shape)))
            full.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(full)


def _constant(graph: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The value of a node that depends on no input, by torch."""
    values: dict[fx.Node, Any] = {}

    def evaluate(n: fx.Node) -> bool:
        if n in values:
            return True
        if n.op == "get_attr":
            values[n] = getattr(graph, str(n.target))
            return True
        if n.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()):
            return False
        if not all(evaluate(m) for m in n.all_input_nodes):
            return False
        args, kwargs = fx.map_arg((n.args, n.kwargs), values.__getitem__)
        values[n] = n.target(*args, **kwargs)  # type: ignore[operator]
        return True

    return values[node] if evaluate(node) else None


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
