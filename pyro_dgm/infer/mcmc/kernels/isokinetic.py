"""Dynamics at constant speed: what the microcanonical samplers integrate.

The position :math:`x` in d whitened dimensions moves along a unit vector :math:`u`, which the force turns:

.. math:: \\dot x = u, \\qquad \\dot u = (I - u u^\\top) \\frac{-\\nabla U(x)}{d - 1}

Each of the two equations alone has an exact solution, so that the pair is integrated by splitting. With :math:`U / T`
in place of :math:`U`, time averages over a trajectory converge to expectations under :math:`e^{-U / T}` if the
direction is partly drawn anew from time to time.

Source: J. Robnik, G. B. De Luca, E. Silverstein and U. Seljak (2023), arXiv:2212.08549; the splitting's coefficients:
R. I. McLachlan (1995), "On the numerical integration of ordinary differential equations by symmetric composition
methods".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["minimal_norm_step", "turn", "unit"]

#: the coefficient of the splitting with the smallest leading error
LAMBDA = 0.1931833275037836


def unit(vectors: Tensor) -> Tensor:
    """Scale vectors, ``(chains, D)``, to length one."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def turn(velocity: Tensor, gradient: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    r"""The exact change of the velocity under a constant force for a time ``size``, and the change of kinetic energy.

    .. math:: u' = \frac{u + e (\sinh\delta + (e \cdot u) (\cosh\delta - 1))}{\cosh\delta + (e \cdot u) \sinh\delta},
              \qquad \delta = \frac{\epsilon |g|}{d - 1}, \quad e = -g / |g|, \qquad
              \Delta K = (d - 1) \log(\cosh\delta + (e \cdot u) \sinh\delta)

    :param velocity: unit vectors, ``(chains, D)``.
    :param gradient: of the potential, ``(chains, D)``.
    :param size: time, ``(chains,)``.
    :returns: velocities, and changes of kinetic energy ``(chains,)``, nats.
    """
    degrees = max(velocity.shape[-1] - 1, 1)
    norm = gradient.norm(dim=-1)
    direction = -gradient / norm.clamp(min=torch.finfo(norm.dtype).tiny)[:, None]
    along = (direction * velocity).sum(-1)
    delta = size * norm / degrees
    # Numerator and denominator are divided by exp(delta) / 2, which could overflow.
    zeta = (-delta).exp()
    turned = direction * ((1 - zeta) * (1 + zeta + along * (1 - zeta)))[:, None] + 2 * zeta[:, None] * velocity
    energy = degrees * (delta - math.log(2.0) + torch.log1p(along + (1 - along) * zeta.square()))
    return unit(turned), energy


def minimal_norm_step(
    position: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    size: Tensor,
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    slope: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step of the minimal-norm splitting; it takes two gradients.

    :param position: whitened, ``(chains, D)``, where ``gradient`` was taken.
    :param size: ``(chains,)``.
    :param evaluate: potential over temperature, ``(chains,)``, and its gradient, at whitened positions.
    :param slope: the gradient alone, if that is cheaper.
    :returns: position, velocity, potential and gradient at the end, and the change of kinetic energy.
    """
    velocity, first = turn(velocity, gradient, LAMBDA * size)
    position = position + 0.5 * size[:, None] * velocity
    gradient = evaluate(position)[1] if slope is None else slope(position)
    velocity, second = turn(velocity, gradient, (1 - 2 * LAMBDA) * size)
    position = position + 0.5 * size[:, None] * velocity
    value, gradient = evaluate(position)
    velocity, third = turn(velocity, gradient, LAMBDA * size)
    return position, velocity, value, gradient, first + second + third
