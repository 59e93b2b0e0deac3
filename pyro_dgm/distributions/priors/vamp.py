"""The VampPrior: a mixture of the guide's posteriors at learned pseudo-inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_dgm.distributions.priors.base import PosteriorPrior, register
from pyro_dgm.ops.arguments import check_count, check_sizes

__all__ = ["VampPrior"]


@register("vamp")
class VampPrior(PosteriorPrior):
    r"""A mixture of the guide's distributions at C pseudo-inputs, which are learned like any parameter.

    .. math:: p(z) = \frac1C \sum_{c=1}^C q_\phi(z \mid u_c)

    The best prior of a variational autoencoder is its aggregate posterior; this is the nearest one that a few
    "data" can give. The mixture is exact. Pseudo-inputs are clamped to :attr:`bounds` where there are any.

    :param latent_dim: length of a latent.
    :param context_dim: must be 0: the prior does not depend on a context.
    :param event_shape: shape of one datum.
    :param num_components: C, 500 in the source.
    :param bounds: least and largest value of a pseudo-input, ``(0, 1)`` for binary data and grey levels; ``None`` for
        none.
    :param initial: pseudo-inputs to start from, ``(C, *event_shape)``: data are a good choice. Without them they are
        drawn near the middle of the bounds.
    :raises TypeError, ValueError: for numbers of the wrong type or out of range, or ``initial`` of another shape.

    Source: J. M. Tomczak and M. Welling (2018), "VAE with a VampPrior", arXiv:1705.07120.

    Example::

        >>> import torch, pyro_dgm
        >>> vae = pyro_dgm.models.VAE((8, 8), 2, hidden=(16,), prior={"name": "vamp", "num_components": 5})
        >>> vae.prior().log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        latent_dim: int,
        context_dim: int = 0,
        event_shape: Sequence[int] = (),
        num_components: int = 500,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        initial: Tensor | None = None,
    ) -> None:
        super().__init__(latent_dim, context_dim)
        self.event_shape = check_sizes("event_shape", event_shape)
        self.num_components = check_count("num_components", num_components)
        if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise ValueError(f"bounds must be None or two numbers, the smaller first, got {bounds!r}")
        self.bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        shape = (self.num_components, *self.event_shape)
        if initial is None:
            low, high = self.bounds or (-1.0, 1.0)
            initial = (low + high) / 2 + 0.1 * (high - low) * torch.randn(shape)
        elif tuple(initial.shape) != shape:
            raise ValueError(f"initial must have shape {shape}, got {tuple(initial.shape)}")
        self.pseudo_inputs = nn.Parameter(initial.detach().clone())

    def forward(self, posterior: Callable[[Tensor], dist.TorchDistribution]) -> dist.TorchDistribution:
        inputs = self.pseudo_inputs if self.bounds is None else self.pseudo_inputs.clamp(*self.bounds)
        components = posterior(inputs)
        weights = dist.Categorical(logits=inputs.new_zeros(self.num_components), validate_args=False)
        return dist.MixtureSameFamily(weights, components, validate_args=False)

    def config(self) -> dict[str, Any]:
        bounds = None if self.bounds is None else list(self.bounds)
        return {**super().config(), "num_components": self.num_components, "bounds": bounds}
