"""Guides that give each latent dimension a density of its own: what penalties on single dimensions need."""

from __future__ import annotations

import functools
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_dgm.infer.objectives.aggregate.aggregate import AggregateObjective, latent_sites
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.score_function.baselines import per_datum
from pyro_dgm.programs.base_of import base_of
from pyro_dgm.programs.structure import Structure, StructureCache, guide_messenger, looking_at, sample_sites

__all__ = ["FactorisedObjective", "pairwise_log_q", "posterior_moments"]

_WRAPPERS = (torch.distributions.Independent, dist.ExpandedDistribution)
_GAUSSIANS = (torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal)


class FactorisedObjective(AggregateObjective):
    """Base of the objectives whose guide's latents must be independent of each other given the data.

    :raises ValueError: when used, for a guide site that depends on another or that the model has not.
    """

    needs_replay = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._structures = _CheckedStructures(functools.partial(_require_independent, type(self).__name__))


class _CheckedStructures(StructureCache):
    """Also checks a pair when it is first seen."""

    def __init__(self, check: Any) -> None:
        super().__init__()
        self.check = check

    def get(self, model: Any, guide: Any, args: Any, kwargs: Any, added: Any = None) -> Structure:
        before = self._entries
        structure = super().get(model, guide, args, kwargs, added)
        if self._entries is not before:
            try:
                self.check(model, guide, args, kwargs, structure)
            except ValueError:
                self._entries = before
                raise
        return structure

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "check": self.check}


class _TrackSamples(Messenger):
    def _pyro_post_sample(self, msg: Any) -> None:
        if not isinstance(msg["fn"], _Subsample) and not msg["is_observed"]:
            msg["value"] = track_provenance(msg["value"], frozenset({msg["name"]}))


def _require_independent(name: str, model: Any, guide: Any, args: tuple, kwargs: dict, structure: Structure) -> None:
    if guide_messenger(guide) is not None:
        return  # refused by its kind
    with looking_at(model, guide, structure.differentiates):
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        known = sample_sites(poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs))
        with _TrackSamples():
            sites = sample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        for site_name, site in sites.items():
            if site_name not in known:
                raise ValueError(
                    f"{name} needs the guide's density of each latent, but the guide draws {site_name!r}, which the "
                    "model does not: use MMDELBO or FactorVAE for a guide with noise of its own"
                )
            causes = get_provenance(site["fn"].log_prob(detach_provenance(site["value"]))) - {site_name}
            if causes:
                raise ValueError(
                    f"{name} needs latents that are independent of each other in the guide, but {site_name!r} depends "
                    f"on {sorted(causes)}: use MMDELBO or FactorVAE"
                )


def pairwise_log_q(particles: Particles, objective: Any) -> tuple[Tensor, Tensor]:
    """The guide's density of each datum's latents given each other datum.

    :returns: :math:`\\log q(z_i|x_j)`, ``(K, N, N)``, and :math:`\\log q(z_{id}|x_j)`, ``(K, N, N, D)``, nats, for
        latents i and data j.
    :raises ValueError: for a site whose density does not come apart into dimensions.
    """
    joints, dims = [], []
    for _, trace in particles.pairs:
        sites = [sample_sites(trace)[n] for n in latent_sites(particles)]
        parts = [_pairwise(particles, site, objective) for site in sites]
        joints.append(sum((p[0] for p in parts[1:]), parts[0][0]))
        dims.append(torch.cat([p[1] for p in parts], -1))
    return torch.cat(joints), torch.cat(dims)


def _pairwise(particles: Particles, site: Any, objective: Any) -> tuple[Tensor, Tensor]:
    fn, value, event_dim = base_of(site["fn"], _WRAPPERS), site["value"], site["fn"].event_dim
    lead, nesting, size = int(particles.vectorized), particles.nesting, particles.shape.numel()
    batch = value.shape[: value.dim() - event_dim]
    value = value.reshape((1,) * (lead + nesting - len(batch)) + value.shape)
    places = [lead + nesting + f.dim for f in particles.plates]
    sizes = list(value.shape)
    for d, frame in zip(places, particles.plates, strict=True):
        sizes[d] = frame.size
    rest = [d for d in range(value.dim()) if d not in places]
    # The data that latents come from go to the front, and leave room for the data that densities are given.
    value = value.expand(sizes).permute(*places, *rest).reshape(size, *(sizes[d] for d in rest))
    for d in sorted(places):
        value = value.unsqueeze(d + 1)

    def arranged(log_prob: Tensor) -> Tensor:
        full = [max(a, b) for a, b in zip(log_prob.shape, [size, *sizes], strict=False)]
        log_prob = log_prob.expand(full)
        inside = [d + 1 for d in range(lead, log_prob.dim() - 1) if d not in places]
        order = [*range(1, 1 + lead), 0, *(d + 1 for d in places), *inside]
        return log_prob.permute(order).reshape(*(log_prob.shape[1 : 1 + lead] or (1,)), size, size, -1)

    if isinstance(fn, _GAUSSIANS):
        each = dist.Normal(fn.mean, fn.variance.sqrt(), validate_args=False).log_prob(value)
        return arranged(fn.log_prob(value)).sum(-1), arranged(each)
    if isinstance(fn, dist.Delta) or fn.event_shape:
        raise ValueError(
            f"{type(objective).__name__} needs the guide's density of each dimension, which {site['name']!r} "
            f"({type(fn).__name__}) does not have: use independent dimensions or a Gaussian, or MMDELBO or FactorVAE"
        )
    each = arranged(fn.log_prob(value))
    return each.sum(-1), each


def posterior_moments(particles: Particles, objective: Any, covariance: bool) -> tuple[Tensor, Tensor | None]:
    """Means of the guide's latents, ``(N, D)``, and with ``covariance`` their covariance, ``(N, D, D)``.

    They do not depend on the particle: the first one's are taken.

    :raises ValueError: for a site that has no such moment in closed form.
    """
    means, blocks = [], []
    for name in latent_sites(particles):
        fn = sample_sites(particles.pairs[0][1])[name]["fn"]
        base = base_of(fn, _WRAPPERS)
        try:
            mean, variance = fn.mean, fn.variance if covariance else fn.mean
        except (NotImplementedError, AttributeError) as error:  # torch's words for "not in closed form"
            raise _no_moments(objective, name, fn) from error
        means.append(_first(particles, mean, fn.event_dim))
        if not covariance:
            continue
        if isinstance(base, _GAUSSIANS):
            width = base.event_shape[0]
            inside = _first(particles, base.covariance_matrix, fn.event_dim + 1).unflatten(-1, (-1, width, width))
            blocks.extend(inside.unbind(1))
        elif base.event_shape and not isinstance(base, dist.Delta):
            raise _no_moments(objective, name, fn)
        else:
            blocks.append(_first(particles, variance, fn.event_dim).diag_embed())
    mean = torch.cat(means, -1)
    if not covariance:
        return mean, None
    joint = mean.new_zeros((*mean.shape, mean.shape[-1]))
    start = 0
    for block in blocks:
        stop = start + block.shape[-1]
        joint[:, start:stop, start:stop] = block
        start = stop
    return mean, joint


def _first(particles: Particles, moment: Tensor, event_dim: int) -> Tensor:
    rows = per_datum(particles, moment, event_dim, particle=particles.vectorized, pool=False)
    rows = rows[0] if particles.vectorized else rows
    return rows.reshape(particles.shape.numel(), -1)


def _no_moments(objective: Any, name: str, fn: Any) -> ValueError:
    return ValueError(
        f"{type(objective).__name__} needs mean and covariance of each guide site in closed form, which {name!r} "
        f"({type(fn).__name__}) does not have: use a Gaussian site, or MMDELBO or FactorVAE"
    )
