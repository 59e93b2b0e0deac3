"""A model's latent sites, found by running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_dgm.infer.mcmc.potentials.log_joint import Latent, LogJoint, Sites, bijection_to
from pyro_dgm.infer.mcmc.potentials.marginal import marginalised
from pyro_dgm.infer.mcmc.potentials.masked import Masked, fillers_of, masked_latents
from pyro_dgm.infer.mcmc.potentials.mixtures import register_mixture_support
from pyro_dgm.programs.observed import check_observed
from pyro_dgm.programs.site_checks import check_shapes
from pyro_dgm.programs.unnormalized import refuse_moving_normalizers

__all__ = ["Feasible", "NoLatents", "SubsampledPlate", "describe_latents", "latent_sites", "refuse_subsampling"]

register_mixture_support()


class NoLatents(ValueError):
    """A model of which every site is observed."""


class SubsampledPlate(ValueError, RuntimeError):
    """A plate of part of its data: a ``ValueError``, as all refusals are, and a ``RuntimeError``, as Pyro's is."""


def latent_sites(trace: Any) -> dict[str, Any]:
    """The unobserved sample sites of a trace, subsampling apart."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not isinstance(site["fn"], _Subsample)
    }


def refuse_subsampling(trace: Any, who: str) -> None:
    """:raises ValueError: if a plate of the trace covers only part of its data."""
    for name, site in trace.nodes.items():
        fn = site["fn"] if site["type"] == "sample" else None
        if isinstance(fn, _Subsample) and len(site["value"]) < fn.size:
            raise SubsampledPlate(
                f"plate {name!r} is subsampled ({len(site['value'])} of {fn.size}); {who} needs the whole plate: "
                "leave subsample_size and subsample out, and give the data that the posterior is to condition on"
            )


def describe_latents(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    transforms: Mapping[str, Transform] | None = None,
    max_plate_nesting: int | None = None,
) -> Sites:
    """Find a model's latents by two prior draws: the second shows what changes between runs.

    A latent that cannot be drawn (:class:`~pyro.distributions.ImproperUniform`) takes any value of its support.

    :param transforms: to unconstrained space, in place of those of the supports.
    :param max_plate_nesting: dimensions that plates may take; as many as they do by default.
    :raises ValueError: for shapes that do not fit the plates, and latents that MCMC cannot take; by name.
    """
    validates = is_validation_enabled()
    with torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        first, second = (poutine.trace(Feasible()(model)).get_trace(*args, **kwargs) for _ in range(2))
    refuse_subsampling(first, "MCMC")
    check_observed({name: site for name, site in first.nodes.items() if site["type"] == "sample"})
    sites, others = latent_sites(first), latent_sites(second)
    if not sites:
        raise NoLatents("the model has no latent site: every pyro.sample statement is observed")
    if set(sites) != set(others):
        raise ValueError(
            f"the model's latent sites change between runs ({sorted(sites)}, then {sorted(others)}); "
            "MCMC needs fixed sites"
        )
    latents = {}
    for name, site in sites.items():
        _support(name, site["fn"])
    if unknown := sorted(set(transforms or {}) - set(sites)):
        raise ValueError(f"transforms are for {unknown}, which are no latents; those are {sorted(sites)}")
    summed = marginalised(sites, first, max_plate_nesting)
    if summed is not None or validates:
        # A sum over discrete latents runs plate by plate: what is in no plate would be summed as one.
        check_shapes(first, declared=summed is not None)
    for name, site in sites.items():
        if summed is not None and name in summed.names:
            continue
        value = site["value"]
        if value.shape != others[name]["value"].shape:
            raise ValueError(
                f"latent site {name!r} changes shape between runs "
                f"({tuple(value.shape)}, then {tuple(others[name]['value'].shape)}); "
                "MCMC needs fixed shapes"
            )
        if transforms and name in transforms:
            u = transforms[name](value)
            latents[name] = Latent(u.shape, value.dtype, value.device, transforms[name].inv, False)
            continue
        transform = _known_bijection(name, site["fn"])
        u = transform.inv(value)
        probe = torch.linspace(-1.0, 1.0, max(u.numel(), 1), dtype=u.dtype, device=u.device)[: u.numel()].reshape(
            u.shape
        )
        moving = not torch.equal(transform(probe), bijection_to(others[name]["fn"].support)(probe))
        latents[name] = Latent(u.shape, value.dtype, value.device, transform, moving)
    refuse_moving_normalizers(model, args, kwargs, first)
    if summed is not None:
        with torch.no_grad(), pyro.validation_enabled(False), poutine.block():
            summed.check(model, args, kwargs, {name: sites[name]["value"] for name in latents})
    found = Sites(latents, summed, Masked({}, fillers_of(first)), _sequential(first))
    if names := masked_latents({name: sites[name] for name in latents}):
        found = replace(found, masked=replace(found.masked, unread=_unread(names, found, model, args, kwargs)))
    return found


def _sequential(trace: Any) -> dict[str, list[int]]:
    samples = [site for site in trace.nodes.values() if site["type"] == "sample"]
    iterated = {frame.name for site in samples for frame in site["cond_indep_stack"] if not frame.vectorized}
    plates = [site for site in samples if isinstance(site["fn"], _Subsample) and site["name"] in iterated]
    return {site["name"]: torch.as_tensor(site["value"]).tolist() for site in plates}


def _unread(
    names: Mapping[str, torch.Size],
    sites: Sites,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Of masked latents, the elements that the log-density does not depend on at two random points.

    :param names: of the latents, with the batch shapes of what their masks are of.
    """
    unread: dict[str, Tensor] = {}
    with torch.enable_grad(), pyro.validation_enabled(False), poutine.block():
        for _ in range(2):
            position = {
                k: (2.0 * torch.rand(v.shape, dtype=v.dtype, device=v.device) - 1.0).requires_grad_()
                for k, v in sites.latents.items()
            }
            value = LogJoint(sites, position).run(model, args, kwargs).log_prob
            wanted = [position[name] for name in names]
            if not (isinstance(value, Tensor) and value.requires_grad):
                grads = [torch.zeros_like(u) for u in wanted]
            else:
                grads = list(torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True))
            for (name, batch), gradient in zip(names.items(), grads, strict=True):
                zero = (gradient == 0).reshape(*batch, -1).all(-1)
                unread[name] = zero & unread[name] if name in unread else zero
        unread = {name: found for name, found in unread.items() if bool(found.any())}
        # Once with their priors, which may be refused.
        LogJoint(replace(sites, masked=replace(sites.masked, unread=unread)), position).run(model, args, kwargs)
    return unread


def _support(name: str, fn: Any) -> Any:
    """:raises ValueError: for a distribution that does not say what values it has."""
    try:
        support = fn.support
    except (NotImplementedError, AttributeError):
        support = None
    if not isinstance(support, constraints.Constraint):
        raise ValueError(
            f"latent site {name!r} has a distribution without support ({type(fn).__name__}): give the class a support, "
            "such as `support = constraints.real` of torch.distributions, so that its values can be moved"
        )
    return support


class Feasible(Messenger):
    """Draw each latent, and give one that cannot be drawn a random value of its support."""

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or msg["value"] is not None or isinstance(fn, _Subsample):
            return
        try:
            msg["value"] = fn(*msg["args"], **msg["kwargs"])
        except NotImplementedError:
            transform = _known_bijection(msg["name"], fn)
            msg["value"] = transform(4.0 * torch.rand(transform.inverse_shape(fn.shape())) - 2.0)


def _known_bijection(name: str, fn: Any) -> Transform:
    try:
        return bijection_to(fn.support)
    except NotImplementedError as error:
        raise ValueError(
            f"latent site {name!r} has support {fn.support} ({type(fn).__name__}), to which torch knows no bijection "
            "from unconstrained space: write it in terms of latents that have one"
        ) from error
