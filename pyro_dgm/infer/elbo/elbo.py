"""The evidence lower bound."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import MultiFrameTensor
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_dgm.infer.elbo.base import Objective
from pyro_dgm.infer.elbo.enumeration import enumerated_bound, enumerated_elbo
from pyro_dgm.infer.elbo.particles import Particles
from pyro_dgm.infer.elbo.structure import sample_sites

__all__ = ["ELBO"]


class ELBO(Objective):
    r"""The evidence lower bound, for any mixture of reparameterised, score-function and enumerated sites.

    .. math:: L = E_{q(z|x)}\left[\log p(x, z) - \log q(z|x)\right] \le \log p(x)

    The first choice for training.  Reparameterised sites get pathwise gradients; all others score-function gradients,
    whose costs are limited to the plates of the site (Rao-Blackwellised as in Pyro's ``Trace_ELBO``); sites marked
    ``infer={"enumerate": "parallel"}`` in guide or model are summed exactly, as Pyro's ``TraceEnum_ELBO`` does.

    :param num_particles: number of particles averaged over.
    :param analytic_kl: replace :math:`\log q - \log p` of a latent by the Kullback-Leibler divergence where torch has
        it in closed form and model and guide sample their latents in the same order (otherwise a latent's parent in
        the model might depend on it in the guide, and the divergence would be wrong); the other sites stay Monte Carlo.
    :param kwargs: ``max_plate_nesting``, ``vectorize_particles``, ``strict_enumeration_warning``, ``retain_graph``:
        see :class:`~pyro_dgm.infer.elbo.base.Objective`.

    Source: D. Wingate and T. Weber (2013), arXiv:1301.1299; R. Ranganath, S. Gerrish and D. Blei (2014),
    arXiv:1401.0118; D. P. Kingma and M. Welling (2014), arXiv:1312.6114.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> pyro_dgm.infer.ELBO().bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    sums_guide = True

    def __init__(self, num_particles: int = 1, *args: Any, analytic_kl: bool = True, **kwargs: Any) -> None:
        super().__init__(num_particles, *args, **kwargs)
        self.analytic_kl = bool(analytic_kl)

    def bound_of(self, particles: Particles) -> Tensor:
        if particles.model_enumerates:
            return particles.log_weights.mean(0)

        def total(model: poutine.Trace, guide: poutine.Trace) -> Tensor:
            kl = self._analytic(model, guide)
            terms = [-particles.reduce(particles.inner(v, sample_sites(guide)[n])) for n, v in kl.items()]
            for sign, trace in ((1.0, model), (-1.0, guide)):
                for name, site in sample_sites(trace).items():
                    if name not in kl:
                        terms.append(sign * particles.reduce(particles.inner(particles.log_prob(site), site), site))
            return sum(terms[1:], terms[0])

        return particles.stack(total).mean(0)

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        if not particles.score_sites:
            return particles.outer_scale * bound.sum()  # every path is differentiable: the bound is its own surrogate
        total = sum(self._surrogate(particles, *pair) for pair in particles.pairs)
        return torch.as_tensor(total) / particles.num_particles

    def _analytic(self, model: poutine.Trace, guide: poutine.Trace) -> dict[str, Tensor]:
        """Unscaled, unmasked divergences in batch shape, for each site that has one."""
        if not self.analytic_kl:
            return {}
        model_sites, guide_sites = sample_sites(model), sample_sites(guide)
        if [n for n in model_sites if n in guide_sites] != [n for n in guide_sites if n in model_sites]:
            return {}
        found = {}
        for name, q in guide_sites.items():
            p = model_sites.get(name)
            if p is None or p["is_observed"] or not _same(q["mask"], p["mask"]) or not _same(q["scale"], p["scale"]):
                continue
            try:
                found[name] = kl_divergence(q["fn"], p["fn"]).expand(q["fn"].batch_shape)
            except NotImplementedError:  # torch's word for "no closed form": the site stays Monte Carlo
                continue
        return found

    def _surrogate(self, particles: Particles, model: poutine.Trace, guide: poutine.Trace) -> Any:
        kl = self._analytic(model, guide)
        model_sites, guide_sites = sample_sites(model), sample_sites(guide)
        costs: dict[str, tuple[list[Any], Tensor]] = {}
        total: Any = 0.0
        for name, site in model_sites.items():
            if name in kl:
                q = guide_sites[name]
                cost = -scale_and_mask(kl[name], q["scale"], q["mask"])
            else:
                cost = particles.scaled_log_prob(site)
            total = total + cost.sum()
            costs[name] = ([f for f in site["cond_indep_stack"] if f.vectorized], cost.detach())
        scored = []
        for name, site in guide_sites.items():
            parts = particles.score_parts(site)
            if name not in kl:
                if not is_identically_zero(parts.entropy_term):
                    total = total - scale_and_mask(parts.entropy_term, site["scale"], site["mask"]).sum()
                frames = [f for f in site["cond_indep_stack"] if f.vectorized]
                costs[f"{name}$guide"] = (frames, -particles.scaled_log_prob(site).detach())
            if not is_identically_zero(parts.score_function):
                scored.append((name, site, parts.score_function))
        for name, site, score in scored:
            # A closed-form divergence does not depend on the site's own value, so it is no cost of that value.
            log_r = MultiFrameTensor(*(c for n, c in costs.items() if not (n == name and name in kl)))
            cost = log_r.sum_to(site["cond_indep_stack"])
            total = total + (cost * score).sum()
        return total

    # Enumerated sites: Pyro's DiCE estimator, kept per datum

    def estimate(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool) -> tuple[Tensor, Tensor | None]:
        structure = self.structure(model, guide, args, kwargs)
        if structure.guide_enumerates or structure.model_enumerates:
            loss = -enumerated_elbo(self, structure, model, guide, args, kwargs)
            return loss, loss if grad else None
        return super().estimate(model, guide, args, kwargs, grad)

    def bound(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        structure = self.structure(model, guide, args, kwargs)
        if not structure.guide_enumerates:
            return super().bound(model, guide, *args, **kwargs)
        return enumerated_bound(self, structure, model, guide, args, kwargs)


def _same(a: Any, b: Any) -> bool:
    """Whether two scales or masks are equal without looking at tensor values (which would need the host)."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    return bool(a == b)
