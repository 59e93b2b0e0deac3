"""What penalties on the aggregate posterior are made of: the latents of a batch, draws of the prior, what counts.

The aggregate posterior :math:`q(z) = E_x q(z|x)` is a property of many data.  A penalty on it is therefore a number for
the whole batch, and the same term is in the loss of every datum: with a weight :math:`\\lambda` and a penalty P, each
bound is lowered by :math:`\\lambda P`, as if P were part of the loss of one datum, which is how the papers write it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from torch import Tensor

from pyro_dgm.infer.objectives.bounds.elbo import ELBO
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.metric import Metric
from pyro_dgm.infer.objectives.particle import ParticleObjective
from pyro_dgm.infer.objectives.score_function.baselines import per_datum
from pyro_dgm.programs.structure import sample_sites

__all__ = [
    "AggregateObjective",
    "elbo",
    "kept_data",
    "latent_sites",
    "latents",
    "log_prior",
    "prior_draws",
    "reconstruction",
    "rerun_model",
    "to_each_datum",
]

_ELBO = ELBO()


class AggregateObjective(ParticleObjective):
    """Base of the objectives with a penalty on the aggregate posterior.

    A subclass gives :meth:`bound_of`.  All samples must be reparameterised, so the bound is its own surrogate.
    """

    side = None
    averages_weights = False
    under_vmap = False  # moments of distributions are asked for
    metric = Metric("penalised objective")
    #: smallest number of data in a batch; 0 if a program without a plate of data is allowed
    min_data = 1
    #: whether the penalty compares with draws of the model's prior
    draws_prior = False
    #: whether it trains the prior by these draws, which must then be reparameterised where the prior is learned
    moves_prior = False
    #: what to say after a refusal
    instead = "use ELBO"

    def particles(self, model: Any, guide: Any, args: tuple, kwargs: dict, grad: bool = True) -> Particles:
        particles = self.run(model, guide, args, kwargs)
        self.require(particles)
        if self.draws_prior:
            particles._cache["prior"] = self._draw_prior(particles, model, args, kwargs)
        return particles

    def require(self, particles: Particles) -> None:
        """Say what of this program the objective cannot do with.

        :raises ValueError: naming the site, where it is one.
        """
        if particles.model_enumerates:
            raise ValueError(
                f"{type(self).__name__} needs the model's density of the latents apart from that of the data, and "
                "enumerated sites of the model mix the two: give the guide a site for each, or "
                f"{self.instead}"
            )
        self._require_reparameterised(particles)
        self._require_data(particles)

    def _require_data(self, particles: Particles) -> None:
        name, shape = type(self).__name__, particles.shape
        if not latent_sites(particles):
            raise ValueError(f"{name} needs latents that model and guide share, and there are none: {self.instead}")
        if not shape and self.min_data:
            raise ValueError(
                f"{name} compares the latents of many data, but no plate contains every site of this program (a global "
                f"latent, or no plate at all): put data and latents into one plate, or {self.instead}"
            )
        if shape.numel() < self.min_data:
            raise ValueError(
                f"{name} needs at least {self.min_data} data in a batch, got {shape.numel()}: choose another "
                "batch_size (the last batch of an epoch may be the small one)"
            )

    def _require_reparameterised(self, particles: Particles) -> None:
        for _, trace in particles.pairs:
            for name, site in sample_sites(trace).items():
                score = particles.score_parts(site).score_function
                # Noise that the guide draws for itself, from a distribution that nothing is learned of, is harmless.
                fixed = site["infer"].get("is_auxiliary") and not getattr(score, "requires_grad", False)
                if not is_identically_zero(score) and not fixed:
                    raise ValueError(
                        f"{type(self).__name__} needs every guide site reparameterised, but {name!r} "
                        f"({type(site['fn']).__name__}) is not: {self.instead}, or relax the site"
                    )

    @abstractmethod
    def bound_of(self, particles: Particles) -> Tensor:
        """The objective of each datum, nats, differentiable."""

    def surrogate_of(self, particles: Particles, bound: Tensor) -> Tensor:
        return particles.outer_scale * bound.sum()

    def _draw_prior(self, particles: Particles, model: Any, args: tuple, kwargs: dict) -> Tensor:
        names = latent_sites(particles)
        draws = []
        for k, (model_trace, _) in enumerate(particles.pairs):
            if len(names) == 1:  # there is no other latent that it could depend on: its distribution is at hand
                sites = sample_sites(model_trace)
                values = {n: sites[n]["fn"]() for n in names}
            else:  # parents first: the model runs once more on the same data, with latents of its own
                sites = rerun_model(particles, k, model, args, kwargs, keep_latents=False)
                values = {n: sites[n]["value"] for n in names}
            for name in names if self.moves_prior else ():
                fn = sites[name]["fn"]
                if not fn.has_rsample and fn.log_prob(values[name].detach()).requires_grad:
                    raise ValueError(
                        f"{type(self).__name__} trains the prior by its draws, but those of {name!r} "
                        f"({type(fn).__name__}) are not reparameterised: fix the prior, or use one with rsample"
                    )
            draws.append(values)
        return _rows(particles, draws, sample_sites(particles.pairs[0][0]))


def rerun_model(
    particles: Particles, pair: int, model: Callable[..., Any], args: tuple, kwargs: dict, keep_latents: bool
) -> dict[str, Any]:
    """The model's sites in one more run on the same mini-batch, hidden from outer handlers.

    :param keep_latents: take the guide's latents, as numbers; else the model draws its own.
    """
    guide = particles.guides[pair]
    values, latent = poutine.Trace(), sample_sites(guide)
    nodes: dict[str, Any] = dict(guide.nodes)
    for name, site in nodes.items():
        if site["type"] == "sample" and (keep_latents or name not in latent):
            values.add_node(name, **{**site, "value": site["value"].detach()})
    with poutine.block():
        return sample_sites(particles.runner.run(model, args, kwargs, values))


def latent_sites(particles: Particles) -> list[str]:
    """Names of the latents that model and guide share, in the order of the guide."""
    model, guide = (sample_sites(trace) for trace in particles.pairs[0])
    return [n for n in guide if n in model and not model[n]["is_observed"]]


def latents(particles: Particles) -> Tensor:
    """The guide's draws, ``(K, N, D)``: all latents of a datum in a row, a row for each element of the plates."""
    guides = [sample_sites(guide) for _, guide in particles.pairs]
    return _rows(particles, [{n: s["value"] for n, s in sites.items()} for sites in guides], guides[0])


def prior_draws(particles: Particles) -> Tensor:
    """As many draws of the model's prior, ``(K, N, D)``, by the prior's parameters differentiable where it can be."""
    return particles._cache["prior"]


def _rows(particles: Particles, draws: list[dict[str, Any]], sites: dict[str, Any]) -> Tensor:
    lead = particles.num_particles if particles.vectorized else 1
    rows = []
    for values in draws:
        parts = []
        for name in latent_sites(particles):
            event_dim = sites[name]["fn"].event_dim
            part = per_datum(particles, values[name], event_dim, particle=particles.vectorized, pool=False)
            part = part if particles.vectorized else part.unsqueeze(0)
            parts.append(part.expand(lead, *part.shape[1:]))
        row = torch.cat(parts, -1)
        rows.append(row.reshape(lead, particles.shape.numel(), row.shape[-1]))
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def kept_data(particles: Particles) -> Tensor | None:
    """Which data are kept, bool, ``(K, N)``: those with no latent masked; ``None`` where there is no mask.

    :raises ValueError: for a mask on parts of a datum.
    """
    if "kept_data" not in particles._cache:
        names = latent_sites(particles)
        sites = [[sample_sites(trace)[n] for n in names] for _, trace in particles.pairs]
        masked = any(not (s["mask"] is None or s["mask"] is True) for row in sites for s in row)
        particles._cache["kept_data"] = torch.cat([_kept(particles, row) for row in sites]) if masked else None
    return particles._cache["kept_data"]


def _kept(particles: Particles, sites: list[Any]) -> Tensor:
    size = particles.shape.numel()
    kept = torch.ones((), dtype=torch.bool, device=particles.log_prob(sites[0]).device)
    for site in sites:
        if site["mask"] is None or site["mask"] is True:
            continue
        part = torch.as_tensor(site["mask"], dtype=torch.bool, device=kept.device)
        part = per_datum(particles, part, 0, particle=particles.vectorized, pool=False)
        if part.shape[-1] != 1:
            raise ValueError(
                f"the mask of {site['name']!r} differs within a datum, and a penalty on the latents of many data can "
                "leave out whole data only: mask the datum, or use ELBO"
            )
        kept = kept & part.reshape(-1, size)
    return kept.expand(particles.num_particles if particles.vectorized else 1, size)


def weight(particles: Particles) -> Tensor | float:
    """The latents' scale divided by the outer scale, ``(K, N)`` or a number: a penalty gets it as their KL does.

    Averaged over the latents, where their scales differ.
    """
    ratios: list[Any] = []
    for name in latent_sites(particles):
        scale = sample_sites(particles.pairs[0][1])[name]["scale"] / particles.outer_scale
        if isinstance(scale, Tensor) and scale.dim():
            each = per_datum(particles, scale, 0, particle=particles.vectorized, pool=True)
            scale = each.reshape(-1, particles.shape.numel())
        ratios.append(scale)
    return sum(ratios[1:], ratios[0]) / len(ratios)


def to_each_datum(particles: Particles, penalty: Tensor) -> Tensor:
    """A penalty, ``(K,)`` for the batch or ``(K, N)``, as a term of each datum's loss: ``particles.shape``.

    Averaged over particles and scaled as the latents are; it is zero for masked data.
    """
    size, kept = particles.shape.numel(), kept_data(particles)
    each = weight(particles) * (penalty[:, None] if penalty.dim() == 1 else penalty).expand(-1, size)
    each = each if kept is None else torch.where(kept, each, torch.zeros_like(each))
    return each.mean(0).reshape(particles.shape)


def elbo(particles: Particles) -> Tensor:
    """The evidence lower bound of each datum, divergences in closed form where there is one."""
    return _ELBO.bound_of(particles)


def reconstruction(particles: Particles) -> Tensor:
    """:math:`\\log p(x|z)` of each datum, averaged over particles: what the model has beside the guide's latents."""
    names = latent_sites(particles)

    def total(model: poutine.Trace, _: poutine.Trace) -> Tensor:
        sites = sample_sites(model)
        zero = _zeros(particles, sites[names[0]])
        return sum(
            (
                particles.reduce(particles.inner(particles.log_prob(s), s), s)
                for n, s in sites.items()
                if n not in names
            ),
            zero,
        )

    return particles.stack(total).mean(0)


def log_prior(particles: Particles) -> Tensor:
    """:math:`\\log p(z)` of the latents that model and guide share, ``(K, N)``, unscaled and unmasked."""
    names = latent_sites(particles)

    def total(model: poutine.Trace, _: poutine.Trace) -> Tensor:
        sites = sample_sites(model)
        terms = (particles.reduce(particles.log_prob(sites[n]), sites[n]) for n in names)
        return sum(terms, _zeros(particles, sites[names[0]]))

    return particles.stack(total).reshape(particles.num_particles, -1)


def _zeros(particles: Particles, site: Any) -> Tensor:
    lead = particles.num_particles if particles.vectorized else 1
    return particles.log_prob(site).new_zeros((lead, *particles.shape))
