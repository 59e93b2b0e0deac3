"""A kernel's transitions in sequence, as graphs of tensor operations where they can be recorded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pyro_dgm.capture.cost import cost_on
from pyro_dgm.capture.recorded import Recorded
from pyro_dgm.capture.static_graph import CannotCapture
from pyro_dgm.infer.mcmc.block import Block, FailedCall, Noise, Rows, part_of, row_of
from pyro_dgm.infer.mcmc.kernels.base import Kernel, KernelState
from pyro_dgm.infer.mcmc.potentials.evaluator import divisor

__all__ = ["Rows", "Transitions", "compile_gradient", "compile_large_gradient"]

logger = logging.getLogger("pyro_dgm.infer.mcmc")

#: operations of a graph of several transitions: beyond that the calls between graphs are cheap beside the graphs
BLOCK_OPERATIONS = 400
#: most transitions in a graph
LONGEST_BLOCK = 16
#: gradients in a transition beyond which it is not recorded whole
MOST_STEPS = 64
#: kinds of transition (numbers of steps) for which there is a graph of the whole
MOST_GRAPHS = 2
#: operations of a transition beside its gradients', and of each of its steps
OWN_OPERATIONS, OWN_OPERATIONS_A_STEP = 30, 6
#: operations of a gradient beyond which it is compiled by itself, and in the warm-up already
LARGE_GRADIENT = 1000
#: elements that all tensors of the transitions of one call have together, and most transitions
ELEMENTS_AT_ONCE, MOST_AT_ONCE = 2**22, 32
#: elements of the positions of one call beyond which several calls' are not put together: it is to copy them
ROWS_WORTH_JOINING = 2**17


def compile_gradient(kernel: Kernel, state: KernelState, to_come: int) -> None:
    """Compile the potential's graphs by themselves, where the transitions to come win back what that costs.

    For transitions of many lengths, which have it in common, and where it is large (a recursion over time, written
    out): a whole transition would then take minutes to compile, and gain little more.

    :param to_come: transitions that the run has left.
    """
    evaluator = kernel.potential.evaluator
    graph = evaluator.largest()
    if graph is None:
        return
    cost = cost_on(state.generator.device)
    saved = cost.saved_operation * graph.operations + cost.saved_element * graph.elements
    # Transitions of many lengths take about half of the most steps that the state has had lately.
    if to_come * state.num_steps * saved > 1.5 * (cost.compiling_graph + cost.compiling_operation * graph.operations):
        evaluator.compile = True


def compile_large_gradient(kernel: Kernel, state: KernelState, to_come: int) -> bool:
    """As :func:`compile_gradient`, in the warm-up, and only for a gradient of many operations.

    :returns: whether it has been looked at: from the twentieth evaluation on there is a graph.
    """
    graph = kernel.potential.evaluator.largest()
    if graph is None:
        return False
    if kernel.compile == "auto" and graph.operations >= LARGE_GRADIENT:
        compile_gradient(kernel, state, to_come)
    return True


class Transitions:
    """Runs a kernel, many transitions a call.

    Random numbers are drawn from the state's generator transition by transition, outside of all graphs, so that the
    numbers, and the draws up to rounding, are the same recorded or not.  A graph holds several transitions where they
    are small; it is made when a number of steps comes for the first time, and compared with the kernel's own
    transitions, which that call takes.  A kernel that cannot be recorded runs as it is, and the log says why.

    :param kernel: bound to its data.
    :param compile: have inductor compile the graphs: always, never, or (``"auto"``) where the transitions to come win
        back what compiling costs, judged by counts and never by a clock.
    """

    def __init__(self, kernel: Kernel, compile: bool | str) -> None:
        self.kernel, self.compile = kernel, compile
        self._blocks: dict[Any, Block | None] = {}
        self.recorded = Recorded("the kernel's transition", raises=True, say=self._say)
        self._looked = self._interrupted = False
        if not kernel.potential.can_be_recorded:
            self.recorded.give_up("the model runs chain by chain")

    def run(self, state: KernelState, count: int, to_come: int | None = None) -> tuple[KernelState, Rows]:
        """Take some transitions, at least one and at most ``count``: as many as take a moment.

        Ctrl-C is raised at once where it comes before the first, and by the next call where it comes after.

        :param to_come: transitions that the run has left, ``count`` of them by default.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        state = replace(state, num_steps=self.kernel.steps_at(state))
        to_come = count if to_come is None else to_come
        key = state.num_steps, tuple((k, v.shape, v.dtype) for k, v in state.position.items())
        if key not in self._blocks and self._may_record(state, to_come):
            return self._record(key, state, count, to_come)
        block = self._blocks.get(key)
        if block is None or block.length > count:
            return self._one_by_one(state, min(count, self._at_once(state)))
        length, first = block.length, state.iteration
        calls = max(1, min(count, self._at_once(state)) // length)
        if length * sum(v.numel() for v in state.position.values()) > ROWS_WORTH_JOINING:
            calls = 1
        try:
            return block.many(
                state, lambda i: self._noises(replace(state, iteration=first + i * length), length), calls
            )
        except FailedCall as failed:
            if isinstance(failed.__cause__, KeyboardInterrupt):
                self._interrupt(failed.rows)
                return failed.state, failed.rows  # type: ignore[return-value]
            # One chain's failure is that of the batch; by the kernel's own transition, each is told apart.
            new, rows = self._with_noises(failed.state, failed.noises)
            return new, rows if failed.rows is None else Rows.join([failed.rows, rows], 1)

    def _interrupt(self, made: Any) -> None:
        """Ctrl-C: now, if nothing has been made that would be lost."""
        if not made:
            raise KeyboardInterrupt
        self._interrupted = True

    def _at_once(self, state: KernelState) -> int:
        """Transitions between two looks of the caller: what to keep of them costs as much as the smallest ones do."""
        graph = self.kernel.potential.evaluator.largest()
        elements = ELEMENTS_AT_ONCE if graph is None else graph.elements
        return max(1, min(MOST_AT_ONCE, ELEMENTS_AT_ONCE // max(1, elements * state.num_steps)))

    def _noises(self, state: KernelState, count: int) -> list[dict[str, Tensor]]:
        first = state.iteration
        return [self.kernel.noise(replace(state, iteration=first + i)) for i in range(count)]

    def _one_by_one(self, state: KernelState, count: int) -> tuple[KernelState, Rows]:
        parts: list[Rows] = []
        try:
            for _ in range(count):
                state, info = self.kernel.step(state)
                parts.append(row_of(state, info))
        except KeyboardInterrupt:
            self._interrupt(parts)
        return state, Rows.join(parts, 1)

    def _with_noises(self, state: KernelState, noises: Sequence[Noise]) -> tuple[KernelState, Rows]:
        parts = []
        for noise in noises:
            new, info = self.kernel.transition(state, noise)
            state = replace(new, iteration=state.iteration + 1)
            parts.append(row_of(state, info))
        return state, Rows.join(parts, 1)

    def _may_record(self, state: KernelState, to_come: int) -> bool:
        """Whether to look at recording transitions of these shapes and this number of steps."""
        if self.recorded.reason:
            return False
        graph = self.kernel.potential.evaluator.largest()
        if self.kernel.varying_steps:
            if not self._looked and self.compile == "auto" and graph is not None:
                self._looked = True
                compile_gradient(self.kernel, state, to_come)
            return False
        if len(self._blocks) >= MOST_GRAPHS or state.num_steps > MOST_STEPS:
            return False
        # So few evaluations so far that the potential has no graph itself: it is asked again.
        return graph is not None or self.compile is True

    def _record(self, key: Any, state: KernelState, count: int, to_come: int) -> tuple[KernelState, Rows]:
        """Take transitions as the kernel does, and record them for the calls to come, where that pays."""
        noises = self._noises(state, 1)
        block, compiled = None, False
        try:
            block, compiled = self._planned(state, noises[0], to_come)
        except CannotCapture as reason:
            self.recorded.give_up(str(reason))
        if block is None or block.length > count:
            if block is None:
                self._blocks[key] = None
            return self._with_noises(state, noises)
        noises += self._noises(replace(state, iteration=state.iteration + 1), block.length - 1)
        new, rows = self._with_noises(state, noises)
        try:
            block.record(self.recorded, key, state, noises, compiled)
        except CannotCapture as reason:
            if key not in self.recorded.graphs:
                self.recorded.give_up(str(reason))
                return new, rows
            logger.info("transitions are recorded and not compiled: %s", reason)
        self._blocks[key] = block
        return new, rows

    def _planned(self, state: KernelState, noise: Noise, to_come: int) -> tuple[Block | None, bool]:
        """What to record, and whether to compile it; ``None`` where the transitions to come would not win it back."""
        group = self._group(state, noise)
        graph = self.kernel.potential.evaluator.largest()
        if graph is not None and graph.backend != "aten" and graph.operations >= LARGE_GRADIENT:
            return None, False
        a_step = OWN_OPERATIONS_A_STEP + (graph.operations if graph else 0)
        operations = OWN_OPERATIONS + state.num_steps * a_step
        elements = state.num_steps * (graph.elements if graph else 0)
        cost = cost_on(state.generator.device)
        saved = cost.saved_operation * operations + cost.saved_element * elements
        gain = to_come * saved * state.num_chains / group
        wanted = gain > 1.5 * (cost.compiling_graph + cost.compiling_operation * max(operations, BLOCK_OPERATIONS))
        compiled = self.compile is True or (self.compile == "auto" and wanted)
        if not compiled and to_come < cost.recording_transitions * operations / state.num_steps:
            return None, False
        length = max(1, min(LONGEST_BLOCK, to_come // 4, BLOCK_OPERATIONS // operations))
        return Block(self.kernel, state, length, group), compiled

    def _group(self, state: KernelState, noise: Noise) -> int:
        """How many chains a graph is of; a transition of them is taken, for the potential to record what it needs."""
        evaluator, chains = self.kernel.potential.evaluator, state.num_chains
        bounded = evaluator.chunk_size is not None and evaluator.chunk_size < chains
        if bounded and not self.kernel.independent_chains:
            raise CannotCapture("its chains meet, and are evaluated in groups")
        if not bounded:
            evaluator.record_within(lambda: self.kernel.transition(state, noise))
        if not self.kernel.independent_chains:
            return chains
        most = evaluator.group(chains)
        size = divisor(chains, most)
        if 4 * size <= most:
            raise CannotCapture(f"{chains} chains do not fall into equal groups of about {most}")
        if size < chains:
            evaluator.record_within(lambda: self.kernel.transition(*part_of(state, noise, size)))
        return size

    def _say(self, reason: str) -> None:
        self._blocks.clear()
        logger.info("transitions of %s run without a graph: %s", type(self.kernel).__name__, reason)
