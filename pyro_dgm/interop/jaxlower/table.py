"""What a rule is: from an ATen overload to a function of JAX arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Rule", "Rules", "jax_dtype", "table_of"]

#: takes an operation's arguments, tensors being JAX arrays, and gives its result; a tuple where torch gives several
Rule = Callable[..., Any]
Rules = dict[Any, Rule]

aten = torch.ops.aten


def overloads(names: str, rule: Rule) -> Rules:
    """One rule for several overloads: ``"add.Tensor add.Scalar"``; a bare name means all that torch has."""
    table: Rules = {}
    for name in names.split():
        packet, _, overload = name.partition(".")
        found = getattr(aten, packet)
        chosen = [overload] if overload else [o for o in found.overloads() if not o.endswith("out")]
        table.update({getattr(found, o): rule for o in chosen})
    return table


def table_of(*rows: tuple[str, Rule]) -> Rules:
    """A table from rows of overloads and the rule that they share, as :func:`overloads` takes them."""
    return {op: rule for names, rule in rows for op in overloads(names, rule)}


def jax_dtype(dtype: torch.dtype) -> Any:
    """The NumPy dtype of a torch dtype, of half the width where JAX is in 32 bits."""
    import jax
    import numpy as np

    return jax.dtypes.canonicalize_dtype(np.dtype(str(dtype).removeprefix("torch.")))
