"""Flows of images: Glow."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn

from pyro_dgm.distributions.transforms import make_image_flow
from pyro_dgm.nn.build import activation_and_name
from pyro_dgm.recipes.base import Citation, Composition, recipe
from pyro_dgm.recipes.compose import adam, flow

__all__ = ["glow"]


@recipe(
    "glow",
    title="Glow, a multiscale flow with invertible 1x1 convolutions",
    equation="log p(x) ≥ E_q(u|x)[log N(f⁻¹(u); 0, I) + log |det ∂f⁻¹/∂u| - log q(u|x)],  x = ⌊u⌋",
    citation=Citation(
        "D. P. Kingma, P. Dhariwal", "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018, "1807.03039"
    ),
)
def glow(
    event_shape: Sequence[int],
    *,
    num_scales: int = 2,
    num_layers: int = 8,
    hidden_channels: int = 64,
    num_blocks: int = 1,
    transform: str = "affine",
    dequantize: str | None = "uniform",
    num_levels: int = 256,
    activation: str = "ReLU",
    learning_rate: float = 1e-3,
    batch_size: int = 64,
) -> Composition:
    """Glow: a flow of images, over the integers of its pixels.

    Call ``recipe.program.initialize(x)`` on some hundred images before training: scales and shifts start from data.

    Adam at 1e-3 and batches of 64 are those of the paper. It has three scales of 32 layers and 512 channels for
    CIFAR-10; the sizes here are for small images on a CPU. It warms the learning rate up in the first
    epochs, and its couplings have plain convolutions where these have residual ones.

    :param event_shape: ``(channels, height, width)``, or ``(height, width)``. ``2**num_scales`` divides both sides.
    :param num_scales: scales; at each, half of the channels leave the flow as noise.
    :param num_layers: layers of each scale.
    :param hidden_channels: channels of the couplings' networks.
    :param num_blocks: residual blocks of these networks.
    :param transform: ``"affine"``, ``"additive"`` or ``"spline"`` couplings.
    :param dequantize: ``"uniform"`` or ``"variational"`` noise on integers; ``None`` for real-valued pixels.
    :param num_levels: levels of the pixels, integers from 0 to one less.
    :param activation: module between the networks' layers, a name in :mod:`torch.nn`.
    :param learning_rate: of Adam.
    :param batch_size: data a batch.
    :raises ValueError: for sides that cannot be halved so often, unknown names, or numbers out of range.

    Source: D. P. Kingma and P. Dhariwal (2018), arXiv:1807.03039.

    Example::

        >>> from pyro_dgm import recipes
        >>> recipes.glow((8, 8), num_layers=2, hidden_channels=8, num_levels=17).parts["guide"]
        'uniform noise'
    """
    made, _ = activation_and_name(activation)
    build = functools.partial(
        make_image_flow, num_levels=num_scales, num_layers=num_layers, hidden_channels=hidden_channels,
        num_blocks=num_blocks, transform=transform, activation=made or nn.ReLU,
    )  # fmt: skip
    return flow(event_shape, build, adam(learning_rate), batch_size, dequantize=dequantize, num_levels=num_levels)
