"""Renyi's alpha-divergence bound, per datum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.ops import log_mean_exp
from pyro_dgm.ops.arguments import check_number

__all__ = ["RenyiELBO"]


@dataclass(eq=False, repr=False)
class RenyiELBO(ParticleObjective):
    r"""Variational Renyi bound of order :math:`\alpha`, estimated from K particles.

    .. math:: L_\alpha = \frac{1}{1-\alpha} \log \frac{1}{K} \sum_{k=1}^{K} w_k^{1-\alpha},
              \qquad w_k = \frac{p(x, z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

    With :math:`\alpha \ge 0` it is a lower bound of :math:`\log p(x)` in expectation: :math:`\alpha = 0` is the IWAE
    bound and :math:`\alpha \to 1` the ELBO; between them it trades tightness for coverage.  Negative orders may
    overestimate, and are no bound (``side`` is ``None``): their limit :math:`\alpha = -\infty` is VR-max,
    :math:`\max_k \log w_k`, whose gradient is that of the best particle alone, and which lies between the IWAE bound
    of the same particles and that plus :math:`\log K`.

    The weights are formed per datum and subsampling scale stays outside the logarithm (Pyro's ``RenyiELBO`` scales
    inside, and then is no bound).  Sites that are not reparameterised get a score-function term.

    :param num_particles: number K of particles.
    :param alpha: order: a finite number, not 1 (there it is :class:`~pyro_dgm.infer.ELBO`); or ``float("-inf")``.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for ``alpha = 1``, positive infinity or NaN.

    Source: Y. Li and R. E. Turner (2016), arXiv:1602.02311.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> pyro_dgm.infer.RenyiELBO(alpha=0.5, num_particles=8).bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    num_particles: int = 2
    alpha: float = 0.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha)
        if self.alpha == 1:
            raise ValueError("alpha must not be 1: there the Renyi bound is the ELBO, use ELBO()")
        if not float(self.alpha) < math.inf:  # NaN too
            raise ValueError(f'alpha must be a finite number, or float("-inf") for VR-max, got {self.alpha!r}')
        super().__post_init__()
        if self.alpha < 0:
            self.side = None

    def bound_of(self, particles: Particles) -> Tensor:
        if self.alpha == -math.inf:
            return particles.log_weights.amax(0)
        return log_mean_exp((1 - self.alpha) * particles.log_weights) / (1 - self.alpha)

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        log_w = particles.log_weights
        if self.alpha == -math.inf:
            best = log_w.detach().argmax(0, keepdim=True)
            weights = torch.zeros_like(log_w).scatter(0, best, 1.0)
        else:
            weights = ((1 - self.alpha) * log_w).detach().softmax(0)
        total = (weights * log_w).sum()
        scores = particles.scores()
        if scores is not None:
            total = total + (bound.detach() * scores).sum()
        return particles.outer_scale * total
