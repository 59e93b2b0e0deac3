"""The log-joint density of a model at unconstrained coordinates of its latents, added up by a Pyro handler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Transform, biject_to, identity_transform

from pyro_dgm.capture.unvalidated import unvalidated
from pyro_dgm.infer.mcmc.potentials.marginal import Marginalised
from pyro_dgm.infer.mcmc.potentials.masked import Masked

__all__ = ["Latent", "LogJoint", "Sites", "bijection_to"]


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
        transform = bijection_to(msg["fn"].support) if latent.moving_support else latent.transform
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


def bijection_to(support: Any) -> Transform:
    """From unconstrained space to a support; the identity itself where that is what it is."""
    transform = biject_to(support)
    # `to_event` wraps the identity; taking it off spares two calls a gradient and one Jacobian of zeros.
    inner = transform
    while hasattr(inner, "base_transform"):
        inner = inner.base_transform
    return identity_transform if inner is identity_transform else transform
