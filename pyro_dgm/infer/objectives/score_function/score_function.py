"""The score-function estimator of the ELBO, with a leave-one-out baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.ops.arguments import check_choice
from pyro_dgm.programs.structure import is_point, sample_sites

__all__ = ["CutSamples", "ScoreFunction", "cut_terms", "direct_terms", "leave_one_out"]


@dataclass(eq=False, repr=False)
class ScoreFunction(ParticleObjective):
    r"""The ELBO with score-function (REINFORCE) gradients for *every* guide site, reparameterised or not.

    .. math:: \nabla_\phi L = E\left[\frac1K \sum_k \left(\log w_k - b_k\right) \nabla_\phi \log q(z_k|x)\right],
              \qquad b_k = \frac{1}{K-1} \sum_{j \ne k} \log w_j

    The other particles of the same datum are the baseline: it costs no network and leaves the mean alone.  It needs
    nothing of model and guide but their densities, and is the estimator to compare others with; where sites are
    reparameterised :class:`~pyro_dgm.infer.ELBO` has far less noise.

    A guide site that is a point (``Delta``) has no density to take the score of and keeps its ordinary gradient.

    :param num_particles: number K of particles averaged over.
    :param baseline: ``"leave_one_out"``, or ``None`` for the plain estimator.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for another baseline, or for a leave-one-out baseline with fewer than 2 particles.

    Source: R. Ranganath, S. Gerrish and D. Blei (2014), arXiv:1401.0118; the baseline: W. Kool, H. van Hoof and
    M. Welling (2019), *Buy 4 REINFORCE samples, get a baseline for free!*, ICLR workshop; per particle already in
    A. Mnih and D. J. Rezende (2016), arXiv:1602.06725.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> pyro_dgm.infer.ScoreFunction(num_particles=4).bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    min_particles = 2
    averages_weights = False

    num_particles: int = 2
    baseline: str | None = "leave_one_out"

    def __post_init__(self) -> None:
        check_choice("baseline", self.baseline, "leave_one_out", None)
        if self.baseline is None:
            self.min_particles = 1
        super().__post_init__()

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        with CutSamples():
            return super().particles(model, guide, args, kwargs, grad)

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        signal = particles.log_weights.detach()
        if self.baseline is not None:
            signal = signal - leave_one_out(signal)
        direct, scores = cut_terms(particles)
        return particles.outer_scale * (direct + signal * scores).sum() / self.num_particles


class CutSamples(poutine.messenger.Messenger):
    """Samples without a pathwise gradient.  Outermost, so that plates have expanded the site when it comes here."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None or is_point(msg["fn"]):
            return
        if getattr(msg["fn"], "has_rsample", False):
            with torch.no_grad():
                msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])


def cut_terms(particles: Particles) -> tuple[Tensor, Tensor]:
    """What is differentiated directly, and the log-densities of all sites that are no points, ``(K, *shape)``."""

    def total(points: bool) -> Tensor:
        def of(_: poutine.Trace, guide: poutine.Trace) -> Tensor:
            out = torch.zeros_like(particles.log_q if particles.vectorized else particles.log_q[:1])
            for site in sample_sites(guide).values():
                if is_point(site["fn"]) == points:
                    # A score is that of the sampling density: neither mask nor scale is in it.
                    term = particles.log_prob(site)
                    out = out + particles.reduce(particles.inner(term, site) if points else term, site)
            return out

        return particles.stack(of)

    return particles.log_p - total(points=True), total(points=False)


def leave_one_out(values: Tensor) -> Tensor:
    """For each particle (first dimension) the mean over the others."""
    return (values.sum(0, keepdim=True) - values) / (values.shape[0] - 1)


def direct_terms(particles: Particles) -> Tensor:
    """What an ELBO estimator with score-function sites differentiates directly, ``(K, *shape)``.

    It is :math:`\\log p` minus the pathwise part of :math:`\\log q`: the direct gradient of a score-function site's own
    log-density has mean zero, and is noise.
    """

    def entropy(_: poutine.Trace, guide: poutine.Trace) -> Tensor:
        out = torch.zeros_like(particles.log_q if particles.vectorized else particles.log_q[:1])
        for site in sample_sites(guide).values():
            term = particles.score_parts(site).entropy_term
            if not is_identically_zero(term):
                out = out + particles.reduce(particles.inner(term, site), site)
        return out

    return particles.log_p - particles.stack(entropy)
