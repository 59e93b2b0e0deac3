"""Increasing functions on an interval, continued by straight lines: what polynomial flows share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_dgm.distributions.transforms.elementwise import ElementwiseFamily, aligned
from pyro_dgm.ops.arguments import check_positive
from pyro_dgm.ops.root_finding import invert_in_bracket

__all__ = ["LinearTails"]

Value = Callable[[Tensor], Tensor]
ValueAndSlope = Callable[[Tensor], tuple[Tensor, Tensor]]

#: halvings of the interval before Newton's method
BISECTIONS = 18


class LinearTails(ElementwiseFamily):
    """Functions that increase on ``[-bound, bound]``, with tangents at its ends as tails.

    .. math:: f(x) = h(\\bar x) + h'(\\bar x) (x - \\bar x), \\qquad \\bar x = \\min(\\max(x, -B), B)

    The whole is continuously differentiable and onto the real line, so that densities are normalised, and grows
    linearly, so that nothing overflows. A subclass gives :meth:`inside`. The inverse is numerical, in the interval's
    bracket.

    :param bound: half the width :math:`B` of the interval. Standardise the data, so that it holds nearly all of them.
    :raises ValueError: if it is not positive.

    Source: linear tails outside of an interval are those of Durkan, Bekasov, Murray, Papamakarios (2019),
    arXiv:1906.04032, there around splines.

    Example, a cubic :math:`h(x) = b + x + x^3`::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Elementwise, LinearTails
        >>> class Cubic(LinearTails):
        ...     num_parameters = 1
        ...     def inside(self, parameters):
        ...         shift = parameters.squeeze(-1)
        ...         h = lambda x: shift + x + x**3
        ...         return h, lambda x: (h(x), 1 + 3 * x.square())
        >>> t = Elementwise(3, Cubic(2.0))
        >>> t(torch.tensor([0.0, 1.0, 3.0])).tolist(), t.inv(torch.tensor([0.0, 2.0, 23.0])).tolist()
        ([0.0, 2.0, 23.0], [0.0, 1.0, 3.0])
    """

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = float(check_positive("bound", bound))

    @abstractmethod
    def inside(self, parameters: Tensor) -> tuple[Value, ValueAndSlope]:
        """The functions with these parameters: what depends on the parameters alone is computed once.

        :param parameters: as many dimensions as the elements have, and one more of length ``num_parameters``.
        :returns: two functions of ``x`` in ``[-bound, bound]``: one gives :math:`h(x)`, one both :math:`h(x)` and
            :math:`h'(x) > 0`.
        """

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        y, slope = self._with_tails(self.inside(aligned(parameters, x))[1], x)
        return y, slope.log()

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        h, both = self.inside(aligned(parameters, y))
        with torch.no_grad():
            end = torch.full_like(y, self.bound)
            # The root is in the interval; or on the tangent at an end, where the bracket is that point alone.
            (least, first_slope), (most, last_slope) = both(-end), both(end)
            low = torch.clamp_max((y - least) / first_slope, 0.0) - end
            high = torch.clamp_min((y - most) / last_slope, 0.0) + end
            low, high = torch.where(high > end, high, low), torch.where(low < -end, low, high)
        x = invert_in_bracket(
            lambda at: h(at.clamp(-self.bound, self.bound)),
            lambda at: self._with_tails(both, at),
            y,
            low,
            high,
            bisections=BISECTIONS,
        )
        return x, -both(x.clamp(-self.bound, self.bound))[1].log()

    def _with_tails(self, both: ValueAndSlope, x: Tensor) -> tuple[Tensor, Tensor]:
        within = x.clamp(-self.bound, self.bound)
        value, slope = both(within)
        return torch.addcmul(value, slope, x - within), slope

    def extra_repr(self) -> str:
        return f"bound={self.bound:g}"
