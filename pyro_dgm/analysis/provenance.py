"""Which latents a site's value was computed from, as one run of the model shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

__all__ = ["Origin", "origins"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """The latent sites from which the value of a site, and its mask, were computed."""

    value: frozenset[str]
    mask: frozenset[str]


class _Mark(Messenger):
    """Have each latent's value carry the site's name into whatever is computed from it."""

    def __init__(self, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.given = given

    def _pyro_post_sample(self, msg: Any) -> None:
        latent = msg["name"] in self.given or not msg["is_observed"]
        if latent and not isinstance(msg["fn"], _Subsample):
            msg["value"] = track_provenance(msg["value"], frozenset({msg["name"]}))


def origins(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[str, Tensor]
) -> dict[str, Origin] | None:
    """Where the value of each sample site comes from, by name, with latents at ``values``.

    :returns: ``None`` where the model does something that cannot be followed.
    """
    try:
        with (
            torch.no_grad(),
            pyro.validation_enabled(False),
            poutine.trace() as tracer,
            _Mark(values),
            poutine.condition(data=dict(values)),
        ):
            model(*args, **kwargs)
    except Exception as error:
        # The model has run without marks before: what fails here is following them.
        _LOGGER.info("what is computed from latents cannot be followed (%s: %s)", type(error).__name__, error)
        return None
    return {
        name: Origin(get_provenance(node["value"]), get_provenance(node["mask"]))
        for name, node in tracer.trace.nodes.items()
        if node["type"] == "sample"
    }
