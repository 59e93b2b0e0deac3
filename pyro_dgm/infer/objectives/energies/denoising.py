"""Denoising score matching, at one noise level or many."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.energies.base import EnergySite
from pyro_dgm.infer.objectives.energies.score import LogProb, ScoreObjective, score
from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.ops.arguments import check_number

__all__ = ["DenoisingScoreMatching"]


@dataclass(eq=False, repr=False)
class DenoisingScoreMatching(ScoreObjective):
    r"""Denoising score matching: the score at a noisy datum points back to the datum.

    .. math:: J(\theta) = \sum_n \mathbb{E}_{\sigma, \xi} \, \tfrac12 \left\|
              \tfrac{\tau^2}{\sigma} \, s_\theta(x_n + \sigma \xi) + \xi \right\|^2, \qquad \xi \sim N(0, I)

    One gradient a step, no chains and no second derivatives: the quickest of the objectives for energies, and the one
    for images.  What is learnt is not the density of the data but that of *noisy* data:

    - *one level*, :math:`\tau = \sigma`: the data blurred with :math:`N(0, \sigma^2 I)`, exactly;
    - *several levels, and an energy that takes one* (:class:`~pyro_dgm.distributions.EnergyDistribution` with
      ``noise_level``), :math:`\tau = \sigma`: the blurred density at each of them, for
      :class:`~pyro_dgm.infer.mcmc.AnnealedLangevin`;
    - *several levels, one energy*, :math:`\tau = \sigma_0`, the lowest level: roughly the data blurred with
      :math:`\sigma_0`, with a score that has been seen far from the data too, and leads back from there.

    A level for each datum is drawn evenly from those given.  The blur should be small against the features of the data
    that matter; the noise of the gradient grows as :math:`\sigma` falls.

    ``run.history["train"]`` holds :math:`J / N`; with it about D / 2 for D dimensions the energy says
    nothing yet.

    :param noise_levels: :math:`\sigma`, in units of the data: a number, or a sequence of them.
    :raises ValueError: for levels that are not positive and finite; in training, for a support that is not all reals,
        or energies whose gradient is not finite.

    Source: P. Vincent (2011), "A connection between score matching and denoising autoencoders"; Y. Song and S. Ermon
    (2019), "Generative modeling by estimating gradients of the data distribution", arXiv:1907.05600 (an energy for each
    level); Z. Li, Y. Chen and F. T. Sommer (2019), "Learning energy-based models in high-dimensional spaces with
    multi-scale denoising score matching", arXiv:1910.07762 (one energy for all levels).

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import DenoisingScoreMatching
        >>> _ = torch.manual_seed(0)
        >>> ebm = pyro_dgm.models.EBM(event_shape=(2,), hidden=(16,))
        >>> dsm = DenoisingScoreMatching(noise_levels=[0.1, 0.3, 1.0])
        >>> run = pyro_dgm.fit(ebm, torch.randn(50, 2), objective=dsm, epochs=2, progress=False)
    """

    metric = Metric("denoising score matching loss", "per datum", "lower")

    noise_levels: Any = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = list(self.noise_levels) if isinstance(self.noise_levels, Iterable) else [self.noise_levels]
        for level in levels:
            check_number("noise_levels", level)
        if not levels or not all(s > 0 and math.isfinite(s) for s in levels):
            raise ValueError(f"noise_levels must be positive and finite, at least one, got {self.noise_levels!r}")
        self.noise_levels = tuple(float(s) for s in levels)

    def surrogate(self, site: EnergySite) -> Tensor:
        x = site.value
        levels = x.new_tensor(self.noise_levels)
        sigma = levels[torch.randint(len(levels), (len(x),), device=x.device)]
        wide = sigma.reshape(-1, *(1 for _ in x.shape[1:]))
        noise = torch.randn_like(x)
        conditional = getattr(site.distribution, "noise_level", None) is not None
        target = wide if conditional else levels.min()
        noisy = x + wide * noise
        found, value = score(self._noisy_log_prob(site, sigma) if conditional else self.log_prob_of(site), noisy)
        self.check_energy(value, site, "noisy data")
        self.check_score(found, site, "noisy data")
        return 0.5 * (target.square() / wide * found + noise).square().sum()

    @staticmethod
    def _noisy_log_prob(site: EnergySite, sigma: Tensor) -> LogProb:
        law = site.distribution.expand(torch.Size())
        return lambda y: law.noisy_log_prob(y, sigma)
