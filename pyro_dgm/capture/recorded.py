"""Verified static graphs of functions, by key: recorded, rewritten, compared with the function, compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.capture.dry_run import DryRun, dry_run
from pyro_dgm.capture.passes import PASSES, Pass, apply_passes
from pyro_dgm.capture.static_graph import CannotCapture, Function, StaticGraph, agreement, record

__all__ = ["Recorded", "aliased", "difference"]

logger = logging.getLogger("pyro_dgm")

#: calls of a graph at which it is compared with its function again: the second batch shows what the first one froze
CHECKED_CALLS = frozenset([2, 10, 100, *(1000 * n for n in range(1, 1000))])


class Recorded:
    """Graphs of functions, one for each key, each compared with its function before it is used.

    A key is what a graph takes for granted: shapes, types, modes.  Where a function cannot be recorded, or its graph is
    not the function, :class:`CannotCapture` tells the reason, and no graph is kept.  :meth:`give_up` states a reason
    once and for all, for those who then run the function itself.

    :param what: what the graphs stand for, in messages.
    :param most: graphs kept; ``None`` for any number.
    :param forgiven: graphs that :meth:`check` may find outdated and drop before it raises.
    :param passes: rewrite a graph in place after it is recorded; ``()`` for a function that reads tensors, other than
        its inputs and ``known``, that change between calls: the passes take them for constants.
    :param recording: context in which a function is recorded; the graph is compared with the function outside of it.
    :param raises: whether a graph must raise where a matrix cannot be factorised, as the function does.  Compiled code
        does not, so a graph with a factorisation is then not compiled.
    :param say: called with the reason that :meth:`give_up` is given.
    :ivar graphs: the graphs by key.
    :ivar reason: why there are no graphs any more; ``""`` while there may be.

    Example::

        >>> import torch
        >>> recorded = Recorded("a square")
        >>> x = torch.tensor([1.0, 2.0])
        >>> graph = recorded.record(x.shape, lambda x: [x * x], [x])
        >>> recorded.graphs[x.shape](3 * x)[0], recorded.status()
        (tensor([ 9., 36.]), 'captured: 1 graph (aten)')
    """

    def __init__(
        self,
        what: str = "the function",
        *,
        most: int | None = None,
        forgiven: int = 0,
        passes: Sequence[Pass] = PASSES,
        recording: Callable[[], AbstractContextManager[Any]] = nullcontext,
        raises: bool = False,
        say: Callable[[str], None] = logger.info,
    ) -> None:
        self.what, self.most, self.forgiven, self.passes, self.say = what, most, forgiven, passes, say
        self.recording, self.raises = recording, raises
        self.graphs: dict[Any, StaticGraph] = {}
        self.reason = ""
        self._outdated, self._crowded = 0, False

    def record(
        self,
        key: Any,
        function: Function,
        inputs: Sequence[Tensor],
        *,
        known: Sequence[Tensor] = (),
        other_inputs: Sequence[Tensor] | None = None,
        compile: Sequence[Mapping[str, Any]] = (),
    ) -> StaticGraph:
        """Record the function for inputs of these shapes, verify the graph, compile it, and keep it under ``key``.

        Random state, and the tensors of ``known`` that the function writes, are left as they were.

        :param known: tensors from outside that the function is known to read or write.
        :param other_inputs: at which the graph is compared too, if the function takes them: they show data that the
            function reads as Python numbers.
        :param compile: options of the compiler, to be tried in turn; empty for a graph that runs as recorded.
        :raises CannotCapture: with the reason; where it is the compiler's, the graph is kept as recorded.
        """

        def recorded(*flat: Tensor) -> Sequence[Tensor]:
            with self.recording():
                return function(*flat)

        graph = dry_run(lambda *flat: record(recorded, flat, known), aliased(inputs), known).results
        graph.function = function
        apply_passes(graph.graph, self.passes)
        if found := difference(graph, inputs):
            raise CannotCapture(f"its graph gives something else than {self.what}: {found}")
        if other_inputs is not None and (found := difference(graph, other_inputs, may_fail=True)):
            raise CannotCapture(f"it reads data in a way that a graph would freeze (on other data {found})")
        self.graphs[key] = graph
        self.compile(graph, inputs, compile)
        return graph

    def compile(self, graph: StaticGraph, inputs: Sequence[Tensor], options: Sequence[Mapping[str, Any]]) -> None:
        """Compile a graph with the first options that work, and compare the result; else it runs as recorded.

        :raises CannotCapture: with the reason, where none works.
        """
        if options and self.raises and any("check_errors" in str(n.target) for n in graph.graph.graph.nodes):
            raise CannotCapture("it factorises a matrix, whose failure a compiled graph would not tell")
        before = graph.compiled, graph.backend, graph.replayed
        for i, chosen in enumerate(options):
            try:
                graph.compile(inputs, **chosen)
                if found := difference(graph, inputs):
                    raise CannotCapture(f"compiled, its graph gives something else: {found}")
                return
            except CannotCapture:
                graph.compiled, graph.backend, graph.replayed = before
                if i == len(options) - 1:
                    raise

    def is_full(self) -> bool:
        """Whether there are as many graphs as are kept; the first time that there are, the log says so."""
        full = self.most is not None and len(self.graphs) >= self.most
        if full and not self._crowded:
            self._crowded = True
            logger.info("more than %d shapes of the inputs: further ones run eagerly", self.most)
        return full

    def check(self, key: Any, inputs: Sequence[Tensor]) -> bool:
        """Count a call; at some, compare the graph with its function.

        :returns: whether the graph may be used; one that is outdated is dropped.
        :raises CannotCapture: where more graphs than :attr:`forgiven` have been outdated.
        """
        graph = self.graphs[key]
        graph.calls += 1
        if graph.calls not in CHECKED_CALLS or not (found := difference(graph, inputs)):
            return True
        del self.graphs[key]
        self._outdated += 1
        if self._outdated > self.forgiven:
            raise CannotCapture(f"it is not the same operations on every call ({found})")
        logger.info("%s has changed since it was captured and is captured again: %s", self.what, found)
        return False

    def give_up(self, reason: str) -> None:
        """Drop all graphs for good, and state the reason."""
        self.reason = reason
        self.graphs.clear()
        self.say(reason)

    def status(self) -> str:
        """How many graphs there are and what runs them, or why there are none."""
        if self.reason:
            return f"eager: {self.reason}"
        backends = sorted({g.backend for g in self.graphs.values()})
        count = len(self.graphs)
        return f"captured: {count} graph{'s' * (count != 1)} ({', '.join(backends)})" if count else "not seen yet"


def difference(graph: StaticGraph, inputs: Sequence[Tensor], may_fail: bool = False) -> str:
    """What a graph does that its function does not, by dry runs; ``""`` if they are the same up to rounding.

    Compared are results, tensors written in place, and the random state.  Where a matrix cannot be factorised, neither
    of the two may give a result.

    :param may_fail: the function may not take these inputs at all; then there is nothing to compare.
    """
    try:
        expected = _outcome(graph.function, graph, inputs)
    except Exception as error:  # where the function itself fails now, a call of it says so in its own words
        return "" if may_fail else f"{type(error).__name__} in the comparison"
    try:
        found = _outcome(graph, graph, inputs)
    except Exception as error:
        return f"{type(error).__name__} of the graph in the comparison"
    if expected is None or found is None:
        return "" if expected is found else "only one of the two can factorise its matrices"
    if not torch.equal(expected.random_state, found.random_state):
        return "it draws other random numbers"
    if expected.written.keys() != found.written.keys():
        return "it writes other tensors"
    written = [expected.written[i] for i in found.written], list(found.written.values())
    return agreement(expected.results, found.results) or agreement(*written)


def _outcome(fn: Function, graph: StaticGraph, inputs: Sequence[Tensor]) -> DryRun | None:
    """What a dry run gives; ``None`` where a matrix cannot be factorised."""
    try:
        return dry_run(fn, aliased(inputs), graph.externals)
    except torch.linalg.LinAlgError:
        return None


def aliased(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The same memory as other tensors, so that an input given twice is two inputs, and no gradient leaves."""
    return [t.detach().requires_grad_(t.requires_grad) for t in inputs]
