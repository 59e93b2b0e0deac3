"""The warm-up, pooled over chains: its settings, the step size by dual averaging, Stan's windows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.mass_matrix import Estimate, MassMatrix
from pyro_dgm.ops.arguments import check_number

__all__ = ["Adaptation", "DualAveraging", "StepSizeWarmup", "Warmup", "search_steps", "warmup_windows"]


@dataclass(frozen=True)
class DualAveraging:
    r"""Dual averaging of the logarithm of the step size towards a mean acceptance probability.

    .. math:: \bar H_t = (1 - \tfrac{1}{t + t_0}) \bar H_{t-1} + \tfrac{1}{t + t_0} (\delta - \alpha_t), \qquad
              \log \epsilon_t = \mu - \tfrac{\sqrt t}{\gamma} \bar H_t, \qquad
              \log \bar\epsilon_t = t^{-\kappa} \log \epsilon_t + (1 - t^{-\kappa}) \log \bar\epsilon_{t-1}

    with :math:`\alpha_t` the acceptance probability of transition ``t``, averaged over chains.

    Source: M. D. Hoffman and A. Gelman (2014), "The No-U-Turn Sampler", arXiv:1111.4246, section 3.2; Y. Nesterov
    (2009), "Primal-dual subgradient methods for convex problems".
    """

    log_step: Tensor
    log_step_average: Tensor
    gradient_average: Tensor
    prox_center: Tensor
    count: int = 0
    gamma: float = 0.05
    t0: float = 10.0
    kappa: float = 0.75

    @classmethod
    def start(cls, step_size: Tensor, gamma: float = 0.05, num_steps: int = 1000) -> DualAveraging:
        """Begin at a step size (a scalar tensor), for ``num_steps`` updates.

        The recursion shrinks towards ten times that size, as published; towards the size itself where fewer than 50
        updates are to come, too few to return from an excursion to ten times it.
        """
        log_step = step_size.log()
        center = log_step + math.log(10.0) if num_steps >= 50 else log_step
        return cls(log_step, log_step, torch.zeros_like(log_step), center, gamma=gamma)

    def update(self, acceptance: Tensor, target: float) -> DualAveraging:
        """Take in the mean acceptance probability of one transition."""
        t = self.count + 1
        weight = 1.0 / (t + self.t0)
        gradient = (1.0 - weight) * self.gradient_average + weight * (target - acceptance)
        log_step = self.prox_center - math.sqrt(t) / self.gamma * gradient
        decay = t**-self.kappa
        average = decay * log_step + (1.0 - decay) * self.log_step_average
        return replace(self, log_step=log_step, log_step_average=average, gradient_average=gradient, count=t)


def warmup_windows(num_steps: int, start: int = 75, first: int = 25, end: int = 50) -> list[tuple[int, int]]:
    """Windows over which the mass matrix is estimated, each twice as long as the one before.

    The first ``start`` transitions find the typical set, the last ``end`` settle the step size; where there are fewer
    than ``start + first + end`` the three take 15, 75 and 10 per cent, and below 20 transitions there is no window.

    Source: Stan Reference Manual, "Automatic parameter tuning".

    :returns: half-open intervals of transitions.

    Example::

        >>> warmup_windows(1000)
        [(75, 100), (100, 150), (150, 250), (250, 450), (450, 950)]
        >>> warmup_windows(10)
        []
    """
    if num_steps < 20:
        return []
    if num_steps < start + first + end:
        start, end = int(0.15 * num_steps), int(0.1 * num_steps)
        return [(start, num_steps - end)]
    windows, left, size = [], start, first
    stop = num_steps - end
    while left < stop:
        # A last window that would be shorter than its successor's need is joined to this one.
        right = left + size
        if right + 2 * size > stop:
            right = stop
        windows.append((left, right))
        left, size = right, 2 * size
    return windows


def search_steps(num_steps: int) -> int:
    """Transitions at the beginning of a warm-up in which chains approach the typical set."""
    return min(75, int(0.15 * num_steps))


@dataclass(frozen=True)
class Warmup:
    """The progress of a warm-up.

    :ivar num_steps: its number of transitions.
    :ivar count: number of transitions taken.
    :ivar windows: transitions over which the mass matrix is estimated.
    :ivar estimate: of the mass matrix, in the present window.
    """

    num_steps: int
    count: int
    windows: tuple[tuple[int, int], ...]
    estimate: Estimate

    @property
    def searching(self) -> bool:
        """Whether chains still approach the typical set."""
        return self.count <= search_steps(self.num_steps)

    @property
    def steps_left(self) -> int:
        """Transitions until the next window closes, or until the end."""
        return next((right for _, right in self.windows if right > self.count), self.num_steps) - self.count

    def observe(self, position: dict[str, Tensor]) -> tuple[Self, MassMatrix | None]:
        """Take in a position, if the transition just taken is in a window.

        :returns: the warm-up, and a new mass matrix where that transition was the window's last.
        """
        if not any(left < self.count <= right for left, right in self.windows):
            return self, None
        estimate = self.estimate.update(position)
        if not any(self.count == right for _, right in self.windows):
            return replace(self, estimate=estimate), None
        mass = estimate.mass()
        return replace(self, estimate=mass.estimate()), mass


@dataclass(frozen=True)
class StepSizeWarmup(Warmup):
    """A warm-up that adapts the step size to the acceptance probability.

    :ivar dual: dual averaging of the step size.
    :ivar recent: running mean of each chain's acceptance probability, ``(chains,)``; ``None`` at the beginning.
    """

    dual: DualAveraging
    recent: Tensor | None = None

    def accept(self, acceptance: Tensor) -> tuple[Self, Tensor]:
        """Take in one transition's acceptance of each chain, and return the one number to which the step size adapts.

        That is the mean over chains. While chains still approach the typical set it is the smallest of their running
        means instead: with the mean, a chain that is stuck where the density is steep would never get away.
        """
        recent = torch.ones_like(acceptance) if self.recent is None else self.recent
        recent = 0.8 * recent + 0.2 * acceptance
        warmup = replace(self, count=self.count + 1, recent=recent)
        return warmup, recent.min() if warmup.searching else acceptance.mean()


@dataclass(frozen=True)
class Adaptation:
    """What a kernel learns in its warm-up, from all chains together.

    :param step_size: whether to learn the step size.
    :param mass_matrix: whether to learn the mass matrix.
    :param target_accept_prob: mean acceptance probability that the step size is adapted to.
    :param dense_mass: whether the mass matrix is dense.
    :param min_stepsize: least step size that adaptation may take.
    :param max_stepsize: largest one.
    :raises ValueError: for a number out of range; the message names it.
    """

    step_size: bool = True
    mass_matrix: bool = True
    target_accept_prob: float = 0.8
    dense_mass: bool = False
    min_stepsize: float = 0.0
    max_stepsize: float = math.inf

    def __post_init__(self) -> None:
        for argument in ("target_accept_prob", "min_stepsize", "max_stepsize"):
            check_number(argument, getattr(self, argument))
        if not 0.0 < self.target_accept_prob < 1.0:
            raise ValueError(f"target_accept_prob must be in (0, 1), got {self.target_accept_prob}")
        if not 0.0 <= self.min_stepsize < self.max_stepsize:
            raise ValueError(
                f"min_stepsize must be below max_stepsize and at least 0, got {self.min_stepsize}, {self.max_stepsize}"
            )

    @property
    def anything(self) -> bool:
        """Whether anything is learnt."""
        return self.step_size or self.mass_matrix

    def windows(self, num_steps: int) -> tuple[tuple[int, int], ...]:
        """Transitions over which the mass matrix is estimated; none where it is not learnt."""
        return tuple(warmup_windows(num_steps)) if self.mass_matrix else ()

    def bounded(self, step_size: Tensor) -> Tensor:
        """A step size within its bounds."""
        return step_size.clamp(self.min_stepsize, self.max_stepsize)
