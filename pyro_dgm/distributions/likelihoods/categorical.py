"""Discrete levels: independent categorical elements."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_dgm.distributions.levels import CategoricalLevels
from pyro_dgm.distributions.likelihoods.base import register
from pyro_dgm.distributions.likelihoods.levels import LevelsLikelihood

__all__ = ["CategoricalLikelihood"]


@register("categorical")
class CategoricalLikelihood(LevelsLikelihood):
    r"""Independent levels with a probability each: :math:`p(x_i = k) = \mathrm{softmax}(l_i)_k`.

    It makes no assumption about the shape of a pixel's distribution, at the price of L outputs an element. Data are the
    levels 0, ..., L - 1 as floating-point numbers, not scaled to [0, 1].

    :param event_shape: shape of one datum; the decoder gives ``(num_levels, *event_shape)``.
    :param num_levels: L, at least 2; 256 for bytes.
    :raises TypeError, ValueError: for a number of levels that is no integer, or below 2.

    Source: A. van den Oord, N. Kalchbrenner and K. Kavukcuoglu (2016), arXiv:1601.06759.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import CategoricalLikelihood
        >>> lik = CategoricalLikelihood((8, 8), num_levels=17)
        >>> lik.param_shape, lik(torch.zeros(3, 17, 8, 8)).log_prob(torch.zeros(3, 8, 8)).shape
        (torch.Size([17, 8, 8]), torch.Size([3]))
    """

    @property
    def param_shape(self) -> torch.Size:
        return torch.Size((self.num_levels, *self.event_shape))

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        logits = params.movedim(-1 - len(self.event_shape), -1)
        return self.independent(CategoricalLevels(logits, validate_args=False))
