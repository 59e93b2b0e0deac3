"""Annealed importance sampling as a recursion over tensors, and the schedules of its inverse temperatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.ops.arguments import check_count

__all__ = ["anneal", "annealing_schedule"]

#: inverse temperatures between two looks at whether the weights are numbers, each a host synchronisation
CHECK_EVERY = 50
#: temperatures, and where they end, of the three-part schedule of Salakhutdinov and Murray (2008)
RBM_PARTS = ((500, 0.5), (4000, 0.9), (10_000, 1.0))


def anneal(
    state: Any,
    betas: Tensor,
    reweight: Callable[[Any, float, float], tuple[Any, Tensor]],
    move: Callable[[Any, float], Any],
) -> tuple[Any, Tensor]:
    r"""Annealed importance sampling along unnormalised densities :math:`f_\beta`, all chains at once.

    .. math:: \log w = \sum_{k=1}^{K} \log f_{\beta_k}(x_{k-1}) - \log f_{\beta_{k-1}}(x_{k-1}), \qquad
              x_k \sim T_{\beta_k}(x_k \mid x_{k-1})

    If :math:`x_0 \sim f_{\beta_0} / Z_{\beta_0}` and each :math:`T_\beta` leaves :math:`f_\beta` invariant, then
    :math:`\mathbb{E}\, w = Z_{\beta_K} / Z_{\beta_0}`.  With ``betas`` falling from 1 to 0, states that begin at exact
    draws of the target and reversible transitions, this is the reverse chain, whose weights have the mean
    :math:`Z_0 / Z_1`.  There is no transition at the last temperature: it would change no weight.

    :param state: the chains at the first temperature; whatever ``reweight`` and ``move`` take.
    :param betas: inverse temperatures in the order in which they are visited, one-dimensional, at least two.
    :param reweight: from ``(state, previous, beta)`` to the state (which may carry what was computed) and
        :math:`\log f_\beta(x) - \log f_{previous}(x)`, nats, of any shape, chains first.
    :param move: from ``(state, beta)`` to the state after a transition that leaves :math:`f_\beta` invariant.
    :returns: the last state, and :math:`\log w` in float64, nats.
    :raises ValueError: for fewer than two temperatures; or if a weight becomes NaN or plus infinity, with the
        temperatures between which it did.  A weight may become zero, :math:`\log w = -\infty`.

    Source: R. M. Neal (2001), "Annealed importance sampling", arXiv:physics/9803008.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops import anneal
        >>> betas = torch.linspace(0, 1, 11)  # from N(0, 1), normalised, to exp(-2 x^2), whose log Z is 0.226
        >>> def log_f(x, b):
        ...     return (b - 1) * 0.9189 - 0.5 * (1 + 3 * b) * x**2
        >>> def reweight(x, b0, b1):
        ...     return x, log_f(x, b1) - log_f(x, b0)
        >>> def move(x, b):
        ...     return torch.randn_like(x) / (1 + 3 * b) ** 0.5
        >>> _ = torch.manual_seed(0)
        >>> x, log_w = anneal(torch.randn(1000), betas, reweight, move)
        >>> round(float(log_w.exp().mean().log()), 1)
        0.2
    """
    values = betas.tolist()
    if betas.dim() != 1 or len(values) < 2:
        raise ValueError(f"betas must be a vector of at least 2 inverse temperatures, got shape {tuple(betas.shape)}")
    total: Any = 0.0
    since = values[0]
    last = len(values) - 1
    for k in range(1, len(values)):
        state, ratio = reweight(state, values[k - 1], values[k])
        total = total + ratio.double()
        if k % CHECK_EVERY == 0 or k == last:
            bad = total.isnan() | (total == float("inf"))
            if bool(bad.any()):
                raise ValueError(
                    f"the log weights of {int(bad.sum())} of {bad.numel()} chains are not finite between the inverse "
                    f"temperatures {since:g} and {values[k]:g}: an unnormalised log-density along the path is NaN or "
                    "infinite where the chains are"
                )
            since = values[k]
        if k != last:
            state = move(state, values[k])
    return state, total


def annealing_schedule(schedule: str | Callable[[Tensor], Tensor] | Tensor, num_temperatures: int) -> Tensor:
    r"""Inverse temperatures from 0 to 1.

    - ``"linear"``: evenly spaced.
    - ``"sigmoidal"``: dense at both ends, :math:`\tilde\beta_k = \sigma(\delta (2k / K - 1))` with :math:`\delta = 4`,
      stretched to [0, 1].
    - ``"rbm"``: three evenly spaced parts, to 0.5, 0.9 and 1, with 500, 4 000 and 10 000 of each 14 500 temperatures.
    - a function from :math:`k / K` in [0, 1] to :math:`\beta`.
    - a tensor, the inverse temperatures themselves.

    :param schedule: one of these.
    :param num_temperatures: :math:`K + 1`, both ends counted; at least 2.
    :returns: float64, shape ``(num_temperatures,)``.
    :raises ValueError: for fewer than 2 temperatures, an unknown name, or values that do not rise from 0 to 1.

    Source: R. Grosse, C. Maddison and R. Salakhutdinov (2013), "Annealing between distributions by averaging moments"
    (sigmoidal); R. Salakhutdinov and I. Murray (2008), "On the quantitative analysis of deep belief networks" (the
    RBM's).

    Example::

        >>> from pyro_dgm.ops import annealing_schedule
        >>> annealing_schedule("linear", 5).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> annealing_schedule(lambda u: u**2, 3).tolist()
        [0.0, 0.25, 1.0]
    """
    if isinstance(schedule, Tensor):
        betas = schedule.detach().double().cpu()
    else:
        check_count("num_temperatures", num_temperatures, 2, why="0 and 1")
        share = torch.linspace(0.0, 1.0, num_temperatures, dtype=torch.float64, device="cpu")
        if schedule == "linear":
            betas = share
        elif schedule == "sigmoidal":
            betas = 0.5 + 0.5 * torch.tanh(2.0 * (2.0 * share - 1.0)) / torch.tanh(share.new_tensor(2.0))
        elif schedule == "rbm":
            betas = _three_parts(share)
        elif callable(schedule):
            betas = torch.as_tensor(schedule(share)).double().cpu()
        else:
            raise ValueError(f"schedule must be 'linear', 'sigmoidal', 'rbm', a function or a tensor, got {schedule!r}")
    if betas.dim() != 1 or len(betas) < 2:
        raise ValueError(f"schedule must give a vector of at least 2 inverse temperatures, got {tuple(betas.shape)}")
    ends = float(betas[0]), float(betas[-1])
    if abs(ends[0]) > 1e-9 or abs(ends[1] - 1.0) > 1e-9 or not bool((betas.diff() >= 0).all()):
        raise ValueError(f"schedule must rise from 0 to 1, got {ends[0]:g} to {ends[1]:g}")
    betas = betas.clone()
    betas[0], betas[-1] = 0.0, 1.0
    return betas


def _three_parts(share: Tensor) -> Tensor:
    whole = sum(count for count, _ in RBM_PARTS)
    betas, begun, level = torch.zeros_like(share), 0.0, 0.0
    for count, end in RBM_PARTS:
        width = count / whole
        betas = torch.where(share >= begun, level + (share - begun) / width * (end - level), betas)
        begun, level = begun + width, end
    return betas.clamp(0.0, 1.0)
