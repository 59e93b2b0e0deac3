"""Potentials over chains, ``U`` and its gradient: the contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.capture.graph import GraphFunction, graph_of, graph_or_function
from pyro_dgm.capture.static_graph import CannotCapture

__all__ = ["MissingGraph", "Position", "Potential", "divisor"]

Position = dict[str, Tensor]

#: evaluations at one number of chains after which the model's graph takes the model's place
GRAPH_AFTER = 20
#: elements of an evaluation's largest tensor above which chains are evaluated in groups: what a processor's cache holds
CACHED_ELEMENTS = 2**21


class Potential(ABC):
    """A potential energy :math:`U` over a leading chain dimension; the target density is :math:`e^{-U}`.

    From the twentieth evaluation at one number of chains on, the graph of its tensor operations takes its place.
    """

    #: constrained to unconstrained space, one for each latent whose support is fixed (Pyro's convention)
    transforms: dict[str, Transform]
    #: whether graphs are compiled as soon as they are recorded
    compile = False
    #: whether positions may be integers or booleans
    discrete = False
    #: whether there is a potential at all
    known = True
    #: most chains evaluated together; by default what the processor's cache holds, once a graph shows how much that is
    chunk_size: int | None = None

    def __init__(self) -> None:
        # A run has one number of chains; single chains come besides, where a factorisation failed.
        self._graphs: dict[Any, Callable[[Position], Sequence[Tensor]]] = {}
        self._calls: dict[Any, int] = {}
        self._groups: dict[int, int] = {}
        self._tracing = False

    @abstractmethod
    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        """``U`` of shape ``(chains,)`` and its gradient."""

    @abstractmethod
    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        """Constrained values of ``(batch, ...)`` positions, and the log-Jacobians, ``(batch,)``."""

    def check(self, position: Position) -> None:  # noqa: B027
        """:raises ValueError: for initial values that the potential cannot take; the message names them."""

    @property
    def can_be_recorded(self) -> bool:
        """Whether all chains are evaluated together."""
        return True

    def explain(self, position: Position) -> str:
        """What makes the potential of these chains non-finite, for an error message."""
        values, _ = self(position)
        return f"the potential is {', '.join(f'{v:g}' for v in values.tolist()[:5])} there"

    def __call__(self, position: Position) -> tuple[Tensor, Position]:
        """Value and gradient; a chain at which a matrix factorisation fails has value NaN, and harms no other chain."""
        chains = len(next(iter(position.values())))
        size = self._groups.get(chains, chains) if self.chunk_size is None else self.chunk_size
        if self._tracing or size >= chains:
            return self._unflat(position, self._results("gradient", position))
        rows = [{k: v[a : a + size] for k, v in position.items()} for a in range(0, chains, size)]
        parts = zip(*(self._results("gradient", part) for part in rows), strict=True)
        return self._unflat(position, [torch.cat(part) for part in parts])

    def gradient(self, position: Position) -> Position:
        """The gradient alone: by fewer operations, where there is a graph."""
        size, chains = self.group(position), next(iter(position.values())).shape[0]
        graph = self._graphs.get(("gradient", size))
        if self._tracing or chains % size or not isinstance(graph, GraphFunction):
            return self(position)[1]
        parts = []
        try:
            for start in range(0, chains, size):
                part = position if size == chains else {k: v[start : start + size] for k, v in position.items()}
                parts.append(graph.without_first(part))
        except torch.linalg.LinAlgError:
            return self(position)[1]
        columns = zip(*parts, strict=True)
        return {k: v[0] if len(v) == 1 else torch.cat(v) for k, v in zip(position, columns, strict=True)}

    def value(self, position: Position) -> Tensor:
        """``U`` of shape ``(chains,)`` alone, for kernels that take no gradient."""
        return self._results("value", position)[0]

    def _results(self, kind: str, position: Position) -> Sequence[Tensor]:
        """Value and gradients, or the value alone: by the graph, where there is one."""
        if self._tracing:
            return self.graph(position, kind).trace(position)
        try:
            graph = self._graphs.get((kind, len(next(iter(position.values()))))) or self._record(kind, position)
            return (graph or self._flat(kind))(position)
        except torch.linalg.LinAlgError:
            return self._chain_by_chain(kind, position)

    def _value(self, position: Position) -> Tensor:
        return self._evaluate(position)[0]

    @staticmethod
    def _unflat(position: Position, results: Sequence[Tensor]) -> tuple[Tensor, Position]:
        value, *gradients = results
        return value, dict(zip(position, gradients, strict=True))

    def _flat(self, kind: str) -> Callable[[Position], Sequence[Tensor]]:
        def value_and_gradient(position: Position) -> Sequence[Tensor]:
            value, gradient = self._evaluate(position)
            return [value, *map(gradient.__getitem__, position)]

        return value_and_gradient if kind == "gradient" else lambda position: [self._value(position)]

    def _record(self, kind: str, position: Position) -> Callable[[Position], Sequence[Tensor]] | None:
        """The graph to use from now on, once there have been enough evaluations at this number of chains."""
        if not self.can_be_recorded:
            return None
        key = kind, len(next(iter(position.values())))
        self._calls[key] = self._calls.get(key, 0) + 1
        if self._calls[key] < GRAPH_AFTER:
            return None
        return self._keep(kind, position, graph_or_function(self._flat(kind), position, self.compile))

    def _keep(self, kind: str, position: Position, graph: Callable[[Position], Sequence[Tensor]]) -> Any:
        first = next(iter(position.values()))
        chains = len(first)
        self._graphs[kind, chains] = graph
        if kind == "gradient" and isinstance(graph, GraphFunction) and first.device.type == "cpu":
            most = CACHED_ELEMENTS * chains // max(graph.largest, 1)
            size = divisor(chains, most)
            self._groups[chains] = size if 4 * size > most else chains
        return graph

    def graph(self, position: Position, kind: str = "gradient") -> GraphFunction:
        """Value and gradients (or the value alone) at positions of these shapes as one graph, made now if need be.

        :param kind: ``"gradient"`` or ``"value"``.
        :raises CannotCapture: (:class:`pyro_dgm.capture.static_graph.CannotCapture`) with the reason.
        """
        graph = self._graphs.get((kind, len(next(iter(position.values())))))
        if not isinstance(graph, GraphFunction):
            if self._tracing:
                raise MissingGraph(self, position, kind)
            self(position) if kind == "gradient" else self.value(position)  # in its own words, where it has a fault
            if not self.can_be_recorded:
                raise CannotCapture("the model cannot be vectorised over chains")
            graph = graph_of(self._flat(kind), position)
            self._keep(kind, position, graph)
            if self.compile:
                graph.compile(self._flat(kind), position)
        return graph

    def compile_graph(self, position: Position, kind: str = "gradient") -> None:
        """Have inductor compile the graph of :meth:`graph`.

        :raises CannotCapture: with the reason.
        """
        self.graph(position, kind).compile(self._flat(kind), position)

    @property
    def graphs(self) -> list[GraphFunction]:
        """The graphs that there are, those of potentials inside among them."""
        own = [g for g in self._graphs.values() if isinstance(g, GraphFunction)]
        inside = [v for v in vars(self).values() if isinstance(v, Potential)]
        return own + [g for potential in inside for g in potential.graphs]

    def group(self, position: Position) -> int:
        """How many chains are evaluated together: ``chunk_size``, or what the processor's cache holds."""
        chains = len(next(iter(position.values())))
        return self._groups.get(chains, chains) if self.chunk_size is None else min(self.chunk_size, chains)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """While a transition is being recorded: evaluations are plain operations, for a larger graph to take in."""
        self._tracing = True
        try:
            yield
        finally:
            self._tracing = False

    def _chain_by_chain(self, kind: str, position: Position) -> Sequence[Tensor]:
        # A batched factorisation raises for all chains when one of them is outside its domain.
        evaluate = self._flat(kind)
        rows: list[Sequence[Tensor] | None] = []
        for c in range(len(next(iter(position.values())))):
            try:
                rows.append(evaluate({k: v[c : c + 1] for k, v in position.items()}))
            except torch.linalg.LinAlgError:
                rows.append(None)
        first = next(iter(position.values()))
        dtype = first.dtype if first.is_floating_point() else torch.get_default_dtype()
        nothing = [first.new_zeros(1, dtype=dtype), *(v[:1] for v in position.values() if kind == "gradient")]
        like = next((row for row in rows if row is not None), nothing)
        failed = [torch.full_like(v, float("nan")) for v in like]
        return [torch.cat([(failed if row is None else row)[i] for row in rows]) for i in range(len(like))]


class MissingGraph(Exception):
    """A recording that wants a potential's graph, which must be made outside of it."""

    def __init__(self, potential: Potential, position: Position, kind: str) -> None:
        super().__init__("a potential has no graph for these shapes yet")
        self.potential, self.position, self.kind = potential, position, kind

    def make(self) -> None:
        """Make it, the recording being over."""
        self.potential.graph({k: v.detach().clone() for k, v in self.position.items()}, self.kind)


def divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is at most ``most``, and at least 1."""
    return next(d for d in range(max(1, min(number, most)), 0, -1) if number % d == 0)
