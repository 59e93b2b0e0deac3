"""Networks that take a vector beside their input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Concatenated"]


class Concatenated(nn.Module):
    """A network on its input joined with a context vector: behind a vector's elements, or as channels of an image.

    :param network: takes ``batch + joined_shape``, see :meth:`joined`.
    :param in_shape: event shape of the input.
    :param size: length of the context vectors.
    :param image: whether the input is an image whose channels the context is appended to.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn import MLP, Concatenated
        >>> net = Concatenated(MLP(Concatenated.joined((4,), 3), (2,), (8,)), (4,), 3)
        >>> net(torch.zeros(5, 4), torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module, in_shape: Sequence[int], size: int, image: bool = False) -> None:
        super().__init__()
        self.network, self.in_shape, self.size, self.image = network, torch.Size(in_shape), size, image

    @staticmethod
    def joined(in_shape: Sequence[int], size: int, image: bool = False) -> torch.Size:
        """Event shape of what the network inside gets."""
        if not image:
            return torch.Size((math.prod(in_shape) + size,))
        channels = 1 if len(in_shape) == 2 else in_shape[0]
        return torch.Size((channels + size, *in_shape[-2:]))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        batch = x.shape[: x.dim() - len(self.in_shape)]
        context = context.expand((*batch, self.size))  # particles and plates to the left
        if self.image:
            sides = self.in_shape[-2:]
            x = x.reshape((*batch, -1, *sides))
            return self.network(torch.cat([x, context[..., None, None].expand((*batch, self.size, *sides))], -3))
        return self.network(torch.cat([x.reshape((*batch, -1)), context], -1))
