"""What RELAX and REBAR share: the estimator, and the training of its control variate on the gradient's variance."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pyro import poutine
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.ops.provenance import get_provenance
from torch import Tensor, nn

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.infer.objectives.score_function.logits import Hidden
from pyro_dgm.infer.objectives.score_function.score_function import direct_terms
from pyro_dgm.programs.base_of import base_of
from pyro_dgm.programs.structure import looking_at, sample_sites

__all__ = ["ControlVariate"]


class ControlVariate(ParticleObjective):
    """Base of RELAX and REBAR.  With logits t, value b, hidden variable z and its draw z' given b, per datum

    ``g = (f(b) - c(z')) d log q(b) / dt + d (c(z) - c(z')) / dt``

    for any differentiable c.  A subclass gives c as :meth:`control`, a number for each datum.
    """

    averages_weights = False
    under_vmap = False  # logits of distributions are differentiated

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        particles = self.run(model, guide, args, kwargs)
        particles._cache["program"] = (model, args, kwargs)
        return particles

    @abstractmethod
    def control(self, particles: Particles, pair: int, hidden: list[Hidden], values: list[Tensor]) -> Tensor:
        """The control variate of each datum at the hidden variables ``values`` of one pair of traces."""

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        scale = particles.outer_scale / self.num_particles
        total = scale * direct_terms(particles).sum()
        if not particles.score_sites:
            return total
        if self.learned is None:
            raise ValueError(
                f"{type(self).__name__} was first used on a program without discrete sites and has no control "
                "variate: an objective with networks of its own belongs to one program, make a new one"
            )
        weights = list(self.learned.parameters())
        variance: Any = 0.0
        for k, (_, guide_trace) in enumerate(particles.pairs):
            sites = sample_sites(guide_trace)
            attached = [Hidden(self, sites[n]) for n in particles.score_sites]
            with torch.enable_grad(), poutine.block():
                gradients = self._gradients(particles, k, attached)
            for site, gradient in zip(attached, gradients, strict=True):
                total = total + scale * (gradient.detach() * site.logits).sum()
                variance = variance + (gradient**2).sum()
        # Only the control variate is trained on the variance; the program is not.
        slopes = torch.autograd.grad(variance / self.num_particles, weights, allow_unused=True)
        for weight, slope in zip(weights, slopes, strict=True):
            if slope is not None:
                total = total - (slope.detach() * weight).sum()
        self.finish(particles)
        return total

    def finish(self, particles: Particles) -> None:
        """What is updated after an evaluation."""
        return

    def _gradients(self, particles: Particles, k: int, attached: list[Hidden]) -> list[Tensor]:
        """The estimator by the logits of each site, differentiable by the control variate's parameters."""
        free = [site.at(site.logits.detach().requires_grad_()) for site in attached]
        with torch.no_grad():
            # The hidden variable that gave the value: drawn after it, which is the same joint distribution.
            noise = [s.given_value(s.noise()) - s.location for s in free]
        z = [s.location + n for s, n in zip(free, noise, strict=True)]
        z_given = [s.given_value(s.noise()) for s in free]
        at_z = self.control(particles, k, free, z)
        at_given = self.control(particles, k, free, z_given)
        slopes = torch.autograd.grad(
            (at_z - at_given).sum(), [s.logits for s in free], create_graph=True, materialize_grads=True
        )
        log_w = particles.log_weights.detach()
        signal = (log_w if particles.vectorized else log_w[k : k + 1]) - at_given
        if not particles.vectorized:
            signal = signal.expand(self.num_particles, *particles.shape)  # at_particles picks the k-th
        return [
            particles.at_particles(signal, s.logits, k, s.event_dim) * s.score().detach() + slope
            for s, slope in zip(free, slopes, strict=True)
        ]

    def look_at_sites(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> list[str]:
        """The guide's score-function sites.

        :raises ValueError: for one that is neither Bernoulli nor categorical, or whose logits depend on another.
        """
        structure = self._structures.get(model, guide, args, kwargs)
        with looking_at(model, guide, structure.differentiates), TrackNonReparam():
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
        names = []
        for name, site in sample_sites(trace).items():
            parts = base_of(site["fn"])
            if getattr(parts, "has_rsample", False):
                continue
            if not hasattr(parts, "logits"):
                Hidden(self, site)  # raises, and says why
            causes = get_provenance(parts.logits)
            if causes:
                raise ValueError(
                    f"{type(self).__name__} needs discrete guide sites that do not depend on each other, but the "
                    f"logits of {name!r} depend on {sorted(causes)}: use VIMCO or ScoreFunction"
                )
            names.append(name)
        return names


def parameter(value: float, like: Tensor) -> nn.Parameter:
    """A learned number."""
    return nn.Parameter(like.new_tensor(value))
