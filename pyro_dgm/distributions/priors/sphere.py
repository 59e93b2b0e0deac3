"""The uniform distribution on the sphere as a prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_dgm.distributions.priors.base import Prior, register
from pyro_dgm.distributions.von_mises_fisher import UniformSphere

__all__ = ["SpherePrior"]


@register("sphere")
class SpherePrior(Prior):
    """Latents that are directions, all alike: the prior of the hyperspherical autoencoder.

    It goes with a guide on the sphere, :class:`~pyro_dgm.guides.AmortizedVonMisesFisher`. ``latent_dim`` counts the
    elements of a unit vector, one more than the sphere's dimension.

    :param latent_dim: length of a latent, at least 2.
    :param context_dim: must be 0: the prior does not depend on a context.
    :raises TypeError, ValueError: for a length that is no integer of at least 2.

    Source: T. R. Davidson, L. Falorsi, N. De Cao, T. Kipf and J. M. Tomczak (2018), arXiv:1804.00891.

    Example::

        >>> from pyro_dgm.distributions import SpherePrior
        >>> SpherePrior(3)().sample().shape
        torch.Size([3])
    """

    #: whose dtype and device are those of draws
    like: Tensor

    def __init__(self, latent_dim: int, context_dim: int = 0) -> None:
        super().__init__(latent_dim, context_dim)
        UniformSphere(self.latent_dim)  # refuses a length of 1
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return UniformSphere(self.latent_dim, self.like, validate_args=False)
