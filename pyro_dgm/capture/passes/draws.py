"""Random numbers drawn by one operation."""

from __future__ import annotations

import torch
from torch import fx

__all__ = ["merge_draws"]

aten = torch.ops.aten


def merge_draws(graph: fx.GraphModule) -> None:
    """An empty tensor filled with normal numbers is one draw: the same numbers by one operation, not three."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.normal_.default or len(node.args) > 1 or node.kwargs:
            continue
        source = node.args[0]
        if source.target is not aten.empty.memory_format or next(iter(source.users)) is not node:
            continue
        options = {k: v for k, v in source.kwargs.items() if k in ("dtype", "layout", "device", "pin_memory")}
        with graph.graph.inserting_before(node):
            draw = graph.graph.call_function(aten.randn.default, source.args, options)
        draw.meta = dict(node.meta)
        for old in (node, source):
            old.replace_all_uses_with(draw, delete_user_cb=lambda user, node=node: user is not node)
        graph.graph.erase_node(node)
        graph.graph.erase_node(source)
