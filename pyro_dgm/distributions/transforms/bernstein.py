"""Flows of Bernstein polynomials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.autoregressive import Autoregressive
from pyro_dgm.distributions.transforms.linear_tails import LinearTails, Value, ValueAndSlope
from pyro_dgm.ops.arguments import check_count

__all__ = ["Bernstein", "BernsteinFamily"]

#: smallest slope of the polynomials between neighbouring coefficients
LEAST_SLOPE = 1e-3
#: where softplus is one
ONE = math.log(math.e - 1)


class BernsteinFamily(LinearTails):
    """Bernstein polynomials with increasing coefficients, on an interval, with linear tails.

    .. math:: h(x) = \\sum_{k=0}^M \\theta_k \\tbinom{M}{k} z^k (1 - z)^{M-k}, \\qquad z = \\frac{x + B}{2B}

    The coefficients increase by softplus of free numbers, so that :math:`h` increases. Parameters of zero give the
    identity.

    :param degree: degree :math:`M`; an element takes ``degree + 1`` parameters.
    :param bound: half the width :math:`B` of the interval. Standardise the data, so that it holds nearly all of them.
    :raises ValueError: if one is not positive.

    Source: Sick, Hothorn, Duerr (2020), arXiv:2004.00464; Ramasinghe, Fernando, Khan, Barnes (2021), arXiv:2102.03509.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import BernsteinFamily
        >>> family = BernsteinFamily(degree=5)
        >>> y, log_derivative = family(torch.ones(5, 3), torch.zeros(5, 3, family.num_parameters))
        >>> y.shape, log_derivative.shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    _powers: Tensor

    def __init__(self, degree: int = 10, bound: float = 5.0) -> None:
        super().__init__(bound)
        self.degree = check_count("degree", degree)
        self.num_parameters = degree + 1
        # Whole numbers, which no change of dtype rounds.
        powers = torch.arange(degree + 1.0, device=torch.get_default_device())
        self.register_buffer("_powers", powers, persistent=False)

    def inside(self, parameters: Tensor) -> tuple[Value, ValueAndSlope]:
        raw, shift = parameters.movedim(-1, 0).split([self.degree, 1])
        slopes = LEAST_SLOPE + (1 - LEAST_SLOPE) * nn.functional.softplus(raw + ONE)
        # Coefficients first, and slopes between them. First and last one are centred on the shift.
        reach = slopes.cumsum(0) * (2 * self.bound / self.degree)
        shift = shift - reach[-1:] / 2
        coefficients = torch.cat([shift, shift + reach])

        def place(x: Tensor) -> Tensor:
            return (x + self.bound) / (2 * self.bound)

        def value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
            # The slope is of one degree less; raised by one it goes through the same operations, and stays positive.
            share = self._powers.reshape((-1,) + (1,) * (slopes.dim() - 1)) / self.degree
            raised = torch.lerp(torch.cat([slopes, slopes[-1:]]), torch.cat([slopes[:1], slopes]), share)
            value, slope = _de_casteljau(torch.stack([coefficients, raised], 1), place(x))
            return value, slope

        return lambda x: _de_casteljau(coefficients, place(x)), value_and_slope


def _de_casteljau(coefficients: Tensor, z: Tensor) -> Tensor:
    """The polynomial by repeated interpolation, which is stable, and positive where its coefficients are."""
    while len(coefficients) > 1:
        coefficients = torch.lerp(coefficients[:-1], coefficients[1:], z)
    return coefficients[0]


class Bernstein(Autoregressive):
    """An autoregressive flow of Bernstein polynomials, whose coefficients a masked network gives.

    Smoother than splines, and robust: the function moves no more than its coefficients do. Outside of
    ``[-bound, bound]`` its tangents continue it, so that it is onto the real line and densities are normalised. The
    inverse is numerical. See :class:`~pyro_dgm.distributions.transforms.Autoregressive` for which direction is fast. It
    starts as the identity.

    :param dim: length of the vectors.
    :param degree: degree of the polynomials.
    :param bound: half the width of the interval. Standardise the data, so that it holds nearly all of them.
    :param hidden: widths of the masked network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network.
    :param order: the elements, first one first; ``None`` for the order in which they stand, ``"reverse"`` for the
        other one.
    :param residual: whether hidden layers are residual.
    :raises ValueError: if a number is out of range; and as ``Autoregressive``.

    Source: Sick, Hothorn, Duerr (2020), arXiv:2004.00464; Ramasinghe, Fernando, Khan, Barnes (2021), arXiv:2102.03509.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Bernstein
        >>> Bernstein(3, degree=5, hidden=(16,))(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        dim: int,
        *,
        degree: int = 10,
        bound: float = 5.0,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        order: Sequence[int] | str | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__(
            dim,
            BernsteinFamily(degree, bound),
            hidden=hidden,
            context_dim=context_dim,
            activation=activation,
            order=order,
            residual=residual,
        )
