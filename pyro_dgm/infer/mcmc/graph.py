"""A potential as its plain graph of tensor operations, without the Python that built it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["operations_of"]

logger = logging.getLogger("pyro_dgm.infer.mcmc")

Position = dict[str, Tensor]
ValueAndGrad = Callable[[Position], tuple[Position, Tensor]]


def operations_of(fn: ValueAndGrad, position: Position) -> ValueAndGrad:
    """The tensor operations that ``fn`` does on arguments of these shapes, as a function that does only them.

    Pyro's handlers, the distributions' constructors and the levels of ``vmap`` and ``grad`` cost several times the
    arithmetic of a small model; they leave no trace in the graph, and the operations left are the same ones on the same
    numbers.  It is held against ``fn`` at two positions; one that differs, or cannot be recorded, is not used, and the
    log says why.

    :param fn: from a position to gradient and value, with no branch on the position's values.
    :param position: tensors of the shapes and types to come.
    :returns: the graph's function, or ``fn``.
    """
    try:
        # A one-argument lambda: the signature that vmap's wrapper shows confuses the tracer.
        graph = make_fx(lambda q: fn(q))(position)
    except Exception as error:
        logger.info("the potential runs without a graph: %s", str(error).strip().split("\n")[0])
        return fn
    # A failed factorisation is told by an operation whose result nobody reads; it must stay.
    graph.graph.eliminate_dead_code(is_impure_node=lambda n: n.is_impure() or "check_errors" in str(n.target))
    graph.recompile()
    for probe in (position, {k: 0.9 * v + 0.01 for k, v in position.items()}):
        expected, got = _outcome(fn, probe), _outcome(graph, probe)
        if (expected is None) != (got is None) or not all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True) for a, b in zip(expected or (), got or ())
        ):
            logger.info("the potential runs without a graph: its graph gives other values")
            return fn
    return graph


def _outcome(fn: Any, position: Position) -> list[Tensor] | None:
    try:
        gradient, value = fn(position)
    except torch.linalg.LinAlgError:
        return None
    return [value, *(gradient[k] for k in position)]
