"""Small convolutional encoder and decoder for images, over any number of leading batch dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_dgm.nn.mlp import batch_of

__all__ = ["ConvDecoder", "ConvEncoder"]


def _image_shape(shape: Sequence[int], argument: str) -> tuple[int, int, int]:
    """(H, W) or (C, H, W) as (C, H, W)."""
    shape = tuple(int(s) for s in shape)
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ValueError(f"{argument} must be an image shape (H, W) or (C, H, W), each side at least 4, got {shape}")
    return shape


def _halvings(size: int, count: int) -> list[int]:
    """Side lengths after each stride-2 convolution with kernel 3 and padding 1."""
    return [-(-size // 2**i) for i in range(count + 1)]


class ConvEncoder(nn.Module):
    """Stride-2 convolutions, then one affine map: an image to a vector or several.

    Input of shape ``batch + in_shape``, output of shape ``batch + out_shape``.

    :param in_shape: ``(H, W)`` or ``(C, H, W)``.
    :param out_shape: event shape of the output.
    :param channels: channels after each stride-2 convolution.
    :raises ValueError: for a shape that is no image.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn import ConvEncoder
        >>> ConvEncoder((28, 28), (2, 16))(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 2, 16])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = torch.Size(in_shape), torch.Size(out_shape)
        c, h, w = self.image = _image_shape(in_shape, "in_shape")
        hs, ws = _halvings(h, len(channels)), _halvings(w, len(channels))
        layers: list[nn.Module] = []
        for width in channels:
            layers += [nn.Conv2d(c, width, 3, stride=2, padding=1), activation()]
            c = width
        layers += [nn.Flatten(), nn.Linear(c * hs[-1] * ws[-1], self.out_shape.numel())]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        batch = batch_of(x, self.in_shape, "ConvEncoder: x must end in")
        return self.layers(x.reshape((-1, *self.image))).reshape(batch + self.out_shape)


class ConvDecoder(nn.Module):
    """One affine map, then stride-2 transposed convolutions: a vector to an image.

    Input of shape ``batch + in_shape``, output of shape ``batch + out_shape``; ``out_shape`` may carry a leading
    dimension of parameters a pixel, ``(P, H, W)`` or ``(P, C, H, W)``.

    :param in_shape: event shape of the latent.
    :param out_shape: event shape of the output.
    :param channels: channels before each transposed convolution, widest first.
    :raises ValueError: for a shape that is no image.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn import ConvDecoder
        >>> ConvDecoder((16,), (28, 28))(torch.zeros(7, 5, 16)).shape
        torch.Size([7, 5, 28, 28])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = torch.Size(in_shape), torch.Size(out_shape)
        if len(out_shape) > 3:  # parameters a pixel: fold them into the channels
            out_shape = (out_shape[0] * out_shape[1], *out_shape[2:])
        c_out, h, w = _image_shape(out_shape, "out_shape")
        hs, ws = _halvings(h, len(channels)), _halvings(w, len(channels))
        layers: list[nn.Module] = [
            nn.Linear(self.in_shape.numel(), channels[0] * hs[-1] * ws[-1]),
            nn.Unflatten(-1, (channels[0], hs[-1], ws[-1])),
            activation(),
        ]
        widths = [*channels, c_out]
        for i in range(len(channels)):
            # output_padding undoes the rounding of the halving: odd sides need none, even sides need one.
            pad = (1 - hs[-i - 2] % 2, 1 - ws[-i - 2] % 2)
            layers.append(nn.ConvTranspose2d(widths[i], widths[i + 1], 3, stride=2, padding=1, output_padding=pad))
            if i + 1 < len(channels):
                layers.append(activation())
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        batch = batch_of(z, self.in_shape, "ConvDecoder: z must end in")
        return self.layers(z.reshape((-1, self.in_shape.numel()))).reshape(batch + self.out_shape)
