"""What a model masks: latents that have then no density, and data that are not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

__all__ = ["Masked", "fillers_of", "masked_latents"]


@dataclass(frozen=True)
class Masked:
    r"""What masks leave out of a model.

    An element of a latent that is masked, and that nothing else reads (``obs_mask`` makes one of each datum that is
    seen), has a flat density in the model as it is written: a chain would move along it without limit.  It is given its
    prior, :math:`p(z_i \mid \text{parents})`, which integrates to one and so leaves the posterior of all others as it
    is.  A masked latent that *is* read (``.mask(False)`` as an improper prior) stays as it is written.

    A datum that is masked may be NaN.  Its log-density is left out, but the derivative of what is left out would be NaN
    times zero: another value stands in its place.

    :ivar unread: by latent, whether nothing but its prior depends on an element; of the shape of what the mask is of.
    :ivar fillers: by observed site, values to stand in the place of NaN.
    """

    unread: Mapping[str, Tensor] = field(default_factory=dict)
    fillers: Mapping[str, Tensor] = field(default_factory=dict)

    def log_prior(self, msg: Any) -> Tensor:
        """Log-density of the elements of a site that are masked and not read."""
        base, mask = _unmasked(msg["fn"], msg["mask"])
        log_prob, unread = base.log_prob(msg["value"]), self.unread[msg["name"]]
        if log_prob.shape != unread.shape:
            raise ValueError(
                f"latent site {msg['name']!r} is masked and its prior depends on a discrete latent that is summed out: "
                "leave the mask out, so that its prior counts, or sum the discrete latent out in the model"
            )
        if isinstance(mask, Tensor):
            unread = unread & ~mask
        return torch.where(unread, log_prob, torch.zeros_like(log_prob)).sum()

    def filled(self, name: str, value: Tensor) -> Tensor:
        """A site's value without NaN, if it may have them."""
        if name not in self.fillers:
            return value
        return torch.where(torch.isnan(value), self.fillers[name], value)


def masked_latents(sites: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Latents with a mask that leaves something out, and the batch shapes of what is masked."""
    found = {}
    for name, site in sites.items():
        base, mask = _unmasked(site["fn"], site["mask"])
        if mask is False or (isinstance(mask, Tensor) and not bool(mask.all())):
            found[name] = base.batch_shape
    return found


def fillers_of(trace: Any) -> dict[str, Tensor]:
    """For observed sites with NaN, all of them masked: values for their places."""
    fillers = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or isinstance(site["fn"], _Subsample):
            continue
        value = site["value"]
        if not value.is_floating_point() or not bool(torch.isnan(value).any()):
            continue
        base, mask = _unmasked(site["fn"], site["mask"])
        if mask is None or mask is True:
            continue
        missing = torch.isnan(value)
        if base.event_dim:
            missing = missing.flatten(-base.event_dim).any(-1)
        if isinstance(mask, Tensor) and bool((missing & mask).any()):
            continue  # some of them count
        with torch.no_grad():
            fillers[name] = base.sample().detach().expand(value.shape)
    return fillers


def _unmasked(fn: Any, mask: Any) -> tuple[Any, Any]:
    """The distribution without its masks, of as many batch dimensions as they have; and all masks together."""
    if isinstance(fn, MaskedDistribution):
        return _unmasked(fn.base_dist, _both(mask, fn._mask))
    if isinstance(fn, dist.Independent) and _has_mask(fn.base_dist):
        count = fn.reinterpreted_batch_ndims
        if isinstance(mask, Tensor):
            mask = mask.reshape(*mask.shape, *(1 for _ in range(count)))
        return _unmasked(fn.base_dist, mask)
    return fn, mask


def _has_mask(fn: Any) -> bool:
    return isinstance(fn, MaskedDistribution) or (isinstance(fn, dist.Independent) and _has_mask(fn.base_dist))


def _both(first: Any, second: Any) -> Any:
    if first is False or second is False:
        return False
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return second if not isinstance(first, Tensor) else first
    return first & second
