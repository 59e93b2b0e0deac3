"""Whole flows of images: the configurations of RealNVP and Glow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from pyro_dgm.distributions.transforms.actnorm import ActNorm
from pyro_dgm.distributions.transforms.base import Bijection
from pyro_dgm.distributions.transforms.compose import Compose
from pyro_dgm.distributions.transforms.elementwise import AdditiveFamily, AffineFamily, ElementwiseFamily, SplineFamily
from pyro_dgm.distributions.transforms.image_coupling import ImageCoupling
from pyro_dgm.distributions.transforms.invertible_conv import InvertibleConv1x1
from pyro_dgm.distributions.transforms.multiscale import Multiscale
from pyro_dgm.distributions.transforms.reshape import Reshape
from pyro_dgm.distributions.transforms.squeeze import Squeeze
from pyro_dgm.ops.arguments import check_choice, check_count, check_sizes

__all__ = ["make_image_flow"]


def make_image_flow(
    event_shape: Sequence[int],
    *,
    num_levels: int = 2,
    num_layers: int = 4,
    checkerboard_layers: int = 0,
    hidden_channels: int = 64,
    num_blocks: int = 2,
    transform: str = "affine",
    mixing: str = "conv1x1",
    num_bins: int = 8,
    bound: float = 5.0,
    context_dim: int = 0,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> Bijection:
    """A multiscale flow of images, from a vector of noise to the data.

    Each level, seen from the data, turns blocks of 2 x 2 pixels into channels, goes through ``num_layers`` layers, and
    splits off half of the channels as noise (the last one: all). A layer is an
    :class:`~pyro_dgm.distributions.transforms.ActNorm`, what mixes the channels, and an
    :class:`~pyro_dgm.distributions.transforms.ImageCoupling`. The defaults are Glow. RealNVP has ``mixing="flip"`` and
    ``checkerboard_layers=3``, and ``num_layers=3``.

    Call ``initialize`` of the flow, or of the model that has it, on a batch of data before training.

    :param event_shape: ``(C, H, W)``, or ``(H, W)`` for images of one channel. ``2**num_levels`` divides both sides.
    :param num_levels: levels.
    :param num_layers: layers of each level.
    :param checkerboard_layers: couplings with a checkerboard mask in each level, on the pixels before they become
        channels, each with an ``ActNorm``.
    :param hidden_channels: channels of the couplings' networks.
    :param num_blocks: residual blocks of these networks.
    :param transform: ``"affine"``, ``"additive"`` or ``"spline"`` couplings.
    :param mixing: what is before a coupling, seen from the data: ``"conv1x1"``, an
        :class:`~pyro_dgm.distributions.transforms.InvertibleConv1x1`; or ``"flip"``, nothing, while couplings take
        turns in which half of the channels they change.
    :param num_bins: of splines, their bins.
    :param bound: of splines, half the width of their interval.
    :param context_dim: length of the context vectors that couplings take; 0 for none.
    :param activation: of the networks, a module class.
    :raises TypeError: if a size is no integer.
    :raises ValueError: if a size is out of range, a name unknown, or the sides cannot be halved ``num_levels`` times.

    Source: L. Dinh, J. Sohl-Dickstein and S. Bengio (2017), arXiv:1605.08803; D. P. Kingma and P. Dhariwal (2018),
    arXiv:1807.03039.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import make_image_flow
        >>> flow = make_image_flow((8, 8), num_levels=2, num_layers=2, hidden_channels=8)
        >>> flow.event_shape, flow.out_shape
        (torch.Size([64]), torch.Size([8, 8]))
        >>> flow.initialize(torch.rand(100, 8, 8))
    """
    shape = check_sizes("event_shape", event_shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"event_shape must be that of an image, (C, H, W) or (H, W), got {shape}")
    channels, height, width = (1, *shape) if len(shape) == 2 else shape
    check_count("num_levels", num_levels)
    check_count("num_layers", num_layers)
    check_count("checkerboard_layers", checkerboard_layers, 0)
    check_choice("transform", transform, "affine", "additive", "spline")
    check_choice("mixing", mixing, "conv1x1", "flip")
    if height % 2**num_levels or width % 2**num_levels:
        raise ValueError(
            f"the sides of event_shape must be multiples of 2**num_levels = {2**num_levels}, got {(height, width)}"
        )

    def family() -> ElementwiseFamily:
        if transform == "spline":
            return SplineFamily(num_bins, bound)
        return AffineFamily() if transform == "affine" else AdditiveFamily()

    def coupling(image: tuple[int, int, int], mask: str, flip: bool) -> Bijection:
        return ImageCoupling(
            image,
            family(),
            hidden_channels=hidden_channels,
            num_blocks=num_blocks,
            context_dim=context_dim,
            activation=activation,
            mask=mask,
            flip=flip,
        )

    levels: list[Bijection] = []  # finest first
    for _ in range(num_levels):
        image, squeezed = (channels, height, width), (4 * channels, height // 2, width // 2)
        parts: list[Bijection] = []  # from noise to data
        for i in range(num_layers):
            # The first one changes the noise of this level, given the coarser ones: it is the learned prior of Glow.
            parts.append(coupling(squeezed, "channel", mixing == "flip" and i % 2 == 1))
            if mixing == "conv1x1":
                parts.append(InvertibleConv1x1(squeezed).inv)
            parts.append(ActNorm(squeezed))
        parts.append(Squeeze(image).inv)
        for i in range(checkerboard_layers):
            parts += [coupling(image, "checkerboard", i % 2 == 1), ActNorm(image)]
        levels.append(Compose(parts))
        channels, height, width = 2 * channels, height // 2, width // 2
    flow: Bijection = Multiscale(levels[::-1])
    return flow if len(shape) == 3 else Compose([flow, Reshape(flow.out_shape, shape)])
