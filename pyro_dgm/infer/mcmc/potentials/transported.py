"""The potential of a target seen through a bijection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection
from pyro_dgm.infer.mcmc.mass_matrix import flatten, unflatten
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.wrapped import WrappedPotential

__all__ = ["TransportedPotential"]


class TransportedPotential(WrappedPotential):
    r"""A potential pulled back through a bijection, in the coordinates of the bijection's input.

    .. math:: U_z(z) = U(f(z)) - T \log \Bigl|\det \frac{\partial f}{\partial z}\Bigr|

    so that :math:`z \sim e^{-U_z / T}` gives :math:`f(z) \sim e^{-U / T}`. Positions keep the names and shapes of the
    latents; :math:`f` acts on all of their elements, one after another. A bijection that makes :math:`U_z` nearly that
    of a standard normal lets any gradient kernel mix well.

    :param base: :math:`U`.
    :param transport: :math:`f`, with event shape ``(D,)`` for ``D`` elements of latents. Its parameters are constants
        here.
    :param temperature: :math:`T`.

    Source: M. D. Hoffman et al. (2019), "NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural
    transport", arXiv:1903.03704.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import ElementwiseAffine
        >>> from pyro_dgm.infer.mcmc.potentials.function import FunctionPotential
        >>> normal = FunctionPotential(lambda u: 0.5 * u["x"].square().sum(-1))
        >>> value, gradient = TransportedPotential(normal, ElementwiseAffine(2))({"x": torch.ones(3, 2)})
        >>> value
        tensor([1., 1., 1.])
    """

    def __init__(self, base: Potential, transport: Bijection, temperature: float = 1.0) -> None:
        super().__init__(base)
        self.transport, self.temperature = transport, temperature

    def push(self, position: Position) -> tuple[Position, Tensor]:
        """:math:`f(z)` and its log-determinant, ``(chains,)``."""
        with torch.no_grad():
            flat, log_det = self.transport.forward_and_log_det(flatten(position))
        return unflatten(flat, position), log_det

    def pull(self, position: Position) -> tuple[Position, Tensor]:
        """:math:`f^{-1}(u)` and the log-determinant of the inverse, ``(chains,)``."""
        with torch.no_grad():
            flat, log_det = self.transport.inverse_and_log_det(flatten(position))
        return unflatten(flat, position), log_det

    def from_base(self, position: Position, value: Tensor, gradient: Position) -> tuple[Tensor, Position]:
        """Value and gradient at ``z``, where ``U`` and its gradient at ``f(z)`` are known."""
        return self._pulled_back(position, lambda _: (value, gradient))

    def _evaluate(self, position: Position) -> tuple[Tensor, Position]:
        return self._pulled_back(position, self.base)

    def _pulled_back(
        self, position: Position, base: Callable[[Position], tuple[Tensor, Position]]
    ) -> tuple[Tensor, Position]:
        with torch.enable_grad():
            z = flatten(position).detach().requires_grad_()
            u, log_det = self.transport.forward_and_log_det(z)
            value, slope = base(unflatten(u.detach(), position))
            # One backward pass: the Jacobian's transpose times the slope, and the slope of the log-determinant.
            total = (u * flatten(slope)).sum() - self.temperature * log_det.sum()
            (gradient,) = torch.autograd.grad(total, z)
        return value - self.temperature * log_det.detach(), unflatten(gradient, position)

    def constrain(self, position: Position) -> tuple[Position, Tensor]:
        u, log_det = self.push(position)
        values, of_base = self.base.constrain(u)
        return values, of_base + self.temperature * log_det
