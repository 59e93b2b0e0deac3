"""The potential of replicas at several temperatures."""

from __future__ import annotations

from torch import Tensor

from pyro_dgm.infer.mcmc.chains import per_chain
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.wrapped import WrappedPotential

__all__ = ["TemperedPotential"]


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
