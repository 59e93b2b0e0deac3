"""Counts with more spread than a Poisson distribution's: independent negative binomial elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_dgm.distributions.likelihoods.base import register
from pyro_dgm.distributions.likelihoods.counts import CountsLikelihood

__all__ = ["NegativeBinomialLikelihood"]


class _ZeroInflated(dist.ZeroInflatedDistribution):
    """Pyro's, which cannot be expanded once its density has been evaluated."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> _ZeroInflated:
        base, gate = self.base_dist.expand(batch_shape), self.gate_logits.expand(batch_shape)
        return _ZeroInflated(base, gate_logits=gate, validate_args=False)


@register("negative_binomial")
class NegativeBinomialLikelihood(CountsLikelihood):
    r"""Independent counts :math:`x_i \sim \mathrm{NB}(\mu_i(z), r_i)`, with zero inflation or without.

    .. math:: \mathrm{NB}(x \mid \mu, r) = \frac{\Gamma(x + r)}{\Gamma(r)\, x!} \left(\frac{r}{r + \mu}\right)^r
              \left(\frac{\mu}{r + \mu}\right)^x, \qquad \mathrm{Var}(x) = \mu + \frac{\mu^2}{r}

    The decoder gives :math:`\log \mu`; :math:`r` is one learned number for each element. With zero inflation a
    second output gives the logit of the probability that a count is zero whatever :math:`\mu` is.

    :param event_shape: shape of one datum; the decoder gives ``event_shape``, or ``(2, *event_shape)`` with
        zero inflation.
    :param zero_inflated: whether there are more zeros than the negative binomial has.

    Source: R. Lopez, J. Regier, M. B. Cole, M. I. Jordan and N. Yosef (2018), "Deep generative modeling for single-cell
    transcriptomics", Nature Methods 15.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import NegativeBinomialLikelihood
        >>> lik = NegativeBinomialLikelihood((4,), zero_inflated=True)
        >>> lik.param_shape, lik(torch.zeros(3, 2, 4)).log_prob(torch.ones(3, 4)).shape
        (torch.Size([2, 4]), torch.Size([3]))
    """

    def __init__(self, event_shape: Sequence[int], zero_inflated: bool = False) -> None:
        super().__init__(event_shape)
        if not isinstance(zero_inflated, bool):
            raise TypeError(f"zero_inflated must be True or False, got {zero_inflated!r}")
        self.zero_inflated = zero_inflated
        self.log_dispersion = nn.Parameter(torch.zeros(self.event_shape))

    @property
    def param_shape(self) -> torch.Size:
        return torch.Size((2, *self.event_shape)) if self.zero_inflated else self.event_shape

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        log_mean, *gate = self.parts(params, 2 if self.zero_inflated else 1)
        total, logits = self.log_dispersion.exp(), log_mean - self.log_dispersion
        counts = dist.NegativeBinomial(total, logits=logits, validate_args=False)
        return self.independent(_ZeroInflated(counts, gate_logits=gate[0], validate_args=False) if gate else counts)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "zero_inflated": self.zero_inflated}
