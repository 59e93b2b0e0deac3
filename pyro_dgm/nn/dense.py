"""Fully connected networks as functions of their input alone, with their derivatives in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jvp

__all__ = ["DenseFunction", "Linearized", "with_slope"]


def with_slope(activation: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """An element-wise activation and its derivative.

    An activation may give the derivative by a method ``with_slope(x)`` of its own; otherwise it is found by
    forward-mode differentiation, which takes more time.
    """
    own = getattr(activation, "with_slope", None)
    if own is not None:
        return own(x)
    if isinstance(activation, nn.Tanh):
        y = torch.tanh(x)
        return y, 1 - y * y
    value, slope = jvp(activation, (x,), (torch.ones_like(x),))[:2]
    return value, slope


@dataclass(frozen=True)
class Linearized:
    """The derivative of a :class:`DenseFunction` at an input: a product of matrices and diagonals.

    .. math:: J = W_L S_{L-1} W_{L-1} \\ldots S_1 W_1, \\qquad S_i = \\mathrm{diag}(a'(h_i))

    :ivar value: the function's value, ``batch + (out,)``.
    :ivar weights: the matrices.
    :ivar slopes: derivatives of the activations, ``batch + (width,)`` each.
    """

    value: Tensor
    weights: Sequence[Tensor]
    slopes: Sequence[Tensor]

    def push(self, tangent: Tensor) -> Tensor:
        """:math:`J v` for each element of the batch."""
        out = nn.functional.linear(tangent, self.weights[0])
        for weight, slope in zip(self.weights[1:], self.slopes, strict=True):
            out = nn.functional.linear(out * slope, weight)
        return out

    def pull(self, cotangent: Tensor) -> Tensor:
        """:math:`J^\\top w` for each element of the batch."""
        out = cotangent @ self.weights[-1]
        for weight, slope in zip(self.weights[-2::-1], self.slopes[::-1], strict=True):
            out = (out * slope) @ weight
        return out

    def jacobian(self) -> Tensor:
        """The Jacobian itself, ``batch + (out, in)``."""
        columns = self.weights[0].mT
        for weight, slope in zip(self.weights[1:], self.slopes, strict=True):
            columns = nn.functional.linear(columns * slope.unsqueeze(-2), weight)
        return columns.mT.expand((*self.value.shape, columns.shape[-2]))


class DenseFunction:
    """Affine maps with element-wise activations between them, whose weights are given.

    Networks make one of these for many evaluations with the same weights and context.

    :param weights: matrices, ``(out, in)`` each.
    :param biases: vectors, ``(out,)`` each.
    :param activations: modules that act on each element alone, one fewer.
    :param shift: added to the first layer's output, such as what a context gives; ``batch + (width,)``.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_dgm.nn.dense import DenseFunction
        >>> f = DenseFunction([torch.eye(2), torch.eye(2)], [torch.zeros(2)] * 2, [nn.Tanh()])
        >>> f.value_and_trace(torch.zeros(1, 2))
        (tensor([[0., 0.]]), tensor([2.]))
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        activations: Sequence[nn.Module],
        shift: Tensor | None = None,
    ) -> None:
        self.weights, self.biases, self.activations, self.shift = weights, biases, activations, shift

    def __call__(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """The value at ``batch + (in,)``; ``shift`` is added behind the first layer, in place of the one given."""
        h = self._first(x, shift)
        for activation, weight, bias in zip(self.activations, self.weights[1:], self.biases[1:], strict=True):
            h = nn.functional.linear(activation(h), weight, bias)
        return h

    def linearize(self, x: Tensor, shift: Tensor | None = None) -> Linearized:
        """Value and derivative at ``x``."""
        h, slopes = self._first(x, shift), []
        for activation, weight, bias in zip(self.activations, self.weights[1:], self.biases[1:], strict=True):
            h, slope = with_slope(activation, h)
            slopes.append(slope)
            h = nn.functional.linear(h, weight, bias)
        return Linearized(h, self.weights, slopes)

    def value_and_trace(
        self, x: Tensor, shift: Tensor | None = None, form: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The value and the trace of the Jacobian of a function from ``n`` to ``n`` dimensions.

        With up to two hidden layers the trace is a form in the activations' slopes, whose matrix does not depend on
        the input,

        .. math:: \\mathrm{tr}(W_3 S_2 W_2 S_1 W_1) = s_2^\\top \\bigl(W_2 \\odot (W_1 W_3)^\\top\\bigr) s_1,

        and so costs as much as the network itself, for any number of dimensions. With more layers it takes the
        Jacobian.

        :param form: what :meth:`trace_form` gave, where it is at hand.
        """
        at = self.linearize(x, shift)
        form = self.trace_form() if form is None else form
        if form is None:
            return at.value, at.jacobian().diagonal(dim1=-2, dim2=-1).sum(-1)
        if not at.slopes:
            return at.value, form.expand(at.value.shape[:-1])
        last = at.slopes[-1] * (form if len(at.slopes) == 1 else nn.functional.linear(at.slopes[0], form))
        return at.value, last.sum(-1)

    def trace_form(self) -> Tensor | None:
        """What slopes are multiplied with to give the trace: a number, a vector or a matrix; ``None`` beyond that."""
        if len(self.weights) == 1:
            return self.weights[0].diagonal().sum()
        if len(self.weights) == 2:
            return (self.weights[0] * self.weights[1].mT).sum(-1)
        return self.weights[1] * (self.weights[0] @ self.weights[2]).mT if len(self.weights) == 3 else None

    def _first(self, x: Tensor, shift: Tensor | None) -> Tensor:
        h = nn.functional.linear(x, self.weights[0], self.biases[0])
        shift = self.shift if shift is None else shift
        return h if shift is None else h + shift
