"""A function of one chain over all chains: one after another, or together where vmap refuses it as it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.capture.passes.functional_graph import without_writes
from pyro_dgm.capture.static_graph import CannotCapture, agreement
from pyro_dgm.infer.mcmc.potentials.base import Position

__all__ = ["chain_by_chain", "value_and_grad", "vectorizable"]

#: of one chain: from its position, and what else depends on the chain, to a number
Single = Callable[..., Tensor]


def value_and_grad(single: Single, position: Position, *others: Position) -> tuple[Tensor, Position]:
    """Value, and gradient by the position, of one chain.

    By plain autograd, not ``torch.func``: autograd functions of others need not know of that.
    """
    with torch.enable_grad():
        leaves = {k: v.detach().requires_grad_() for k, v in position.items()}
        value = single(leaves, *others)
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(leaves, grads, strict=True))


def chain_by_chain(single: Single, position: Position, *others: Position) -> tuple[Tensor, Position]:
    """Values ``(chains,)`` and gradients, one chain after another."""
    count = next(iter(position.values())).shape[0]
    rows = [value_and_grad(single, *_chain(c, position, *others)) for c in range(count)]
    return torch.stack([u for u, _ in rows]), {k: torch.stack([g[k] for _, g in rows]) for k in position}


def vectorizable(
    single: Single, expected: tuple[Tensor, Position], position: Position, *others: Position
) -> tuple[Single, Callable[..., Any]]:
    """The function's operations, recorded and without writes in place, which vmap can take; and vmapped, with gradient.

    :param expected: value and gradient at ``position``, which they are compared with.
    :raises CannotCapture: if they cannot be recorded or vectorised, or are not the function.
    """
    pure = without_writes(single, *_chain(0, position, *others))
    batched = torch.func.vmap(torch.func.grad_and_value(pure))
    try:
        grads, values = batched(position, *others)
    except Exception as error:  # whatever vmap cannot do, chain by chain can be done
        raise CannotCapture(f"one chain's operations cannot be vectorised: {error}") from error
    if why := agreement([expected[0], *expected[1].values()], [values, *(grads[k] for k in expected[1])]):
        raise CannotCapture(f"one chain's operations, recorded, are not the model: {why}")
    return pure, batched


def _chain(index: int, *parts: Position) -> list[Position]:
    return [{k: v[index] for k, v in part.items()} for part in parts]
