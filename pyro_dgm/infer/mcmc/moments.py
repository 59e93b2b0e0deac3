"""Moments of chains whose draws are not kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Moments"]


class _Running:
    """Count, mean and sum of squared deviations of each chain (Welford, in Chan's form for blocks of draws)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None

    def update(self, draws: Tensor) -> None:
        """Take in ``(chains, n, ...)``."""
        n = draws.shape[1]
        mean = draws.mean(1)
        squares = (draws - mean.unsqueeze(1)).square().sum(1)
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = n, mean, squares
            return
        total = self.count + n
        delta = mean - self.mean
        self.mean = self.mean + delta * (n / total)
        self.squares = self.squares + squares + delta.square() * (self.count * n / total)
        self.count = total

    def variance(self) -> Tensor:
        """Sample variance of each chain."""
        assert self.squares is not None
        return self.squares / max(self.count - 1, 1)


class Moments:
    r"""Mean, variance, split R-hat and effective sample size of a run, from running sums alone.

    Each half of each chain has its running mean and variance, from which split R-hat follows exactly (without ranks,
    for which all draws would be needed):

    .. math:: \hat R = \sqrt{\frac{n - 1}{n} + \frac{B / n}{W}}

    The effective sample size is by batch means: the variance of the means of about :math:`\sqrt n` consecutive draws,
    which is above that of independent ones by the autocorrelation time.  Chains of a few hundred draws are too short
    for it.

    :param num_draws: draws a chain to come.

    Source: B. P. Welford (1962), "Note on a method for calculating corrected sums of squares and products"; T. F. Chan,
    G. H. Golub and R. J. LeVeque (1983), "Algorithms for computing the sample variance"; split R-hat of A. Gelman et
    al. (2013), "Bayesian Data Analysis", 3rd edition, section 11.4; batch means: C. J. Geyer (1992), "Practical Markov
    chain Monte Carlo".

    Example::

        >>> moments = Moments(100)
        >>> moments.update({"x": torch.arange(100.0).expand(2, 100)})
        >>> moments.mean["x"], moments.r_hat["x"] > 1.1
        (tensor(49.5000), tensor(True))
    """

    def __init__(self, num_draws: int) -> None:
        self.num_draws, self.count = num_draws, 0
        self._batch = max(1, math.isqrt(num_draws))
        self._halves: tuple[dict[str, _Running], dict[str, _Running]] = ({}, {})
        self._open: dict[str, Tensor] = {}
        self._batches: dict[str, _Running] = {}

    def update(self, draws: dict[str, Tensor]) -> None:
        """Take in consecutive draws, each ``(chains, n, ...)``."""
        n = next(iter(draws.values())).shape[1]
        start = 0
        # Cut where a half or a batch of draws ends.
        while start < n:
            at = self.count
            half = 0 if at < self.num_draws // 2 else 1
            ends = [(at // self._batch + 1) * self._batch, *([self.num_draws // 2] if half == 0 else [])]
            stop = min(n, start + min(ends) - at)
            for name, value in draws.items():
                part = value[:, start:stop]
                if not part.is_floating_point():
                    part = part.to(torch.get_default_dtype())
                self._halves[half].setdefault(name, _Running()).update(part)
                self._add_to_batch(name, part, at + stop - start)
            self.count += stop - start
            start = stop

    def _add_to_batch(self, name: str, part: Tensor, count: int) -> None:
        total = self._open.pop(name, 0.0) + part.sum(1)
        if count % self._batch:
            self._open[name] = total
        else:
            self._batches.setdefault(name, _Running()).update((total / self._batch).unsqueeze(1))

    @property
    def mean(self) -> dict[str, Tensor]:
        """Mean over all chains, in the shape of each site."""
        return {name: self._chain_means(name).mean(0) for name in self._halves[0]}

    @property
    def chain_mean(self) -> dict[str, Tensor]:
        """Mean of each chain, ``(chains, ...)``."""
        return {name: self._chain_means(name) for name in self._halves[0]}

    @property
    def variance(self) -> dict[str, Tensor]:
        """Variance over all chains' draws."""
        return {name: self._variance(name) for name in self._halves[0]}

    @property
    def sd(self) -> dict[str, Tensor]:
        """Standard deviation over all chains' draws."""
        return {name: v.sqrt() for name, v in self.variance.items()}

    @property
    def r_hat(self) -> dict[str, Tensor]:
        """Split R-hat; NaN for fewer than four draws a chain."""
        out = {}
        for name in self._halves[0]:
            halves = self._parts(name)
            means = torch.cat([h.mean for h in halves if h.mean is not None])
            within = torch.cat([h.variance() for h in halves]).mean(0)
            n = min(h.count for h in halves)
            value = ((n - 1) / n + means.var(0) / within).sqrt()
            out[name] = value if n > 1 and len(halves) == 2 else torch.full_like(value, float("nan"))
        return out

    @property
    def ess(self) -> dict[str, Tensor]:
        """Effective sample size of the mean, by batch means; NaN for fewer than four batches over all chains."""
        out = {}
        for name, variance in self.variance.items():
            batches = self._batches.get(name)
            draws = self.count * self._chain_means(name).shape[0]
            if batches is None or batches.squares is None or batches.count < 2:
                out[name] = torch.full_like(variance, float("nan"))
                continue
            variance_of_mean = batches.variance().mean(0) * self._batch
            out[name] = draws * variance / variance_of_mean
        return out

    def _parts(self, name: str) -> list[_Running]:
        return [half[name] for half in self._halves if name in half]

    def _chain_means(self, name: str) -> Tensor:
        parts = self._parts(name)
        total = sum(p.count for p in parts)
        return torch.stack([p.mean * (p.count / total) for p in parts if p.mean is not None]).sum(0)

    def _variance(self, name: str) -> Tensor:
        parts = self._parts(name)
        centre = self._chain_means(name).mean(0)
        squares = sum(
            (p.squares + p.count * (p.mean - centre).square()).sum(0)
            for p in parts
            if p.mean is not None and p.squares is not None
        )
        chains = self._chain_means(name).shape[0]
        return torch.as_tensor(squares) / max(self.count * chains - 1, 1)
