"""Blocks of an image as channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.ops.arguments import check_count, check_image

__all__ = ["Squeeze"]


class Squeeze(Bijection):
    """Blocks of pixels become channels: an image of half the side and four times the channels.

    .. math:: (C, H, W) \\to (f^2 C, H / f, W / f), \\qquad \\log |\\det J| = 0

    In a flow of images its inverse, ``Squeeze(...).inv``, leads from coarse noise to the data. Channels are in the
    order (row in the block, column in the block, old channel): the first half of them is the upper row of each block
    of four.

    :param event_shape: ``(C, H, W)``.
    :param factor: side :math:`f` of a block.
    :raises ValueError: if the shape is not that of an image, or its sides are no multiples of the factor.

    Source: L. Dinh, J. Sohl-Dickstein and S. Bengio (2017), arXiv:1605.08803.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import Squeeze
        >>> t = Squeeze((1, 2, 4))
        >>> t.out_shape
        torch.Size([4, 1, 2])
        >>> t(torch.arange(8.0).reshape(1, 2, 4))[:, 0].tolist()
        [[0.0, 2.0], [1.0, 3.0], [4.0, 6.0], [5.0, 7.0]]
    """

    def __init__(self, event_shape: Sequence[int], factor: int = 2) -> None:
        channels, height, width = check_image("event_shape", event_shape)
        super().__init__((channels, height, width))
        self.factor = f = check_count("factor", factor)
        if height % f or width % f:
            raise ValueError(f"the sides of event_shape must be multiples of factor={f}, got {(height, width)}")
        self._out_shape = torch.Size((channels * f * f, height // f, width // f))

    @property
    def out_shape(self) -> torch.Size:
        return self._out_shape

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        batch = x.shape[:-3]
        channels, height, width = self._out_shape
        f = self.factor
        blocks = x.reshape((*batch, self.event_shape[0], height, f, width, f))
        # from (channel, row, row in block, column, column in block)
        order = [*range(len(batch)), *(len(batch) + i for i in (2, 4, 0, 1, 3))]
        return blocks.permute(order).reshape((*batch, channels, height, width)), x.new_zeros(batch)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        batch = y.shape[:-3]
        _, height, width = self._out_shape
        f = self.factor
        blocks = y.reshape((*batch, f, f, self.event_shape[0], height, width))
        order = [*range(len(batch)), *(len(batch) + i for i in (2, 3, 0, 4, 1))]
        return blocks.permute(order).reshape((*batch, *self.event_shape)), y.new_zeros(batch)
