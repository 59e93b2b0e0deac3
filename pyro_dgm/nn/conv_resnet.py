"""A residual convolutional network that keeps the size of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pyro_dgm.nn.mlp import batch_of
from pyro_dgm.ops.arguments import check_count, check_image

__all__ = ["ConvResNet"]


class ConvResNet(nn.Module):
    """A residual convolutional network from an image to one of the same height and width.

    .. math:: h_0 = C_0 x, \\quad h_{i+1} = h_i + C_i'\\, a(C_i\\, a(h_i)), \\quad y = C_n\\, a(h_n)

    with convolutions :math:`C` of kernel 3 and activations :math:`a` before each but the first. It is the network of
    couplings on images. Input of shape ``batch + in_shape``, output of shape ``batch + out_shape``, for any number of
    batch dimensions.

    :param in_shape: ``(C, H, W)``.
    :param out_channels: channels of the output.
    :param hidden_channels: channels in between.
    :param num_blocks: residual blocks :math:`n`; 0 for two convolutions.
    :param activation: a module class.
    :raises TypeError: if a size is no integer.
    :raises ValueError: if a size is out of range.

    Source: K. He, X. Zhang, S. Ren and J. Sun (2016), arXiv:1603.05027.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn import ConvResNet
        >>> ConvResNet((3, 8, 8), 5, hidden_channels=16)(torch.zeros(7, 2, 3, 8, 8)).shape
        torch.Size([7, 2, 5, 8, 8])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_channels: int,
        hidden_channels: int = 64,
        num_blocks: int = 2,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        channels, height, width = self.in_shape = check_image("in_shape", in_shape)
        self.out_shape = (check_count("out_channels", out_channels), height, width)
        check_count("hidden_channels", hidden_channels)
        self.first = nn.Conv2d(channels, hidden_channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                activation(),
                nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
                activation(),
                nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
            )
            for _ in range(check_count("num_blocks", num_blocks, 0))
        )
        self.last = nn.Sequential(activation(), nn.Conv2d(hidden_channels, out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        batch = batch_of(x, self.in_shape, "ConvResNet: x must end in")  # type: ignore[arg-type]
        hidden = self.first(x.reshape((-1, *self.in_shape)))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden).reshape(batch + self.out_shape)
