"""Rational-quadratic splines of each element, on the line and on the circle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from pyro_dgm.distributions.transforms.elementwise import CircularSplineFamily, SplineFamily
from pyro_dgm.distributions.transforms.family_bijection import Elementwise

__all__ = ["CircularSpline", "Spline"]


class Spline(Elementwise):
    """A rational-quadratic spline for each element, the identity outside ``[-bound, bound]``.

    Use it to shape the marginals, for example as the first part of a flow, or for data of one dimension. Without
    context its knots are learned; with one they are functions of it.

    :param event_shape: shape of one value; an integer for vectors.
    :param num_bins: bins of each spline.
    :param bound: half the width of the interval.
    :param hidden: widths of the network's hidden layers, where there is a context; empty for an affine map.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network.
    :raises ValueError: if a number is out of range; and as ``Elementwise``.

    Source: Durkan, Bekasov, Murray, Papamakarios (2019), arXiv:1906.04032.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Spline
        >>> Spline(3, num_bins=4)(torch.tensor([0.0, -9.0, 100.0])).tolist()
        [0.0, -9.0, 100.0]
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        *,
        num_bins: int = 8,
        bound: float = 5.0,
        hidden: Sequence[int] = (),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(
            event_shape,
            SplineFamily(num_bins, bound),
            hidden=hidden,
            context_dim=context_dim,
            activation=activation,
        )


class CircularSpline(Elementwise):
    """A circular spline and a rotation for each angle in :math:`[-\\pi, \\pi)`.

    The density is continuous where the circle closes. The base distribution must be on the same interval.

    :param event_shape: shape of one value; an integer for vectors.
    :param num_bins: bins of each spline.
    :param hidden: widths of the network's hidden layers, where there is a context; empty for an affine map.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network.
    :raises ValueError: if a number is out of range; and as ``Elementwise``.

    Source: Rezende, Papamakarios, Racanière et al. (2020), arXiv:2002.02428.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import CircularSpline
        >>> CircularSpline(2).forward_and_log_det(torch.tensor([[3.0, -3.0]]))[1].shape
        torch.Size([1])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        *,
        num_bins: int = 8,
        hidden: Sequence[int] = (),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(
            event_shape,
            CircularSplineFamily(num_bins),
            hidden=hidden,
            context_dim=context_dim,
            activation=activation,
        )
