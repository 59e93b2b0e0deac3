"""A bijection for the support of mixtures, which torch's registries lack."""

from __future__ import annotations

from typing import Any

from torch.distributions import biject_to, transform_to
from torch.distributions.constraints import MixtureSameFamilyConstraint

__all__ = ["register_mixture_support"]


def register_mixture_support() -> None:
    """Have torch's ``biject_to`` and ``transform_to`` know a mixture's support: that of its components.

    Without it, Pyro's own functions of a site (``init_to_median``, ``init_to_uniform``, ...) fail on a mixture prior.
    """
    for registry in (biject_to, transform_to):
        if MixtureSameFamilyConstraint not in registry._registry:
            registry.register(MixtureSameFamilyConstraint, _of_components(registry))


def _of_components(registry: Any) -> Any:
    return lambda constraint: registry(constraint.base_constraint)
