"""Bags of words, and other counts with a total: a multinomial distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_dgm.distributions.likelihoods.base import register
from pyro_dgm.distributions.likelihoods.counts import CountsLikelihood
from pyro_dgm.ops.arguments import check_count

__all__ = ["MultinomialLikelihood"]


@register("multinomial")
class MultinomialLikelihood(CountsLikelihood):
    r"""Counts of V kinds, such as the words of a document: :math:`x \sim \mathrm{Multinomial}(n, \mathrm{softmax}(l))`.

    .. math:: \log p(x) = \log n! - \sum_v \log x_v! + \sum_v x_v \log \mathrm{softmax}(l)_v, \qquad n = \sum_v x_v

    The total :math:`n` is that of each datum, on which the density is conditional. Perplexities of topic models leave
    out the first two terms, which do not depend on the parameters.

    :param event_shape: ``(V,)``; the decoder gives one logit a kind.
    :param total_count: the total of data that are sampled.
    :raises ValueError: for an event shape of another rank, or a total below 1.

    Source: Y. Miao, L. Yu and P. Blunsom (2016), arXiv:1511.06038; D. Liang, R. G. Krishnan, M. D. Hoffman and T.
    Jebara (2018), arXiv:1802.05814.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import MultinomialLikelihood
        >>> MultinomialLikelihood((3,))(torch.zeros(3)).log_prob(torch.tensor([2.0, 1.0, 0.0])).exp()
        tensor(0.1111)
    """

    def __init__(self, event_shape: Sequence[int], total_count: int = 100) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1:
            raise ValueError(f"event_shape must be (V,), the number of kinds, got {tuple(self.event_shape)}")
        self.total_count = check_count("total_count", total_count)

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        return dist.Multinomial(self.total_count, logits=params, validate_args=False)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "total_count": self.total_count}
