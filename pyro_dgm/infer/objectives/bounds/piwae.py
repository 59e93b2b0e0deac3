"""Model and guide on importance weighted bounds of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_dgm.infer.objectives.bounds.miwae import MIWAE
from pyro_dgm.infer.objectives.bounds.split import run_split, through_samples
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.ops import log_mean_exp

__all__ = ["PIWAE"]


class PIWAE(MIWAE):
    r"""The model climbs the IWAE bound of all MK particles, the guide the mean of M bounds of K particles.

    .. math:: \nabla_\theta = E\Bigl[\nabla_\theta \log \frac{1}{MK} \sum_{m,k} w_{mk}\Bigr], \qquad
              \nabla_\phi = E\Bigl[\nabla_\phi \frac1M \sum_m \log \frac1K \sum_k w_{mk}\Bigr]

    with weights :math:`w_{mk} = p(x, z_{mk}) / q(z_{mk}|x)` of one set of samples.  A tight bound is good for the
    model and takes the signal out of the guide's gradient; here each has its own.  The bound reported is the model's,
    that of :class:`~pyro_dgm.infer.IWAE` with MK particles.  With reparameterised guides compare
    :class:`~pyro_dgm.infer.DReG`, which costs one backward pass through the model where this takes two.

    Sites that are not reparameterised get the guide's score-function term, joint over the K particles of a bound.  A
    parameter that both model and guide use gets the sum of the two gradients, each of the part that uses it.

    :param num_particles: their product, in place of one of the two: see :class:`~pyro_dgm.infer.MIWAE`.
    :param num_outer: number M of bounds in the guide's objective, by default 4.
    :param num_inner: number K of particles in each, by default 4.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for a number below 1, and where the three do not fit.
    :raises TypeError: when used with a ``GuideMessenger`` guide.

    Source: T. Rainforth et al. (2018), arXiv:1802.04537.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import PIWAE
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> PIWAE(num_outer=8, num_inner=8)(m.model, m.guide)(torch.zeros(7, 3)).backward()
    """

    needs_replay = True

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        if not grad:
            return super().particles(model, guide, args, kwargs, grad)
        return run_split(self, model, guide, args, kwargs)

    def bound_of(self, particles: Particles) -> Tensor:
        return log_mean_exp(particles.log_weights)

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        log_w = particles.log_weights.detach()
        grouped = self.grouped(log_w)
        own = (grouped.softmax(1) / self.num_outer).reshape(log_w.shape)
        total = (log_w.softmax(0) * particles.log_p).sum()
        total = total + through_samples(particles, own) - (own * particles.log_q).sum()
        scores = particles.scores()
        if scores is not None:
            signal = log_mean_exp(grouped, 1).unsqueeze(1) / self.num_outer
            total = total + (signal * self.grouped(scores)).sum()
        return particles.outer_scale * total
