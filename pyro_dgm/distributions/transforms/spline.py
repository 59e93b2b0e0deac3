"""Element-wise transforms whose parameters are learned, or functions of the context: splines, and any other family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.elementwise import CircularSplineFamily, ElementwiseFamily, SplineFamily
from pyro_dgm.nn import MLP

__all__ = ["CircularSpline", "Elementwise", "Spline"]


class Elementwise(Bijection):
    """Each element transformed on its own, by a function of any family.

    .. math:: y_i = f(x_i;\\; \\theta_i(c)), \\qquad \\log |\\det J| = \\sum_i \\log f'(x_i; \\theta_i)

    Without context the parameters :math:`\\theta` are learned as they are; with one, a network gives them.

    :param event_shape: shape of one value; an integer for vectors.
    :param family: the element-wise functions :math:`f`.
    :param hidden: widths of the network's hidden layers, where there is a context; empty for an affine map.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class.
    :raises TypeError: if a size is no integer, or ``family`` is no :class:`ElementwiseFamily`.
    :raises ValueError: if a size is not positive.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Elementwise
        >>> from pyro_dgm.distributions.transforms.elementwise import AffineFamily
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
        super().__init__(event_shape, context_dim)
        if not isinstance(family, ElementwiseFamily):
            raise TypeError(f"family must be an ElementwiseFamily, got {type(family).__name__}")
        self.family = family
        shape = (family.num_parameters, *self.event_shape)
        if self.context_dim:
            self.network = MLP((self.context_dim,), shape, hidden, activation)
            with torch.no_grad():
                for p in self.network.layers[-1].parameters():
                    p.zero_()
        else:
            self.values = nn.Parameter(torch.zeros(shape, device=torch.get_default_device()))

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:
        return constraints.independent(self.family.domain, len(self.event_shape))

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:
        return constraints.independent(self.family.codomain, len(self.event_shape))

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self._summed(*self.family(x, self._parameters_of(context)))

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return self._summed(*self.family.inverse(y, self._parameters_of(context)))

    def _parameters_of(self, context: Tensor | None) -> Tensor:
        values = self.values if context is None else self.network(context)
        return values.movedim(-1 - len(self.event_shape), -1)

    def _summed(self, value: Tensor, log_derivative: Tensor) -> ValueAndLogDet:
        event = len(self.event_shape)
        return value, log_derivative.flatten(value.dim() - event).sum(-1) if event else log_derivative


class Spline(Elementwise):
    """A rational-quadratic spline for each element, the identity outside ``[-bound, bound]``.

    Use it to shape the marginals, for example as the first part of a flow, or for data of one dimension. Without
    context its knots are learned; with one they are functions of it.

    :param event_shape: shape of one value; an integer for vectors.
    :param num_bins: bins of each spline.
    :param bound: half the width of the interval.
    :param options: ``hidden``, ``context_dim`` and ``activation`` of
        :class:`~pyro_dgm.distributions.transforms.Elementwise`.
    :raises ValueError: if a number is out of range; and as ``Elementwise``.

    Source: Durkan, Bekasov, Murray, Papamakarios (2019), arXiv:1906.04032.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Spline
        >>> Spline(3, num_bins=4)(torch.tensor([0.0, -9.0, 100.0])).tolist()
        [0.0, -9.0, 100.0]
    """

    def __init__(
        self, event_shape: Sequence[int] | int, *, num_bins: int = 8, bound: float = 5.0, **options: Any
    ) -> None:
        super().__init__(event_shape, SplineFamily(num_bins, bound), **options)


class CircularSpline(Elementwise):
    """A circular spline and a rotation for each angle in :math:`[-\\pi, \\pi)`.

    The density is continuous where the circle closes. The base distribution must be on the same interval.

    :param event_shape: shape of one value; an integer for vectors.
    :param num_bins: bins of each spline.
    :param options: ``hidden``, ``context_dim`` and ``activation`` of
        :class:`~pyro_dgm.distributions.transforms.Elementwise`.
    :raises ValueError: if a number is out of range; and as ``Elementwise``.

    Source: Rezende, Papamakarios, Racanière et al. (2020), arXiv:2002.02428.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import CircularSpline
        >>> CircularSpline(2).forward_and_log_det(torch.tensor([[3.0, -3.0]]))[1].shape
        torch.Size([1])
    """

    def __init__(self, event_shape: Sequence[int] | int, *, num_bins: int = 8, **options: Any) -> None:
        super().__init__(event_shape, CircularSplineFamily(num_bins), **options)
