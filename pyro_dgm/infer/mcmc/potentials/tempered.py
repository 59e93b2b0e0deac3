"""Replicas at several temperatures: their potential, their swaps, their ladder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.chains import per_chain
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.wrapped import WrappedPotential
from pyro_dgm.ops.arguments import check_count, check_number

__all__ = [
    "TemperedPotential",
    "closes_round",
    "equal_rejection",
    "follow",
    "ladder_of",
    "swap_acceptance",
    "swap_order",
    "take",
]

#: transitions of the warm-up after which the ladder is tuned for the first time; then after twice as many, and so on
FIRST_ROUND = 16


class TemperedPotential(WrappedPotential):
    r"""A potential with an inverse temperature of its own for each chain, :math:`\beta_c U(w_c / \sqrt{\beta_c})`.

    A density at :math:`\beta` is about :math:`\beta^{-1/2}` as wide, so in coordinates :math:`w = \sqrt\beta\, u` one
    step size suits all chains.  Discrete states are left as they are.

    :param base: :math:`U`.
    :param betas: :math:`\beta`, ``(chains,)``.
    :param scaled: whether positions are in those coordinates.
    """

    def __init__(self, base: Potential, betas: Tensor, scaled: bool) -> None:
        super().__init__(base)
        self.betas, self.scaled = betas, scaled
        self.roots = betas.sqrt()

    def scale(self, position: Position) -> Position:
        """From ``u`` to ``w``."""
        return {k: v * per_chain(self.roots, v) for k, v in position.items()} if self.scaled else position

    def unscale(self, position: Position) -> Position:
        """From ``w`` to ``u``."""
        return {k: v / per_chain(self.roots, v) for k, v in position.items()} if self.scaled else position

    def temper_gradient(self, gradient: Position) -> Position:
        """From the gradient of ``U`` in ``u`` to this potential's."""
        factor = self.roots if self.scaled else self.betas
        return {k: v * per_chain(factor, v) for k, v in gradient.items()}

    def untemper_gradient(self, gradient: Position) -> Position:
        """From this potential's gradient to that of ``U`` in ``u``."""
        factor = self.roots if self.scaled else self.betas
        return {k: v / per_chain(factor, v) for k, v in gradient.items()}

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        value, gradient = self.base(self.unscale(position))
        return self.betas * value, self.temper_gradient(gradient)

    def value(self, position: Position) -> Tensor:
        return self.betas * self.base.value(self.unscale(position))

    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        return self.base.constrain(self.unscale(position))


def swap_acceptance(betas: Tensor, energies: Tensor) -> Tensor:
    r"""Probability that neighbours swap, :math:`\min(1, e^{(\beta_r - \beta_{r+1})(U_r - U_{r+1})})`.

    :param betas: ``(R,)``.
    :param energies: ``(chains, R)``.
    :returns: ``(chains, R - 1)``; 0 where an energy is not finite.

    Example::

        >>> swap_acceptance(torch.tensor([1.0, 0.5]), torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
        tensor([[0.3679],
                [1.0000]])
    """
    exponent = (betas[:-1] - betas[1:]) * (energies[:, :-1] - energies[:, 1:])
    return torch.where(torch.isfinite(exponent), exponent.clamp(max=0.0).exp(), torch.zeros_like(exponent))


def swap_order(wanted: Tensor, parity: Tensor) -> Tensor:
    """Which replica comes to each rung when the pairs (r, r + 1) with r of this parity swap where they want to.

    :param wanted: ``(chains, R - 1)``.
    :param parity: 0 or 1, a scalar tensor.
    :returns: ``(chains, R)``, rows of a permutation.

    Example::

        >>> swap_order(torch.tensor([[True, True, False]]), torch.tensor(0))
        tensor([[1, 0, 2, 3]])
        >>> swap_order(torch.tensor([[True, True, False]]), torch.tensor(1))
        tensor([[0, 2, 1, 3]])
    """
    pairs = torch.arange(wanted.shape[1], device=wanted.device)
    swap = (wanted & (pairs % 2 == parity)).to(torch.int64)
    rungs = torch.arange(wanted.shape[1] + 1, device=wanted.device)
    none = torch.zeros_like(swap[:, :1])
    return rungs + torch.cat([swap, none], 1) - torch.cat([none, swap], 1)


def equal_rejection(betas: Tensor, rejection: Tensor) -> Tensor:
    r"""The ladder between the same ends whose neighbours would refuse to swap equally often.

    Rejections add up to the communication barrier :math:`\Lambda(\beta)`, whatever the ladder; between rungs it is
    taken to be linear in :math:`\log\beta`, and cut into equal pieces.

    :param betas: falling, ``(R,)``.
    :param rejection: of each pair of neighbours, in any common unit, ``(R - 1,)``.

    Source: S. Syed et al. (2022), arXiv:1905.02939, section 5.1.

    Example::

        >>> equal_rejection(torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.6, 0.2]))
        tensor([1.0000, 0.6298, 0.2500])
    """
    # A pair that never refused would leave the barrier flat, and its inverse open.
    steps = rejection.clamp(min=0.0) + 1e-3 * rejection.sum().clamp(min=1e-6)
    barrier = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])
    barrier = barrier / barrier[-1]
    wanted = torch.arange(1, len(steps), dtype=betas.dtype, device=betas.device) / len(steps)
    left = torch.searchsorted(barrier, wanted, right=True) - 1
    weight = (wanted - barrier[left]) / (barrier[left + 1] - barrier[left])
    logs = betas.log()
    inside = torch.lerp(logs[left], logs[left + 1], weight).exp()
    return torch.cat([betas[:1], inside, betas[-1:]])


def take(values: Tensor, order: Tensor) -> Tensor:
    """``(chains, R, ...)`` in another order of each chain's replicas, ``(chains, R)``."""
    index = order.reshape(*order.shape, *(1 for _ in values.shape[2:])).expand(values.shape)
    return values.gather(1, index)


def follow(trip: Tensor) -> tuple[Tensor, Tensor]:
    """Where replicas are on a round trip: 0 nowhere, 1 cold last, 2 hot after that; and trips that ended now."""
    done = (trip[:, 0] == 2).to(torch.int64)
    hottest = torch.where(trip[:, -1:] == 1, 2, trip[:, -1:])
    return torch.cat([torch.ones_like(trip[:, :1]), trip[:, 1:-1], hottest], 1), done


def closes_round(iteration: int) -> bool:
    """Whether the ladder is to be tuned after so many transitions of the warm-up."""
    rounds = iteration // FIRST_ROUND
    return iteration % FIRST_ROUND == 0 and rounds & (rounds - 1) == 0 and rounds > 0


def ladder_of(num_temperatures: int, max_temperature: float, given: Sequence[float] | None) -> list[float]:
    """Inverse temperatures: those given, or in one ratio to the next.

    :raises ValueError: for a ladder that is none; the message names the setting.
    """
    if given is not None:
        if not isinstance(given, Iterable):
            raise TypeError(f"inverse_temperatures must be a sequence of numbers, got {given!r}")
        ladder = [float(check_number("inverse_temperatures", b)) for b in given]
        falls = all(a > b > 0 for a, b in zip(ladder, ladder[1:], strict=False))
        if len(ladder) < 2 or ladder[0] != 1.0 or not falls:
            raise ValueError(f"inverse_temperatures must fall from 1 and stay positive, at least two, got {ladder}")
        return ladder
    check_count("num_temperatures", num_temperatures, 2)
    check_number("max_temperature", max_temperature)
    if not (max_temperature > 1 and math.isfinite(max_temperature)):
        raise ValueError(f"max_temperature must be above 1 and finite, got {max_temperature}")
    return [max_temperature ** (-r / (num_temperatures - 1)) for r in range(num_temperatures)]
