"""Constants, worked out once and not at every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from pyro_dgm.capture.passes.nodes import Memory, is_pure, layout_is_read, meta, replace

__all__ = ["fold_constants"]

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


def fold_constants(graph: fx.GraphModule) -> None:
    """Work out now what does not depend on the inputs."""
    known: dict[Node, Tensor] = {}
    memory = Memory(graph)

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
        if not is_pure(node) or memory.is_written(node) or layout_is_read(node):
            continue
        if memory.is_returned(node):
            continue  # the caller may write into it
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
        attribute.meta["tensor_meta"] = meta(node)
        attribute.meta["number"] = _number(result)
        replace(node, attribute) if not _read_by(node, known) else node.replace_all_uses_with(
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
