"""Compares a run of all particles at once with runs of single particles at the same values.

Shapes alone do not show a mistake: the particle dimension may broadcast against the data and give a wrong result.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.evaluation.runners import InPlate, OneByOne, mini_batch
from pyro_dgm.infer.objectives.evaluation.strategy import Pair, Strategy
from pyro_dgm.programs.module_state import State, close
from pyro_dgm.programs.structure import guide_messenger, is_point, sample_sites

__all__ = ["difference"]

#: number of single particles that are compared
COMPARED = 8


def difference(
    pair: Pair,
    strategy: Strategy,
    num_particles: int,
    single: tuple[poutine.Trace, poutine.Trace],
    dropout: bool,
    state: State,
    written: list[int],
) -> str:
    """The first difference between all particles run at once and each run alone; ``""`` if there is none."""
    if dropout and strategy.kind is InPlate:
        return "dropout would give all particles the same noise"
    nesting, enumerates = pair.structure.nesting, pair.structure.model_enumerates
    traces = pair.run(strategy.runner(num_particles, nesting, poison=True))
    if reason := state.differs(written):
        return reason
    state.restore()
    together = Particles([traces], num_particles, nesting, True, enumerates)
    latents = sample_sites(single[1])
    # Computed now, because the next run numbers the dimensions of enumerated sites anew (Pyro's counter is global).
    terms = {"log p": together.log_p, "log q": together.log_q}
    for name, site in sample_sites(traces[1]).items():
        if torch.as_tensor(site["value"]).isnan().any() and not torch.as_tensor(latents[name]["value"]).isnan().any():
            return f"draws of site {name!r} are NaN"
    points = {name for name, site in latents.items() if is_point(site["fn"])}
    replayable = guide_messenger(pair.guide) is None
    for k in {round(i * (num_particles - 1) / (COMPARED - 1)) for i in range(COMPARED)}:
        given = _of_particle(traces[1], k, num_particles, strategy.dims, points if replayable else set())
        for name, site in mini_batch(traces[0]).nodes.items():
            if name not in given:
                given.add_node(name, **site)
        runner = OneByOne(1, nesting)
        if replayable:
            alone = pair.run(runner, given)
        else:
            model_trace = runner.run(pair.model, pair.args, pair.kwargs, given, enumerates=enumerates)
            alone = model_trace, poutine.Trace()
        one = Particles([alone], 1, nesting, False, enumerates)
        sides = zip(traces[: 1 + replayable], alone, strict=False)
        if reason := "" if enumerates else _sites_differ(sides, k, together, one):
            return reason
        for name, expected in (("log p", one.log_p), ("log q", one.log_q))[: 1 + replayable]:
            if not close(terms[name][k], expected[0]):
                return f"{name} of a particle differs from that of the particle run alone"
    return ""


def _of_particle(
    trace: poutine.Trace, k: int, num_particles: int, dims: dict[str, int], without: set[str]
) -> poutine.Trace:
    """The latents of one particle, with the shapes that they have in a run of this particle alone.

    :param without: sites to leave out: point masses, which the run computes again. Replayed, a rounding error would
        make their density zero.
    """
    one = poutine.Trace()
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, site in nodes.items():
        if site["type"] != "sample" or name in without:
            continue
        value = site["value"]
        if name in dims and value.dim() > dims[name]:
            if value.shape[0] != num_particles:
                raise ValueError(f"site {name!r} has shape {tuple(value.shape)} with {num_particles} particles")
            value = value[k].reshape(value.shape[value.dim() - dims[name] :])
        one.add_node(name, **{**site, "value": value})
    return one


def _sites_differ(sides: Any, k: int, together: Any, one: Any) -> str:
    for trace, alone in sides:
        found, expected = sample_sites(trace), sample_sites(alone)
        if list(found) != list(expected):
            return f"it has the sites {list(found)}, but {list(expected)} with one particle alone"
        for name, site in expected.items():
            a, b = together.log_prob(found[name]), one.log_prob(site)
            width = max(a.dim(), b.dim() + 1)
            a, b = a.reshape((1,) * (width - a.dim()) + a.shape), b.reshape((1,) * (width - 1 - b.dim()) + b.shape)
            if not close(a[k if a.shape[0] > 1 else 0], b):
                return f"the log-density of site {name!r} differs from that of a particle run alone"
    return ""
