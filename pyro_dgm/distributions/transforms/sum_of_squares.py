"""Flows of integrated sums of squared polynomials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.autoregressive import Autoregressive
from pyro_dgm.distributions.transforms.linear_tails import LinearTails, Value, ValueAndSlope
from pyro_dgm.ops.arguments import check_count

__all__ = ["SumOfSquares", "SumOfSquaresFamily"]

#: what is added to the sum of squares, which may be zero
LEAST_SLOPE = 1e-3


class SumOfSquaresFamily(LinearTails):
    """Polynomials whose derivative is a sum of squares, on an interval, with linear tails.

    .. math:: h(x) = b + \\int_0^x \\Bigl(\\varepsilon + (1 - \\varepsilon)
              \\sum_{k=1}^K \\Bigl(\\sum_{l=0}^r a_{kl} u^l\\Bigr)^2\\Bigr) \\mathrm{d}u

    Every polynomial that increases is of this form, already with :math:`K = 2`. Coefficients are those of powers of
    :math:`2u / B`. Parameters of zero are near the identity.

    :param degree: degree :math:`r` of the squared polynomials; that of :math:`h` is :math:`2r + 1`.
    :param num_polynomials: number :math:`K` of squares. An element takes :math:`K (r + 1) + 1` parameters.
    :param bound: half the width :math:`B` of the interval. Standardise the data, so that it holds nearly all of them.
    :raises ValueError: if a number is out of range.

    Source: Jaini, Selby, Yu (2019), arXiv:1905.02325.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import SumOfSquaresFamily
        >>> family = SumOfSquaresFamily(degree=2)
        >>> y, log_derivative = family(torch.ones(5, 3), torch.zeros(5, 3, family.num_parameters))
        >>> y.shape, log_derivative.shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    _start: Tensor
    _sums: Tensor

    def __init__(self, degree: int = 3, num_polynomials: int = 2, bound: float = 5.0) -> None:
        super().__init__(bound)
        self.degree, self.num_polynomials = (
            check_count("degree", degree),
            check_count("num_polynomials", num_polynomials),
        )
        size = self.degree + 1
        self.num_parameters = self.num_polynomials * size + 1
        device = torch.get_default_device()
        # The first one is the constant one. Others that are zero, or multiples of it, would stay so.
        start = torch.zeros(self.num_polynomials, size, device=device)
        for k in range(self.num_polynomials):
            start[k, k % size] = 0.1 if k else 1.0
        # Which products of two coefficients belong to which power; the integral divides by the next power.
        power = torch.arange(size, device=device)
        sums = torch.nn.functional.one_hot(power[:, None] + power, 2 * self.degree + 1).flatten(0, 1)
        self.register_buffer("_start", start, persistent=False)
        self.register_buffer("_sums", sums.to(start.dtype), persistent=False)

    def inside(self, parameters: Tensor) -> tuple[Value, ValueAndSlope]:
        raw, shift = parameters.split([self.num_parameters - 1, 1], -1)
        a = raw.unflatten(-1, (self.num_polynomials, self.degree + 1)) + self._start
        products = (a.unsqueeze(-1) * a.unsqueeze(-2)).sum(-3).flatten(-2)
        slopes = ((1 - LEAST_SLOPE) * products @ self._sums).unbind(-1)
        values = [slope / (power + 1) for power, slope in enumerate(slopes)]
        shift, half = shift.squeeze(-1), self.bound / 2

        def value(x: Tensor) -> Tensor:
            return torch.addcmul(shift, _horner(values, x / half) + LEAST_SLOPE, x)

        def value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
            return value(x), _horner(slopes, x / half).clamp_min(0) + LEAST_SLOPE  # a sum of squares, up to rounding

        return value, value_and_slope


def _horner(coefficients: Sequence[Tensor], u: Tensor) -> Tensor:
    """The polynomial with these coefficients, lowest power first."""
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = torch.addcmul(coefficient, total, u)
    return total


class SumOfSquares(Autoregressive):
    """SOS flow: an autoregressive flow of polynomials whose derivative is a sum of squares.

    Any increasing polynomial can be had, hence any density in the limit. Outside of ``[-bound, bound]`` tangents
    continue the polynomials, which would otherwise grow like :math:`x^{2r+1}` with each layer; they are onto the real
    line either way, so that densities are normalised. The inverse is numerical. See
    :class:`~pyro_dgm.distributions.transforms.Autoregressive` for which direction is fast. It starts near the identity.

    :param dim: length of the vectors.
    :param degree: degree :math:`r` of the squared polynomials.
    :param num_polynomials: number of squares.
    :param bound: half the width of the interval. Standardise the data, so that it holds nearly all of them.
    :param hidden: widths of the masked network's hidden layers.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class, between layers of the network.
    :param order: the elements, first one first; ``None`` for the order in which they stand, ``"reverse"`` for the
        other one.
    :param residual: whether hidden layers are residual.
    :raises ValueError: if a number is out of range; and as ``Autoregressive``.

    Source: Jaini, Selby, Yu (2019), arXiv:1905.02325.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import SumOfSquares
        >>> SumOfSquares(3, degree=2, hidden=(16,))(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        dim: int,
        *,
        degree: int = 3,
        num_polynomials: int = 2,
        bound: float = 5.0,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        order: Sequence[int] | str | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__(
            dim,
            SumOfSquaresFamily(degree, num_polynomials, bound),
            hidden=hidden,
            context_dim=context_dim,
            activation=activation,
            order=order,
            residual=residual,
        )
