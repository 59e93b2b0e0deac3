"""A potential as its plain graph of tensor operations, without the Python that built it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pyro_dgm.capture.passes.simplify import dead_code, simplify
from pyro_dgm.capture.static_graph import CannotCapture, StaticGraph, agreement, record

__all__ = ["GraphFunction", "graph_of", "graph_or_function", "hold", "tells_failures"]

logger = logging.getLogger("pyro_dgm.infer.mcmc")

Position = dict[str, Tensor]
#: from a position to tensors
Function = Callable[[Position], Sequence[Tensor]]


class GraphFunction:
    """The tensor operations that a function of a position does on arguments of certain shapes.

    :ivar plain: the operations as recorded, which a larger recording can take in.
    """

    def __init__(self, plain: StaticGraph, names: Sequence[str]) -> None:
        self.plain, self.names = plain, list(names)
        self._compiled: StaticGraph | None = None
        self._rest: StaticGraph | None = None
        made = [n.meta.get("elements", 0) for n in plain.graph.graph.nodes]
        #: elements of the largest tensor that it makes, and of all
        self.largest, self.elements = max(made, default=0), sum(made)

    def __call__(self, position: Position) -> Sequence[Tensor]:
        graph = self.plain if self._compiled is None else self._compiled
        return graph(*[position[k] for k in self.names])

    @property
    def is_compiled(self) -> bool:
        """Whether inductor has compiled it."""
        return self._compiled is not None

    def without_first(self, position: Position) -> Sequence[Tensor]:
        """All results but the first, and what is needed for them alone; a compiled graph works out all."""
        if self._compiled is not None:
            return self(position)[1:]
        if self._rest is None:
            graph = copy.deepcopy(self.plain.graph)
            (output,) = (n for n in graph.graph.nodes if n.op == "output")
            output.args = (list(output.args[0])[1:],)
            dead_code(graph)
            graph.recompile()
            self._rest = StaticGraph(graph, self.plain.externals, graph)
        return self._rest(*[position[k] for k in self.names])

    def trace(self, position: Position) -> Sequence[Tensor]:
        """The same by the uncompiled graph, for a recording under way."""
        return self.plain.graph(*[position[k] for k in self.names], *self.plain.externals)

    def compile(self, fn: Function, position: Position) -> None:
        """Compile, and hold the result against ``fn``.

        :raises CannotCapture: with the reason.
        """
        if tells_failures(self.plain):
            raise CannotCapture("it factorises a matrix, whose failure a compiled graph would not tell")
        compiled = StaticGraph(self.plain.graph, self.plain.externals, self.plain.graph)
        compiled.compile([position[k] for k in self.names])
        _hold_at(compiled, fn, position, self.names)
        self._compiled = compiled


def graph_or_function(fn: Function, position: Position, compile: bool = False) -> Function:
    """The tensor operations that ``fn`` does on arguments of these shapes, as a function that does only them.

    Pyro's handlers, the distributions' constructors and the levels of ``vmap`` and ``grad`` cost several times the
    arithmetic of a small model; they leave no trace in the graph, and what is left is the same up to rounding.  A graph
    that differs, or cannot be recorded, is not used, and the log says why.

    :param fn: from a position to tensors, with no branch on the position's values.
    :param position: tensors of the shapes and types to come.
    :param compile: compile the graph too.
    :returns: a :class:`GraphFunction`, or ``fn``.
    """
    try:
        graph = graph_of(fn, position)
    except CannotCapture as reason:
        logger.info("the potential runs without a graph: %s", reason)
        return fn
    if compile:
        try:
            graph.compile(fn, position)
        except CannotCapture as reason:
            logger.info("the potential's graph is not compiled: %s", reason)
    return graph


def graph_of(fn: Function, position: Position) -> GraphFunction:
    """As :func:`graph_or_function`, uncompiled, with the reason raised where it cannot be done.

    :raises CannotCapture: with the reason.
    """
    names = list(position)

    def flat(*values: Tensor) -> list[Tensor]:
        with _FewerPasses():
            return list(fn(dict(zip(names, values, strict=True))))

    graph = record(flat, list(position.values()))
    simplify(graph.graph)
    _hold_at(graph, fn, position, names)
    return GraphFunction(graph, names)


class _FewerPasses(TorchFunctionMode):
    r"""Losses of torch's in a form whose derivative is one pass.

    The density of a Bernoulli with logits :math:`\ell` is :math:`y \ell - \log(1 + e^\ell)`, with derivative
    :math:`y - \sigma(\ell)`; torch writes it so that seven passes are left.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.binary_cross_entropy_with_logits and len(args) == 2:
            logits, target = args
            # Torch hands over its defaults too.
            plain = all(v is None for k, v in kwargs.items() if k != "reduction")
            if plain and kwargs.get("reduction") == "none" and logits.dtype == target.dtype:
                # Beyond 40 the two differ by less than a double resolves.
                return F.softplus(logits, threshold=40.0) - logits * target
        return func(*args, **kwargs)


def tells_failures(graph: StaticGraph) -> bool:
    """Whether an operation of the graph raises where a matrix cannot be factorised."""
    return any("check_errors" in str(n.target) for n in graph.graph.graph.nodes)


def _hold_at(graph: StaticGraph, fn: Function, position: Position, names: Sequence[str]) -> None:
    for probe in (position, {k: 0.9 * v + 0.01 if v.is_floating_point() else v for k, v in position.items()}):
        hold(lambda p=probe: list(fn(p)), lambda p=probe: list(graph(*[p[k] for k in names])))  # type: ignore[misc]


def hold(expected: Callable[[], list[Tensor]], found: Callable[[], list[Tensor]]) -> list[Tensor] | None:
    """Hold one way of computing against another.

    :returns: what was expected; ``None`` where a matrix could not be factorised.
    :raises CannotCapture: where they differ by more than rounding.
    """
    a, b = _outcome(expected), _outcome(found)
    if (a is None) != (b is None):
        raise CannotCapture("its graph fails at other positions")
    if difference := agreement(a or [], b or []):
        raise CannotCapture(f"its graph gives other values: {difference}")
    return a


def _outcome(fn: Callable[[], list[Tensor]]) -> list[Tensor] | None:
    try:
        return fn()
    except torch.linalg.LinAlgError:
        return None
