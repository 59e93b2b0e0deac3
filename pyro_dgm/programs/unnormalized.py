"""Densities known up to a constant, where the constant depends on what is inferred."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine

__all__ = ["refuse_moving_normalizers"]


def refuse_moving_normalizers(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], trace: Any
) -> None:
    """Refuse a density known up to a constant that depends on latents: the posterior would miss its log Z.

    :param trace: of the model, with values of its latents.
    :raises ValueError: naming the site, and the latents.
    """

    def unnormalized(site: Any) -> bool:
        return site["type"] == "sample" and getattr(site["fn"], "normalized", True) is False

    if not any(unnormalized(site) for site in trace.nodes.values()):
        return
    with torch.enable_grad(), pyro.validation_enabled(False), poutine.block():
        leaves = {
            name: site["value"].detach().requires_grad_()
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not site["is_observed"] and site["value"].is_floating_point()
        }
        again = poutine.trace(poutine.condition(model, data=leaves)).get_trace(*args, **kwargs)
        site: Any
        for name, site in again.nodes.items():
            if not unnormalized(site):
                continue
            density = site["fn"].log_prob(site["value"].detach())
            if not density.requires_grad:
                continue
            grads = torch.autograd.grad(density.sum(), list(leaves.values()), allow_unused=True)
            others = [k for k, g in zip(leaves, grads, strict=True) if g is not None]
            if others:
                raise ValueError(
                    f"the density at site {name!r} ({type(site['fn']).__name__}) is known up to a constant, its log Z, "
                    f"which depends on the latents {others} and would be missing from their posterior: give the site a "
                    "normalised density, or say pyro.factor if a factor is meant"
                )
