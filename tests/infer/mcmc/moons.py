"""Two moons in several dimensions, of unequal weights: a thin shell, cut by a mixture of two normals."""

from __future__ import annotations

import math

import torch

#: radius and thickness of the shell; place and width of the moons along the first coordinate; weight of the right one
RADIUS, THICKNESS, PLACE, WIDTH, WEIGHT = 2.0, 0.1, 3.0, 0.6, 0.7


def moons(u):
    """The potential over chains of ``{"x": (chains, D)}``."""
    x = u["x"]
    return 0.5 * ((x.norm(dim=-1) - RADIUS) / THICKNESS).square() - _sides(x[..., 0])


def _sides(first):
    parts = [
        math.log(weight) - 0.5 * ((first - place) / WIDTH).square()
        for weight, place in ((WEIGHT, PLACE), (1 - WEIGHT, -PLACE))
    ]
    return torch.logsumexp(torch.stack(parts, -1), -1)


def exact(dim):
    """Probability that the first coordinate is positive, and the mean radius, by quadrature over radius and angle."""
    r = torch.linspace(1.0, 3.0, 1001, dtype=torch.float64)[:, None]
    angle = torch.linspace(0.0, math.pi, 4001, dtype=torch.float64)
    log_density = -0.5 * ((r - RADIUS) / THICKNESS).square() + _sides(r * angle.cos())
    mass = log_density.exp() * r ** (dim - 1) * angle.sin() ** (dim - 2)
    return float(mass[:, angle < math.pi / 2].sum() / mass.sum()), float((mass * r).sum() / mass.sum())
