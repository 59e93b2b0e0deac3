"""Between the evidence lower bound and the importance weighted one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.ops import log_mean_exp

__all__ = ["CIWAE"]


@dataclass(eq=False, repr=False)
class CIWAE(ParticleObjective):
    r"""A convex combination of the ELBO and the IWAE bound of K particles.

    .. math:: L_\beta = \beta\, E\Bigl[\frac1K \sum_k \log w_k\Bigr]
              + (1 - \beta)\, E\Bigl[\log \frac1K \sum_k w_k\Bigr],
              \qquad w_k = \frac{p(x, z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

    A lower bound of :math:`\log p(x)` between the two, from the samples of one.  The share of the ELBO holds the
    guide's gradient above its noise when K is large, at the price of a looser bound: a compromise that one number
    sets, where :class:`~pyro_dgm.infer.MIWAE` has two whole ones.

    Sites that are not reparameterised get a score-function term, for the ELBO with each particle's own weight.

    :param num_particles: number K of particles.
    :param beta: share of the ELBO, in [0, 1]: 0 is :class:`~pyro_dgm.infer.IWAE`, 1 the ELBO.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for ``beta`` outside [0, 1].

    Source: T. Rainforth et al. (2018), arXiv:1802.04537.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import CIWAE
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> CIWAE(16, beta=0.3).bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    num_particles: int = 5
    beta: float = 0.5

    def __post_init__(self) -> None:
        beta = self.beta
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta <= 1:
            raise ValueError(f"beta must be a number in [0, 1], got {beta!r}")
        super().__post_init__()

    def bound_of(self, particles: Particles) -> Tensor:
        log_w = particles.log_weights
        return self.beta * log_w.mean(0) + (1 - self.beta) * log_mean_exp(log_w)

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        log_w = particles.log_weights
        fixed = log_w.detach()
        weights = self.beta / self.num_particles + (1 - self.beta) * fixed.softmax(0)
        total = (weights * log_w).sum()
        scores = particles.scores()
        if scores is not None:
            # A particle's draw moves its own part of the ELBO, and the whole of the other bound.
            signal = self.beta / self.num_particles * fixed + (1 - self.beta) * log_mean_exp(fixed)
            total = total + (signal * scores).sum()
        return particles.outer_scale * total
