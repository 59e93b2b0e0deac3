"""What a population of weighted particles needs: resampling, and the next temperature."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["conditional_ess", "next_temperature", "systematic"]


def systematic(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Systematic resampling: particle i is copied ``N W_i`` times, rounded up or down, the mean exactly so.

    :param log_weights: ``(N,)``, need not be normalised.
    :param uniform: one number in [0, 1), a scalar tensor.
    :returns: indices of the survivors, ``(N,)``.

    Source: J. Carpenter, P. Clifford and P. Fearnhead (1999), "Improved particle filter for nonlinear problems".

    Example::

        >>> systematic(torch.tensor([0.5, 0.25, 0.25, 0.0]).log(), torch.tensor(0.5))
        tensor([0, 0, 1, 2])
    """
    n = len(log_weights)
    edges = log_weights.double().softmax(0).cumsum(0)
    edges = edges / edges[-1]
    points = (torch.arange(n, dtype=edges.dtype, device=edges.device) + uniform.double()) / n
    return torch.searchsorted(edges, points, right=True).clamp_max(n - 1)


def conditional_ess(log_weights: Tensor, increments: Tensor) -> Tensor:
    r"""Conditional effective sample size of incremental weights, as a share of the particles.

    .. math:: \frac{\left( \sum_i W_i w_i \right)^2}{\sum_i W_i w_i^2}

    It measures how much two *consecutive* densities differ, whatever the weights that the particles have already.

    :param log_weights: :math:`\log W`, normalised, ``(N,)``.
    :param increments: :math:`\log w`, ``(N,)``.

    Source: Y. Zhou, A. Johansen and J. Aston (2016), "Toward automatic model comparison: an adaptive sequential Monte
    Carlo approach", arXiv:1303.3123.
    """
    return (2 * torch.logsumexp(log_weights + increments, 0) - torch.logsumexp(log_weights + 2 * increments, 0)).exp()


def next_temperature(log_weights: Tensor, slope: Tensor, beta: float, target: float) -> float:
    """The inverse temperature at which the conditional effective sample size has fallen to ``target``, by bisection.

    :param slope: :math:`U_1 - U_0` of the particles, ``(N,)``.
    :param beta: the present one.
    :param target: in (0, 1).
    :returns: in (beta, 1].
    """

    def too_far(step: float) -> bool:
        return not float(conditional_ess(log_weights, -step * slope)) >= target

    low, high = 0.0, 1.0 - beta
    if not too_far(high):
        return 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if too_far(middle) else (middle, high)
        if high - low < 1e-4 * high:
            break
    return beta + (low if low > 0.0 else high)
