"""The potential of a geometric path between two densities, with its slope along the path."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.mcmc.potentials.function import FunctionPotential
from pyro_dgm.infer.mcmc.potentials.wrapped import WrappedPotential

__all__ = ["PathPotential"]

#: the name under which the inverse temperature joins the position
BETA = "inverse temperature"


class PathPotential(WrappedPotential):
    r"""The potential of :math:`f_\beta = f_0^{1 - \beta} f_1^\beta`: :math:`U_\beta = (1 - \beta) U_0 + \beta U_1`.

    The inverse temperature is an argument of the graph that the potential is recorded as, and the derivative with
    respect to it, which comes with the gradient, is what the weights are made of: :math:`U_1 - U_0`.

    :param both: from a dict of ``(chains, ...)`` tensors to :math:`U_0` and :math:`U_1`, each ``(chains,)``.
    """

    def __init__(self, both: Callable[[Position], tuple[Tensor, Tensor]]) -> None:
        def mixed(position: Position) -> Tensor:
            beta = position[BETA]
            first, second = both({k: v for k, v in position.items() if k != BETA})
            return (1.0 - beta) * first + beta * second

        super().__init__(FunctionPotential(mixed, over_chains=True))
        self.both = both
        self.beta = 0.0

    def _at(self, position: Position) -> Position:
        first = next(iter(position.values()))
        dtype = first.dtype if first.is_floating_point() else torch.get_default_dtype()
        return {**position, BETA: torch.full((first.shape[0],), self.beta, dtype=dtype, device=first.device)}

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        value, gradient, _ = self.with_slope(position)
        return value, gradient

    def value(self, position: Position) -> Tensor:
        return self.base.value(self._at(position))

    def with_slope(self, position: Position) -> tuple[Tensor, Position, Tensor]:
        """Value, gradient, and :math:`U_1 - U_0`, at the present inverse temperature."""
        value, gradient = self.base(self._at(position))
        slope = gradient[BETA]
        return value, {k: v for k, v in gradient.items() if k != BETA}, slope

    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        return position, next(iter(position.values())).new_zeros(next(iter(position.values())).shape[0])
