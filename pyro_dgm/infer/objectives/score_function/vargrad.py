"""The log-variance loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.score_function.score_function import ScoreFunction, cut_terms

__all__ = ["VarGrad"]


@dataclass(eq=False, repr=False)
class VarGrad(ScoreFunction):
    r"""The ELBO, its guide trained on the variance of the log-weights over particles.

    .. math:: \nabla_\phi L = -\tfrac12 \nabla_\phi \widehat{\mathrm{Var}}_k\left(\log w_k\right) |_{z\;\mathrm{fixed}},
              \qquad
              \nabla_\theta L = \frac1K \sum_k \nabla_\theta \log p_\theta(x, z_k)

    At samples from the guide, the gradient of the log-variance divergence is the ELBO's score-function gradient with
    a leave-one-out control variate: the two routes, this and :class:`~pyro_dgm.infer.ScoreFunction`, meet in the same
    numbers.  All guide sites are treated so; for discrete or black-box programs with a few particles.

    :param num_particles: number K of particles, at least 2.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for fewer than 2 particles: one has no variance.

    Source: L. Richter, A. Boustati, N. Nüsken, F. J. R. Ruiz and Ö. D. Akyildiz (2020), arXiv:2010.10436.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> loss = pyro_dgm.infer.VarGrad(num_particles=8)(m.model, m.guide)(torch.zeros(7, 3))
        >>> loss.backward()
    """

    baseline: str | None = field(default="leave_one_out", init=False)

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        direct, scores = cut_terms(particles)
        log_w = particles.log_weights.detach() - (scores - scores.detach())
        return particles.outer_scale * (direct.mean(0) - 0.5 * log_w.var(0)).sum()
