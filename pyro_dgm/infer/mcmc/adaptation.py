"""Warm-up, pooled over chains: step size by dual averaging, mass by Welford's recursion, Stan's windows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = [
    "COVARIANCE",
    "WHITENING",
    "DualAveraging",
    "Warmup",
    "Welford",
    "WelfordDense",
    "dense_inverse_mass",
    "flatten",
    "search_steps",
    "unflatten",
    "warmup_windows",
]


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


@dataclass(frozen=True)
class Welford:
    """Running mean and sum of squared deviations, pooled over chains and transitions (Chan's parallel update)."""

    count: int
    mean: dict[str, Tensor]
    squares: dict[str, Tensor]

    @classmethod
    def start(cls, position: dict[str, Tensor]) -> Welford:
        """Begin with nothing seen; ``position`` gives shapes, ``(chains, ...)``."""
        zeros = {k: torch.zeros_like(v[0]) for k, v in position.items()}
        return cls(0, zeros, {k: torch.zeros_like(v) for k, v in zeros.items()})

    def update(self, position: dict[str, Tensor]) -> Welford:
        """Take in one ``(chains, ...)`` position."""
        chains = next(iter(position.values())).shape[0]
        total = self.count + chains
        mean, squares = {}, {}
        for k, v in position.items():
            centre = v.mean(0)
            delta = centre - self.mean[k]
            mean[k] = self.mean[k] + delta * (chains / total)
            squares[k] = self.squares[k] + (v - centre).square().sum(0) + delta.square() * (self.count * chains / total)
        return Welford(total, mean, squares)

    def variance(self) -> dict[str, Tensor]:
        """Sample variances, drawn a little towards 1e-3 as Stan does when draws are few."""
        n = self.count
        shrink = n / (n + 5.0)
        return {k: shrink * s / max(n - 1, 1) + 1e-3 * (1.0 - shrink) for k, s in self.squares.items()}

    def inverse_mass(self) -> dict[str, Tensor]:
        """What kernels take for the inverse mass: the variances, by site."""
        return self.variance()


@dataclass(frozen=True)
class WelfordDense:
    """As :class:`Welford`, of the covariance matrix of all sites' elements, one after another."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def start(cls, position: dict[str, Tensor]) -> WelfordDense:
        """Begin with nothing seen; ``position`` gives shapes, ``(chains, ...)``."""
        flat = flatten(position)[0]
        return cls(0, torch.zeros_like(flat), flat.new_zeros(len(flat), len(flat)))

    def update(self, position: dict[str, Tensor]) -> WelfordDense:
        """Take in one ``(chains, ...)`` position."""
        flat = flatten(position)
        total = self.count + len(flat)
        centre = flat.mean(0)
        delta = centre - self.mean
        centred = flat - centre
        squares = centred.T @ centred + delta.outer(delta) * (self.count * len(flat) / total)
        return WelfordDense(total, self.mean + delta * (len(flat) / total), self.squares + squares)

    def inverse_mass(self) -> dict[str, Tensor]:
        """The sample covariance, drawn a little towards 1e-3 times the identity, and its Cholesky factor's inverse."""
        n = self.count
        shrink = n / (n + 5.0)
        eye = torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
        covariance = shrink * self.squares / max(n - 1, 1) + 1e-3 * (1.0 - shrink) * eye
        return dense_inverse_mass(covariance)


#: names under which a dense inverse mass matrix, and the inverse of its Cholesky factor, stand in a state's
COVARIANCE, WHITENING = " covariance", " whitening"


def dense_inverse_mass(covariance: Tensor) -> dict[str, Tensor]:
    """An inverse mass matrix over all sites' elements, with what draws its momenta."""
    factor = torch.linalg.cholesky(covariance)
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return {COVARIANCE: covariance, WHITENING: torch.linalg.solve_triangular(factor, eye, upper=False)}


def flatten(position: dict[str, Tensor]) -> Tensor:
    """All sites' elements one after another, ``(chains, D)``."""
    parts = [v.reshape(len(v), -1) for v in position.values()]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def unflatten(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`flatten`."""
    sizes = [v[0].numel() for v in like.values()]
    return {k: part.reshape(v.shape) for (k, v), part in zip(like.items(), flat.split(sizes, 1), strict=True)}


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
    """Transitions at the beginning of a warm-up in which chains look for the typical set."""
    return min(75, int(0.15 * num_steps))


@dataclass(frozen=True)
class Warmup:
    """Where a warm-up stands: transition ``count`` of ``num_steps``, and what has been learnt.

    ``moving`` is each chain's running mean of its acceptance probability, ``(chains,)``.
    """

    num_steps: int
    count: int
    windows: tuple[tuple[int, int], ...]
    dual: DualAveraging
    moments: Welford | WelfordDense
    moving: Tensor | None = None

    def see(self, acceptance: Tensor) -> tuple[Warmup, Tensor]:
        """Take in one transition's acceptance of each chain, and give the one number that the step size follows.

        That is the mean over chains, except while chains still look for the typical set: there it is the least of
        their running means, or a chain stuck where the density is steep would be outvoted and never leave.
        """
        moving = torch.ones_like(acceptance) if self.moving is None else self.moving
        moving = 0.8 * moving + 0.2 * acceptance
        warmup = replace(self, count=self.count + 1, moving=moving)
        return warmup, moving.min() if warmup.searching else acceptance.mean()

    @property
    def searching(self) -> bool:
        """Whether chains still look for the typical set."""
        return self.count <= search_steps(self.num_steps)

    @property
    def in_window(self) -> bool:
        """Whether the transition just taken counts for the mass matrix."""
        return any(left <= self.count - 1 < right for left, right in self.windows)

    @property
    def steps_left(self) -> int:
        """Transitions until the next window closes, or until the end."""
        return next((right for _, right in self.windows if right > self.count), self.num_steps) - self.count

    @property
    def closes_window(self) -> bool:
        """Whether the transition just taken was the last of a window."""
        return any(self.count == right for _, right in self.windows)
