"""The evidence lower bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import MultiFrameTensor
from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.enumeration import enumerated_bound
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.infer.objectives.kl_weight import KLWeight, Schedule
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.programs.closed_form import closed_form_kl, shared_latents
from pyro_dgm.programs.parameters import leaves_the_store
from pyro_dgm.programs.structure import Structure, looking_at, sample_sites

__all__ = ["ELBO"]


@dataclass(eq=False, repr=False)
class ELBO(ParticleObjective):
    r"""The evidence lower bound, for any mixture of reparameterised, score-function and enumerated sites.

    .. math:: L = E_{q(z|x)}\left[\log p(x, z) - \log q(z|x)\right] \le \log p(x)

    The first choice for training.  Reparameterised sites get pathwise gradients; all others score-function gradients,
    whose costs are limited to the plates of the site (Rao-Blackwellised as in Pyro's ``Trace_ELBO``); sites marked
    ``infer={"enumerate": "parallel"}`` in guide or model are summed exactly, as Pyro's ``TraceEnum_ELBO`` does.

    Three options change what is *trained*, from the divergences :math:`D_s` of the latent sites s of a datum (with
    :math:`D = \sum_s D_s`, and :math:`R` the rest of the ELBO, the reconstruction):

    .. math:: L = R - \beta D, \qquad L = R - \beta \sum_s \max(\lambda, D_s), \qquad L = R - \beta |D - C|

    What is *reported* is the ELBO all the same: :meth:`bound` and the value of the loss are those without options, and
    only the gradient is that of L.  So a warm-up does not change the reported values, validation, early stopping
    and :func:`~pyro_dgm.compare_elbos` use a lower bound of :math:`\log p(x)`, and runs with different weights can
    be compared.  :meth:`regularised` gives L itself.

    A divergence is in closed form where ``analytic_kl`` finds one; elsewhere it is the Monte Carlo estimate
    :math:`\log q - \log p` of the same samples, averaged over the particles before :math:`\max` and
    :math:`|\cdot|` are taken.  These are then of a noisy number, and on average larger than of its mean: more particles
    help.  Where the guide draws a site for several latents at once (most automatic guides), all latents count as one.

    :param num_particles: number of particles averaged over.
    :param beta: weight of the KL, at least 0: a number, or a function of the training step (1 for the first), such as
        :class:`~pyro_dgm.ops.LinearSchedule`.  A step is an evaluation with gradients: ``fit(accumulate=n)`` makes n of
        each of the optimiser's.
    :param free_bits: :math:`\lambda`, nats of each latent site of each datum below which its KL is not penalised.
    :param capacity: C, nats that the KL of each datum is drawn to: a number, or a function of the step as for ``beta``,
        which is then the strength of the pull (the paper's :math:`\gamma`).
    :param analytic_kl: replace :math:`\log q - \log p` of a latent by the Kullback-Leibler divergence where torch has
        it in closed form and model and guide sample their latents in the same order (otherwise a latent's parent in
        the model might depend on it in the guide, and the divergence would be wrong); the other sites stay Monte Carlo.
    :param max_plate_nesting: this and other common options: see :class:`~pyro_dgm.infer.ParticleObjective`.
    :raises ValueError: for an option below 0 or not finite, or ``free_bits`` beside ``capacity``; when trained with an
        option, for a site that is marked for enumeration.
    :raises TypeError: for an option that is neither a number nor callable.

    Source: D. Wingate and T. Weber (2013), arXiv:1301.1299; R. Ranganath, S. Gerrish and D. Blei (2014),
    arXiv:1401.0118; D. P. Kingma and M. Welling (2014), arXiv:1312.6114.  Options: beta, I. Higgins et al. (2017),
    "beta-VAE", ICLR, and warmed up, S. R. Bowman et al. (2016), arXiv:1511.06349; free bits, D. P. Kingma et al.
    (2016), arXiv:1606.04934 (there of batch means); capacity, C. P. Burgess et al. (2018), arXiv:1804.03599.

    Example::

        >>> import torch, pyro_dgm
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> pyro_dgm.infer.ELBO().bound(m.model, m.guide, torch.zeros(7, 3)).shape
        torch.Size([7])
        >>> pyro_dgm.infer.ELBO(beta=pyro_dgm.ops.LinearSchedule(1000))(m.model, m.guide)(torch.zeros(7, 3)).backward()
    """

    sums_guide = True
    averages_weights = False

    analytic_kl: bool = True
    beta: Schedule = 1.0
    free_bits: float = 0.0
    capacity: Schedule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kl_weight = KLWeight(self.beta, self.free_bits, self.capacity)
        if not self.kl_weight.trivial and type(self).estimate is not ParticleObjective.estimate:
            raise ValueError(f"{type(self).__name__} has no {self.kl_weight}: use ELBO with unmarked sites")

    def bound_of(self, particles: Particles) -> Tensor:
        if particles.model_enumerates:
            return particles.log_weights.mean(0)

        def total(model: poutine.Trace, guide: poutine.Trace) -> Tensor:
            model_sites, guide_sites = sample_sites(model), sample_sites(guide)
            kl = self._analytic(particles, model_sites, guide_sites)
            terms = [-particles.reduce(particles.inner(v, guide_sites[n])) for n, v in kl.items()]
            for sign, sites in ((1.0, model_sites), (-1.0, guide_sites)):
                for name, site in sites.items():
                    if name not in kl:
                        terms.append(sign * particles.reduce(particles.inner(particles.log_prob(site), site), site))
            return sum(terms[1:], terms[0]) if terms else particles.zero(model, guide)

        return particles.stack(total).mean(0)

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        if self.kl_weight.trivial and not particles.score_sites:
            return particles.outer_scale * bound.sum()  # every path is differentiable: the bound is its own surrogate
        if self.kl_weight.linear and particles.score_sites:
            total = sum(self._surrogate(particles, *pair) for pair in particles.pairs)
            return torch.as_tensor(total) / particles.num_particles
        rest, penalty = self._regularised(particles)
        total = (rest.mean(0) - penalty).sum()
        scores = particles.scores()
        if scores is not None:
            # A draw moves its own part of the rest, and all of what is no longer a sum over particles and sites.
            total = total + ((rest / particles.num_particles - penalty).detach() * scores).sum()
        return particles.outer_scale * total

    # Options

    @property
    def scheduled(self) -> bool:
        return self.kl_weight.scheduled

    def advance(self) -> None:
        super().advance()
        self.kl_weight.fill(self.step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.kl_weight.fill(max(self.step, 1))

    @leaves_the_store
    @torch.no_grad()
    def regularised(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """What is trained, of each datum: the bound with the options of the present step, in nats."""
        structure = self.structure(model, guide, args, kwargs)
        self._refuse_enumeration(structure, guide, model, args, kwargs)
        rest, penalty = self._regularised(self.particles(model, guide, args, kwargs, grad=False))
        return rest.mean(0) - penalty

    def _regularised(self, particles: Particles) -> tuple[Tensor, Tensor]:
        """The rest of the ELBO, ``(K, *shape)``, and what stands in place of the KL, ``(*shape)``."""
        rests, found = [], []
        for pair in particles.pairs:
            rest, divergences = self._parts(particles, *pair)
            rests.append(rest)
            found.append(divergences)
        means = [torch.stack([divergences[n].mean(0) for divergences in found]).mean(0) for n in found[0]]
        rest = torch.cat(rests)
        return rest, self.kl_weight.penalty(means) if means else torch.zeros_like(rest[0])

    def _parts(self, particles: Particles, model: poutine.Trace, guide: poutine.Trace) -> tuple[Tensor, dict]:
        """Of one pair of traces, the rest of the ELBO and the divergence of each latent."""

        def term(value: Tensor, site: Any) -> Tensor:
            return particles.reduce(particles.inner(value, site), site)

        model_sites, guide_sites = sample_sites(model), sample_sites(guide)
        kl = self._analytic(particles, model_sites, guide_sites)
        shape = (particles.num_particles if particles.vectorized else 1, *particles.shape)
        rest = [
            term(particles.log_prob(site), site).expand(shape)
            for name, site in model_sites.items()
            if site["is_observed"] or name not in guide_sites
        ]
        divergences = {}
        for name, site in guide_sites.items():
            if name in kl:
                divergences[name] = term(kl[name], site)
                continue
            divergences[name] = term(particles.log_prob(site), site)
            if name in model_sites and not model_sites[name]["is_observed"]:
                divergences[name] = divergences[name] - term(particles.log_prob(model_sites[name]), model_sites[name])
        if len(divergences) > 1 and any(n not in model_sites for n in divergences):
            terms = list(divergences.values())
            divergences = {"all": sum(terms[1:], terms[0])}
        first = next(iter(divergences.values())) if divergences else particles.log_p
        return sum(rest[1:], rest[0]) if rest else torch.zeros_like(first.expand(shape)), divergences

    def _refuse_enumeration(self, structure: Structure, guide: Any, model: Any, args: tuple, kwargs: dict) -> None:
        if self.kl_weight.trivial or not structure.enumerates:
            return
        with looking_at(model, guide, structure.differentiates):
            sites = [
                site for fn in (guide, model) for site in poutine.trace(fn).get_trace(*args, **kwargs).nodes.values()
            ]
        marked = sorted({s["name"] for s in sites if s["type"] == "sample" and s["infer"].get("enumerate")})
        raise ValueError(
            f"ELBO({self.kl_weight}) needs the KL of each latent apart, but {marked} are marked for enumeration: "
            "unmark them (they get score-function gradients), or leave the option out"
        )

    def _analytic(self, particles: Particles, model_sites: dict, guide_sites: dict) -> dict[str, Tensor]:
        """Unscaled, unmasked divergences in batch shape, for each site that has one in closed form."""
        found: dict[str, Tensor] = {}
        for name in shared_latents(model_sites, guide_sites) if self.analytic_kl else ():
            if name not in particles.sampled_kl:
                kl = closed_form_kl(guide_sites[name]["fn"], model_sites[name]["fn"])
                if kl is not None:
                    found[name] = kl
        return found

    def _surrogate(self, particles: Particles, model: poutine.Trace, guide: poutine.Trace) -> Any:
        model_sites, guide_sites = sample_sites(model), sample_sites(guide)
        kl = self._analytic(particles, model_sites, guide_sites)
        beta = None if self.kl_weight.trivial else self.kl_weight.beta.on(particles.log_q.device)

        def weighed(part: Tensor) -> Tensor:
            return part if beta is None else beta * part

        costs: dict[str, tuple[list[Any], Tensor]] = {}
        total: Any = 0.0
        for name, site in model_sites.items():
            if name in kl:
                q = guide_sites[name]
                cost = -scale_and_mask(kl[name], q["scale"], q["mask"])
            else:
                cost = particles.scaled_log_prob(site)
            if name in guide_sites and not site["is_observed"]:
                cost = weighed(cost)
            total = total + cost.sum()
            costs[name] = ([f for f in site["cond_indep_stack"] if f.vectorized], cost.detach())
        scored = []
        for name, site in guide_sites.items():
            parts = particles.score_parts(site)
            if name not in kl:
                if not is_identically_zero(parts.entropy_term):
                    entropy = scale_and_mask(parts.entropy_term, site["scale"], site["mask"])
                    total = total - weighed(entropy).sum()
                frames = [f for f in site["cond_indep_stack"] if f.vectorized]
                costs[f"{name}$guide"] = (frames, -weighed(particles.scaled_log_prob(site)).detach())
            if not is_identically_zero(parts.score_function):
                scored.append((name, site, parts.score_function))
        for name, site, score in scored:
            # A closed-form divergence does not depend on the site's own value, so it is no cost of that value.
            log_r = MultiFrameTensor(*(c for n, c in costs.items() if not (n == name and name in kl)))
            cost = log_r.sum_to(site["cond_indep_stack"])
            total = total + (cost * score).sum()
        return total

    # Enumerated sites: Pyro's DiCE estimator, kept per datum

    def estimate_sum(self, pair: Pair, grad: bool) -> tuple[Tensor, Tensor | None]:
        if grad:
            self._refuse_enumeration(pair.structure, pair.guide, pair.model, pair.args, pair.kwargs)
        return super().estimate_sum(pair, grad)

    @leaves_the_store
    def bound(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        pair = self.pair(model, guide, args, kwargs)
        if not pair.structure.guide_enumerates:
            return super().bound(model, guide, *args, **kwargs)
        return enumerated_bound(self, pair)
