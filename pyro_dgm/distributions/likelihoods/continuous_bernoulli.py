"""Data in [0, 1]: independent continuous Bernoulli elements."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_dgm.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_dgm.distributions.likelihoods.base import Likelihood, register

__all__ = ["ContinuousBernoulliLikelihood"]


@register("continuous_bernoulli")
class ContinuousBernoulliLikelihood(Likelihood):
    """Independent elements in [0, 1], such as grey-scale pixels: see
    :class:`~pyro_dgm.distributions.ContinuousBernoulli`.

    Its log-likelihoods are of a density, and compare with those of other densities on [0, 1] only.

    :param event_shape: shape of one datum; the decoder gives one logit an element.

    Source: G. Loaiza-Ganem and J. P. Cunningham (2019), arXiv:1907.06845.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import ContinuousBernoulliLikelihood
        >>> ContinuousBernoulliLikelihood((8, 8))(torch.zeros(3, 8, 8)).log_prob(torch.rand(3, 8, 8)).shape
        torch.Size([3])
    """

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        return self.independent(ContinuousBernoulli(params, validate_args=False))

    def check(self, x: Tensor, argument: str = "x") -> None:
        super().check(x, argument)
        if bool(((x < 0) | (x > 1)).any()):
            raise ValueError(
                f"{argument} holds values outside [0, 1] (from {x.min():.4g} to {x.max():.4g}) but the likelihood is a "
                "continuous Bernoulli: scale the data, or choose likelihood='gaussian'"
            )
