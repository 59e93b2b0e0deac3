"""Coupling layers of rational-quadratic splines, on the line and on the circle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from pyro_dgm.distributions.transforms.coupling import Coupling
from pyro_dgm.distributions.transforms.elementwise import CircularSplineFamily, SplineFamily

__all__ = ["CircularSplineCoupling", "SplineCoupling"]


class SplineCoupling(Coupling):
    """Neural spline coupling, RQ-NSF(C): rational-quadratic splines, whose bins are functions of the other elements.

    The splines act on ``[-bound, bound]``; outside they are the identity. Both directions are exact and cost one pass
    of the network, so it is a good first choice for densities of moderate dimension.

    :param dim: length of the vectors, at least 2.
    :param num_bins: bins of each spline.
    :param bound: half the width of the interval. Standardise the data, so that it holds nearly all of them.
    :param hidden: widths of the network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network; ``None`` takes the network's own.
    :param mask: the elements that stay: ``"half"`` (the first half), ``"alternate"`` (every other one), or a boolean
        for each.
    :param flip: whether to exchange those that stay with the others.
    :param network: ``"mlp"``, or a module of your own, see :class:`~pyro_dgm.distributions.transforms.Coupling`.
    :raises ValueError: if a number is out of range; and as ``Coupling``.

    Source: Durkan, Bekasov, Murray, Papamakarios (2019), arXiv:1906.04032.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import SplineCoupling
        >>> SplineCoupling(3, num_bins=4).inv(torch.ones(5, 3)).shape
        torch.Size([5, 3])
    """

    family_type = SplineFamily

    def __init__(
        self,
        dim: int,
        *,
        num_bins: int = 8,
        bound: float = 5.0,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] | None = None,
        mask: str | Sequence[bool] = "half",
        flip: bool = False,
        network: str | nn.Module = "mlp",
    ) -> None:
        super().__init__(
            dim,
            SplineFamily(num_bins, bound),
            hidden=hidden,
            context_dim=context_dim,
            activation=activation,
            mask=mask,
            flip=flip,
            network=network,
        )


class CircularSplineCoupling(Coupling):
    """Neural spline coupling for vectors of angles in :math:`[-\\pi, \\pi)`: densities on a torus.

    Each angle that changes goes through a circular spline and a rotation. The network sees the sine and cosine of the
    angles that stay, so that the density is continuous where the circle closes. The base distribution must be on the
    same interval, for example uniform.

    :param dim: number of angles, at least 2.
    :param num_bins: bins of each spline.
    :param hidden: widths of the network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network; ``None`` takes the network's own.
    :param mask: the elements that stay: ``"half"`` (the first half), ``"alternate"`` (every other one), or a boolean
        for each.
    :param flip: whether to exchange those that stay with the others.
    :param network: ``"mlp"``, or a module of your own, see :class:`~pyro_dgm.distributions.transforms.Coupling`.
    :raises ValueError: if a number is out of range; and as ``Coupling``.

    Source: Rezende, Papamakarios, Racanière et al. (2020), arXiv:2002.02428.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import CircularSplineCoupling
        >>> CircularSplineCoupling(2)(torch.tensor([[3.0, -3.0]])).shape
        torch.Size([1, 2])
    """

    family_type = CircularSplineFamily

    def __init__(
        self,
        dim: int,
        *,
        num_bins: int = 8,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] | None = None,
        mask: str | Sequence[bool] = "half",
        flip: bool = False,
        network: str | nn.Module = "mlp",
    ) -> None:
        super().__init__(
            dim,
            CircularSplineFamily(num_bins),
            hidden=hidden,
            context_dim=context_dim,
            activation=activation,
            mask=mask,
            flip=flip,
            network=network,
        )
