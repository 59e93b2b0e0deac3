"""The chi upper bound, for guides that cover."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_dgm.infer.objectives.bounds.dreaming import DetachSamples
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.infer.objectives.score_function.score_function import cut_terms
from pyro_dgm.ops import log_mean_exp

__all__ = ["CUBO"]


@dataclass(eq=False, repr=False)
class CUBO(ParticleObjective):
    r"""The chi upper bound of order n, which the *guide* minimises.

    .. math:: \mathrm{CUBO}_n = \frac1n \log E_{q(z|x)}\left[w^n\right] \ge \log p(x), \qquad w = \frac{p(x, z)}{q(z|x)}

    Its gap is a chi-type divergence of the guide from the posterior, infinite where the guide's tails are lighter than
    the :math:`n`-th power of the weights can bear: the guide is made to cover the posterior, where that of an
    :class:`~pyro_dgm.infer.ELBO` shrinks into it.  For proposals of importance samplers, for posterior standard
    deviations that are not too small, and, beside an ELBO, to bracket :math:`\log p(x)`.

    *Direction.*  The loss is *plus* the scaled sum of the bounds, so that every optimiser minimises it.  The model's
    parameters get gradients of zero: to lower an upper bound of :math:`\log p(x)` by the model is to make the data
    less likely, and to raise it need not raise :math:`\log p(x)`.  Train the model by a lower bound.  An optimiser
    with weight decay would still decay the model: give it the guide's parameters alone.  The
    history of :func:`~pyro_dgm.fit` holds the bound itself, of which lower is better.

    *What is a bound and what is not.*  What ``bound`` gives is the estimate from K particles,

    .. math:: \hat L_K = \frac1n \log \frac1K \sum_k w_k^n, \qquad \mathrm{ELBO} = E[\hat L_1] \le E[\hat L_K]
              \le E[\hat L_{K+1}] \le \mathrm{CUBO}_n

    An average of powers is unbiased, its logarithm comes out too low: :math:`E[\hat L_K]` is *no* upper bound of
    :math:`\log p(x)`, and becomes one only as K grows (the more particles, the worse the guide fits).

    *Gradient.*  That of :math:`\mathrm{CUBO}_n` itself, as a self-normalised average whose bias falls as 1/K:

    .. math:: \nabla_\phi \mathrm{CUBO}_n = \frac{1 - n}{n} \frac{E[w^n \nabla_\phi \log q]}{E[w^n]}
              \approx \frac{1 - n}{n} \sum_k \left(\tilde w_k - \tfrac1K\right) \nabla_\phi \log q(z_k|x), \qquad
              \tilde w_k = \frac{w_k^n}{\sum_j w_j^n}

    It needs no reparameterised site and moves the guide towards its best samples; the subtracted 1/K is a control
    variate that takes all noise away where the guide is exact.  (The unbiased gradient of
    :math:`e^{n\,\mathrm{CUBO}_n}` spans as many orders of magnitude as the weights do.  To differentiate
    :math:`\hat L_K` along the samples would be without bias for :math:`E[\hat L_K]`, and that is the wrong thing to
    minimise: where no particle meets the posterior it falls without limit, and a narrow guide flees.)

    :param num_particles: number K of particles, at least 2.
    :param n: order, above 1 (at 1 the bound is :math:`\log p(x)`, whatever the guide).
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for ``n`` not above 1 or fewer than 2 particles; when trained, if a guide site is a function
        of parameters (``Delta``).
    :raises TypeError: when used with a ``GuideMessenger`` guide.

    Source: A. B. Dieng, D. Tran, R. Ranganath, J. Paisley and D. M. Blei (2017), arXiv:1611.00328.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import CUBO
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> loss = CUBO(num_particles=100)(m.model, m.guide)(torch.zeros(7, 3))
        >>> loss.backward()
        >>> bool((m.weight.grad == 0).all())  # the guide alone is trained
        True
    """

    needs_replay = True
    min_particles = 2
    side = "upper"
    metric = Metric("upper bound", better="lower")

    num_particles: int = 10
    n: float = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, (int, float)) or not 1 < self.n < math.inf:
            raise ValueError(f"n must be a finite number above 1, got {self.n!r}")
        super().__post_init__()

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        if not grad:
            return super().particles(model, guide, args, kwargs, grad)
        with DetachSamples():
            return super().particles(model, guide, args, kwargs, grad)

    def bound_of(self, particles: Particles) -> Tensor:
        return log_mean_exp(self.n * particles.log_weights) / self.n

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        weights = (self.n * particles.log_weights).detach().softmax(0) - 1 / self.num_particles
        # Without masks and inner scales both are log q, and the difference is (1 - n) / n times it.
        scores = cut_terms(particles)[1] / self.n - particles.log_q
        # The model's parameters are seen to take part, and are left where they are.
        return particles.outer_scale * ((weights * scores).sum() + 0.0 * particles.log_p.sum())

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        loss, surrogate = super().estimate(model, guide, args, kwargs, grad)
        return -loss, None if surrogate is None else -surrogate
