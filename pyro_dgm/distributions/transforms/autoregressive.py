"""Autoregressive flows: each element is transformed by parameters that depend on the elements before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import ValueAndLogDet
from pyro_dgm.distributions.transforms.elementwise import AffineFamily, ElementwiseFamily, SplineFamily
from pyro_dgm.distributions.transforms.family_bijection import FamilyBijection
from pyro_dgm.nn.masked import MaskedMLP
from pyro_dgm.ops.arguments import check_count

__all__ = ["AffineAutoregressive", "Autoregressive", "SplineAutoregressive"]


class Autoregressive(FamilyBijection):
    """An autoregressive flow with any family of element-wise functions, whose parameters a masked network gives.

    .. math:: y_i = f(x_i;\\; \\theta_i(x_{<i}, c)), \\qquad \\log |\\det J| = \\sum_i \\log f'(x_i; \\theta_i)

    **Which direction is fast.** Forward is one pass of the network: fast sampling, an inverse autoregressive flow. The
    inverse takes ``dim`` passes, one element each, and gradients go through all of them. For density estimation use
    ``.inv``, which is fast from data to noise: a masked autoregressive flow.

    :param dim: length :math:`D` of the vectors.
    :param family: the element-wise functions :math:`f`.
    :param hidden: widths of the masked network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class.
    :param order: the elements, first one first; ``None`` for the order in which they stand, ``"reverse"`` for the
        other one.
    :param residual: whether hidden layers are residual.
    :raises TypeError: if a size is no integer, or ``family`` is no :class:`ElementwiseFamily`.
    :raises ValueError: if a size is not positive, or the order is no permutation.

    Source: Kingma, Salimans, Jozefowicz et al. (2016), arXiv:1606.04934; Papamakarios, Pavlakou, Murray (2017),
    arXiv:1705.07057.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import AdditiveFamily, Autoregressive
        >>> y, log_det = Autoregressive(4, AdditiveFamily()).forward_and_log_det(torch.zeros(5, 4))
        >>> y.shape, log_det.shape
        (torch.Size([5, 4]), torch.Size([5]))
    """

    fast = "forward"

    _one: Tensor

    def __init__(
        self,
        dim: int,
        family: ElementwiseFamily,
        *,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        order: Sequence[int] | str | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__(check_count("dim", dim), family, context_dim)
        if isinstance(order, str):
            if order != "reverse":
                raise ValueError(f"order must be 'reverse', a permutation or None, got {order!r}")
            order = tuple(range(dim))[::-1]
        self.network = MaskedMLP(
            dim,
            family.num_parameters,
            hidden,
            self.context_dim,
            activation,
            order,
            residual,
            num_features=family.num_features,
        )
        self.register_buffer(
            "_one", torch.eye(dim, dtype=torch.bool, device=torch.get_default_device()), persistent=False
        )

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        y, log_derivative = self.family(x, self.network(self.family.features(x), context))
        return y, log_derivative.sum(-1)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        # Elements that are not known yet are zero, not guesses: a guess may overflow, and zero times infinity is NaN.
        x, total = torch.zeros_like(y), None
        parameters_of = self.network.sequential(context)
        for i in self.network.order:
            element, log_derivative = self.family.inverse(y[..., i], parameters_of(self.family.features(x), i))
            x = torch.where(self._one[i], element.unsqueeze(-1), x)
            total = log_derivative if total is None else total + log_derivative
        return x, total  # type: ignore[return-value]


class AffineAutoregressive(Autoregressive):
    """Affine autoregressive flow: IAF as it is, MAF as its inverse.

    .. math:: y_i = x_i e^{s_i(x_{<i}, c)} + b_i(x_{<i}, c), \\qquad \\log |\\det J| = \\sum_i s_i

    The log-scale is bounded softly, :math:`|s| < s_{\\max}`, so that neither direction can overflow. Use it in a guide
    as it is, and for density estimation by ``.inv``: see
    :class:`~pyro_dgm.distributions.transforms.Autoregressive` for which direction is fast.

    :param dim: length of the vectors.
    :param max_log_scale: the bound :math:`s_{\\max}`.
    :param hidden: widths of the masked network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network.
    :param order: the elements, first one first; ``None`` for the order in which they stand, ``"reverse"`` for the
        other one.
    :param residual: whether hidden layers are residual.
    :raises ValueError: if the bound is not positive; and as ``Autoregressive``.

    Source: Kingma, Salimans, Jozefowicz et al. (2016), arXiv:1606.04934; Papamakarios, Pavlakou, Murray (2017),
    arXiv:1705.07057.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import AffineAutoregressive
        >>> maf = AffineAutoregressive(3, hidden=(16,)).inv
        >>> maf.inverse_and_log_det(torch.zeros(5, 3))[1].shape
        torch.Size([5])
    """

    def __init__(
        self,
        dim: int,
        *,
        max_log_scale: float = 5.0,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        order: Sequence[int] | str | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__(
            dim,
            AffineFamily(max_log_scale),
            hidden=hidden,
            context_dim=context_dim,
            activation=activation,
            order=order,
            residual=residual,
        )


class SplineAutoregressive(Autoregressive):
    """Neural spline autoregressive flow, RQ-NSF(AR): rational-quadratic splines with parameters of a masked network.

    The splines act on ``[-bound, bound]``; outside they are the identity. More flexible than coupling for the same
    number of layers, at the price of ``dim`` passes in one direction; see
    :class:`~pyro_dgm.distributions.transforms.Autoregressive` for which one.

    :param dim: length of the vectors.
    :param num_bins: bins of each spline.
    :param bound: half the width of the interval. Standardise the data, so that it holds nearly all of them.
    :param hidden: widths of the masked network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network.
    :param order: the elements, first one first; ``None`` for the order in which they stand, ``"reverse"`` for the
        other one.
    :param residual: whether hidden layers are residual.
    :raises ValueError: if a number is out of range; and as ``Autoregressive``.

    Source: Durkan, Bekasov, Murray, Papamakarios (2019), arXiv:1906.04032.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import SplineAutoregressive
        >>> SplineAutoregressive(3, num_bins=4, hidden=(16,))(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        dim: int,
        *,
        num_bins: int = 8,
        bound: float = 5.0,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        order: Sequence[int] | str | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__(
            dim,
            SplineFamily(num_bins, bound),
            hidden=hidden,
            context_dim=context_dim,
            activation=activation,
            order=order,
            residual=residual,
        )
