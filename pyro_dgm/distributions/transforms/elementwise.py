"""Increasing functions of one number, whose parameters a network gives: what coupling and autoregression share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.nn import MLP
from pyro_dgm.nn.build import zero_last_layer
from pyro_dgm.ops.arguments import check_count, check_positive
from pyro_dgm.ops.rational_quadratic import rational_quadratic

__all__ = [
    "AdditiveFamily",
    "AffineFamily",
    "CircularSplineFamily",
    "Elementwise",
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


class ElementwiseFamily(nn.Module, ABC):
    """Increasing functions :math:`y = f(x; \\theta)` of one number, each element with its own parameters.

    A subclass gives :attr:`num_parameters`, :meth:`forward` and :meth:`inverse`. It then serves ``Coupling``,
    ``Autoregressive`` and :class:`Elementwise` alike. It may hold weights of its own, shared by all elements.

    Parameters of zero should give the identity, or be near it: networks start there. Both functions take any
    real parameters, and may not branch on values (they run under ``vmap`` and in recorded graphs).
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
        """:math:`f^{-1}(y)` and its log-derivative, as :meth:`forward`."""

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

    :param max_log_scale: bound of :math:`|s|`.
    :raises ValueError: if it is not positive.
    """

    num_parameters = 2

    def __init__(self, max_log_scale: float = 5.0) -> None:
        super().__init__()
        self.max_log_scale = float(check_positive("max_log_scale", max_log_scale))

    def _shift_and_log_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = columns(parameters)
        return shift, self.max_log_scale * torch.tanh(raw / self.max_log_scale)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale.expand(x.shape)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters)
        log_scale = -log_scale
        return (y - shift) * log_scale.exp(), log_scale.expand(y.shape)


class AdditiveFamily(ElementwiseFamily):
    """A shift, :math:`y = x + \\theta`; it preserves volume."""

    num_parameters = 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x + parameters.squeeze(-1), torch.zeros_like(x)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return y - parameters.squeeze(-1), torch.zeros_like(y)


class SplineFamily(ElementwiseFamily):
    """Monotonic rational-quadratic splines on ``[-bound, bound]``, the identity outside.

    See :func:`~pyro_dgm.ops.rational_quadratic` for the equation.

    :param num_bins: number of bins.
    :param bound: half the width of the interval.
    :raises ValueError: if a number is not positive.
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

    :param num_bins: number of bins.
    :raises ValueError: if it is less than 2.

    Source: Rezende, Papamakarios, Racanière et al. (2020), arXiv:2002.02428.
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
        super().__init__(event_shape, context_dim)
        self.family = check_family(family)
        shape = (family.num_parameters, *self.event_shape)
        if self.context_dim:
            self.network = zero_last_layer(MLP((self.context_dim,), shape, hidden, activation))
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
        return value, sum_rightmost(log_derivative, len(self.event_shape))
