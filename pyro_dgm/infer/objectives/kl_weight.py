"""Options of the KL in an ELBO: a weight, free bits for each latent, or a capacity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["KLWeight", "Schedule"]

#: a number, or a function of the training step (1 for the first)
Schedule = float | Callable[[int], float]


class _Number:
    """A number, or what a schedule gives: then a tensor, filled in place, which a captured graph reads on each call."""

    def __init__(self, name: str, given: Schedule) -> None:
        if not callable(given) and (isinstance(given, bool) or not isinstance(given, (int, float))):
            raise TypeError(f"{name} must be a number or a function of the step, got {type(given).__name__}")
        self.name, self.given = name, given
        self.tensor: Tensor | None = None
        if callable(given):
            self.tensor = torch.zeros((), dtype=torch.float64)
            self.fill(1)
        else:
            _check(name, float(given))

    @property
    def scheduled(self) -> bool:
        return self.tensor is not None

    def fill(self, step: int) -> None:
        if callable(self.given) and self.tensor is not None:
            value = float(self.given(step))
            _check(f"{self.name} at step {step}", value)
            self.tensor.fill_(value)

    def on(self, device: torch.device) -> Tensor | float:
        """The number; as a tensor without dimensions it leaves the dtype of what it multiplies alone."""
        if self.tensor is None:
            assert not callable(self.given)
            return float(self.given)
        if self.tensor.device != device:
            self.tensor = self.tensor.to(device)
        return self.tensor


class KLWeight:
    """The three options and the term that they make of the divergences."""

    def __init__(self, beta: Schedule, free_bits: float, capacity: Schedule | None) -> None:
        self.beta = _Number("beta", beta)
        self.capacity = None if capacity is None else _Number("capacity", capacity)
        if isinstance(free_bits, bool) or not isinstance(free_bits, (int, float)):
            raise TypeError(f"free_bits must be a number, got {type(free_bits).__name__}")
        _check("free_bits", free_bits)
        if free_bits and capacity is not None:
            raise ValueError("free_bits and capacity both say where the KL should be: give one of them")
        self.free_bits = float(free_bits)
        #: whether the KL is multiplied, and no more
        self.linear = not self.free_bits and self.capacity is None
        #: whether the objective is the ELBO
        self.trivial = self.linear and self.beta.given == 1

    @property
    def scheduled(self) -> bool:
        """Whether something changes from step to step."""
        return self.beta.scheduled or (self.capacity is not None and self.capacity.scheduled)

    def fill(self, step: int) -> None:
        """Put the values of a training step in place."""
        self.beta.fill(step)
        if self.capacity is not None:
            self.capacity.fill(step)

    def penalty(self, divergences: Sequence[Tensor]) -> Tensor:
        """What is subtracted from each datum's reconstruction, for the divergence of each latent, ``(*shape)``."""
        if self.free_bits:
            divergences = [kl.clamp(min=self.free_bits) for kl in divergences]
        total = sum(divergences[1:], divergences[0])
        if self.capacity is not None:
            total = (total - self.capacity.on(total.device)).abs()
        return self.beta.on(total.device) * total

    def __repr__(self) -> str:
        parts = [f"beta={_text(self.beta.given)}"] if self.beta.given != 1 else []
        parts += [f"free_bits={self.free_bits:g}"] if self.free_bits else []
        parts += [] if self.capacity is None else [f"capacity={_text(self.capacity.given)}"]
        return ", ".join(parts)


def _text(given: Schedule) -> str:
    return repr(given) if callable(given) else f"{given:g}"


def _check(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number, at least 0, got {value!r}")
