"""What is looked up once for a model-guide pair: its plate nesting, its enumerated sites, and whether the two match.

Pyro validates on every step; here a pair is run once, eagerly and without touching the random state, when it is first
seen, so that the evaluation path has no checks in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match

from pyro_dgm.infer.site_checks import check_shapes
from pyro_dgm.infer.unnormalized import refuse_moving_normalizers
from pyro_dgm.programs import owner_modules

__all__ = ["Structure", "StructureCache", "fork_rng", "guide_messenger", "sample_sites", "weak"]


@dataclass(frozen=True)
class Structure:
    """Static facts of a model-guide pair: deepest plate nesting and which sides mark sites for enumeration."""

    nesting: int
    model_enumerates: bool
    guide_enumerates: bool


def guide_messenger(guide: Callable[..., Any]) -> Any | None:
    """The ``GuideMessenger`` behind a guide that runs the model itself, or ``None``."""
    inner = poutine.unwrap(guide)
    return inner if isinstance(inner, poutine.messenger.Messenger) else None


def fork_rng() -> Any:
    """Leave the global random state of the CPU, and of CUDA where it is in use, as it was."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices=devices)


def sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    """The sample sites of a trace, without the index draws of subsampled plates."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not isinstance(site["fn"], _Subsample)
    }


def probe(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Structure:
    """Run the pair once, unvectorised, and check it.

    :raises ValueError: if the model has a latent site that the guide lacks and that is not enumerated.
    """
    messenger = guide_messenger(guide)
    with poutine.block(), fork_rng(), torch.no_grad(), _buffers_kept(model, guide):
        if messenger is not None:
            guide(*args, **kwargs)
            model_trace, guide_trace = messenger.get_traces()
        else:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        model_sites, guide_sites = sample_sites(model_trace), sample_sites(guide_trace)
        _refuse_unnormalized(model_sites)
        refuse_moving_normalizers(model, args, kwargs, model_trace)
    marks = {
        side: {n for n, s in sites.items() if not s["is_observed"] and s["infer"].get("enumerate")}
        for side, sites in (("model", model_sites), ("guide", guide_sites))
    }
    # A replayed site takes the guide's marks: only what the guide lacks is enumerated by the model.
    marks["model"] -= set(guide_sites)
    latent = {n for n, s in model_sites.items() if not s["is_observed"] and not s["infer"].get("is_auxiliary")}
    missing = sorted(latent - set(guide_sites) - marks["model"])
    if missing:
        raise ValueError(
            f"the model samples {missing} but the guide does not: without a guide density the objective is no bound. "
            "Give the guide a site for each, condition the model on them, or mark discrete ones with "
            'infer={"enumerate": "parallel"}.'
        )
    pruned_model, pruned_guide = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
    if is_validation_enabled():
        if not marks["model"]:
            check_model_guide_match(model_trace, guide_trace)
        with torch.no_grad():
            pruned_model.compute_log_prob()
            pruned_guide.compute_log_prob()
        for trace in (pruned_model, pruned_guide):
            check_shapes(trace)
    dims = [
        frame.dim
        for sites in (model_sites, guide_sites)
        for site in sites.values()
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return Structure(-min(dims) if dims else 0, bool(marks["model"]), bool(marks["guide"]))


def _refuse_unnormalized(sites: dict[str, Any]) -> None:
    """Data under an unnormalised density: a bound would take it for a density, and push it up without limit."""
    for name, site in sites.items():
        if site["is_observed"] and getattr(site["fn"], "normalized", True) is False:
            raise ValueError(
                f"the observed site {name!r} has a density known up to a constant ({type(site['fn']).__name__}), so "
                "that no bound on log p(x) can be formed: train it with an objective for energies, PersistentCD() say"
            )
        if not site["is_observed"] and getattr(site["fn"], "normalized", True) is False and _has_parameters(site):
            raise ValueError(
                f"the latent site {name!r} has a density known up to a constant ({type(site['fn']).__name__}) with "
                "parameters that are trained: the gradient of its log Z would be missing. Train it with ShortRunML(), "
                "or hold it fixed (requires_grad_(False) on its energy)"
            )


def _has_parameters(site: Any) -> bool:
    """Whether a gradient would reach parameters of a site's density."""
    with torch.enable_grad():
        return bool(site["fn"].log_prob(site["value"].detach()).requires_grad)


@contextmanager
def _buffers_kept(*fns: Any) -> Iterator[None]:
    """Put running statistics back as they were: a look at a program is no training step."""
    buffers = {id(b): b for fn in fns for module in owner_modules(fn) for b in module.buffers()}
    kept = [(b, b.clone()) for b in buffers.values()]
    yield
    for buffer, value in kept:
        buffer.copy_(value)


class StructureCache:
    """The structures of the last few pairs, held without keeping the pairs alive."""

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self._entries: list[tuple[Any, Any, Structure]] = []

    def get(self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Structure:
        for model_ref, guide_ref, structure in self._entries:
            if model_ref() == model and guide_ref() == guide:
                return structure
        structure = probe(model, guide, args, kwargs)
        self._entries = [*self._entries[1 - self.size :], (weak(model), weak(guide), structure)]
        return structure

    def __getstate__(self) -> dict[str, Any]:  # weak references cannot be copied or sent to another process
        return {"size": self.size, "_entries": []}


def weak(fn: Callable[..., Any]) -> Callable[[], Any]:
    """A weak reference to a callable, bound methods too."""
    if hasattr(fn, "__self__") and hasattr(fn, "__func__"):
        return weakref.WeakMethod(fn)
    return weakref.ref(fn)
