"""Averages of exponentials, in log space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["log_mean_exp", "normalized_ess"]


def log_mean_exp(x: Tensor, dim: int = 0) -> Tensor:
    """:math:`\\log \\frac{1}{K} \\sum_k e^{x_k}` along ``dim``, which is removed.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops import log_mean_exp
        >>> log_mean_exp(torch.zeros(4, 3)).tolist()
        [0.0, 0.0, 0.0]
    """
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


def normalized_ess(log_weights: Tensor, dim: int = 0) -> Tensor:
    """Effective sample size of importance weights, :math:`(\\sum_k w_k)^2 / \\sum_k w_k^2`, in draws.

    Source: A. Kong (1992), "A note on importance sampling using standardized weights".

    Example::

        >>> import torch
        >>> from pyro_dgm.ops import normalized_ess
        >>> round(normalized_ess(torch.zeros(4)).item(), 3)
        4.0
    """
    return torch.exp(2 * torch.logsumexp(log_weights, dim) - torch.logsumexp(2 * log_weights, dim))
