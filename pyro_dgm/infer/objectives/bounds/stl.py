"""Sticking the landing: the path-derivative gradient of the ELBO."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_dgm.infer.objectives.bounds.pathwise import log_q_stopped
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.particle import ParticleObjective

__all__ = ["STL"]


class STL(ParticleObjective):
    r"""The ELBO with the "sticking the landing" gradient: the guide's score term, whose mean is zero, is left out.

    .. math:: \nabla_\phi L = E_\epsilon\left[\nabla_z \left(\log p(x, z) - \log q_\phi(z|x)\right)
              \frac{\partial z_\phi(\epsilon)}{\partial \phi}\right]

    The bound is the ELBO's; the gradient has no variance left where the guide equals the posterior, so it pays late in
    training and with flexible guides.  Early on, or with a poor guide, the closed-form KL of
    :class:`~pyro_dgm.infer.ELBO` may have the lower variance.

    Sites that are not reparameterised get a score-function term (joint over each datum's costs).

    :param num_particles: number of particles averaged over.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.

    Source: G. Roeder, Y. Wu and D. Duvenaud (2017), arXiv:1703.09194.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2, guide_covariance="full").double()
        >>> m.set_guide_to_posterior()
        >>> loss = pyro_dgm.infer.STL()(m.model, m.guide)(torch.zeros(7, 3, dtype=torch.float64))
        >>> loss.backward()
        >>> bool(m.guide_weight.grad.abs().max() < 1e-12)
        True
    """

    needs_replay = True
    averages_weights = False

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        particles = self.run(model, guide, args, kwargs)
        if grad:
            particles.stopped = log_q_stopped(particles, guide, args, kwargs)
        return particles

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        total = (particles.log_p - particles.stopped).sum()
        scores = particles.scores()
        if scores is not None:
            total = total + (particles.log_weights.detach() * scores).sum()
        return particles.outer_scale * total / self.num_particles
