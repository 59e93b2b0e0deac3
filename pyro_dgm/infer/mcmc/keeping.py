"""What a run keeps: all of its draws, or sums over them."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.kernels.base import Kernel, KernelState
from pyro_dgm.infer.mcmc.moments import Moments
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.mcmc.recorded import Rows

__all__ = ["Draws", "Sums", "constrain", "totals_of"]

#: elements of unconstrained latents that are brought to constrained space at once
CHUNK = 2**22


class Draws:
    """All draws, and what is said of each."""

    def __init__(self, state: KernelState, num_samples: int, thinning: int) -> None:
        self.thinning, self.kept = thinning, num_samples // thinning
        self.draws = {k: v.new_empty((v.shape[0], self.kept, *v.shape[1:])) for k, v in state.position.items()}
        self.stats: Position = {}

    def add(self, rows: Rows, made: int) -> None:
        """Take in rows that come after ``made`` others: the last of every ``thinning`` is kept."""
        first = (-made - 1) % self.thinning
        start = (made + first) // self.thinning
        for name, values in rows.stats.items():
            if name not in self.stats:
                self.stats[name] = values.new_empty((values.shape[0], self.kept))
        for kept, new in ((self.draws, rows.position), (self.stats, rows.stats)):
            for name, values in new.items():
                part = values[:, first :: self.thinning][:, : self.kept - start]
                kept[name][:, start : start + part.shape[1]] = part

    def results(self, kernel: Kernel, made: int) -> tuple[Position, Position]:
        """Constrained draws, and the statistics by ArviZ's names."""
        kept = made // self.thinning
        draws = {k: v[:, :kept] for k, v in self.draws.items()}
        stats = {k: v[:, :kept] for k, v in self.stats.items()}
        samples, log_det = constrain(kernel, draws)
        del stats["accepted"]
        return samples, {"lp": -stats.pop("potential") - log_det, **stats}


class Sums:
    """Running moments of the constrained draws, and sums of what is said of them."""

    def __init__(self, kernel: Kernel, num_samples: int, thinning: int) -> None:
        self.kernel, self.thinning = kernel, thinning
        self.moments = Moments(num_samples // thinning)
        self.totals: Position = {}

    def add(self, rows: Rows, made: int) -> None:
        """Take in rows that come after ``made`` others."""
        for name in ("acceptance_rate", "diverging"):
            total = rows.stats[name].sum(1)
            self.totals[name] = self.totals[name] + total if name in self.totals else total
        first = (-made - 1) % self.thinning
        kept = {k: v[:, first :: self.thinning] for k, v in rows.position.items()}
        if next(iter(kept.values())).shape[1]:
            self.moments.update(constrain(self.kernel, kept)[0])

    def totals_of(self, made: int) -> Position:
        """Mean acceptance, divergent draws and number of draws of each chain, after ``made`` transitions."""
        diverging = self.totals["diverging"]
        return {
            "acceptance_rate": self.totals["acceptance_rate"] / made,
            "diverging": diverging,
            "draws": torch.full_like(diverging, made),
        }


def totals_of(stats: Position) -> Position:
    """Mean acceptance, divergent draws and number of draws of each chain, from statistics ``(chains, draws)``."""
    acceptance, diverging = stats["acceptance_rate"], stats["diverging"].sum(1)
    draws = torch.full_like(diverging, acceptance.shape[1])
    return {"acceptance_rate": acceptance.mean(1), "diverging": diverging, "draws": draws}


def constrain(kernel: Kernel, draws: Position) -> tuple[Position, Tensor]:
    """Constrained values of ``(chains, draws, ...)`` positions, and the log-Jacobians, ``(chains, draws)``."""
    first = next(iter(draws.values()))
    shape = first.shape[:2]
    flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in draws.items()}
    width = sum(v[0].numel() for v in flat.values())
    size = max(1, CHUNK // max(1, width))
    parts = [
        kernel.potential.constrain({k: v[a : a + size] for k, v in flat.items()}) for a in range(0, shape.numel(), size)
    ]
    samples = {k: torch.cat([p[0][k] for p in parts]) for k in draws}
    log_det = torch.cat([p[1] for p in parts])
    return {k: v.reshape(*shape, *v.shape[1:]) for k, v in samples.items()}, log_det.reshape(shape)
