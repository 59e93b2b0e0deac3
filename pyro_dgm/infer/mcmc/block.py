"""Several transitions of all chains as one graph of tensor operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.capture.recorded import Recorded
from pyro_dgm.capture.static_graph import StaticGraph
from pyro_dgm.infer.mcmc.kernels.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.potentials.base import Position

__all__ = ["Block", "FailedCall", "Noise", "Rows", "part_of", "row_of"]

#: the random numbers of one transition
Noise = Mapping[str, Tensor]

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


class Block:
    """``length`` transitions of ``group`` chains as one graph.

    :param kernel: bound to its data.
    :param state: of all chains; what a graph takes for granted is taken from it.
    """

    def __init__(self, kernel: Kernel, state: KernelState, length: int, group: int) -> None:
        self.kernel, self.length, self.group = kernel, length, group
        self.names = list(state.tensors())
        self.like = _rows_of(state, slice(0, group))
        #: how the results of the graph are to be read, known once it is recorded
        self.noise_names: list[str] = []
        self.changed_at: list[int] = []
        self.rows: list[str] = []
        self.row_places: dict[str, int] = {}
        self.graph: StaticGraph | None = None

    def record(self, recorded: Recorded, key: Any, state: KernelState, noises: Sequence[Noise], compile: bool) -> None:
        """Record the graph, verified at a state and the random numbers of its transitions.

        :raises CannotCapture: with the reason; where it is the compiler's, the graph runs as recorded.
        """
        self.noise_names = list(noises[0])
        part = slice(0, self.group)
        inputs = self._inputs(_rows_of(state, part), [_cut(noise, part, state.num_chains) for noise in noises])
        # Told of what the potential reads, the recording need not look for that by a second run.
        graphs = self.kernel.potential.evaluator.recorded.graphs.values()
        known = {id(t): t for g in graphs for t in g.externals}
        self.graph = recorded.record(key, self._transitions, inputs, known=list(known.values()))
        recorded.compile(self.graph, inputs, [{}] if compile else [])

    @torch.no_grad()
    def _transitions(self, *values: Tensor) -> list[Tensor]:
        """The transitions as a function of the state's tensors and the random numbers."""
        count = len(self.names)
        tensors = dict(zip(self.names, values[:count], strict=True))
        now = self.like.with_tensors(tensors)
        numbers = iter(values[count:])
        rows = []
        for _ in range(self.length):
            now, info = self.kernel.transition(now, {k: next(numbers) for k in self.noise_names})
            rows.append(row_of(now, info, stack=False))
        new = now.tensors()
        changed = [k for k in self.names if new[k] is not tensors[k]]
        merged = {k: torch.stack([r[k] for r in rows], 1) if self.length > 1 else rows[0][k] for k in rows[0]}
        merged = {k: v for k, v in merged.items() if self.length > 1 or v is not new.get(k)}
        if "step_size" not in changed:
            merged.pop("step_size", None)
        self.rows = list(merged)
        self.changed_at = [self.names.index(k) for k in changed]
        kept = [k for k in rows[0] if k in merged or k in self.names]
        constant = {"step_size"} - set(changed)
        self.row_places = {k: self.names.index(k) if k in self.names else -1 for k in kept if k not in constant}
        outputs = [*(new[k] for k in changed), *merged.values()]
        return [v.contiguous() for v in outputs]

    def _inputs(self, state: KernelState, noises: Sequence[Noise]) -> list[Tensor]:
        tensors = [*state.tensors().values(), *(noise[k] for noise in noises for k in self.noise_names)]
        return [t if t.is_contiguous() else t.contiguous() for t in tensors]

    def many(
        self, state: KernelState, noises: Callable[[int], Sequence[Noise]], calls: int
    ) -> tuple[KernelState, Rows]:
        """Call the graph several times, ``noises`` giving the random numbers of each.

        :raises FailedCall: where a call fails, with what those before it have made.
        """
        chains = state.num_chains
        parts = [slice(start, start + self.group) for start in range(0, chains, self.group)]
        # Chains that do not meet are each group's own; the numbers are drawn for all of them at once.
        flats = [self._inputs(_rows_of(state, part), []) for part in parts]
        made: list[list[dict[str, Tensor]]] = [[] for _ in parts]
        assert self.graph is not None
        failure: BaseException | None = None
        drawn: Sequence[Noise] = ()
        done = 0
        try:
            for _ in range(calls):
                drawn = noises(done)
                results = []
                for flat, part in zip(flats, parts, strict=True):
                    numbers = [cut[k] for cut in (_cut(n, part, chains) for n in drawn) for k in self.noise_names]
                    results.append(self.graph(*flat, *[t if t.is_contiguous() else t.contiguous() for t in numbers]))
                for flat, found, result in zip(flats, made, results, strict=True):
                    for at, tensor in zip(self.changed_at, result, strict=False):
                        flat[at] = tensor if tensor.is_contiguous() else tensor.contiguous()
                    found.append(self._rows_from(flat, result))
                done += 1
        except (torch.linalg.LinAlgError, KeyboardInterrupt) as error:
            failure = error
        new = state
        if done:
            tensors = dict(state.tensors())
            for at in self.changed_at:
                tensors[self.names[at]] = flats[0][at] if len(parts) == 1 else torch.cat([f[at] for f in flats])
            new = replace(state.with_tensors(tensors), iteration=state.iteration + done * self.length)
        rows = Rows.join([self._joined(state, flat) for flat in made], 0) if done else None
        if failure is not None:
            raise FailedCall(new, rows, drawn) from failure
        assert rows is not None
        return new, rows

    def _rows_from(self, flat: Sequence[Tensor], result: Sequence[Tensor]) -> dict[str, Tensor]:
        """What a call says of its transitions; what is not among the results is that of the only transition."""
        rows = dict(zip(self.rows, result[len(self.changed_at) :], strict=True))
        return {k: rows[k] if k in rows else flat[at] for k, at in self.row_places.items()}

    def _joined(self, state: KernelState, calls: Sequence[Mapping[str, Tensor]]) -> Rows:
        if self.length == 1:
            found = {k: torch.stack([call[k] for call in calls], 1) for k in self.row_places}
        elif len(calls) == 1:
            found = dict(calls[0])  # torch.cat would copy it
        else:
            found = {k: torch.cat([call[k] for call in calls], 1) for k in self.row_places}
        potential = found["potential"]
        constant = per_chain(state.step_size, potential.shape[0]).unsqueeze(1).expand(potential.shape)
        stats = {"potential": potential, "step_size": found.get("step_size", constant), **{k: found[k] for k in INFO}}
        return Rows({k: found[f"position {k}"] for k in state.position}, stats)


class FailedCall(Exception):
    """A call of a block failed: at a matrix that could not be factorised, or by Ctrl-C.

    :ivar state: after the calls before it.
    :ivar rows: what they made, or ``None``.
    :ivar noises: its random numbers.
    """

    def __init__(self, state: KernelState, rows: Rows | None, noises: Sequence[Noise]) -> None:
        super().__init__("a block of transitions failed")
        self.state, self.rows, self.noises = state, rows, noises


def per_chain(value: Tensor, chains: int) -> Tensor:
    return value if value.dim() else value.expand(chains)


def row_of(state: KernelState, info: Info, stack: bool = True) -> Any:
    """The state and what is said of a transition, as one row."""
    stats = {"potential": state.potential, "step_size": per_chain(state.step_size, state.num_chains)}
    stats.update({k: getattr(info, k) for k in INFO})
    if not stack:
        return {**{f"position {k}": v for k, v in state.position.items()}, **stats}
    return Rows({k: v.unsqueeze(1) for k, v in state.position.items()}, {k: v.unsqueeze(1) for k, v in stats.items()})


def part_of(state: KernelState, noise: Noise, group: int) -> tuple[KernelState, Noise]:
    """The state and the random numbers of the first chains."""
    part = slice(0, group)
    return _rows_of(state, part), _cut(noise, part, state.num_chains)


def _rows_of(state: KernelState, rows: slice) -> KernelState:
    """Some of the chains."""
    return state if rows == slice(0, state.num_chains) else state.chains(rows)


def _cut(noise: Noise, rows: slice, chains: int) -> Noise:
    if rows == slice(0, chains):
        return noise
    return {k: v[rows] if v.dim() and v.shape[0] == chains else v for k, v in noise.items()}
