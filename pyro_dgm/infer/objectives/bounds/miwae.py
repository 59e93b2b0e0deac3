"""The mean of several importance weighted bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.ops import log_mean_exp
from pyro_dgm.ops.arguments import check_count

__all__ = ["MIWAE"]


@dataclass(eq=False, repr=False)
class MIWAE(ParticleObjective):
    r"""The mean of M importance weighted bounds of K particles each.

    .. math:: L_{M,K} = E\left[\frac1M \sum_{m=1}^{M} \log \frac1K \sum_{k=1}^{K} w_{mk}\right], \qquad
              w_{mk} = \frac{p(x, z_{mk})}{q(z_{mk}|x)}, \quad z_{mk} \sim q(z|x)

    In expectation it is the IWAE bound of K particles; M takes its noise down.  With MK particles to spend, a larger K
    is a tighter bound, and a larger M gives the guide's gradient the signal that
    :class:`~pyro_dgm.infer.IWAE` loses as K grows: K = 1 is the ELBO, M = 1 is IWAE.  With reparameterised guides
    :class:`~pyro_dgm.infer.DReG` has no need of the compromise; :class:`~pyro_dgm.infer.PIWAE` spares the model it.

    Sites that are not reparameterised get a score-function term, joint over the K particles of a bound.

    :param num_particles: their product, in place of one of the two; given alone, it is split as evenly as it divides,
        the larger factor to K.
    :param num_outer: number M of bounds that are averaged, by default 4.
    :param num_inner: number K of particles in each, by default 4.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for a number below 1, and where the three do not fit.

    Source: T. Rainforth et al. (2018), arXiv:1802.04537.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import MIWAE
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> MIWAE(num_outer=8, num_inner=16).bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
        >>> MIWAE(num_outer=8, num_inner=16)
        MIWAE(num_particles=128, num_outer=8, num_inner=16)
    """

    num_particles: int = None  # type: ignore[assignment]
    num_outer: int = None  # type: ignore[assignment]
    num_inner: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name in ("num_outer", "num_inner"):
            check_count(name, getattr(self, name), optional=True)
        if self.num_particles is None:
            self.num_outer, self.num_inner = self.num_outer or 4, self.num_inner or 4
            self.num_particles = self.num_outer * self.num_inner
        super().__post_init__()
        self.num_outer, self.num_inner = _factors(self.num_particles, self.num_outer, self.num_inner)

    def grouped(self, values: Tensor) -> Tensor:
        """``(M, K, *shape)`` of what is ``(M * K, *shape)``."""
        return values.reshape(self.num_outer, self.num_inner, *values.shape[1:])

    def bound_of(self, particles: Particles) -> Tensor:
        return log_mean_exp(self.grouped(particles.log_weights), 1).mean(0)

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        log_w = self.grouped(particles.log_weights)
        total = (log_w.detach().softmax(1) * log_w).sum()
        scores = particles.scores()
        if scores is not None:
            total = total + (log_mean_exp(log_w.detach(), 1).unsqueeze(1) * self.grouped(scores)).sum()
        return particles.outer_scale * total / self.num_outer


def _factors(num_particles: int, outer: int | None, inner: int | None) -> tuple[int, int]:
    if outer is None and inner is None:
        outer = next(m for m in range(math.isqrt(num_particles), 0, -1) if num_particles % m == 0)
    if outer is None:
        assert inner is not None
        outer = num_particles // inner
    elif inner is None:
        inner = num_particles // outer
    if outer * inner != num_particles:
        raise ValueError(
            f"num_particles must be num_outer * num_inner, got num_particles={num_particles}, num_outer={outer}, "
            f"num_inner={inner}"
        )
    return outer, inner
