r"""Kullback-Leibler divergences in closed form, and whether they may be used.

:func:`torch.distributions.kl_divergence` finds a function by class, and by inheritance: a subclass that has a density
of its own gets its base's divergence, and Pyro's ``Delta``, which automatic guides use for the density of a transform,
gets one that leaves its ``log_density`` out.  A closed form is used here only where the density is that of the class it
was derived for, and it is compared once with the average of :math:`\log q - \log p` over draws.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

__all__ = ["closed_form_kl", "shared_latents", "wrong_closed_forms"]

logger = logging.getLogger("pyro_dgm")

#: modules whose classes have the densities that the closed forms were derived for
_KNOWN = ("torch.distributions.", "pyro.distributions.torch", "pyro_dgm.")
#: draws that a closed form is compared with, at least and at most, and the elements that they may have in all
_DRAWS, _ELEMENTS = (32, 512), 2**18
#: standard errors that the average of draws may be away
_TOLERANCE = 8.0


def closed_form_kl(q: Any, p: Any) -> Tensor | None:
    r"""The divergence :math:`D(q \| p)` in nats and in q's batch shape; ``None`` where it must be sampled."""
    if q.event_shape != p.event_shape or not (_is_known(q) and _is_known(p)):
        return None
    try:
        if torch.broadcast_shapes(q.batch_shape, p.batch_shape) != q.batch_shape:
            return None  # the density of p has more elements than a divergence in q's shape
        found = kl_divergence(q, p)
    except (NotImplementedError, RuntimeError):  # no closed form; batch shapes that do not broadcast
        return None
    return found.expand(q.batch_shape) if isinstance(found, Tensor) else None


def _is_known(fn: Any) -> bool:
    """Whether every layer of a distribution has the density of a known class, and none is a point mass or masked."""
    while True:
        if isinstance(fn, (dist.Delta, dist.MaskedDistribution)):
            return False
        kind: Any = type(fn)
        if not _has_known_density(kind):
            return False
        if not hasattr(fn, "base_dist"):
            return True
        fn = fn.base_dist


@lru_cache(maxsize=256)
def _has_known_density(kind: Any) -> bool:
    """Whether the class that a distribution has its density from is a known one."""
    owner = next(cls for cls in kind.__mro__ if "log_prob" in vars(cls))
    return f"{owner.__module__}.".startswith(_KNOWN)


def shared_latents(model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any]) -> list[str]:
    """Latents whose divergence stands for both of their densities: the same mask and scale, and the same order.

    In another order a latent's parent in the model might depend on it in the guide.
    """
    if [n for n in model_sites if n in guide_sites] != [n for n in guide_sites if n in model_sites]:
        return []
    return [
        name
        for name, q in guide_sites.items()
        if name in model_sites and not model_sites[name]["is_observed"] and _alike(q, model_sites[name])
    ]


def _alike(q: Any, p: Any) -> bool:
    """Whether masks and scales are equal, without looking at tensors' values (which would need the host)."""
    for a, b in ((q["mask"], p["mask"]), (q["scale"], p["scale"])):
        if a is not b and (isinstance(a, Tensor) or isinstance(b, Tensor) or a != b):
            return False
    return True


def wrong_closed_forms(model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any]) -> frozenset[str]:
    """Sites whose closed form is not what draws of the guide give on average; the log names them.

    The caller keeps the random state.
    """
    wrong = set()
    for name in shared_latents(model_sites, guide_sites):
        q, p = guide_sites[name]["fn"], model_sites[name]["fn"]
        exact = closed_form_kl(q, p)
        if exact is not None and not _is_mean_of_draws(exact, q, p):
            logger.warning(
                "site %r: the closed form of KL(%s, %s) is not the average of log q - log p over draws, which is used "
                "in its place",
                name,
                type(q).__name__,
                type(p).__name__,
            )
            wrong.add(name)
    return frozenset(wrong)


def _is_mean_of_draws(exact: Tensor, q: Any, p: Any) -> bool:
    total = exact.double().sum()
    if not torch.isfinite(total):
        return True  # not a matter of the closed form: an infinite loss is reported with its site
    least, most = _DRAWS
    count = max(least, min(most, _ELEMENTS // max(1, q.shape().numel())))
    z = q.sample((count,))
    terms = (q.log_prob(z) - p.log_prob(z)).double().reshape(count, -1).sum(-1)
    if not torch.isfinite(terms).all():
        return True
    error = terms.std() / count**0.5
    rounding = 1e-4 * (terms.abs().mean() + exact.double().abs().sum())
    return bool((terms.mean() - total).abs() <= _TOLERANCE * error + rounding)
