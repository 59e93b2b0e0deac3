"""A model's latent sites: found by running it, and put in place by a handler that adds up the log-joint density."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, identity_transform

from pyro_dgm.capture.unvalidated import unvalidated
from pyro_dgm.infer.mcmc.potentials.marginal import Marginalised, marginalised
from pyro_dgm.infer.mcmc.potentials.masked import Masked, fillers_of, masked_latents
from pyro_dgm.infer.mcmc.potentials.mixtures import register_mixture_support
from pyro_dgm.programs.observed import check_observed
from pyro_dgm.programs.site_checks import check_shapes
from pyro_dgm.programs.unnormalized import refuse_moving_normalizers

__all__ = [
    "Feasible",
    "Latent",
    "LogJoint",
    "NoLatents",
    "Sites",
    "SubsampledPlate",
    "describe_latents",
    "latent_sites",
    "refuse_subsampling",
]

register_mixture_support()


class NoLatents(ValueError):
    """A model of which every site is observed."""


class SubsampledPlate(ValueError, RuntimeError):
    """A plate of part of its data: a ``ValueError``, as all refusals are, and a ``RuntimeError``, as Pyro's is."""


@dataclass(frozen=True)
class Latent:
    """What a sampler must know of one latent site.

    :ivar shape: unconstrained shape of one chain.
    :ivar transform: unconstrained to constrained; for a moving support, that of one prior draw.
    :ivar moving_support: whether the support depends on other latents.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    transform: Transform
    moving_support: bool


@dataclass(frozen=True)
class Sites:
    """What was found of a model's sites, once.

    :ivar latents: the continuous latents.
    :ivar summed: the discrete ones, which are summed out.
    :ivar masked: what masks leave out.
    :ivar sequential: indices of the plates that are iterated over (``for i in pyro.plate(...)``): numbers, since a
        recording cannot make numbers of a tensor.
    """

    latents: Mapping[str, Latent]
    summed: Marginalised | None = None
    masked: Masked = field(default_factory=Masked)
    sequential: Mapping[str, list[int]] = field(default_factory=dict)


class LogJoint(Messenger):
    """Give each latent the value that its unconstrained coordinates stand for, and add up log-probabilities.

    It is a handler rather than ``poutine.trace``: it keeps sums alone, so it is cheap enough for every gradient, and
    meets each site's own support, so a support that moves with other latents has the right Jacobian.
    """

    def __init__(self, sites: Sites, position: Mapping[str, Tensor], by_site: bool = False) -> None:
        super().__init__()
        self.sites, self.position = sites, position
        self.latents, self.summed, self.masked = sites.latents, sites.summed, sites.masked
        self.values: dict[str, Tensor] = {}
        self.log_prob: Any = 0.0
        #: of masked latents that nothing else reads
        self.log_prior: Any = 0.0
        self.log_det: Any = 0.0
        self.by_site: dict[str, float] = {}
        self._keep = by_site

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if isinstance(msg["fn"], _Subsample):
            if name in self.sites.sequential:
                msg["value"], msg["done"] = self.sites.sequential[name], True
            return
        msg["fn"] = unvalidated(msg["fn"])
        if name not in self.latents:
            if not msg["is_observed"] and msg["value"] is None:
                raise ValueError(
                    f"latent site {name!r} was not there when the model first ran; "
                    "MCMC needs the same sites on every run"
                )
            return
        latent, u = self.latents[name], self.position[name]
        transform = _bijection(msg["fn"].support) if latent.moving_support else latent.transform
        value = transform(u)
        if latent.moving_support and self.summed is not None and value.shape != latent.transform(u).shape:
            raise ValueError(
                f"the support of latent site {name!r} depends on a discrete latent that is summed out, so one value "
                "has to lie in several supports: write it in terms of a latent whose support does not"
            )
        if transform is not identity_transform:
            self.log_det = self.log_det + transform.log_abs_det_jacobian(u, value).sum()
        self.values[name] = value
        msg["value"], msg["done"] = value, True

    def _pyro_post_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample) or msg["infer"].get("_deterministic"):
            return
        if msg["name"] in self.masked.unread:
            self.log_prior = self.log_prior + self.masked.log_prior(msg)
        if self.summed is not None:
            return
        value = self.masked.filled(msg["name"], msg["value"])
        log_prob = fn.log_prob(value, *msg["args"], **msg["kwargs"])
        log_prob = scale_and_mask(log_prob, msg["scale"], msg["mask"]).sum()
        self.log_prob = self.log_prob + log_prob
        if self._keep:
            self.by_site[msg["name"]] = float(log_prob)

    def run(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LogJoint:
        """Run the model under this handler, its discrete latents summed out."""
        with self:
            if self.summed is None:
                model(*args, **kwargs)
            else:
                by_site = self.by_site if self._keep else None
                self.log_prob = self.summed.log_prob(model, args, kwargs, by_site, self.masked)
        self.log_prob = self.log_prob + self.log_prior
        self.check_complete()
        return self

    def check_complete(self) -> None:
        """:raises ValueError: if a latent site was not visited."""
        missing = [name for name in self.latents if name not in self.values]
        if missing:
            raise ValueError(
                f"latent sites {missing} were there when the model first ran but not now; "
                "MCMC needs the same sites on every run"
            )


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
        moving = not torch.equal(transform(probe), _bijection(others[name]["fn"].support)(probe))
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
        return _bijection(fn.support)
    except NotImplementedError as error:
        raise ValueError(
            f"latent site {name!r} has support {fn.support} ({type(fn).__name__}), to which torch knows no bijection "
            "from unconstrained space: write it in terms of latents that have one"
        ) from error


def _bijection(support: Any) -> Transform:
    transform = biject_to(support)
    # `to_event` wraps the identity; taking it off spares two calls a gradient and one Jacobian of zeros.
    inner = transform
    while hasattr(inner, "base_transform"):
        inner = inner.base_transform
    return identity_transform if inner is identity_transform else transform
