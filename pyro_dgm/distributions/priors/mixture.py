"""A mixture of normal distributions as a prior, all of it learned."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from pyro_dgm.distributions.priors.base import Prior, register
from pyro_dgm.ops.arguments import check_count, check_positive

__all__ = ["MixturePrior"]


@register("mixture")
class MixturePrior(Prior):
    r"""A mixture of normal distributions with diagonal covariances.

    .. math:: p(z) = \sum_{c=1}^C \pi_c\, N(z \mid \mu_c, \mathrm{diag}\, \sigma_c^2)

    The sum is computed, not sampled, so that there is no discrete site. It starts as components of scale 1 whose
    locations are drawn at random.

    :param latent_dim: length of a latent.
    :param context_dim: must be 0: the prior does not depend on a context.
    :param num_components: C.
    :param init_spread: standard deviation of the locations at first, in units of the latents.
    :raises TypeError, ValueError: for numbers of the wrong type, or out of range.

    Source: N. Dilokthanakul et al. (2016), arXiv:1611.02648.

    Example::

        >>> from pyro_dgm.distributions import MixturePrior
        >>> prior = MixturePrior(2, num_components=5)()
        >>> prior.log_prob(prior.sample((7,))).shape
        torch.Size([7])
    """

    def __init__(
        self, latent_dim: int, context_dim: int = 0, num_components: int = 10, init_spread: float = 1.0
    ) -> None:
        super().__init__(latent_dim, context_dim)
        self.num_components = check_count("num_components", num_components)
        check_positive("init_spread", init_spread)
        shape = (self.num_components, self.latent_dim)
        self.logits = nn.Parameter(torch.zeros(self.num_components))
        self.loc = nn.Parameter(init_spread * torch.randn(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def forward(self) -> dist.TorchDistribution:
        components = dist.Normal(self.loc, self.log_scale.exp(), validate_args=False).to_event(1)
        weights = dist.Categorical(logits=self.logits, validate_args=False)
        return dist.MixtureSameFamily(weights, components, validate_args=False)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "num_components": self.num_components}
