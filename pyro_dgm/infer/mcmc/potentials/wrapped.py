"""Potentials that kernels make of other potentials."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.function import FunctionPotential

__all__ = ["UnknownPotential", "ValuePotential", "WrappedPotential"]


class WrappedPotential(Potential):
    """A potential computed from another one, whose evaluator alone keeps graphs.

    :param base: the other potential.
    """

    def __init__(self, base: Potential) -> None:
        self.base, self.evaluator = base, base.evaluator

    @property
    def transforms(self) -> dict[str, Transform]:  # type: ignore[override]
        return self.base.transforms

    @property
    def can_be_recorded(self) -> bool:
        return self.base.can_be_recorded

    def __call__(self, position: Position) -> tuple[Tensor, Position]:
        return self._evaluate(position)

    def gradient(self, position: Position) -> Position:
        return self(position)[1]

    def value(self, position: Position) -> Tensor:
        return self(position)[0]

    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        return self.base.constrain(position)

    def explain(self, position: Position) -> str:
        # Only a model can say more than the numbers here, and those are this potential's.
        return self.base.explain(position) if hasattr(self.base, "latents") else super().explain(position)


class ValuePotential(WrappedPotential):
    """Another potential without its gradient, which need then not exist.

    :param base: the potential.
    :param discrete: whether positions may be integers or booleans.
    """

    def __init__(self, base: Potential, discrete: bool = False) -> None:
        super().__init__(base)
        self.discrete = discrete

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        return self.base.value(position), {}


class UnknownPotential(FunctionPotential):
    """No potential: what a kernel given by its conditionals alone can say of the density, namely NaN."""

    known = False
    discrete = True

    def __init__(self) -> None:
        super().__init__(_unknown, over_chains=True)

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        return _unknown(position), {}


def _unknown(position: Position) -> Tensor:
    first = next(iter(position.values()))
    dtype = first.dtype if first.is_floating_point() else torch.get_default_dtype()
    return first.new_full((len(first),), float("nan"), dtype=dtype)
