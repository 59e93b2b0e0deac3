"""Events of another shape with the same elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.ops.arguments import check_sizes

__all__ = ["Reshape"]


class Reshape(Bijection):
    """Reshape events, :math:`\\log |\\det J| = 0`: vectors to images, for a flow of vectors on data of any shape.

    :param event_shape: shape of one value of the input.
    :param out_shape: shape of one value of the output.
    :raises ValueError: if the two have different numbers of elements.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Reshape
        >>> Reshape((6,), (2, 3))(torch.zeros(5, 6)).shape
        torch.Size([5, 2, 3])
    """

    def __init__(self, event_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self._out_shape = torch.Size(check_sizes("out_shape", out_shape))
        if self._out_shape.numel() != self.event_shape.numel():
            raise ValueError(
                f"out_shape must have as many elements as event_shape {tuple(self.event_shape)}, "
                f"got {tuple(self._out_shape)}"
            )

    @property
    def out_shape(self) -> torch.Size:
        return self._out_shape

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return _reshaped(x, self.event_shape, self._out_shape)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        return _reshaped(y, self._out_shape, self.event_shape)


def _reshaped(value: Tensor, old: torch.Size, new: torch.Size) -> ValueAndLogDet:
    batch = value.shape[: value.dim() - len(old)]
    return value.reshape(batch + new), value.new_zeros(batch)
