"""Distributions without validation of values, for an evaluation that reports what is not finite by itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.distributions import Distribution

__all__ = ["unvalidated"]


def unvalidated(distribution: Any) -> Any:
    """The distribution, and those that it is made of, without validation of values; the one given stays as it was.

    ``pyro.validation_enabled(False)`` reaches distributions without a setting of their own.  ``.expand()`` gives its
    result one, that of the moment: a prior that was expanded outside of the model goes on validating.  A sampler's
    proposal that is not finite is rejected on its own chain; it must not raise for all.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        >>> unvalidated(prior).log_prob(torch.full((2,), torch.nan))
        tensor(nan)
    """
    if not isinstance(distribution, Distribution) or not _validates(distribution):
        return distribution
    found = copy.copy(distribution)
    # Parts first: Pyro's Independent hands its own flag on to what it wraps.
    for name, part in list(vars(found).items()):
        if isinstance(part, Distribution):
            found.__dict__[name] = unvalidated(part)
        elif isinstance(part, (list, tuple)) and any(isinstance(p, Distribution) for p in part):
            found.__dict__[name] = type(part)([unvalidated(p) for p in part])
    found._validate_args = False
    if isinstance(found, torch.nn.Module):  # its parts are not in its own dictionary
        found._modules = {k: unvalidated(m) for k, m in found._modules.items()}
    return found


def _validates(distribution: Any) -> bool:
    if distribution._validate_args:
        return True
    modules = distribution._modules.values() if isinstance(distribution, torch.nn.Module) else ()
    for part in (*vars(distribution).values(), *modules):
        for p in part if isinstance(part, (list, tuple)) else (part,):
            if isinstance(p, Distribution) and _validates(p):
                return True
    return False
