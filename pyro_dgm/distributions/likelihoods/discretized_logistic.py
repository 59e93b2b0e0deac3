"""Ordered levels: independent mixtures of discretised logistic elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_dgm.distributions.levels import DiscretizedLogistic
from pyro_dgm.distributions.likelihoods.base import register
from pyro_dgm.distributions.likelihoods.levels import LevelsLikelihood
from pyro_dgm.ops.arguments import check_count

__all__ = ["DiscretizedLogisticLikelihood"]

#: least scale, as a share of half the range, as in PixelCNN++
_MIN_SCALE = math.exp(-7)


@register("discretized_logistic")
class DiscretizedLogisticLikelihood(LevelsLikelihood):
    r"""Each element is a mixture of logistic variables, rounded to the nearest level.

    .. math:: p(x_i) = \sum_{m=1}^M \pi_{im}\, \mathrm{DiscretizedLogistic}(x_i \mid \mu_{im}, s_{im})

    With :math:`h = (L - 1)/2`, the decoder's outputs :math:`(\mu', s', w)` give :math:`\mu = h (1 + \mu')`,
    :math:`s = h\,(\mathrm{softplus}(s') + e^{-7})` and :math:`\pi = \mathrm{softmax}(w)`. Neighbouring levels
    have similar probabilities from the start, unlike in :class:`~pyro_dgm.distributions.CategoricalLikelihood`, with
    few outputs an element. Colour channels are independent given the latent; PixelCNN++ conditions one on another.

    :param event_shape: shape of one datum; the decoder gives ``(2, *event_shape)``, or ``(3 M, *event_shape)``.
    :param num_levels: L, at least 2; data are the levels 0, ..., L - 1 as floating-point numbers.
    :param num_components: M, the components of the mixture of each element.
    :raises TypeError, ValueError: for a number that is no integer, or too small.

    Source: D. P. Kingma et al. (2016), arXiv:1606.04934; T. Salimans, A. Karpathy, X. Chen and D. P. Kingma (2017),
    arXiv:1701.05517.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import DiscretizedLogisticLikelihood
        >>> lik = DiscretizedLogisticLikelihood((8, 8), num_levels=17, num_components=5)
        >>> lik.param_shape, lik(torch.zeros(3, 15, 8, 8)).log_prob(torch.zeros(3, 8, 8)).shape
        (torch.Size([15, 8, 8]), torch.Size([3]))
    """

    def __init__(self, event_shape: Sequence[int], num_levels: int = 256, num_components: int = 1) -> None:
        super().__init__(event_shape, num_levels)
        self.num_components = check_count("num_components", num_components)

    @property
    def param_shape(self) -> torch.Size:
        numbers = 2 if self.num_components == 1 else 3 * self.num_components
        return torch.Size((numbers, *self.event_shape))

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        parts = params.movedim(-1 - len(self.event_shape), -1)
        half = (self.num_levels - 1) / 2
        if self.num_components == 1:
            loc, raw = parts.unbind(-1)
            return self.independent(self._logistic(loc, raw, half))
        loc, raw, logits = parts.chunk(3, -1)
        mixture = dist.MixtureSameFamily(
            dist.Categorical(logits=logits, validate_args=False), self._logistic(loc, raw, half), validate_args=False
        )
        return self.independent(mixture)

    def _logistic(self, loc: Tensor, raw: Tensor, half: float) -> DiscretizedLogistic:
        scale = half * (softplus(raw) + _MIN_SCALE)
        return DiscretizedLogistic(half * (1 + loc), scale, self.num_levels, validate_args=False)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "num_components": self.num_components}
