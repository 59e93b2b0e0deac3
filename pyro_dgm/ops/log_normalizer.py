"""A log normaliser with how well it is known: what annealing, sequential Monte Carlo and enumeration give."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.ops.logmeanexp import log_mean_exp, normalized_ess

__all__ = ["LogNormalizer", "log_mean_exp_error", "warn_of_low_ess"]

#: share of the draws under which the effective sample size of the weights is warned of
LOW_ESS = 0.1


def log_mean_exp_error(log_weights: Tensor, dim: int = 0) -> Tensor:
    r"""Standard error of :func:`log_mean_exp`, by the delta method: :math:`\mathrm{sd}(w) / (\bar w \sqrt K)`.

    It is itself an estimate from the same weights: with a small effective sample size it is too small, and a mode that
    no draw has found does not show in it.

    :param log_weights: independent along ``dim``, at least two.

    Example::

        >>> import torch
        >>> from pyro_dgm.ops import log_mean_exp_error
        >>> round(float(log_mean_exp_error(torch.tensor([1.0, 3.0]).log())), 3)
        0.5
    """
    count = log_weights.shape[dim]
    if count < 2:
        raise ValueError(f"log_weights must hold at least 2 draws along dim {dim} for a standard error, got {count}")
    # log of the mean of w^2 over the square of the mean of w, never below 0 but for rounding
    excess = log_mean_exp(2.0 * log_weights, dim) - 2.0 * log_mean_exp(log_weights, dim)
    return (excess.clamp_min(0.0).expm1() / (count - 1)).sqrt()


def warn_of_low_ess(ess: Tensor, count: int, what: str, stacklevel: int = 3) -> None:
    """Warn where the effective sample size of weights is under 10 % of the draws, or so low that one draw holds all.

    :param ess: effective sample sizes, a scalar or one for each datum.
    :param count: draws.
    :param what: of which weights, for the message.
    """
    low = ess < max(LOW_ESS * count, min(1.5, 0.5 * count))
    if not bool(low.any()):
        return
    where = "" if ess.dim() == 0 else f" for {int(low.sum())} of {ess.numel()} data"
    warnings.warn(
        f"the effective sample size of {what} is {float(ess.min()):.1f} of {count} draws{where} (under 10 %): the "
        "standard error is not to be believed, and the estimate may be off by many of them; take more temperatures, "
        "better transitions, or a start nearer to the target",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )


@dataclass(frozen=True)
class LogNormalizer:
    r""":math:`\log Z` of an unnormalised density, in nats, and how well it is known.

    :ivar value: the estimate, float64; a scalar, or one for each datum.
    :ivar standard_error: its Monte Carlo standard error, nats; zero where exact.
    :ivar method: ``"ais"``, ``"smc"`` or ``"exact"``.
    :ivar direction: ``"forward"`` (from the start to the target: a lower bound in expectation), ``"reverse"`` (an upper
        bound in expectation), or ``None``.
    :ivar log_weights: :math:`\log w`, ``(chains, ...)``; ``None`` where exact.
    :ivar ess: effective sample size of the weights, in chains; ``None`` where exact.
    :ivar samples: the chains at the end; with ``log_weights`` they stand for the target (or, in reverse, for the
        start).
    :ivar start: :math:`\log Z` of the density that the chains began or, in reverse, ended at.
    """

    value: Tensor
    standard_error: Tensor
    method: str
    direction: str | None = None
    log_weights: Tensor | None = None
    ess: Tensor | None = None
    samples: Any = None
    start: Tensor | float = 0.0

    @classmethod
    def of_weights(
        cls, log_weights: Tensor, start: Tensor | float, direction: str, samples: Any, stacklevel: int = 3
    ) -> LogNormalizer:
        """The estimate from the weights of annealed chains; warns where their effective sample size is low.

        :param log_weights: of independent chains, ``(chains, ...)``.
        :param start: log normaliser of the density at inverse temperature 0.
        :param direction: ``"forward"`` or ``"reverse"``.
        :raises ValueError: if every weight is zero.
        """
        log_weights = log_weights.detach().double()
        ratio = log_mean_exp(log_weights)
        if bool((ratio == -float("inf")).any()):
            raise ValueError("every chain's weight is zero: the target has no mass where the chains are")
        ess = normalized_ess(log_weights)
        warn_of_low_ess(ess, log_weights.shape[0], f"the {direction} weights", stacklevel)
        value = start + ratio if direction == "forward" else start - ratio
        error = log_mean_exp_error(log_weights)
        return cls(value, error, "ais", direction, log_weights, ess, samples, start)

    @classmethod
    def exact(cls, value: Tensor) -> LogNormalizer:
        """A value that is known."""
        value = value.detach().double()
        return cls(value, torch.zeros_like(value), "exact")

    @property
    def bound(self) -> Tensor:
        r"""Mean of the chains' own estimates, :math:`\log Z_0 \pm \overline{\log w}`: by Jensen's inequality a lower
        bound on :math:`\log Z` in expectation for forward chains, an upper one for reverse chains."""
        if self.log_weights is None:
            return self.value
        mean = self.log_weights.mean(0)
        return self.start - mean if self.direction == "reverse" else self.start + mean

    @property
    def bound_standard_error(self) -> Tensor:
        """Standard error of :attr:`bound`."""
        if self.log_weights is None:
            return self.standard_error
        return self.log_weights.std(0) / self.log_weights.shape[0] ** 0.5

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        if self.value.dim():
            return f"LogNormalizer(shape {tuple(self.value.shape)}, {self.method})"
        if self.method == "exact":
            return f"LogNormalizer({float(self):.4f} nats, exact)"
        how = self.method if self.direction is None else f"{self.direction} {self.method}"
        ess = "" if self.ess is None or self.log_weights is None else f", ESS {float(self.ess):.1f} of "
        count = "" if not ess or self.log_weights is None else f"{self.log_weights.shape[0]}"
        return f"LogNormalizer({float(self):.4f} +- {float(self.standard_error):.2g} nats, {how}{ess}{count})"
