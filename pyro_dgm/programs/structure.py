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

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match

from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs import owner_modules
from pyro_dgm.programs.base_of import base_of
from pyro_dgm.programs.closed_form import wrong_closed_forms
from pyro_dgm.programs.first_run import AddedDims, first_run, guide_messenger
from pyro_dgm.programs.module_state import buffers_kept
from pyro_dgm.programs.observed import check_observed
from pyro_dgm.programs.site_checks import check_shapes
from pyro_dgm.programs.unnormalized import refuse_moving_normalizers

__all__ = [
    "AddedDims",
    "Structure",
    "StructureCache",
    "guide_messenger",
    "is_point",
    "looking_at",
    "sample_sites",
    "weak",
]


@dataclass(frozen=True)
class Structure:
    """Static facts of a model-guide pair: deepest plate nesting and which sides mark sites for enumeration."""

    nesting: int
    model_enumerates: bool
    guide_enumerates: bool
    #: latents whose divergence in closed form is not that of their draws
    sampled_kl: frozenset[str] = frozenset()
    #: whether model or guide differentiates inside itself, and so cannot run under ``torch.no_grad``
    differentiates: bool = False
    #: latents that the model masks and the guide does not, which count with their prior
    unmasked: frozenset[str] = frozenset()
    #: whether the objective can do with traces whose distributions are under vmap
    under_vmap: bool = True
    #: whether the program runs only with the dimensions of particles and of enumerated sites
    written_for_dims: bool = False

    @property
    def enumerates(self) -> bool:
        """Whether there is a site to be summed out."""
        return self.model_enumerates or self.guide_enumerates

    def gradients(self) -> Any:
        """What to run the program in where no gradients are wanted of it."""
        return torch.set_grad_enabled(torch.is_grad_enabled() or self.differentiates)


def is_point(fn: Any) -> bool:
    """Whether a distribution is a point mass, through ``to_event``, masks and expansions."""
    return isinstance(base_of(fn), dist.Delta)


def sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    """The sample sites of a trace, without the index draws of subsampled plates."""
    sites: dict[str, Any] = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not isinstance(site["fn"], _Subsample):
            sites[name] = site
    return sites


def probe(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    added: AddedDims | None = None,
) -> Structure:
    """Run the pair once, unvectorised, and check it.

    :param added: the dimensions to run it with where it does not run without them.
    :raises ValueError: if the model has a latent site that the guide lacks and that is not enumerated.
    """
    with looking_at(model, guide):
        run = first_run(model, guide, args, kwargs, added)
        model_trace, guide_trace = run.model_trace, run.guide_trace
        model_sites, guide_sites = sample_sites(model_trace), sample_sites(guide_trace)
        check_observed(model_sites)
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
    if is_validation_enabled() and not run.added:  # Pyro's run with more dimensions has had Pyro's checks
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
    if run.added:  # closed forms are compared with draws of one particle: there are none
        sampled = frozenset(guide_sites)
    else:
        with forked_rng(), torch.no_grad():
            sampled = wrong_closed_forms(model_sites, guide_sites)
    return Structure(
        -min(dims) if dims else 0,
        bool(marks["model"]),
        bool(marks["guide"]),
        sampled,
        run.differentiates,
        unmasked_latents(model_sites, guide_sites),
        written_for_dims=run.added,
    )


def unmasked_latents(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> frozenset[str]:
    """Latents that the model masks and the guide does not.

    The mask says that nothing else depends on the latent, so the marginal likelihood is the same with its prior.
    Without it, the entropy of the guide would raise a bound without limit.
    """
    found = set()
    for name, site in model_sites.items():
        masked = not site["is_observed"] and site["mask"] is not None
        if masked and name in guide_sites and guide_sites[name]["mask"] is None:
            found.add(name)
    return frozenset(found)


class WithPriors(Messenger):
    """Takes the masks of some latents away.  It goes outside of the model, where it is after the masks."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["mask"] = None


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
def looking_at(model: Any, guide: Any, differentiates: bool = False) -> Iterator[None]:
    """To run a program once, unseen by handlers, random state and running statistics, and without gradients.

    :param differentiates: whether it differentiates inside itself (:attr:`Structure.differentiates`).
    """
    buffers = (b for fn in (model, guide) for module in owner_modules(fn) for b in module.buffers())
    with poutine.block(), forked_rng(), torch.set_grad_enabled(differentiates), buffers_kept(buffers):
        yield


class StructureCache:
    """The structures of the last few pairs, held without keeping the pairs alive."""

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self._entries: list[tuple[Any, Any, Structure]] = []

    def known(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Structure | None:
        """The structure of a pair that was seen before."""
        for model_ref, guide_ref, structure in self._entries:
            if model_ref() == model and guide_ref() == guide:
                return structure
        return None

    def put(self, model: Callable[..., Any], guide: Callable[..., Any], structure: Structure) -> None:
        """Remember the structure of a pair."""
        self._entries = [*self._entries[1 - self.size :], (weak(model), weak(guide), structure)]

    def get(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: Any,
        kwargs: Any,
        added: AddedDims | None = None,
    ) -> Structure:
        """The structure of a pair, which is probed when it is first seen."""
        structure = self.known(model, guide)
        if structure is None:
            structure = probe(model, guide, args, kwargs, added)
            self.put(model, guide, structure)
        return structure

    def __getstate__(self) -> dict[str, Any]:  # weak references cannot be copied or sent to another process
        return {"size": self.size, "_entries": []}


def weak(fn: Callable[..., Any]) -> Callable[[], Any]:
    """A weak reference to a callable, bound methods too."""
    if hasattr(fn, "__self__") and hasattr(fn, "__func__"):
        return weakref.WeakMethod(fn)
    return weakref.ref(fn)
