"""Real data with outliers: independent Student-t elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_dgm.distributions.likelihoods.base import Likelihood, register
from pyro_dgm.ops.arguments import check_positive

__all__ = ["StudentTLikelihood"]

#: least number of degrees of freedom, above 1 so that the mean exists
_MIN_DF = 1.1


@register("student_t")
class StudentTLikelihood(Likelihood):
    r"""Independent elements with heavy tails: :math:`x_i \sim t_\nu(\mu_i(z), s^2)`, one learned scale :math:`s`.

    .. math:: \log p(x_i) = \log \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac{\nu}{2}) \sqrt{\pi \nu}\, s}
              - \frac{\nu + 1}{2} \log\left(1 + \frac{(x_i - \mu_i)^2}{\nu s^2}\right)

    An outlier costs little and moves the location little, unlike in
    :class:`~pyro_dgm.distributions.GaussianLikelihood`.

    :param event_shape: shape of one datum; the decoder gives one location an element.
    :param df: degrees of freedom :math:`\nu`: a number above 1.1, or ``None``, learned from 5.
    :param init_scale: where the scale starts, in the units of ``x``.
    :raises TypeError, ValueError: for numbers that are not positive, or too few degrees of freedom.

    Source: K. L. Lange, R. J. A. Little and J. M. G. Taylor (1989), "Robust statistical modeling using the t
    distribution", JASA 84(408).

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import StudentTLikelihood
        >>> StudentTLikelihood((4,))(torch.zeros(3, 4)).log_prob(torch.zeros(3, 4)).shape
        torch.Size([3])
    """

    def __init__(self, event_shape: Sequence[int], df: float | None = None, init_scale: float = 1.0) -> None:
        super().__init__(event_shape)
        check_positive("df", df, optional=True)
        check_positive("init_scale", init_scale)
        if df is not None and not df > _MIN_DF:
            raise ValueError(f"df must be above {_MIN_DF} (the mean exists above 1), got {df}")
        self.df = None if df is None else float(df)
        self.log_scale = nn.Parameter(torch.tensor(math.log(init_scale)))
        if df is None:
            self.raw_df = nn.Parameter(torch.tensor(math.log(math.expm1(5 - _MIN_DF))))

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        scale = self.log_scale.exp()
        df = softplus(self.raw_df) + _MIN_DF if self.df is None else torch.full_like(scale, self.df)
        return self.independent(dist.StudentT(df, params, scale, validate_args=False))

    def mean(self, params: Tensor) -> Tensor:
        return params

    def config(self) -> dict[str, Any]:
        return {**super().config(), "df": self.df}
