"""Priors of latent vectors, one file each, and what makes one from a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro.distributions import TorchDistribution

from pyro_dgm.distributions.priors.base import PRIORS, PosteriorPrior, Prior
from pyro_dgm.distributions.priors.flow import FlowPrior
from pyro_dgm.distributions.priors.mixture import MixturePrior
from pyro_dgm.distributions.priors.normal import NormalPrior
from pyro_dgm.distributions.priors.sphere import SpherePrior
from pyro_dgm.distributions.priors.vamp import VampPrior

__all__ = [
    "PRIORS",
    "FlowPrior",
    "MixturePrior",
    "NormalPrior",
    "PosteriorPrior",
    "Prior",
    "PriorSpecification",
    "SpherePrior",
    "VampPrior",
    "prior",
]

#: what a family takes as a prior
PriorSpecification = str | Mapping[str, Any] | Callable[..., TorchDistribution] | None


def prior(
    spec: PriorSpecification, latent_dim: int, context_dim: int = 0, event_shape: Sequence[int] = ()
) -> Callable[..., TorchDistribution] | None:
    """A prior by its name in :data:`PRIORS`, or as given.

    :param spec: a name; a mapping with ``"name"`` and options, as ``config()`` gives it; a callable from context
        vectors to a distribution, which is returned as it is; or ``None``, for the standard normal.
    :param latent_dim: length of a latent.
    :param context_dim: length of the context vectors of the model; 0 for none.
    :param event_shape: shape of one datum, for priors made of the guide.
    :raises ValueError: for an unknown name or option, or a prior of another size.
    :raises TypeError: for anything else.

    Example::

        >>> from pyro_dgm.distributions.priors import prior
        >>> prior({"name": "mixture", "num_components": 3}, 2)
        MixturePrior(latent_dim=2)
    """
    if isinstance(spec, Prior):
        for argument, mine, wanted in (
            ("latent_dim", spec.latent_dim, latent_dim),
            ("context_dim", spec.context_dim, context_dim),
        ):
            if mine != wanted and (argument == "latent_dim" or spec.conditional):
                raise ValueError(f"the prior has {argument} {mine}, the model {wanted}")
    if isinstance(spec, (str, Mapping)):
        options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
        name = options.pop("name", None)
        if name == "custom":
            raise ValueError("the prior was given as an object, which a configuration cannot rebuild: give it again")
        if name not in PRIORS:
            raise ValueError(f"prior must be None, one of {sorted(PRIORS)}, or a callable, got {name!r}")
        made = PRIORS[name]
        known = set(inspect.signature(made).parameters) - {"latent_dim", "context_dim", "event_shape"}
        if unknown := set(options) - known:
            raise ValueError(f"prior {name!r} has no option {sorted(unknown)}: it has {sorted(known)}")
        if issubclass(made, PosteriorPrior):
            options["event_shape"] = tuple(event_shape)
        return made(latent_dim, context_dim if made.conditional else 0, **options)
    if spec is None or callable(spec):
        return spec
    raise TypeError(f"prior must be None or a callable that gives a distribution, got {type(spec).__name__}")
