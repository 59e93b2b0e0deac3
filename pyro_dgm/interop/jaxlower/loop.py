"""A loop that was found in a program, as ``jax.lax.scan``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyro_dgm.interop.jaxlower.step import Row, Step, gather, value_of

__all__ = ["Loop"]


@dataclass
class Loop:
    """Repetitions of a few steps.

    In ``steps`` the numbers of values count through ``invariant``, ``carried``, ``scanned`` and then the steps' own.

    :ivar steps: those of one repetition.
    :ivar count: how many repetitions.
    :ivar invariant: numbers of the values that every repetition reads.
    :ivar carried: values of earlier repetitions that are read, as ``(place in the body, how many repetitions ago)``.
    :ivar initial: numbers of the values that stand for them at the beginning.
    :ivar scanned: for each value that differs, its number at every repetition.
    :ivar emitted: places in the body whose values are read after the loop.
    :ivar numbers: of the values of each place, at every repetition.
    """

    steps: list[Step]
    count: int
    invariant: list[int] = field(default_factory=list)
    carried: list[tuple[int, int]] = field(default_factory=list)
    initial: list[int] = field(default_factory=list)
    scanned: list[list[int]] = field(default_factory=list)
    emitted: list[int] = field(default_factory=list)
    numbers: list[list[int]] = field(default_factory=list)

    def __call__(self, env: list[Any]) -> None:
        """Run it; what is read later is written to ``env``, as rows of the stacked results."""
        import jax

        fixed = [value_of(env[i]) for i in self.invariant]
        first = len(fixed) + len(self.carried) + len(self.scanned)

        def body(carry: list[Any], rows: list[Any]) -> tuple[list[Any], list[Any]]:
            local = [*fixed, *carry, *rows]
            for step in self.steps:
                local.append(step(local))
            old = dict(zip(self.carried, carry, strict=True))
            new = [local[first + place] if lag == 1 else old[place, lag - 1] for place, lag in self.carried]
            return new, [local[first + place] for place in self.emitted]

        initial = [value_of(env[i]) for i in self.initial]
        scanned = [gather([env[i] for i in numbers]) for numbers in self.scanned]
        _, results = jax.lax.scan(body, initial, scanned, length=self.count)
        for place, result in zip(self.emitted, results, strict=True):
            for repetition, number in enumerate(self.numbers[place]):
                env[number] = Row(result, repetition)
