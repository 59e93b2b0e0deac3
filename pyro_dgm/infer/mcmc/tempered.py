"""Replicas at several temperatures: their potential, their swaps, their ladder."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.chains import per_chain
from pyro_dgm.infer.mcmc.potential import Position, Potential
from pyro_dgm.infer.mcmc.wrapped import WrappedPotential

__all__ = ["TemperedPotential", "equal_rejection", "swap_acceptance", "swap_order"]


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
