"""Potentials over chains, ``U`` and its gradient: the contract."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.potentials.evaluator import Evaluator, Position

__all__ = ["Position", "Potential"]


class Potential(ABC):
    """A potential energy :math:`U` over a leading chain dimension; the target density is :math:`e^{-U}`.

    :ivar evaluator: evaluates it, at first as it is written and then by a graph.
    """

    #: constrained to unconstrained space, one for each latent whose support is fixed (Pyro's convention)
    transforms: dict[str, Transform]
    #: whether positions may be integers or booleans
    discrete = False
    #: whether there is a potential at all
    known = True
    evaluator: Evaluator

    def __init__(self) -> None:
        self.evaluator = Evaluator(self._evaluate, self._value, lambda: self.can_be_recorded)

    @abstractmethod
    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        """``U`` of shape ``(chains,)`` and its gradient."""

    def _value(self, position: Position) -> Tensor:
        return self._evaluate(position)[0]

    @abstractmethod
    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        """Constrained values of ``(batch, ...)`` positions, and the log-Jacobians, ``(batch,)``."""

    def check(self, position: Position) -> None:  # noqa: B027
        """:raises ValueError: for initial values that the potential cannot take; the message names them."""

    @property
    def can_be_recorded(self) -> bool:
        """Whether all chains are evaluated together."""
        return True

    def explain(self, position: Position) -> str:
        """What makes the potential of these chains non-finite, for an error message."""
        values, _ = self(position)
        return f"the potential is {', '.join(f'{v:g}' for v in values.tolist()[:5])} there"

    def __call__(self, position: Position) -> tuple[Tensor, Position]:
        """Value and gradient; a chain at which a matrix factorisation fails has value NaN, and harms no other chain."""
        return self.evaluator(position)

    def gradient(self, position: Position) -> Position:
        """The gradient alone: by fewer operations, where there is a graph."""
        return self.evaluator.gradient(position)

    def value(self, position: Position) -> Tensor:
        """``U`` of shape ``(chains,)`` alone, for kernels that take no gradient."""
        return self.evaluator.value(position)
