"""A kernel's transitions in sequence, as graphs of tensor operations where they can be recorded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.graph import hold, tells_failures
from pyro_dgm.infer.mcmc.potential import MissingGraph, Position, divisor
from pyro_dgm.infer.simplify import simplify
from pyro_dgm.infer.static_graph import CannotCapture, Function, StaticGraph, record

__all__ = ["Rows", "Transitions"]

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
#: transitions, for each operation of a step, that win back the seconds of recording them uncompiled
RECORDING_TRANSITIONS = 10
#: seconds that compiling takes: for any graph, and for each operation of it
COMPILING, COMPILING_OPERATION = 6.0, 0.01
#: seconds that a compiled graph saves: for each operation, and for each element that an operation gives
SAVED_OPERATION, SAVED_ELEMENT = 2.5e-6, 0.4e-9

INFO = ("acceptance_rate", "accepted", "diverging", "energy", "n_steps")


@dataclass(frozen=True)
class Rows:
    """What ``n`` transitions gave, each ``(chains, n, ...)``."""

    position: Position
    stats: dict[str, Tensor]

    @property
    def count(self) -> int:
        """Number of transitions."""
        return self.stats["potential"].shape[1]

    @classmethod
    def join(cls, parts: Sequence[Rows], dim: int) -> Rows:
        """Rows one after another (``dim=1``), or of groups of chains (``dim=0``)."""
        if len(parts) == 1:
            return parts[0]
        position = {k: torch.cat([p.position[k] for p in parts], dim) for k in parts[0].position}
        return cls(position, {k: torch.cat([p.stats[k] for p in parts], dim) for k in parts[0].stats})


class Transitions:
    """Runs a kernel, many transitions a call.

    Random numbers are drawn from the state's generator transition by transition, outside of all graphs, so that the
    numbers, and the draws up to rounding, are the same recorded or not.  A graph holds several transitions where they
    are small; it is made when a number of steps comes for the first time, and held against the kernel's own transition
    there.  A kernel that cannot be recorded runs as it is, and the log says why.

    :param kernel: bound to its data.
    :param compile: have inductor compile the graphs: always, never, or (``"auto"``) where the transitions to come win
        back what compiling costs, judged by counts and never by a clock.
    """

    def __init__(self, kernel: Kernel, compile: bool | str) -> None:
        self.kernel, self.compile = kernel, compile
        self._graphs: dict[Any, _Block | None] = {}
        self._looked = False
        self.reason = "" if kernel.potential.can_be_recorded else "the model runs chain by chain"

    def run(self, state: KernelState, count: int, to_come: int | None = None) -> tuple[KernelState, Rows]:
        """Take some transitions, at least one and at most ``count``: as many as make one call.

        :param to_come: transitions that the run has left, ``count`` of them by default.
        """
        state = replace(state, num_steps=self.kernel.steps_at(state))
        block = self._block(state, count if to_come is None else to_come)
        if block is None or block.length > count:
            return self._one_by_one(state, self._noises(state, 1))
        noises = self._noises(state, block.length)
        if not block.held:
            new, rows = self._one_by_one(state, noises)
            try:
                block.hold(self.kernel, state, noises, new, rows)
            except CannotCapture as reason:
                self._give_up(str(reason))
            return new, rows
        try:
            return block(state, noises)
        except torch.linalg.LinAlgError:  # one chain's failure is that of the batch; alone, each is told apart
            return self._one_by_one(state, noises)

    def _noises(self, state: KernelState, count: int) -> list[dict[str, Tensor]]:
        first = state.iteration
        return [self.kernel.noise(replace(state, iteration=first + i)) for i in range(count)]

    def _one_by_one(self, state: KernelState, noises: Sequence[Mapping[str, Tensor]]) -> tuple[KernelState, Rows]:
        parts = []
        for noise in noises:
            new, info = self.kernel.transition(state, noise)
            state = replace(new, iteration=state.iteration + 1)
            parts.append(_row(state, info))
        return state, Rows.join(parts, 1)

    def _block(self, state: KernelState, to_come: int) -> _Block | None:
        key = state.num_steps, tuple((k, v.shape, v.dtype) for k, v in state.position.items())
        if key in self._graphs:
            return self._graphs[key]
        full = len(self._graphs) >= MOST_GRAPHS or state.num_steps > MOST_STEPS
        if self.kernel.varying_steps:
            self._compile_gradient(state, to_come)
            return None
        if self.reason or full:
            return None
        self._graphs[key] = None
        try:
            self._graphs[key] = self._made(state, to_come)
        except CannotCapture as reason:
            self._give_up(str(reason))
        return self._graphs.get(key)

    def _compile_gradient(self, state: KernelState, to_come: int) -> None:
        """Where transitions are of many lengths, what they have in common is compiled: one evaluation."""
        if self._looked or self.reason or self.compile != "auto":
            return
        potential = self.kernel.potential
        kind = "gradient" if self.kernel.uses_gradient else "value"
        if not potential.graphs:
            return
        self._looked = True
        graph = potential.graph(state.position, kind)
        saved = SAVED_OPERATION * graph.plain.operations + SAVED_ELEMENT * graph.elements
        # Transitions take about half of the most steps that the state has had lately.
        if to_come * state.num_steps * saved > 1.5 * (COMPILING + COMPILING_OPERATION * graph.plain.operations):
            try:
                potential.compile_graph(state.position, kind)
            except CannotCapture as reason:
                logger.info("the potential's graph is not compiled: %s", reason)

    def _made(self, state: KernelState, to_come: int) -> _Block | None:
        graphs = self.kernel.potential.graphs
        if not graphs and self.compile is not True:
            return None  # so few evaluations so far that the potential has none itself
        group = self._group(state)
        graph = max(self.kernel.potential.graphs, key=lambda g: g.elements, default=None)
        a_step = OWN_OPERATIONS_A_STEP + (graph.plain.operations if graph else 0)
        operations = OWN_OPERATIONS + state.num_steps * a_step
        elements = state.num_steps * (graph.elements if graph else 0)
        saved = SAVED_OPERATION * operations + SAVED_ELEMENT * elements
        gain = to_come * saved * state.num_chains / group
        wanted = gain > 1.5 * (COMPILING + COMPILING_OPERATION * max(operations, BLOCK_OPERATIONS))
        compiled = self.compile is True or (self.compile == "auto" and wanted)
        if not compiled and to_come < RECORDING_TRANSITIONS * operations / state.num_steps:
            return None
        # Random numbers for the recording: shapes alone count, and the run's own stream is left where it is.
        before = state.generator.get_state()
        try:
            noise = self.kernel.noise(state)
        finally:
            state.generator.set_state(before)
        length = max(1, min(LONGEST_BLOCK, to_come // 4, BLOCK_OPERATIONS // operations))
        block = _Block(self.kernel, state, noise, length, group)
        if compiled:
            try:
                block.compile(state, [noise] * length)
            except CannotCapture as reason:
                logger.info("transitions are recorded and not compiled: %s", reason)
        return block

    def _group(self, state: KernelState) -> int:
        potential = self.kernel.potential
        bounded = potential.chunk_size is not None and potential.chunk_size < state.num_chains
        if not self.kernel.independent_chains:
            if bounded:
                raise CannotCapture("its chains meet, and are evaluated in groups")
            return state.num_chains
        if not bounded:
            potential.graph(state.position, "gradient" if self.kernel.uses_gradient else "value")
        most = potential.group(state.position)
        size = divisor(state.num_chains, most)
        if 4 * size <= most:
            raise CannotCapture(f"{state.num_chains} chains do not fall into equal groups of about {most}")
        return size

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._graphs.clear()
        logger.info("transitions of %s run without a graph: %s", type(self.kernel).__name__, reason)


class _Block:
    """``length`` transitions of ``group`` chains as one graph."""

    def __init__(
        self, kernel: Kernel, state: KernelState, noise: Mapping[str, Tensor], length: int, group: int
    ) -> None:
        self.length, self.held = length, False
        self.noise_names = list(noise)
        self.group, chains = group, state.num_chains
        state = _rows_of(state, slice(0, group))
        noise = {k: _cut(v, slice(0, group), chains) for k, v in noise.items()}
        self.names = list(_tensors(state))
        self.changed: list[str] = []
        self.rows: list[str] = []

        def flat(*values: Tensor) -> list[Tensor]:
            tensors = dict(zip(self.names, values[: len(self.names)], strict=True))
            now = _with(state, tensors)
            rest = values[len(self.names) :]
            rows = []
            for i in range(length):
                part = rest[i * len(self.noise_names) : (i + 1) * len(self.noise_names)]
                now, info = kernel.transition(now, dict(zip(self.noise_names, part, strict=True)))
                rows.append(_row(now, info, stack=False))
            new = _tensors(now)
            self.changed = [k for k in self.names if new[k] is not tensors[k]]
            merged = {k: torch.stack([r[k] for r in rows], 1) if length > 1 else rows[0][k] for k in rows[0]}
            merged = {k: v for k, v in merged.items() if length > 1 or v is not new.get(k)}
            if "step_size" not in self.changed:
                merged.pop("step_size", None)
            self.rows = list(merged)
            outputs = [*(new[k] for k in self.changed), *merged.values()]
            return [v.contiguous() for v in outputs]

        self.graph = _recorded(kernel, flat, self._inputs(state, [noise] * length))
        simplify(self.graph.graph)

    def _inputs(self, state: KernelState, noises: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        tensors = [*_tensors(state).values(), *(noise[k] for noise in noises for k in self.noise_names)]
        return [t if t.is_contiguous() else t.contiguous() for t in tensors]

    def compile(self, state: KernelState, noises: Sequence[Mapping[str, Tensor]]) -> None:
        """Have inductor compile the graph."""
        if tells_failures(self.graph):
            raise CannotCapture("it factorises a matrix, whose failure a compiled graph would not tell")
        rows = slice(0, self.group)
        noises = [{k: _cut(v, rows, state.num_chains) for k, v in n.items()} for n in noises]
        self.graph.compile(self._inputs(_rows_of(state, rows), noises))

    def hold(
        self,
        kernel: Kernel,
        state: KernelState,
        noises: Sequence[Mapping[str, Tensor]],
        new: KernelState,
        rows: Rows,
    ) -> None:
        """Hold the graph against what the kernel did."""

        def flat(now: KernelState, made: Rows) -> list[Tensor]:
            return [*_tensors(now).values(), *made.position.values(), *made.stats.values()]

        hold(lambda: flat(new, rows), lambda: flat(*self(state, noises)))
        self.held = True

    def __call__(self, state: KernelState, noises: Sequence[Mapping[str, Tensor]]) -> tuple[KernelState, Rows]:
        chains = state.num_chains
        if chains == self.group:
            new, rows = self._advance(state, noises)
        else:
            parts = []
            for start in range(0, chains, self.group):
                part = slice(start, start + self.group)
                cut = [{k: _cut(v, part, chains) for k, v in n.items()} for n in noises]
                parts.append(self._advance(_rows_of(state, part), cut))
            rows = Rows.join([p[1] for p in parts], 0)
            merged = {
                k: torch.cat([_tensors(p[0])[k] for p in parts]) if k in self.changed else v
                for k, v in _tensors(state).items()
            }
            new = _with(state, merged)
        return replace(new, iteration=state.iteration + self.length), rows

    def _advance(self, state: KernelState, noises: Sequence[Mapping[str, Tensor]]) -> tuple[KernelState, Rows]:
        results = iter(self.graph(*self._inputs(state, noises)))
        tensors = _tensors(state)
        tensors.update(zip(self.changed, results, strict=False))
        new = _with(state, tensors)
        found = dict(zip(self.rows, results, strict=True))
        found = {k: v if self.length > 1 else v.unsqueeze(1) for k, v in found.items()}
        # What is not among the results is that of the only transition, or did not change.
        position = {k: found.get(f"position {k}", v.unsqueeze(1)) for k, v in new.position.items()}
        potential = found.get("potential", new.potential.unsqueeze(1))
        size = found.get("step_size", _per_chain(new.step_size, new.num_chains).unsqueeze(1).expand(potential.shape))
        return new, Rows(position, {"potential": potential, "step_size": size, **{k: found[k] for k in INFO}})


def _recorded(kernel: Kernel, flat: Function, inputs: list[Tensor]) -> StaticGraph:
    """Record, having made the graphs of potentials that are found missing on the way."""
    for _ in range(5):
        try:
            with kernel.potential.tracing(), torch.no_grad(), pyro.validation_enabled(False):
                # Told of what the potentials read, it need not look for that by a second recording.
                known = {id(t): t for g in kernel.potential.graphs for t in g.plain.externals}
                return record(flat, inputs, list(known.values()))
        except CannotCapture as error:
            if not isinstance(error.__cause__, MissingGraph):
                raise
            missing = error.__cause__
        missing.make()
    raise CannotCapture("its potential is evaluated at ever other shapes")


def _per_chain(value: Tensor, chains: int) -> Tensor:
    return value if value.dim() else value.expand(chains)


def _row(state: KernelState, info: Info, stack: bool = True) -> Any:
    """The state and what is said of a transition, as one row."""
    stats = {"potential": state.potential, "step_size": _per_chain(state.step_size, state.num_chains)}
    stats.update({k: getattr(info, k) for k in INFO})
    if not stack:
        return {**{f"position {k}": v for k, v in state.position.items()}, **stats}
    return Rows({k: v.unsqueeze(1) for k, v in state.position.items()}, {k: v.unsqueeze(1) for k, v in stats.items()})


def _tensors(state: KernelState) -> dict[str, Tensor]:
    """The tensors of a state, by name."""
    named = {f"position {k}": v for k, v in state.position.items()}
    named["potential"], named["step_size"] = state.potential, state.step_size
    for kind in ("gradient", "inverse_mass", "extra"):
        named.update({f"{kind} {k}": v for k, v in getattr(state, kind).items()})
    return named


def _with(state: KernelState, tensors: Mapping[str, Tensor]) -> KernelState:
    """A state with these tensors."""
    kinds: dict[str, Any] = {
        kind: {k: tensors[f"{kind} {k}"] for k in getattr(state, kind)}
        for kind in ("position", "gradient", "inverse_mass", "extra")
    }
    return replace(state, potential=tensors["potential"], step_size=tensors["step_size"], warmup=None, **kinds)


def _rows_of(state: KernelState, rows: slice) -> KernelState:
    """Some of the chains."""
    chains = state.num_chains
    if rows == slice(0, chains):
        return state
    return replace(
        state,
        position={k: v[rows] for k, v in state.position.items()},
        gradient={k: v[rows] for k, v in state.gradient.items()},
        potential=state.potential[rows],
        extra={k: _cut(v, rows, chains) for k, v in state.extra.items()},
    )


def _cut(value: Tensor, rows: slice, chains: int) -> Tensor:
    return value[rows] if value.dim() and value.shape[0] == chains else value
