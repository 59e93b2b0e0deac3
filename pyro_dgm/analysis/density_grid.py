"""Densities of two dimensions on a grid, where everything about them can be summed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_dgm.ops.arguments import check_count

__all__ = ["DensityGrid"]


@dataclass(frozen=True)
class DensityGrid:
    """Square many cells over a rectangle; a density is a matrix of its values at their centres, a row a second
    coordinate.

    :ivar bounds: ``(low, high)`` of either coordinate.
    :ivar size: cells along either.
    """

    bounds: tuple[tuple[float, float], tuple[float, float]]
    size: int

    @classmethod
    def make(cls, bounds: Sequence[Sequence[float]] | None, size: int, data: Tensor) -> DensityGrid:
        """Over ``bounds``, or over the data and three tenths of their range beyond on every side.

        :raises ValueError: for bounds or a size that make no grid.
        """
        check_count("grid_size", size, 10)
        if bounds is None:
            low, high = data.min(0).values.double(), data.max(0).values.double()
            margin = 0.3 * (high - low)
            bounds = torch.stack([low - margin, high + margin], -1).tolist()
        made = tuple((float(low), float(high)) for low, high in bounds)
        if len(made) != 2 or not all(math.isfinite(b - a) and a < b for a, b in made):
            raise ValueError(f"bounds must be two pairs (low, high), low below high, got {bounds}")
        return cls((made[0], made[1]), size)

    @property
    def spacing(self) -> tuple[float, float]:
        """Sides of a cell."""
        first, second = ((high - low) / self.size for low, high in self.bounds)
        return first, second

    @property
    def points(self) -> Tensor:
        """Centres of the cells, ``(size * size, 2)``, float64."""
        axes = [
            low + step * (torch.arange(self.size, dtype=torch.float64) + 0.5)
            for (low, _), step in zip(self.bounds, self.spacing, strict=True)
        ]
        return torch.cartesian_prod(axes[1], axes[0]).flip(-1)

    def evaluate(self, log_density: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """Log-density at the centres, ``(size, size)``, float64.

        :param log_density: from ``(M, 2)`` to ``(M,)``; it is given points of the dtype and on the device of ``like``.
        """
        with torch.no_grad():
            parts = [log_density(p.to(like)).double().cpu() for p in self.points.split(2**14)]
        return torch.cat(parts).reshape(self.size, self.size)

    def log_integral(self, log_density: Tensor) -> float:
        """Log of the sum over cells, nats: log Z of an unnormalised density."""
        return float(torch.logsumexp(log_density.flatten(), 0)) + math.log(math.prod(self.spacing))

    def kl(self, log_p: Tensor, log_q: Tensor) -> float:
        """Kullback-Leibler divergence from p to q, normalised log-densities, nats."""
        here = log_p > -math.inf  # elsewhere the integrand is nought
        return float((log_p[here].exp() * (log_p[here] - log_q[here])).sum()) * math.prod(self.spacing)

    def total_variation(self, log_p: Tensor, log_q: Tensor) -> float:
        """Half the integral of the densities' absolute difference: the most that they differ on any set, in [0, 1]."""
        return 0.5 * float((log_p.exp() - log_q.exp()).abs().sum()) * math.prod(self.spacing)

    def edge_mass(self, log_p: Tensor) -> float:
        """Mass of a normalised density in the outermost cells."""
        inner = log_p[1:-1, 1:-1].exp().sum()
        return float(log_p.exp().sum() - inner) * math.prod(self.spacing)

    def blurred(self, log_p: Tensor, scale: float) -> Tensor:
        """The normalised density of p's values with normal noise of that scale added, on the grid."""
        from scipy.ndimage import gaussian_filter

        sigma = [scale / step for step in reversed(self.spacing)]
        density = torch.from_numpy(gaussian_filter(log_p.exp().numpy(), sigma, mode="constant", truncate=8.0))
        return density.log() - self.log_integral(density.log())
