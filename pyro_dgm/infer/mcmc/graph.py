"""A potential as its plain graph of tensor operations, without the Python that built it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.static_graph import CannotCapture, StaticGraph, agreement, record

__all__ = ["operations_of", "potential_graph"]

logger = logging.getLogger("pyro_dgm.infer.mcmc")

Position = dict[str, Tensor]
ValueAndGrad = Callable[[Position], tuple[Position, Tensor]]


def operations_of(fn: ValueAndGrad, position: Position, compile: bool = False) -> ValueAndGrad:
    """The tensor operations that ``fn`` does on arguments of these shapes, as a function that does only them.

    Pyro's handlers, the distributions' constructors and the levels of ``vmap`` and ``grad`` cost several times the
    arithmetic of a small model; they leave no trace in the graph, and the operations left are the same ones on the same
    numbers.  One that differs, or cannot be recorded, is not used, and the log says why.

    :param fn: from a position to gradient and value, with no branch on the position's values.
    :param position: tensors of the shapes and types to come.
    :param compile: compile the graph too.
    :returns: the graph's function, or ``fn``.
    """
    try:
        return potential_graph(fn, position, compile)
    except CannotCapture as reason:
        logger.info("the potential runs without a graph: %s", reason)
    if compile:
        return operations_of(fn, position)
    return fn


def potential_graph(fn: ValueAndGrad, position: Position, compile: bool) -> ValueAndGrad:
    """As :func:`operations_of`, with the reason raised where it cannot be done.

    :raises CannotCapture: with the reason.
    """
    names = list(position)

    def flat(*values: Tensor) -> list[Tensor]:
        gradient, value = fn(dict(zip(names, values, strict=True)))
        return [value, *(gradient[k] for k in names)]

    graph = record(flat, list(position.values()))
    # A failed factorisation is told by an operation whose result nobody reads; it must stay, all other dead code goes.
    graph.graph.graph.eliminate_dead_code(is_impure_node=lambda n: n.is_impure() or "check_errors" in str(n.target))
    graph.graph.recompile()
    _hold(graph, flat, position)
    if compile:
        if any("check_errors" in str(n.target) for n in graph.graph.graph.nodes):
            raise CannotCapture("it factorises a matrix, whose failure a compiled graph would not tell")
        graph.compile(list(position.values()))
        _hold(graph, flat, position)

    def evaluate(at: Position) -> tuple[Position, Tensor]:
        value, *gradients = graph(*(at[k] for k in names))
        return dict(zip(names, gradients, strict=True)), value

    return evaluate


def _hold(graph: StaticGraph, fn: Callable[..., list[Tensor]], position: Position) -> None:
    for probe in (position, {k: 0.9 * v + 0.01 for k, v in position.items()}):
        expected, got = _outcome(fn, probe), _outcome(graph, probe)
        if (expected is None) != (got is None):
            raise CannotCapture("its graph fails at other positions")
        if difference := agreement(expected or [], got or []):
            raise CannotCapture(f"its graph gives other values: {difference}")


def _outcome(fn: Any, position: Position) -> list[Tensor] | None:
    try:
        return list(fn(*position.values()))
    except torch.linalg.LinAlgError:
        return None
