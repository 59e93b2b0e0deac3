"""A scale and a shift for each element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet

__all__ = ["ElementwiseAffine"]


class ElementwiseAffine(Bijection):
    """A learned scale and shift for each element, the simplest transform.

    .. math:: y = x \\odot e^{s(c)} + b(c), \\qquad \\log |\\det J| = \\sum_i s_i(c)

    Use it as the last part of a flow, to give the data's location and scale. Without context :math:`s` and :math:`b`
    are parameters; with one they are affine functions of it. It starts as the identity.

    :param event_shape: shape of one value; an integer for vectors.
    :param context_dim: length of the context vectors; 0 for none.
    :raises ValueError: if a size is not positive, or a value has another event shape.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import ElementwiseAffine
        >>> y, log_det = ElementwiseAffine(3).forward_and_log_det(torch.ones(5, 3))
        >>> y.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, event_shape: Sequence[int] | int, context_dim: int = 0) -> None:
        super().__init__(event_shape, context_dim)
        count = 2 * self.event_shape.numel()
        self.bias = nn.Parameter(torch.zeros(count))
        self.weight = nn.Parameter(torch.zeros(count, context_dim)) if context_dim else None

    def _shift_and_log_scale(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        both = self.bias if self.weight is None else nn.functional.linear(context, self.weight, self.bias)  # type: ignore[arg-type]
        shift, log_scale = both.chunk(2, -1)
        shape = shift.shape[:-1] + self.event_shape
        return shift.reshape(shape), log_scale.reshape(shape)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        shift, log_scale = self._shift_and_log_scale(context)
        return x * log_scale.exp() + shift, self._sum(log_scale, x)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        shift, log_scale = self._shift_and_log_scale(context)
        log_scale = -log_scale
        return (y - shift) * log_scale.exp(), self._sum(log_scale, y)

    def _sum(self, log_scale: Tensor, value: Tensor) -> Tensor:
        event = len(self.event_shape)
        return sum_rightmost(log_scale, event).expand(value.shape[: value.dim() - event])
