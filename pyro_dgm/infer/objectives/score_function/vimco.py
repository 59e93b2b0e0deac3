"""Variational inference for Monte Carlo objectives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.particle import ParticleObjective

__all__ = ["VIMCO"]


@dataclass(eq=False, repr=False)
class VIMCO(ParticleObjective):
    r"""The IWAE bound with a learning signal of its own for each particle.

    .. math:: \nabla_\phi L_K = E\left[\sum_j \left(\hat L - \hat L_{-j}\right) \nabla_\phi \log q(z_j|x)
              + \sum_j \tilde w_j \nabla_\phi \log w_j\right], \qquad
              \hat L_{-j} = \log \frac1K \Bigl(\sum_{k \ne j} w_k + \prod_{k \ne j} w_k^{1/(K-1)}\Bigr)

    :math:`\hat L = \log \frac1K \sum_k w_k`; in :math:`\hat L_{-j}` the weight of particle j is replaced by the
    geometric mean of the others, so that a particle is credited with what it added and no baseline has to be learned.
    The choice for discrete latents with several particles.  Reparameterised sites of a mixed program get their
    pathwise IWAE gradient.

    :param num_particles: number K of particles, at least 2.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for fewer than 2 particles: there is no other to leave.

    Source: A. Mnih and D. J. Rezende (2016), arXiv:1602.06725.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> pyro_dgm.infer.VIMCO(num_particles=5).bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    min_particles = 2

    num_particles: int = 5

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        log_w = particles.log_weights
        total = (log_w.detach().softmax(0) * log_w).sum()
        scores = particles.scores()
        if scores is not None:
            total = total + ((bound.detach() - _without_each(log_w.detach())) * scores).sum()
        return particles.outer_scale * total


def _without_each(log_w: Tensor) -> Tensor:
    """The bound with each particle's weight replaced by the geometric mean of the others, ``(K, *shape)``."""
    count = log_w.shape[0]
    own = torch.eye(count, dtype=torch.bool, device=log_w.device).reshape(count, count, *[1] * (log_w.dim() - 1))
    table = log_w.expand(count, *log_w.shape)  # row j holds the particles that the bound without j is made of
    others = table.masked_fill(own, 0.0).sum(1, keepdim=True) / (count - 1)
    return torch.where(own, others, table).logsumexp(1) - math.log(count)
