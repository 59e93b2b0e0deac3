"""Multi-layer perceptrons over any number of leading batch dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_dgm.ops.arguments import check_sizes

__all__ = ["MLP", "batch_of"]


def batch_of(x: Tensor, in_shape: torch.Size, wanted: str) -> torch.Size:
    """The batch dimensions left of an input's event.

    :raises ValueError: where it does not end in that shape.
    """
    lead = x.dim() - len(in_shape)
    if lead < 0 or x.shape[lead:] != in_shape:
        raise ValueError(f"{wanted} {tuple(in_shape)}, got {tuple(x.shape)}")
    return x.shape[:lead]


class MLP(nn.Module):
    """A fully connected network from one event shape to another.

    .. math:: h_0 = \\mathrm{vec}(x), \\quad h_{i+1} = a(W_i h_i + b_i), \\quad y = W_L h_L + b_L

    Input of shape ``batch + in_shape`` gives output of shape ``batch + out_shape``, for any number of batch
    dimensions (the particles and plates of an objective are such dimensions).

    :param in_shape: event shape of the input; ``()`` for scalars.
    :param out_shape: event shape of the output.
    :param hidden: widths of the hidden layers; empty for an affine map.
    :param activation: a module class called without arguments between layers.
    :raises ValueError: if a width is not positive, or the input does not end in ``in_shape``.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn import MLP
        >>> MLP((8, 8), (5,), hidden=(32,))(torch.zeros(10, 3, 8, 8)).shape
        torch.Size([10, 3, 5])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        hidden: Sequence[int] = (400, 400),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape = torch.Size(check_sizes("in_shape", in_shape))
        self.out_shape = torch.Size(check_sizes("out_shape", out_shape))
        widths = [math.prod(self.in_shape), *check_sizes("hidden", hidden), math.prod(self.out_shape)]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            if i:
                layers.append(activation())
            layers.append(nn.Linear(a, b))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        batch = batch_of(x, self.in_shape, "MLP: x must end in the event shape")
        y = self.layers(x.reshape(batch + (-1,)) if len(self.in_shape) != 1 else x)
        return y.reshape(batch + self.out_shape) if len(self.out_shape) != 1 else y
