"""Binary data: independent Bernoulli elements."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_dgm.distributions.likelihoods.base import Likelihood, register

__all__ = ["BernoulliLikelihood"]


@register("bernoulli")
class BernoulliLikelihood(Likelihood):
    """Independent Bernoulli pixels from logits: :math:`\\log p(x|z) = \\sum_i x_i l_i - \\log(1 + e^{l_i})`.

    For data in {0, 1} only: grey-scale pixels are no Bernoulli draws, and the "density" one would report of them is
    no likelihood (binarise first, :func:`pyro_dgm.datasets.dynamic_binarization`).

    :param event_shape: shape of one datum; the decoder gives one logit an element.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import BernoulliLikelihood
        >>> BernoulliLikelihood((8, 8))(torch.zeros(3, 8, 8)).log_prob(torch.ones(3, 8, 8)).shape
        torch.Size([3])
    """

    discrete = True

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        return self.independent(dist.Bernoulli(logits=params, validate_args=False))

    def mean(self, params: Tensor) -> Tensor:
        return params.sigmoid()

    def check(self, x: Tensor, argument: str = "x") -> None:
        super().check(x, argument)
        if bool(((x != 0) & (x != 1)).any()):
            raise ValueError(
                f"{argument} holds values outside {{0, 1}} (from {x.min():.4g} to {x.max():.4g}) but the likelihood is "
                "Bernoulli. Binarise it (pyro_dgm.datasets.dynamic_binarization) or choose likelihood='gaussian'."
            )
