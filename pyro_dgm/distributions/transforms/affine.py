"""A scale and a shift for each element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.ops.arguments import check_sizes

__all__ = ["ElementwiseAffine"]


class ElementwiseAffine(Bijection):
    """A learned scale and shift for each element, the simplest transform.

    .. math:: y = x \\odot e^{s(c)} + b(c), \\qquad \\log |\\det J| = \\sum_i s_i(c)

    Use it as the last part of a flow, to give the data's location and scale. Without context :math:`s` and :math:`b`
    are parameters; with one they are affine functions of it. It starts as the identity; ``initialize(y)`` sets it to
    the mean and standard deviation of data.

    :param event_shape: shape of one value; an integer for vectors.
    :param context_dim: length of the context vectors; 0 for none.
    :param parameter_shape: shape of :math:`s` and :math:`b`, where elements share them: ones for the dimensions along
        which they are the same, ``(3, 1, 1)`` for images of three channels. ``None`` is ``event_shape``.
    :raises ValueError: if a size is not positive, or a value has another event shape.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import ElementwiseAffine
        >>> y, log_det = ElementwiseAffine(3).forward_and_log_det(torch.ones(5, 3))
        >>> y.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        context_dim: int = 0,
        *,
        parameter_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(event_shape, context_dim)
        shape = tuple(self.event_shape) if parameter_shape is None else check_sizes("parameter_shape", parameter_shape)
        if len(shape) != len(self.event_shape) or any(
            n not in (1, m) for n, m in zip(shape, self.event_shape, strict=True)
        ):
            raise ValueError(
                f"parameter_shape must have the sizes of event_shape {tuple(self.event_shape)} or ones, got {shape}"
            )
        self.parameter_shape = torch.Size(shape)
        self._shared_by = self.event_shape.numel() // self.parameter_shape.numel()
        count = 2 * self.parameter_shape.numel()
        self.bias = nn.Parameter(torch.zeros(count))
        self.weight = nn.Parameter(torch.zeros(count, context_dim)) if context_dim else None

    def _shift_and_log_scale(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        both = self.bias if self.weight is None else nn.functional.linear(context, self.weight, self.bias)  # type: ignore[arg-type]
        shift, log_scale = both.chunk(2, -1)
        shape = shift.shape[:-1] + self.parameter_shape
        return shift.reshape(shape), log_scale.reshape(shape)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        shift, log_scale = self._shift_and_log_scale(context)
        return x * log_scale.exp() + shift, self._sum(log_scale, x)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        shift, log_scale = self._shift_and_log_scale(context)
        return (y - shift) * (-log_scale).exp(), -self._sum(log_scale, y)

    def _sum(self, log_scale: Tensor, value: Tensor) -> Tensor:
        event = len(self.event_shape)
        total = sum_rightmost(log_scale, event) * self._shared_by
        return total.expand(value.shape[: value.dim() - event])

    @property
    def starts_from_data(self) -> bool:
        return True

    def _start(self, value: Tensor, context: Tensor | None, inverse: bool, needed: bool) -> Tensor:
        values = value.reshape(-1, *self.event_shape)
        dims = [0] + [i + 1 for i, n in enumerate(self.parameter_shape) if n == 1]
        if values.numel() < 2 * self.parameter_shape.numel():
            raise ValueError(f"{type(self).__name__}: initialize needs at least two values for each scale, got one")
        scale, mean = torch.std_mean(values, dims)
        # A constant keeps its scale: it has none of its own.
        scale = torch.where(scale > 0, scale, torch.ones_like(scale)).flatten()
        shift, log_scale = (mean.flatten(), scale.log()) if inverse else (-mean.flatten() / scale, -scale.log())
        self.bias.copy_(torch.cat([shift, log_scale]))
        if self.weight is not None:
            self.weight.zero_()
        return (self._backward if inverse else self._forward)(value, self._no_context(value))[0]

    def _no_context(self, value: Tensor) -> Tensor | None:
        return None if self.weight is None else value.new_zeros(self.context_dim)
