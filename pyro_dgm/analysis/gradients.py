"""Gradients of an objective over replicates: whose parameters they are, their means, variances and directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_dgm.programs.roles import Parameters, find_parameters

__all__ = ["Moments", "Parameters", "find_parameters", "gradient", "signal_to_noise"]


class Moments:
    """Mean and variance of each element of the gradient over replicates (Welford), without keeping the replicates."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: list[Tensor] = []
        self.squares: list[Tensor] = []

    def add(self, grads: Sequence[Tensor]) -> None:
        """Take one replicate."""
        if not self.mean:
            self.mean = [torch.zeros_like(g, dtype=torch.float64) for g in grads]
            self.squares = [torch.zeros_like(m) for m in self.mean]
        self.count += 1
        for mean, squares, g in zip(self.mean, self.squares, grads, strict=True):
            delta = g.double() - mean
            mean += delta / self.count
            squares += delta * (g.double() - mean)

    def merged(self, other: Moments) -> Moments:
        """Moments of both sets of replicates (Chan's formula)."""
        out = Moments()
        out.count = self.count + other.count
        for m1, s1, m2, s2 in zip(self.mean, self.squares, other.mean, other.squares, strict=True):
            delta = m2 - m1
            out.mean.append(m1 + delta * (other.count / out.count))
            out.squares.append(s1 + s2 + delta.square() * (self.count * other.count / out.count))
        return out

    def flat(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of the elements of the parameters at ``indices``, each one vector."""
        mean = torch.cat([self.mean[i].flatten() for i in indices])
        return mean, torch.cat([self.squares[i].flatten() for i in indices]) / (self.count - 1)


def signal_to_noise(mean: Tensor, variance: Tensor) -> float:
    """Mean over parameters of \\|mean\\| / sd; those whose gradient never changes (sd 0) are left out.

    Infinite if no gradient has noise, but some has signal; NaN if all are zero.
    """
    noisy = variance > 0
    if bool(noisy.any()):
        return float((mean[noisy].abs() / variance[noisy].sqrt()).mean())
    return float("inf") if bool((mean != 0).any()) else float("nan")


def gradient(fn: Callable[[], Tensor], parameters: Parameters, scale: float) -> tuple[float, list[Tensor]]:
    """Value and gradient of ``fn() * scale``, zeros where a parameter has no part; ``.grad`` is not touched."""
    with torch.enable_grad():
        loss = fn() * scale
        grads = torch.autograd.grad(loss, parameters.values, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters.values, strict=True)]
    return float(loss.detach()), filled
