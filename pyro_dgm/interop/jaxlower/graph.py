"""A recorded graph made functional, and decomposed into operations that have rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_dgm.infer.static_graph import CannotCapture

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
    _keep_gradients_of_data_writes(graph)
    copies = [t.detach().clone() for t in inputs]
    with torch.no_grad():
        pure = make_fx(torch.func.functionalize(graph), decomposition_table=table)(*copies)
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
    pure.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    pure.recompile()
    return pure


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

    The shape of ``x[mask]`` depends on values, which JAX has no way to say; of a mask that the program builds from
    numbers (the lower triangle of a matrix) the values are known here.
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


def _decompositions() -> dict[Any, Any]:
    from torch._decomp import core_aten_decompositions, get_decompositions

    return {**get_decompositions([getattr(aten, name) for name in _RESIZING]), **core_aten_decompositions()}
