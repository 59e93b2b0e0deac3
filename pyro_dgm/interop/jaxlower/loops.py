"""Loops of Python, found in a recorded graph, which has them written out.

XLA compiles every operation of a graph, and a recursion over time or a solver of differential equations has thousands:
minutes of compilation, for a body of thirty operations.  A stretch of the program in which the same operations follow
each other again and again, each time on the values one repetition later, is such a loop.  What a repetition reads is
of one of four kinds: what it made itself; what an earlier repetition made (carried); the same value each time
(invariant); and a value of its own from before the loop (scanned over).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pyro_dgm.interop.jaxlower.loop import Loop
from pyro_dgm.interop.jaxlower.step import Constant, Ref, Step, refs_of, renumbered

__all__ = ["find_loops"]

#: fewer repetitions, or shorter programs, compile fast enough as they are
MIN_REPETITIONS = 8
MIN_STEPS = 100
MAX_PERIOD = 1000
#: operations with more operands (``stack`` of a list) are no part of a loop
MAX_OPERANDS = 8
#: how many repetitions back a value may be read
MAX_LAG = 8
#: repetitions at the beginning that may be left out, where they read otherwise than the later ones
MAX_PEELED = 3

_COPIES = ("aten.lift_fresh_copy.default", "aten.alias.default", "aten.detach.default")

Spec = tuple[tuple[int, ...] | None, torch.dtype | None]


def find_loops(inputs: Sequence[Spec], steps: Sequence[Step], outputs: Sequence[Ref]) -> list[int | Loop] | None:
    """The order in which to run a program's steps (by number) and the loops that stand for some of them.

    :returns: ``None`` for a program without loops.
    """
    if len(steps) < MIN_STEPS:
        return None
    program = _Program(inputs, steps)
    loops = sorted(_search(program, 0, len(program.order)), key=lambda found: found[0])
    if not loops:
        return None
    plan: list[int | Loop] = []
    done = 0
    for start, loop in loops:
        plan += [program.order[i] for i in range(done, start)]
        plan.append(loop)
        done = start + len(loop.steps) * loop.count
    plan += [program.order[i] for i in range(done, len(program.order))]
    _mark_emitted(plan, program, outputs)
    return plan


class _Program:
    """Steps in the order of :attr:`order`, with what each reads as places in that order (inputs: before 0)."""

    def __init__(self, inputs: Sequence[Spec], steps: Sequence[Step]) -> None:
        self.num_inputs, self.steps = len(inputs), list(steps)
        self.specs: list[Spec] = [*inputs, *((s.shape, s.dtype) for s in steps)]
        self.order = self._early()
        self.place = {number: i for i, number in enumerate(self.order)}
        self.place.update({number: number - self.num_inputs for number in range(self.num_inputs)})
        sequence = [self.step(number) for number in self.order]
        self.reads = [[self.place[r] for r in refs_of((s.args, s.kwargs))] for s in sequence]
        self.exact = _numbered([_signature(s) for s in sequence])
        self.loose = _numbered([(s.name if _moves(s) else _signature(s), s.shape, s.dtype) for s in sequence])
        for i, reads in enumerate(self.reads):
            if len(reads) > MAX_OPERANDS:
                self.exact[i] = -1 - i  # like no other
        self.operands = np.full((MAX_OPERANDS, len(sequence)), -self.num_inputs - 1)
        for i, reads in enumerate(self.reads):
            self.operands[: len(reads[:MAX_OPERANDS]), i] = reads[:MAX_OPERANDS]

    def step(self, number: int) -> Step:
        return self.steps[number - self.num_inputs]

    def spec(self, place: int) -> Spec:
        return self.specs[place + self.num_inputs if place < 0 else self.order[place]]

    def number(self, place: int) -> int:
        return place + self.num_inputs if place < 0 else self.order[place]

    def _early(self) -> list[int]:
        """Constants, and single rows of a tensor, as soon as they can be had: a loop that reads its own row of the
        data has no step then that differs from one repetition to the next."""
        after: dict[int, list[int]] = {}
        moved: set[int] = set()
        first: list[int] = []
        for i, step in enumerate(self.steps):
            number = self.num_inputs + i
            refs = refs_of((step.args, step.kwargs))
            if not _moves(step) or len(refs) > 1:
                continue
            moved.add(number)
            (after.setdefault(refs[0], []) if refs and refs[0] >= self.num_inputs else first).append(number)

        def with_followers(number: int) -> Iterator[int]:
            pending = [number]
            while pending:
                found = pending.pop()
                yield found
                pending += reversed(after.get(found, []))

        order = [n for number in first for n in with_followers(number)]
        for i in range(len(self.steps)):
            number = self.num_inputs + i
            if number not in moved:
                order += with_followers(number)
        return order


def _moves(step: Step) -> bool:
    row = step.rule is operator.getitem or step.name == "aten.select.int"
    return row or isinstance(step.rule, Constant) or step.name in _COPIES


def _signature(step: Step) -> Any:
    """All of a step but what it reads."""
    return step.rule, replace(step, args=renumbered(step.args), kwargs=renumbered(step.kwargs)).text


def _numbered(keys: Sequence[Any]) -> np.ndarray[Any, Any]:
    known: dict[Any, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys])


def _search(program: _Program, begin: int, end: int) -> Iterator[tuple[int, Loop]]:
    """Loops between two places: the one that covers most, and then before and after it."""
    pending = [(begin, end)]
    while pending:
        begin, end = pending.pop()
        for start, period, count in _candidates(program, begin, end):
            found = _build(program, start, period, count)
            if found is not None:
                yield found
                stop = found[0] + period * found[1].count
                pending += [(begin, found[0]), (stop, end)]
                break


def _candidates(program: _Program, begin: int, end: int) -> list[tuple[int, int, int]]:
    """``(start, period, count)``, the longest first: steps that are the same one period later, on operands that are
    one period later too, or the same, or of the same kind."""
    found = []
    exact, operands, loose = program.exact, program.operands, program.loose
    for period in range(1, min((end - begin) // MIN_REPETITIONS, MAX_PERIOD) + 1):
        same = exact[begin : end - period] == exact[begin + period : end]
        if _longest(same)[1] < period * (MIN_REPETITIONS - 1):
            continue
        for now, then in zip(operands[:, begin : end - period], operands[:, begin + period : end], strict=True):
            alike = (now >= 0) & (then >= 0) & (loose[now] == loose[then])
            same &= (then - now == period) | (then == now) | alike | ((now < 0) & (then < 0))
        start, length = _longest(same)
        count = length // period + 1
        if count >= MIN_REPETITIONS and count * period >= MIN_STEPS // 2:
            found.append((begin + start, period, count))
    return sorted(found, key=lambda c: (-c[1] * c[2], c[1]))


def _longest(same: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Start and length of the longest stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    best = int(lengths.argmax())
    return int(edges[2 * best]), int(lengths[best])


def _build(program: _Program, start: int, period: int, count: int) -> tuple[int, Loop] | None:
    """The loop and where it starts, perhaps some repetitions later; ``None`` if those repetitions are no loop."""
    for _ in range(MAX_PEELED + 1):
        if count < MIN_REPETITIONS:
            break
        loop = _Builder(program, start, period, count).build()
        if loop is not None:
            return start, loop
        start, count = start + period, count - 1
    return None


class _Builder:
    def __init__(self, program: _Program, start: int, period: int, count: int) -> None:
        self.program, self.start, self.period, self.count = program, start, period, count
        self.invariant: dict[int, int] = {}
        self.initial: dict[tuple[int, int], int] = {}
        self.scanned: dict[tuple[int, ...], int] = {}

    def build(self) -> Loop | None:
        sources: list[list[tuple[str, Any]]] = []
        for place in range(self.period):
            reads = [self.program.reads[self.start + r * self.period + place] for r in range(self.count)]
            found = [self._source(targets) for targets in zip(*reads, strict=True)]
            known = [source for source in found if source is not None]
            if len(known) < len(found):
                return None
            sources.append(known)
        carried = sorted(self.initial)
        bases = {"invariant": 0, "carried": len(self.invariant)}
        bases["scanned"] = bases["carried"] + len(carried)
        bases["local"] = bases["scanned"] + len(self.scanned)

        def position(kind: str, key: Any) -> int:
            table: Any = {"invariant": self.invariant, "scanned": self.scanned}.get(kind)
            return bases[kind] + (key if kind == "local" else carried.index(key) if table is None else table[key])

        numbers = [
            [self.program.order[self.start + r * self.period + place] for r in range(self.count)]
            for place in range(self.period)
        ]
        steps: list[Step] = []
        for place, known in enumerate(sources):
            step, new = self.program.step(numbers[place][0]), iter([position(*source) for source in known])
            steps.append(replace(step, args=renumbered(step.args, new), kwargs=renumbered(step.kwargs, new)))
        number = self.program.number
        return Loop(
            steps,
            self.count,
            [number(t) for t in self.invariant],
            carried,
            [number(self.initial[key]) for key in carried],
            [[number(t) for t in targets] for targets in self.scanned],
            numbers=numbers,
        )

    def _source(self, targets: Sequence[int]) -> tuple[str, Any] | None:
        """Of which kind an operand is, and its key there."""
        last = targets[-1]
        if last >= self.start:
            repetition, place = divmod(last - self.start, self.period)
            lag = self.count - 1 - repetition
            if lag > MAX_LAG or any(
                t != self.start + (r - lag) * self.period + place for r, t in enumerate(targets) if r >= lag
            ):
                return None
            if lag == 0:
                return "local", place
            spec = self.program.spec(self.start + place)
            for r, target in enumerate(targets[:lag]):
                if target >= self.start or self.program.spec(target) != spec or spec[0] is None:
                    return None
                if self.initial.setdefault((place, lag - r), target) != target:
                    return None
            return "carried", (place, lag)
        if self.program.spec(last)[0] is None:  # several results: whole ones are not passed on
            return None
        if len(set(targets)) == 1:
            self.invariant.setdefault(last, len(self.invariant))
            return "invariant", last
        spec = self.program.spec(last)
        if any(t >= self.start or self.program.spec(t) != spec for t in targets):
            return None
        if spec[0] is not None and len(spec[0]) > 1 and any(t < 0 for t in targets):
            return None  # layers, each with its weights, which would be copied into one array at every call
        key = tuple(targets)
        self.scanned.setdefault(key, len(self.scanned))
        return "scanned", key


def _mark_emitted(plan: Sequence[int | Loop], program: _Program, outputs: Sequence[Ref]) -> None:
    read = {ref.index for ref in outputs}
    for part in plan:
        if isinstance(part, Loop):
            read |= {*part.invariant, *part.initial, *(n for numbers in part.scanned for n in numbers)}
        else:
            read |= set(refs_of((program.step(part).args, program.step(part).kwargs)))
    for part in plan:
        if isinstance(part, Loop):
            part.emitted = [place for place, numbers in enumerate(part.numbers) if read & set(numbers)]
