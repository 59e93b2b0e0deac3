"""A density evaluated over chains: by the Python that it is written in, then by its graph."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.capture.passes.dead_code import drop_dead_code
from pyro_dgm.capture.passes.losses import CheaperLosses
from pyro_dgm.capture.recorded import Recorded
from pyro_dgm.capture.static_graph import CannotCapture, StaticGraph, is_recording

__all__ = ["Evaluator", "Position", "divisor"]

logger = logging.getLogger("pyro_dgm.infer.mcmc")

Position = dict[str, Tensor]

#: evaluations at one number of chains after which the density's graph takes its place
GRAPH_AFTER = 20
#: elements of an evaluation's largest tensor above which chains are evaluated in groups: what a processor's cache holds
CACHED_ELEMENTS = 2**21


class Evaluator:
    """Evaluates a density's potential over chains, and its gradient.

    From the twentieth evaluation at one number of chains on, the graph of its tensor operations takes its place: Pyro's
    handlers, the distributions' constructors and the levels of ``vmap`` and ``grad`` cost several times the arithmetic
    of a small model.  A chain at which a matrix factorisation fails has value NaN, and harms no other chain.  In a
    recording of a larger function, evaluations are the operations of the graph, where there is one.

    :param both: ``U`` of shape ``(chains,)`` and its gradient at ``(chains, ...)`` positions, without branches on them.
    :param value: ``U`` alone.
    :param wrt: names of the tensors that the gradient is by; all by default.
    :param can_be_recorded: whether all chains are evaluated together.
    :ivar recorded: the graphs, of the position's tensors, for a ``"gradient"`` or a ``"value"`` and a number of chains.
    :ivar compile: whether graphs are compiled, those that there are at the next evaluation.
    :ivar chunk_size: most chains evaluated together; by default what the processor's cache holds, once a graph shows
        how much that is.
    """

    def __init__(
        self,
        both: Callable[[Position], tuple[Tensor, Position]],
        value: Callable[[Position], Tensor],
        can_be_recorded: Callable[[], bool],
        wrt: Callable[[Position], Sequence[str]] = list,
    ) -> None:
        self._both, self._value, self._can_be_recorded, self._wrt = both, value, can_be_recorded, wrt
        self.compile = False
        self.chunk_size: int | None = None
        self.recorded = Recorded("the potential", raises=True, recording=CheaperLosses, say=_say)
        self._gradients: dict[Any, StaticGraph] = {}
        self._calls: dict[Any, int] = {}
        self._groups: dict[int, int] = {}
        self._tried: set[Any] = set()
        self._after = GRAPH_AFTER

    def __call__(self, position: Position) -> tuple[Tensor, Position]:
        """Value and gradient."""
        rows = self._in_groups(position)
        if len(rows) == 1:
            value, *gradients = self._results("gradient", position)
        else:
            parts = zip(*(self._results("gradient", part) for part in rows), strict=True)
            value, *gradients = (torch.cat(part) for part in parts)
        return value, dict(zip(self._wrt(position), gradients, strict=True))

    def value(self, position: Position) -> Tensor:
        """The value alone, for kernels that take no gradient."""
        return self._results("value", position)[0]

    def gradient(self, position: Position) -> Position:
        """The gradient alone: by fewer operations, where there is a graph."""
        rows = self._in_groups(position)
        keys = [_key("gradient", part) for part in rows]
        if not all(key in self.recorded.graphs for key in keys):
            return self(position)[1]
        try:
            parts = [self._without_value(key, part) for key, part in zip(keys, rows, strict=True)]
        except torch.linalg.LinAlgError:
            return self(position)[1]
        gradients = parts[0] if len(parts) == 1 else [torch.cat(part) for part in zip(*parts, strict=True)]
        return dict(zip(self._wrt(position), gradients, strict=True))

    def group(self, chains: int) -> int:
        """How many of these chains are evaluated together."""
        return self._groups.get(chains, chains) if self.chunk_size is None else min(self.chunk_size, chains)

    def largest(self) -> StaticGraph | None:
        """The graph that makes the most elements, of those that there are."""
        return max(self.recorded.graphs.values(), key=lambda g: g.elements, default=None)

    def record(self, kind: str, position: Position) -> StaticGraph:
        """Record the graph for this number of chains.

        :param kind: ``"gradient"`` or ``"value"``.
        :raises CannotCapture: with the reason.
        """
        names, inputs = list(position), list(position.values())
        with suppress(torch.linalg.LinAlgError):
            self._plain(kind, position)  # in its own words, where it has a fault
        if not self._can_be_recorded():
            raise CannotCapture("the model cannot be vectorised over chains")

        def flat(*values: Tensor) -> list[Tensor]:
            return self._plain(kind, dict(zip(names, values, strict=True)))

        others = [0.9 * v + 0.01 if v.is_floating_point() else v for v in inputs]
        graph = self.recorded.record(_key(kind, position), flat, inputs, other_inputs=others)
        if kind == "gradient" and inputs[0].device.type == "cpu":
            chains = len(inputs[0])
            most = CACHED_ELEMENTS * chains // max([1, *graph.sizes])
            size = divisor(chains, most)
            self._groups[chains] = size if 4 * size > most else chains
        return graph

    def compile_graph(self, kind: str, position: Position) -> None:
        """Compile the graph for this number of chains.

        :raises CannotCapture: with the reason; it then runs as recorded.
        """
        key = _key(kind, position)
        self._tried.add(key)
        self.recorded.compile(self.recorded.graphs[key], list(position.values()), [{}])

    def record_within(self, fn: Callable[[], Any]) -> None:
        """Call a function, and record what it evaluates at the first evaluation rather than at the twentieth.

        :raises CannotCapture: if that cannot be done.
        """
        self._after = 1
        try:
            fn()
        finally:
            self._after = GRAPH_AFTER
        if self.recorded.reason:
            raise CannotCapture(self.recorded.reason)

    def _results(self, kind: str, position: Position) -> Sequence[Tensor]:
        """Value and gradients, or the value alone: by the graph, where there is one."""
        key = _key(kind, position)
        graph = self.recorded.graphs.get(key)
        if graph is None and not is_recording():
            graph = self._due(kind, position)
        try:
            if graph is None:
                return self._plain(kind, position)
            if self.compile and key not in self._tried and not is_recording():
                try:
                    self.compile_graph(kind, position)
                except CannotCapture as reason:
                    logger.info("the potential's graph is not compiled: %s", reason)
            return graph(*position.values())
        except torch.linalg.LinAlgError:
            return self._chain_by_chain(kind, position)

    def _plain(self, kind: str, position: Position) -> list[Tensor]:
        if kind == "value":
            return [self._value(position)]
        value, gradient = self._both(position)
        return [value, *(gradient[k] for k in self._wrt(position))]

    def _due(self, kind: str, position: Position) -> StaticGraph | None:
        """The graph to use from now on, once there have been enough evaluations at this number of chains."""
        key = _key(kind, position)
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        if calls < self._after or self.recorded.reason or not self._can_be_recorded():
            return None
        try:
            return self.record(kind, position)
        except CannotCapture as reason:
            self.recorded.give_up(str(reason))
            return None

    def _without_value(self, key: Any, position: Position) -> Sequence[Tensor]:
        """The gradients alone, and what is needed for them alone; a compiled graph works out all."""
        graph = self.recorded.graphs[key]
        if graph.backend != "aten":
            return graph(*position.values())[1:]
        if key not in self._gradients:
            rest = copy.deepcopy(graph.graph)
            (output,) = (n for n in rest.graph.nodes if n.op == "output")
            output.args = (list(output.args[0])[1:],)
            drop_dead_code(rest)
            rest.recompile()
            self._gradients[key] = StaticGraph(rest, graph.externals, rest)
        return self._gradients[key](*position.values())

    def _in_groups(self, position: Position) -> list[Position]:
        """The position as the groups of chains that are evaluated together."""
        chains = _chains(position)
        size = self.group(chains)
        if size >= chains:
            return [position]
        return [{k: v[a : a + size] for k, v in position.items()} for a in range(0, chains, size)]

    def _chain_by_chain(self, kind: str, position: Position) -> Sequence[Tensor]:
        # A batched factorisation raises for all chains when one of them is outside its domain.
        rows: list[Sequence[Tensor] | None] = []
        for c in range(_chains(position)):
            try:
                rows.append(self._plain(kind, {k: v[c : c + 1] for k, v in position.items()}))
            except torch.linalg.LinAlgError:
                rows.append(None)
        first = next(iter(position.values()))
        dtype = first.dtype if first.is_floating_point() else torch.get_default_dtype()
        nothing = [first.new_zeros(1, dtype=dtype)]
        if kind == "gradient":
            nothing += [position[k][:1] for k in self._wrt(position)]
        like = next((row for row in rows if row is not None), nothing)
        failed = [torch.full_like(v, float("nan")) for v in like]
        return [torch.cat([(failed if row is None else row)[i] for row in rows]) for i in range(len(like))]


def _say(reason: str) -> None:
    logger.info("the potential runs without a graph: %s", reason)


def _key(kind: str, position: Position) -> Any:
    """What a graph takes for granted: it has the position's tensors as inputs, in their order."""
    return kind, _chains(position), *position


def _chains(position: Position) -> int:
    return next(iter(position.values())).shape[0]


def divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is at most ``most``, and at least 1."""
    return next(d for d in range(max(1, min(number, most)), 0, -1) if number % d == 0)
