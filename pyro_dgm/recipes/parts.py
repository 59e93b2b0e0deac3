"""A program and an optimiser in words: what ``Recipe.parts`` says of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from pyro_dgm.distributions import FlowDistribution
from pyro_dgm.distributions.transforms import Bijection, Compose, Inverse, Multiscale
from pyro_dgm.guides import AmortizedFlow
from pyro_dgm.models import VAE, FlowModel

__all__ = ["describe", "optimizer_text", "transform_text"]


def describe(program: Any) -> dict[str, str]:
    """The parts of a program by what they are for."""
    if isinstance(program, FlowModel):
        return {
            "base": "standard normal" if program.base is None else _name(program.base),
            "transform": transform_text(program.flow),
            "guide": "none: the likelihood is exact" if program.dequantize is None else f"{program.dequantize} noise",
        }
    if isinstance(program, VAE):
        return {
            "prior": "standard normal" if program.prior_network is None else _name(program.prior_network),
            "decoder": _network_text(program.decoder),
            "likelihood": type(program.likelihood).__name__.removesuffix("Likelihood"),
            "guide": _guide_text(program),
        }
    return {"program": type(program).__name__}


def _guide_text(vae: VAE) -> str:
    guide = vae.guide_network
    if guide is None:
        return f"diagonal normal, encoder {_network_text(vae.encoder)}"
    if isinstance(guide, AmortizedFlow):
        return f"{transform_text(guide.flow)}; encoder {_network_text(guide.encoder)}"
    encoder = getattr(guide, "encoder", None)
    return _name(guide) if encoder is None else f"{_name(guide)}, encoder {_network_text(encoder)}"


def transform_text(flow: Bijection) -> str:
    """The layers of a flow from noise to data, equal ones counted."""
    counts: dict[str, int] = {}
    for part in _parts(flow):
        name = type(part).__name__
        if isinstance(part, Inverse):
            name = f"{type(part.transform).__name__} (inverse)"
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items())


def _parts(flow: Any) -> list[Any]:
    """The parts of a flow that are made of no others."""
    if isinstance(flow, Compose):
        return [p for part in flow.parts for p in _parts(part)]
    return [p for level in flow.levels for p in _parts(level)] if isinstance(flow, Multiscale) else [flow]


def _network_text(network: nn.Module) -> str:
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if type(network).__name__ == "MLP" and linear:
        sizes = [linear[0].in_features, *(m.out_features for m in linear)]
        between = [m for m in network.modules() if not list(m.children()) and not isinstance(m, nn.Linear)]
        activation = f", {type(between[0]).__name__}" if between else ""
        return f"MLP {'-'.join(map(str, sizes))}{activation}"
    return type(network).__name__


def _name(part: Any) -> str:
    return type(part).__name__ if isinstance(part, (nn.Module, FlowDistribution)) else repr(part)


def optimizer_text(optimizer: Any) -> str:
    """An ``optimizer=`` of :func:`pyro_dgm.fit` in words: ``Adam(lr=0.001)``."""
    if isinstance(optimizer, Mapping):
        return "; ".join(f"{role}: {optimizer_text(made)}" for role, made in optimizer.items())
    if isinstance(optimizer, functools.partial):
        return f"{optimizer.func.__name__}({', '.join(f'{k}={v}' for k, v in optimizer.keywords.items())})"
    return getattr(optimizer, "__name__", repr(optimizer))
