"""Writes into a fresh tensor, replaced by operations that give another tensor."""

from __future__ import annotations

import torch
from torch import fx

from pyro_dgm.capture.passes.nodes import makes_view, meta

__all__ = ["write_to_new_tensors"]

aten = torch.ops.aten
Node = fx.Node


def write_to_new_tensors(graph: fx.GraphModule) -> None:
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
            and not makes_view(written)
        )
        if fresh and name != "copy_" and any(_promotes(n, written) for n in node.all_input_nodes):
            continue
        others = [u for u in written.users if u is not node] if fresh else []
        if not fresh or any(order[u] > order[node] or u.op == "output" or makes_view(u) for u in others):
            continue
        packet = getattr(aten, name[:-1], None)
        plain = getattr(packet, target._overloadname, None) if packet is not None else None
        if plain is None:
            continue
        node.target = plain


def _promotes(other: Node, written: Node) -> bool:
    """Whether the two together may have another type than the tensor that is written."""
    of, into = meta(other), meta(written)
    return of is None or into is None or torch.promote_types(of.dtype, into.dtype) != into.dtype
