"""Transforms made of element-wise functions of one family, and the one that transforms each element on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.elementwise import ElementwiseFamily, check_family
from pyro_dgm.nn import MLP
from pyro_dgm.nn.build import zero_last_layer

__all__ = ["Elementwise", "FamilyBijection"]


class FamilyBijection(Bijection):
    """A transform whose elements go through functions of one family; its domain and codomain are the family's.

    :param event_shape: shape of one value; an integer for vectors.
    :param family: the element-wise functions.
    :param context_dim: length of the context vectors; 0 for none.
    :raises TypeError: if ``family`` is no :class:`~pyro_dgm.distributions.transforms.ElementwiseFamily`.
    """

    def __init__(self, event_shape: Sequence[int] | int, family: ElementwiseFamily, context_dim: int = 0) -> None:
        super().__init__(event_shape, context_dim)
        self.family = check_family(family)

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:
        return constraints.independent(self.family.domain, len(self.event_shape))

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        return constraints.independent(self.family.codomain, len(self.event_shape))


class Elementwise(FamilyBijection):
    """Each element transformed on its own, by a function of any family.

    .. math:: y_i = f(x_i;\\; \\theta_i(c)), \\qquad \\log |\\det J| = \\sum_i \\log f'(x_i; \\theta_i)

    Without context the parameters :math:`\\theta` are learned as they are; with one, a network gives them. Use it for
    the marginals, between layers that mix the elements, and for data of one element.

    :param event_shape: shape of one value; an integer for vectors.
    :param family: the element-wise functions :math:`f`.
    :param hidden: widths of the network's hidden layers, where there is a context; empty for an affine map.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network.
    :raises TypeError: if a size is no integer, or ``family`` is no
        :class:`~pyro_dgm.distributions.transforms.ElementwiseFamily`.
    :raises ValueError: if a size is not positive.

    Source: G. Papamakarios, E. Nalisnick, D. J. Rezende, S. Mohamed and B. Lakshminarayanan (2021), arXiv:1912.02762,
    section 3.1.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import AffineFamily, Elementwise
        >>> Elementwise((2, 2), AffineFamily()).forward_and_log_det(torch.zeros(5, 2, 2))[1].shape
        torch.Size([5])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        family: ElementwiseFamily,
        *,
        hidden: Sequence[int] = (),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(event_shape, family, context_dim)
        shape = (family.num_parameters, *self.event_shape)
        if self.context_dim:
            self.network = zero_last_layer(MLP((self.context_dim,), shape, hidden, activation))
        else:
            self.values = nn.Parameter(torch.zeros(shape, device=torch.get_default_device()))

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self._summed(*self.family(x, self._parameters_of(context)))

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self._summed(*self.family.inverse(y, self._parameters_of(context)))

    def _parameters_of(self, context: Tensor | None) -> Tensor:
        values = self.values if context is None else self.network(context)
        return values.movedim(-1 - len(self.event_shape), -1)

    def _summed(self, value: Tensor, log_derivative: Tensor) -> ValueAndLogDet:
        return value, sum_rightmost(log_derivative, len(self.event_shape))
