"""Coupling layers on images: half of the channels, or every other pixel, stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.coupling import Coupling
from pyro_dgm.distributions.transforms.elementwise import AffineFamily, ElementwiseFamily, check_family
from pyro_dgm.nn import Concatenated, ConvResNet
from pyro_dgm.nn.build import zero_last_layer
from pyro_dgm.ops.arguments import check_choice, check_image

__all__ = ["ImageCoupling"]


class ImageCoupling(Bijection):
    """A coupling layer on images, whose parameters a residual convolutional network gives.

    .. math:: y_A = x_A, \\qquad y_B = f(x_B;\\; \\theta(x_A, c)), \\qquad
        \\log |\\det J| = \\sum_{i \\in B} \\log f'(x_i; \\theta_i)

    With ``mask="channel"`` the first half of the channels are :math:`A`. Put it behind a
    :class:`~pyro_dgm.distributions.transforms.Squeeze`, so that there are enough of them. With ``mask="checkerboard"``
    the pixels whose row and column have an even sum are :math:`A`, and the network sees them with zeros in between.
    The last layer of the network starts at zero, so that the layer starts as the family does (the identity).

    :param event_shape: ``(C, H, W)``.
    :param family: the element-wise functions :math:`f`: ``AffineFamily()`` (as ``None``), ``AdditiveFamily()``,
        ``SplineFamily()`` or another one.
    :param hidden_channels: channels of the network.
    :param num_blocks: residual blocks of the network.
    :param context_dim: length of the context vectors; 0 for none. The network sees a context as more channels.
    :param activation: of the network, a module class.
    :param mask: ``"channel"`` or ``"checkerboard"``.
    :param flip: whether to exchange the elements that stay with the others.
    :raises TypeError: if a size is no integer, or ``family`` is no ``ElementwiseFamily``.
    :raises ValueError: if a size is out of range, for another mask, or if the mask leaves nothing to stay.

    Source: L. Dinh, J. Sohl-Dickstein and S. Bengio (2017), arXiv:1605.08803; D. P. Kingma and P. Dhariwal (2018),
    arXiv:1807.03039.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import ImageCoupling, SplineFamily
        >>> layer = ImageCoupling((4, 2, 2), SplineFamily(num_bins=4), hidden_channels=8)
        >>> layer.forward_and_log_det(torch.zeros(5, 4, 2, 2))[1].shape
        torch.Size([5])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        family: ElementwiseFamily | None = None,
        *,
        hidden_channels: int = 64,
        num_blocks: int = 2,
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        mask: str = "channel",
        flip: bool = False,
    ) -> None:
        shape = check_image("event_shape", event_shape)
        super().__init__(shape, context_dim)
        family = check_family(AffineFamily() if family is None else family)
        if family.num_features != 1:
            raise ValueError(f"family must be one on real numbers, got {type(family).__name__}")
        kept = _kept(shape, mask, flip)
        in_shape, out_channels = shape, shape[0]
        if mask == "channel":
            in_shape = (kept.count(True) // math.prod(shape[1:]), *shape[1:])
            out_channels = shape[0] - in_shape[0]
        joined = Concatenated.joined(in_shape, self.context_dim, image=True)
        network: nn.Module = ConvResNet(
            tuple(joined), out_channels * family.num_parameters, hidden_channels, num_blocks, activation
        )
        if self.context_dim:
            network = Concatenated(network, in_shape, self.context_dim, image=True)
        network = _OnElements(zero_last_layer(network), in_shape, family.num_parameters, kept)
        # The elements as one vector: what follows is the layer of vectors.
        self.coupling = Coupling(math.prod(shape), family, mask=kept, context_dim=self.context_dim, network=network)

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        y, log_det = self.coupling._forward(x.flatten(-3), context)
        return y.reshape(x.shape), log_det

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        x, log_det = self.coupling._backward(y.flatten(-3), context)
        return x.reshape(y.shape), log_det


def _kept(shape: tuple[int, int, int], mask: str, flip: bool) -> list[bool]:
    """Which elements of an image stay, in the order of its elements."""
    channels, height, width = shape
    if check_choice("mask", mask, "channel", "checkerboard") == "channel":
        kept = [k < channels // 2 for k in range(channels) for _ in range(height * width)]
        wanted = "two channels"
    else:
        kept = [(i + j) % 2 == 0 for _ in range(channels) for i in range(height) for j in range(width)]
        wanted = "two pixels"
    if len(set(kept)) < 2:
        raise ValueError(f"event_shape must have at least {wanted} for mask={mask!r}, got {shape}")
    return [k != flip for k in kept]


class _OnElements(nn.Module):
    """A network of images, from the vector of those elements that stay to the parameters of the others.

    :param network: gives ``num_parameters`` channels for each channel of the others.
    :param image: shape of what it takes: the channels that stay, or the whole image with zeros for the other elements.
    :param num_parameters: of each element.
    :param kept: which elements of the whole image stay.
    """

    _place: Tensor
    _changed: Tensor

    def __init__(self, network: nn.Module, image: Sequence[int], num_parameters: int, kept: list[bool]) -> None:
        super().__init__()
        self.network, self.image, self.num_parameters = network, tuple(image), num_parameters
        stay, change = ([i for i, k in enumerate(kept) if k is which] for which in (True, False))
        self._whole = math.prod(self.image) == len(kept)
        if self._whole:
            position = {element: at for at, element in enumerate(stay + change)}
            for name, index in (("_place", [position[i] for i in range(len(kept))]), ("_changed", change)):
                self.register_buffer(name, torch.tensor(index, device=torch.get_default_device()), persistent=False)

    def forward(self, kept: Tensor, context: Tensor | None = None) -> Tensor:
        batch = kept.shape[:-1]
        if self._whole:
            zeros = kept.new_zeros((*batch, len(self._changed)))
            kept = torch.cat([kept, zeros], -1).index_select(-1, self._place)
        image = kept.reshape((*batch, *self.image))
        found = self.network(image) if context is None else self.network(image, context)
        parameters = found.reshape((*batch, self.num_parameters, -1))
        if self._whole:
            parameters = parameters.index_select(-1, self._changed)
        return parameters.transpose(-1, -2)
