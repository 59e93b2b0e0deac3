"""Whether the sites of a program fit its plates and its data: looked at once, before anything is computed from them."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.util import check_site_shape

__all__ = ["check_shapes", "invalid_site"]


def check_shapes(trace: poutine.Trace, declared: bool = True) -> None:
    """Refuse a batch dimension that no plate declares.

    :param trace: of one run of a model, without particles or chains.
    :param declared: whether each batch dimension must be a plate's.  It must where terms are kept apart by plates (a
        bound of each datum, a sum over discrete latents).  A density of all sites together needs less: there, only a
        value that is counted several times is refused, ``(N,)`` data under an ``(N, N)`` density.
    :raises ValueError: naming the site, its shapes and the remedies.
    """
    site: Any
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or isinstance(site["fn"], _Subsample) or site["infer"].get("_deterministic"):
            continue
        shape = _shape_of_density(name, site)
        try:
            check_site_shape({**site, "log_prob": torch.empty(shape, device="meta")}, float("inf"))  # type: ignore[arg-type]
        except ValueError as error:
            value = site["value"].shape[: site["value"].dim() - site["fn"].event_dim]
            if not declared and value == shape:
                continue
            counted = "" if value == shape else f"; its value, of batch shape {tuple(value)}, is counted several times"
            raise ValueError(f"{error}{counted}") from error


def _shape_of_density(name: str, site: Any) -> torch.Size:
    """Of a site's log-density with its mask and scale, from the shapes of what it is made of."""
    if "log_prob" in site:
        return site["log_prob"].shape
    value, fn = site["value"], site["fn"]
    split = value.dim() - fn.event_dim
    masks = [t.shape for t in (site["scale"], site["mask"]) if isinstance(t, torch.Tensor)]
    try:
        torch.broadcast_shapes(value.shape[split:], fn.event_shape)
        return torch.broadcast_shapes(value.shape[:split], fn.batch_shape, *masks)
    except RuntimeError as error:
        raise ValueError(
            f"at site {name!r}, a value of shape {tuple(value.shape)} does not fit the distribution, of batch shape "
            f"{tuple(fn.batch_shape)} and event shape {tuple(fn.event_shape)}{', or its mask or scale' * bool(masks)}"
        ) from error


def invalid_site(model: Any, args: tuple[Any, ...], kwargs: Any, values: Any) -> str:
    """What torch's validation finds wrong with a model at given values of its latents; ``""`` where nothing is.

    Distributions' arguments, and the support of observed values, are validated; the latents' values are not, since they
    are the sampler's own.

    :param values: of latents, by site.
    """
    seen = _Observed(values)
    try:
        with torch.no_grad(), poutine.block(), pyro.validation_enabled(True), seen:
            model(*args, **kwargs)
    except torch.linalg.LinAlgError:
        return ""
    except ValueError as error:
        where = f"at site {seen.name!r}" if seen.inside else f"after site {seen.name!r}" if seen.name else "at first"
        return f"{where}: {str(error).strip()}"
    return ""


class _Observed(Messenger):
    """Gives latents their values, and has the log-density of observed values computed."""

    def __init__(self, values: Any) -> None:
        super().__init__()
        self.values, self.name, self.inside = values, "", False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        self.name = msg["name"]
        if msg["is_observed"] and msg["mask"] is None:
            self.inside = True
            msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
            self.inside = False
