"""Increasing functions of one number, whose parameters a network gives: what coupling and autoregression share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_dgm.ops.arguments import check_count, check_positive
from pyro_dgm.ops.rational_quadratic import rational_quadratic

__all__ = [
    "AdditiveFamily",
    "AffineFamily",
    "CircularSplineFamily",
    "ElementwiseFamily",
    "SplineFamily",
    "check_family",
    "columns",
]


def columns(parameters: Tensor) -> tuple[Tensor, ...]:
    """The parameters of all elements one by one, each of the shape of the elements.

    Networks of this library give first parameters before second ones. Taken in this way, neither direction of
    differentiation has to copy.
    """
    return parameters.transpose(-1, -2).unbind(-2) if parameters.dim() > 1 else parameters.unbind()


def aligned(parameters: Tensor, x: Tensor) -> Tensor:
    """Parameters with as many dimensions as the elements, so that their own dimension may be put first."""
    return parameters.reshape((1,) * (x.dim() + 1 - parameters.dim()) + parameters.shape)


def expanded(value: Tensor, like: Tensor) -> Tensor:
    """A tensor in the shape of another one; itself where it has it, which spares autograd a step."""
    return value if value.shape == like.shape else value.expand(like.shape)


class ElementwiseFamily(nn.Module, ABC):
    """Increasing functions :math:`y = f(x; \\theta)` of one number, each element with its own parameters.

    A subclass gives :attr:`num_parameters`, :meth:`forward` and :meth:`inverse`. It then serves
    :class:`~pyro_dgm.distributions.transforms.Coupling`, :class:`~pyro_dgm.distributions.transforms.Autoregressive`
    and :class:`~pyro_dgm.distributions.transforms.Elementwise` alike. It may hold weights of its own, shared by all
    elements.

    Parameters of zero should give the identity, or be near it: networks start there. Both functions take any
    real parameters, and may not branch on values (they run under ``vmap`` and in recorded graphs).

    Source: the same separation of functions and networks (transformer and conditioner) is in G. Papamakarios,
    E. Nalisnick, D. J. Rezende, S. Mohamed and B. Lakshminarayanan (2021), arXiv:1912.02762, section 3.1.

    Example, a family of scales alone::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import ElementwiseFamily, Coupling
        >>> class Scale(ElementwiseFamily):
        ...     num_parameters = 1
        ...     def forward(self, x, parameters):
        ...         log_scale = parameters.squeeze(-1)
        ...         return x * log_scale.exp(), log_scale.expand(x.shape)
        ...     def inverse(self, y, parameters):
        ...         return self(y, -parameters)
        >>> Coupling(3, Scale())(torch.ones(5, 3)).shape
        torch.Size([5, 3])
    """

    #: numbers that each element takes
    num_parameters: int
    #: numbers by which a network sees an element, see :meth:`features`
    num_features: int = 1
    #: constraints of one element of the input and of the output
    domain: Any = constraints.real
    codomain: Any = constraints.real

    @abstractmethod
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """:math:`f(x)` and :math:`\\log f'(x)`, element by element.

        :param x: values of any shape.
        :param parameters: ``x.shape + (num_parameters,)``, or a shape that broadcasts to it.
        :returns: two tensors of the shape of ``x``.
        """

    @abstractmethod
    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """:math:`f^{-1}(y)` and its log-derivative, element by element.

        :param y: values of any shape.
        :param parameters: ``y.shape + (num_parameters,)``, or a shape that broadcasts to it.
        :returns: two tensors of the shape of ``y``.
        """

    def features(self, x: Tensor) -> Tensor:
        """What a network gets for elements on which others depend: ``batch + (dim * num_features,)``, side by side."""
        return x


def check_family(family: Any) -> ElementwiseFamily:
    """Check that an argument is a family, made and not its class alone.

    :raises TypeError: if it is not.
    """
    if not isinstance(family, ElementwiseFamily):
        raise TypeError(f"family must be an ElementwiseFamily such as SplineFamily(), got {family!r}")
    return family


class AffineFamily(ElementwiseFamily):
    """Shift and scale; the log-scale is bounded softly, so that a wild network can neither overflow nor collapse.

    .. math:: y = x e^{s} + \\theta_1, \\qquad s = s_{\\max} \\tanh(\\theta_2 / s_{\\max})

    :math:`\\theta_1` is the first of the two parameters of an element, :math:`\\theta_2` the second.

    :param max_log_scale: bound :math:`s_{\\max}` of :math:`|s|`.
    :raises ValueError: if it is not positive.

    Source: L. Dinh, J. Sohl-Dickstein and S. Bengio (2017), arXiv:1605.08803.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import AffineFamily
        >>> y, log_derivative = AffineFamily()(torch.ones(5, 3), torch.zeros(5, 3, 2))
        >>> y.shape, log_derivative.shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    num_parameters = 2

    def __init__(self, max_log_scale: float = 5.0) -> None:
        super().__init__()
        self.max_log_scale = float(check_positive("max_log_scale", max_log_scale))

    def _shift_and_log_scale(self, parameters: Tensor, sign: float = 1.0) -> tuple[Tensor, Tensor]:
        """The shift, and the log-scale times a sign."""
        shift, raw = columns(parameters)
        return shift, torch.tanh(raw / self.max_log_scale) * (sign * self.max_log_scale)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters)
        return torch.addcmul(shift, x, log_scale.exp()), expanded(log_scale, x)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters, -1.0)
        return (y - shift) * log_scale.exp(), expanded(log_scale, y)


class AdditiveFamily(ElementwiseFamily):
    """A shift; it preserves volume.

    .. math:: y = x + \\theta, \\qquad \\log f'(x) = 0

    An element takes one parameter.

    Source: L. Dinh, D. Krueger and Y. Bengio (2015), arXiv:1410.8516.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import AdditiveFamily
        >>> AdditiveFamily()(torch.ones(2), torch.tensor([[1.0], [2.0]]))[0].tolist()
        [2.0, 3.0]
    """

    num_parameters = 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x + parameters.squeeze(-1), torch.zeros_like(x)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return y - parameters.squeeze(-1), torch.zeros_like(y)


class SplineFamily(ElementwiseFamily):
    """Monotonic rational-quadratic splines on ``[-bound, bound]``, the identity outside.

    In each bin the function is a ratio of two quadratic polynomials, with positive slopes at the knots: see
    :func:`~pyro_dgm.ops.rational_quadratic` for the equation. Both directions are in closed form. Parameters of zero
    give the identity. An element takes ``3 * num_bins - 1`` parameters: widths, heights, slopes at inner knots.

    :param num_bins: number of bins :math:`K`, at least 2.
    :param bound: half the width :math:`B` of the interval. Standardise the data, so that it holds nearly all of them.
    :raises ValueError: if a number is out of range.

    Source: C. Durkan, A. Bekasov, I. Murray and G. Papamakarios (2019), arXiv:1906.04032.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import SplineFamily
        >>> family = SplineFamily(num_bins=4)
        >>> y, log_derivative = family(torch.ones(5, 3), torch.randn(5, 3, family.num_parameters))
        >>> y.shape, log_derivative.shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    def __init__(self, num_bins: int = 8, bound: float = 5.0) -> None:
        super().__init__()
        self.num_bins = check_count("num_bins", num_bins, 2)
        self.bound = float(check_positive("bound", bound))
        self.num_parameters = 3 * self.num_bins - 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic(x, parameters, self.num_bins, bound=self.bound, min_size=_least(self.num_bins))

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic(
            y, parameters, self.num_bins, bound=self.bound, min_size=_least(self.num_bins), inverse=True
        )


def _least(num_bins: int) -> float:
    """Least size of a bin: that of the paper, or less, so that many bins have room."""
    return min(1e-3, 0.1 / num_bins)


class CircularSplineFamily(ElementwiseFamily):
    """Rational-quadratic splines on the circle :math:`[-\\pi, \\pi)`, followed by a rotation.

    The slopes at both ends are one parameter, so that the density has no kink where the circle closes. The rotation
    moves the point that a spline would otherwise keep where it is.

    .. math:: f(x) = \\bigl(g(x) + \\theta_{3K+1}\\bigr) \\bmod 2\\pi, \\qquad f'(x) = g'(x)

    with the spline :math:`g` of :func:`~pyro_dgm.ops.rational_quadratic`. An element takes ``3 * num_bins + 1``
    parameters, those of the spline and the angle. A network sees an element by its cosine and sine (``num_features``
    is 2).

    :param num_bins: number of bins :math:`K`, at least 2.
    :raises ValueError: if it is less than 2.

    Source: Rezende, Papamakarios, Racanière et al. (2020), arXiv:2002.02428.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import CircularSplineFamily
        >>> family = CircularSplineFamily(num_bins=4)
        >>> family(torch.tensor([3.0, -3.0]), torch.zeros(2, family.num_parameters))[1].abs().max() < 1e-6
        tensor(True)
    """

    num_features = 2

    def __init__(self, num_bins: int = 8) -> None:
        super().__init__()
        self.num_bins = check_count("num_bins", num_bins, 2)
        self.num_parameters = 3 * self.num_bins + 1
        self.domain = self.codomain = constraints.half_open_interval(-math.pi, math.pi)

    def features(self, x: Tensor) -> Tensor:
        return torch.stack([x.cos(), x.sin()], -1).flatten(-2)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        y, log_derivative = self._spline(_wrap(x), parameters)
        return _wrap(y + parameters[..., -1]), log_derivative

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        x, log_derivative = self._spline(_wrap(y - parameters[..., -1]), parameters, inverse=True)
        return _wrap(x), log_derivative

    def _spline(self, value: Tensor, parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return rational_quadratic(
            value,
            parameters[..., :-1],
            self.num_bins,
            bound=math.pi,
            inverse=inverse,
            circular=True,
            min_size=_least(self.num_bins),
        )


def _wrap(angle: Tensor) -> Tensor:
    """The angle in :math:`[-\\pi, \\pi)`, also after rounding."""
    wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    return torch.where(wrapped < math.pi, wrapped, -math.pi)
