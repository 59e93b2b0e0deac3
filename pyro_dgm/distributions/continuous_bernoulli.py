"""The continuous Bernoulli distribution, exact at every logit."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["ContinuousBernoulli"]


class ContinuousBernoulli(TorchDistribution):
    r"""A density on [0, 1] that is proportional to the Bernoulli's expression.

    .. math:: \log p(x) = l x - \log(1 + e^l) + \log C(l), \qquad C(l) = \frac{l}{\tanh(l / 2)}

    It is the right likelihood for grey-scale pixels where the Bernoulli, which knows only 0 and 1, is not. Torch's
    distribution of that name limits the logit of :math:`C` to about :math:`\pm 16` in float32, beyond which its density
    does not integrate to 1. This one is written in the logit and has no limit.

    :param logits: :math:`l`, real numbers. ``log_prob`` is in nats, one for each element.
    :raises ValueError: with ``validate_args``, for logits that are not real, or values outside [0, 1].

    Source: G. Loaiza-Ganem and J. P. Cunningham (2019), "The continuous Bernoulli: fixing a pervasive error in
    variational autoencoders", arXiv:1907.06845.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import ContinuousBernoulli
        >>> ContinuousBernoulli(torch.tensor([0.0, 2.0])).log_prob(torch.tensor([0.3, 1.0])).exp()
        tensor([1.0000, 2.3130])
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        new = self._get_checked_instance(ContinuousBernoulli, _instance)
        new.logits = self.logits.expand(torch.Size(batch_shape))
        TorchDistribution.__init__(new, new.logits.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * value - softplus(self.logits) + self.log_constant

    @property
    def log_constant(self) -> Tensor:
        r""":math:`\log C(l)`; :math:`\log 2` at zero."""
        size, small = self._size()
        # log(l / tanh(l / 2)), with tanh as a ratio that cannot underflow: (1 - e^-l) / (1 + e^-l)
        exact = size.log() - torch.log(-torch.expm1(-size)) + torch.log1p(torch.exp(-size))
        square = self.logits.square()
        series = math.log(2) + square / 12 - 7 * square.square() / 1440
        return torch.where(small, series, exact)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        u = torch.rand(
            self._extended_shape(torch.Size(sample_shape)), dtype=self.logits.dtype, device=self.logits.device
        )
        return self.icdf(u)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles."""
        size, small = self._size(1e-3)
        negative = self.logits < 0
        # Quantile of the logit -size; the other half is its mirror image.
        u = torch.where(negative, value, 1 - value)
        exact = -torch.log1p(u * torch.expm1(-size)) / size
        # The error of this is of third order, so it serves in a narrower range than the others.
        near = self.logits.abs()
        series = u - near * u * (1 - u) / 2 * (1 - near * (1 - 2 * u) / 3)
        quantile = torch.where(small, series, exact).clamp(0, 1)
        return torch.where(negative, quantile, 1 - quantile)

    @property
    def mean(self) -> Tensor:
        size, small = self._size()
        exact = self.logits.sign() * (0.5 / torch.tanh(size / 2) - 1 / size)
        return 0.5 + torch.where(small, self.logits / 12 - self.logits**3 / 720, exact)

    @property
    def variance(self) -> Tensor:
        size, small = self._size()
        exact = 1 / size.square() - torch.exp(-size) / torch.expm1(-size).square()
        square = self.logits.square()
        return torch.where(small, 1 / 12 - square / 240 + square.square() / 6048, exact)

    def _size(self, least: float = 0.05) -> tuple[Tensor, Tensor]:
        """The logit's size, and where a series must replace formulas that divide by it; 1 stands for the size there, so
        that no gradient is infinite.
        """
        size = self.logits.abs()
        small = size < least
        return torch.where(small, torch.ones_like(size), size), small
