"""Doubly reparameterised gradients of the importance weighted bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.distributions.util import is_identically_zero
from torch import Tensor

from pyro_dgm.infer.objectives.bounds.pathwise import log_q_stopped, with_values
from pyro_dgm.infer.objectives.evaluation.particles import Particles, ScaleGradient
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.programs.structure import sample_sites

__all__ = ["DReG"]


@dataclass(eq=False, repr=False)
class DReG(ParticleObjective):
    r"""The IWAE bound with doubly reparameterised gradients for the guide.

    .. math:: \nabla_\phi L_K = E\left[\sum_k \tilde w_k^2 \,
              \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi}\right], \qquad
              \nabla_\theta L_K = E\left[\sum_k \tilde w_k \nabla_\theta \log p_\theta(x, z_k)\right]

    with :math:`\tilde w_k = w_k / \sum_j w_j`.  The bound is that of :class:`~pyro_dgm.infer.IWAE`; the guide's
    gradient keeps its mean but not its noise, and its signal-to-noise ratio *rises* with K.  The choice for training
    with several particles when every guide site is reparameterised.

    :param num_particles: number K of particles.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: when used, if a guide site is not reparameterised: the identity behind it needs every one.

    Source: G. Tucker, D. Lawson, S. Gu and C. J. Maddison (2019), arXiv:1810.04152.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> loss = pyro_dgm.infer.DReG(num_particles=16)(m.model, m.guide)(torch.zeros(7, 3))
        >>> loss.backward()
    """

    needs_replay = True

    num_particles: int = 5

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        if not grad:
            return self.run(model, guide, args, kwargs)
        scaled: list[poutine.Trace] = []
        holders: list[tuple[int, list[Tensor], Any]] = []

        def rewrite(trace: poutine.Trace, k: int) -> poutine.Trace:
            if k == 0:
                scaled.clear()
                holders.clear()
            latents = sample_sites(trace)
            _require_reparameterised(trace)

            def scale(name: str, site: Any) -> Any:
                if name not in latents or not site["value"].requires_grad:
                    return site["value"]
                holders.append((k, [], site))
                return ScaleGradient.apply(site["value"], holders[-1][1])

            scaled.append(with_values(trace, scale))
            return scaled[-1]

        particles = self.run(model, guide, args, kwargs, rewrite)
        particles.stopped = log_q_stopped(particles, guide, args, kwargs, scaled)
        particles.holders = holders
        return particles

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        weights = particles.log_weights.detach().softmax(0)
        # Each sample's gradient arrives multiplied by its weight once, through the sum below; the holder multiplies
        # it once more on its way to the guide.  The model's parameters are not behind a holder.
        for pair, holder, site in particles.holders:
            holder.append(particles.at_particles(weights, site["value"], pair, site["fn"].event_dim))
        total = (weights * (particles.log_p - particles.stopped)).sum()
        return particles.outer_scale * total


def _require_reparameterised(trace: poutine.Trace) -> None:
    for name, site in sample_sites(trace).items():
        parts = site["fn"].score_parts(site["value"], *site["args"], **site["kwargs"])
        site["score_parts"] = parts
        if not is_identically_zero(parts.score_function):
            raise ValueError(
                f"DReG needs every guide site reparameterised, but {name!r} ({type(site['fn']).__name__}) is not: use "
                "IWAE (score function) for this program, or relax the site"
            )
