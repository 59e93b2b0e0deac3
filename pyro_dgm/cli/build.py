"""Families by name: from options of the command line, and back from what their ``config()`` wrote."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_dgm.cli.errors import UsageError, bad_usage_if_raised

__all__ = ["build_family", "family_arguments", "is_flat"]


def _family(name: str) -> Any:
    from pyro_dgm.models import FAMILIES

    trained_by_bounds = {key: family for key, family in FAMILIES.items() if family.normalized}
    if name not in trained_by_bounds:
        raise UsageError(f"there is no family {name!r}; there are {', '.join(sorted(trained_by_bounds))}")
    return trained_by_bounds[name]


def _parameters(family: Any) -> list[str]:
    return [p for p in inspect.signature(family.__init__).parameters if p != "self"]


def is_flat(name: str) -> bool:
    """Whether the family takes data as vectors (it has an ``event_dim``, no ``event_shape``)."""
    return "event_dim" in _parameters(_family(name))


def family_arguments(name: str, event_shape: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
    """A family's arguments for data of a shape, with the user's options checked against what it takes.

    >>> family_arguments("LinearGaussian", (8, 8), {"latent_dim": 3})
    {'event_dim': 64, 'latent_dim': 3}
    """
    known = _parameters(_family(name))
    unknown = [key for key in options if key not in known]
    if unknown:
        settable = [key for key in known if key not in ("event_shape", "event_dim")]
        raise UsageError(f"the family {name} has no option {unknown[0]!r}; it has {', '.join(settable)}")
    shape: dict[str, Any] = (
        {"event_dim": math.prod(event_shape)} if "event_dim" in known else {"event_shape": list(event_shape)}
    )
    return {**shape, **options}


def build_family(name: str, config: Mapping[str, Any]) -> Any:
    """Build a family from its name and configuration, as its ``config()`` gives it (JSON).

    The weights are its random initial ones: see :func:`pyro_dgm.infer.train.checkpoints.checkpoint.load_weights`.

    :param name: a name in :data:`pyro_dgm.models.FAMILIES`.
    :param config: constructor arguments; ``likelihood`` may be ``{"name": ..., "scale": ...}``.
    :raises UsageError: for an unknown name, unknown or unfit arguments, or a family with parts (networks, likelihoods)
        that were given as objects and no configuration can rebuild.

    >>> build_family("VAE", {"event_shape": [4, 4], "latent_dim": 2, "likelihood": {"name": "bernoulli"}}).latent_dim
    2
    """
    family = _family(name)
    arguments = dict(config)
    unknown = [key for key in arguments if key not in _parameters(family)]
    if unknown:
        raise UsageError(f"the configuration has {unknown[0]!r}, which {name} does not take")
    own = [key for key, value in arguments.items() if value == "custom"]
    if own:
        raise UsageError(
            f"this {name} has parts, networks or activations of its own ({', '.join(own)}), which its configuration "
            "cannot rebuild"
        )
    with bad_usage_if_raised(f"family {name}"):
        return family(**arguments)
