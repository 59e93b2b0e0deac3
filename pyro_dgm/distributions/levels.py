"""Distributions over levels 0, ..., L - 1 that are stored as floating-point numbers, as pixels are."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_dgm.ops.arguments import check_count

__all__ = ["CategoricalLevels", "DiscretizedLogistic"]


class CategoricalLevels(dist.Categorical):
    r"""A categorical distribution over levels, whose draws are floating-point numbers.

    .. math:: p(x = k) = \mathrm{softmax}(l)_k, \qquad k = 0, \ldots, L - 1

    :param logits: ``batch + (L,)``. ``log_prob`` is in nats, one for each element.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import CategoricalLevels
        >>> CategoricalLevels(logits=torch.zeros(3, 4)).mean
        tensor([1.5000, 1.5000, 1.5000])
    """

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CategoricalLevels:
        """The same with another batch shape."""
        return super().expand(batch_shape, self._get_checked_instance(CategoricalLevels, _instance))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return super().sample(torch.Size(sample_shape)).to(self.logits.dtype)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return super().enumerate_support(expand).to(self.logits.dtype)

    @property
    def _levels(self) -> Tensor:
        return torch.arange(self._num_events, dtype=self.logits.dtype, device=self.logits.device)

    @property
    def mean(self) -> Tensor:
        return (self.probs * self._levels).sum(-1)

    @property
    def variance(self) -> Tensor:
        return (self.probs * (self._levels - self.mean[..., None]).square()).sum(-1)


class DiscretizedLogistic(TorchDistribution):
    r"""A logistic variable, rounded to the nearest of the levels :math:`0, \ldots, L - 1`.

    .. math:: p(x = k) = \sigma\left(\frac{k + 1/2 - \mu}{s}\right) - \sigma\left(\frac{k - 1/2 - \mu}{s}\right)

    The first and the last level take the tails, so that the probabilities sum to 1. They are computed as
    :math:`\log \sigma(b) + \log \sigma(-a) + \log(1 - e^{a - b})` with the two arguments :math:`a < b`, which is exact
    at any distance from the mean.

    :param loc: :math:`\mu`, in levels.
    :param scale: :math:`s > 0`, in levels.
    :param num_levels: :math:`L`, at least 2.
    :raises ValueError: with ``validate_args``, for a scale that is not positive, or a value that is no level.

    Source: D. P. Kingma et al. (2016), arXiv:1606.04934; T. Salimans, A. Karpathy, X. Chen and D. P. Kingma (2017),
    "PixelCNN++", arXiv:1701.05517.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import DiscretizedLogistic
        >>> pixel = DiscretizedLogistic(torch.tensor(100.0), torch.tensor(5.0), 256)
        >>> round(pixel.log_prob(torch.arange(256.0)).exp().sum().item(), 5)
        1.0
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, num_levels: int = 256, validate_args: bool | None = None) -> None:
        self.num_levels = check_count("num_levels", num_levels, 2)
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, self.num_levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        new = self._get_checked_instance(DiscretizedLogistic, _instance)
        shape = torch.Size(batch_shape)
        new.num_levels, new.loc, new.scale = self.num_levels, self.loc.expand(shape), self.scale.expand(shape)
        TorchDistribution.__init__(new, shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        upper, lower = (value + 0.5 - self.loc) / self.scale, (value - 0.5 - self.loc) / self.scale
        first, last = value <= 0, value >= self.num_levels - 1
        width = torch.log(-torch.expm1(-1 / self.scale))
        zero = torch.zeros_like(upper)
        return (
            torch.where(last, zero, logsigmoid(upper))
            + torch.where(first, zero, logsigmoid(-lower))
            + torch.where(first | last, zero, width)
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            tiny = torch.finfo(self.loc.dtype).tiny
            u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(min=tiny)
            return (self.loc + self.scale * (u.log() - torch.log1p(-u))).round().clamp(0, self.num_levels - 1)

    @property
    def mean(self) -> Tensor:
        # The sum of P(x > k) over k: no level is lost to rounding.
        return self._exceeded().sum(0)

    @property
    def variance(self) -> Tensor:
        # E[x^2] is the sum of (2 k + 1) P(x > k).
        exceeded = self._exceeded()
        levels = torch.arange(self.num_levels - 1, dtype=exceeded.dtype, device=exceeded.device)
        weights = (2 * levels + 1).reshape(-1, *[1] * self.loc.dim())
        return (weights * exceeded).sum(0) - exceeded.sum(0).square()

    def _exceeded(self) -> Tensor:
        """Probability of more than each level but the last, ``(L - 1, *batch)``."""
        levels = torch.arange(self.num_levels - 1, dtype=self.loc.dtype, device=self.loc.device)
        levels = levels.reshape(-1, *[1] * self.loc.dim())
        return torch.sigmoid((self.loc - levels - 0.5) / self.scale)
