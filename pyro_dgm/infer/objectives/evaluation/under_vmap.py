"""A program under ``torch.vmap``: K particles of a program that was written for one.

Under vmap the program sees the shapes of a single particle, so that it need not handle particles. The result is the
trace that a plate of particles would give: the values and log-densities of a site have the particles as a batch
dimension to the left of all plates, and its distribution is a
:class:`~pyro_dgm.infer.objectives.evaluation.vmapped_distribution.VmappedDistribution`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.score_parts import ScoreParts
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.vmap_noise import is_vmapped, own_noise
from pyro_dgm.infer.objectives.evaluation.vmapped_distribution import Layout, Slot, VmappedDistribution, rebuilt
from pyro_dgm.programs.structure import is_point

__all__ = ["PLATE", "run_under_vmap"]

PLATE = "num_particles_vectorized"  # Pyro's name for the plate of particles, so that traces are the same

Traces = Sequence[tuple[poutine.Trace, bool]]


def run_under_vmap(
    produce: Callable[[dict[str, Any]], Traces],
    layout: Layout,
    values: Mapping[str, tuple[Any, int | None]],
    poison: bool = False,
) -> list[poutine.Trace]:
    """Run a program for all particles under vmap, and return the traces that a plate of particles would give.

    :param produce: runs the program for one particle; returns its traces, each with whether score functions are needed.
    :param layout: number and dimension of the particles.
    :param values: by site, a value to give to the program, and the dimension of the particles in it (``None`` if all
        particles share it).
    :param poison: see :func:`~pyro_dgm.infer.objectives.evaluation.vmap_noise.own_noise`.
    """
    packed: list[list[dict[str, Any]]] = []

    def one(index: Tensor, given: dict[str, Any]) -> list[Tensor]:
        leaves = [index]

        def keep(tensor: Tensor, event_dim: int) -> Slot:
            leaves.append(tensor)
            return Slot(len(leaves) - 1, event_dim)

        with own_noise(index, poison):
            packed[:] = [
                [_pack(site, layout, keep, scores) for site in trace.nodes.values() if site["type"] == "sample"]
                for trace, scores in produce({**constant, **given})
            ]
        return leaves

    # vmap takes and returns tensors only; the particle's index makes sure that there is at least one.
    constant = {name: value for name, (value, dim) in values.items() if dim is None}
    moved = {name: value for name, (value, dim) in values.items() if dim is not None}
    found = torch.vmap(one, randomness="different")(layout.numbers, moved)
    traces = []
    for sites in packed:
        trace = poutine.Trace()
        for site in sites:
            trace.add_node(site["name"], **_unpack(site, layout, found))
        traces.append(trace)
    return traces


def _pack(site: Any, layout: Layout, keep: Callable[[Tensor, int], Slot], scores: bool) -> dict[str, Any]:
    """A site with its batched tensors replaced by slots; the tensors are returned through vmap."""

    def slot(tensor: Any, event_dim: int = 0) -> Any:
        return keep(tensor, event_dim) if isinstance(tensor, Tensor) and is_vmapped(tensor) else tensor

    fn, value, packed = site["fn"], site["value"], {**site, "args": (), "kwargs": {}}
    if isinstance(fn, _Subsample):
        if is_vmapped(value):
            raise ValueError(f"the mini-batch of plate {site['name']!r} was drawn under vmap")
        return packed
    if not site["is_observed"] and not is_vmapped(value) and not is_point(fn) and "_enumerate_dim" not in site["infer"]:
        raise ValueError(f"all particles would share one draw of site {site['name']!r}")
    plain = rebuilt(fn, lambda tensor: tensor, {}) if _validates(fn) else fn
    try:
        if scores:
            parts = plain.score_parts(value, *site["args"], **site["kwargs"])
            packed["score_parts"] = [keep(part, 0) if isinstance(part, Tensor) else part for part in parts]
            log_prob = parts.log_prob
        else:
            log_prob = plain.log_prob(value, *site["args"], **site["kwargs"])
        packed["unscaled_log_prob"] = keep(log_prob, 0)
    except RuntimeError:  # an operation without a batching rule: VmappedDistribution loops over particles later
        packed.pop("score_parts", None)
    # As in a plate: every particle has a latent and a log-density, even if they are equal. Observed data are shared.
    packed["value"] = slot(value, fn.event_dim) if site["is_observed"] else keep(value, fn.event_dim)
    packed["scale"], packed["mask"] = slot(site["scale"]), slot(site["mask"])
    packed["fn"] = VmappedDistribution(fn, layout, keep)
    frame = CondIndepStackFrame(PLATE, -1 - layout.nesting, layout.num_particles, 0)
    packed["cond_indep_stack"] = (frame, *site["cond_indep_stack"])
    return packed


def _validates(fn: Any) -> bool:
    """Whether a distribution validates its values, as one created with validation on does."""
    while not fn._validate_args and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn._validate_args


def _unpack(site: dict[str, Any], layout: Layout, found: Sequence[Tensor]) -> dict[str, Any]:
    def tensor(part: Any) -> Any:
        return layout.align(found[part.place], part.event_dim) if isinstance(part, Slot) else part

    if isinstance(site["fn"], _Subsample):
        return site
    site["fn"].fill(found)
    for key in ("value", "scale", "mask", "unscaled_log_prob"):
        if key in site:
            site[key] = tensor(site[key])
    if "score_parts" in site:
        site["score_parts"] = ScoreParts(*(tensor(part) for part in site["score_parts"]))
    return site
