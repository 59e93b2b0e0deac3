"""The guide's log-density at fixed parameters: what the path-derivative estimators differentiate.

Let ``z`` depend on the guide's parameters through sampling.  :math:`\\log q_\\phi(z)` then depends on them twice:
through ``z`` and directly.  The direct part is removed by subtracting a second evaluation at the same numbers with
their dependence cut, whose gradient is the direct part alone, and adding its value back.  No distribution has to know
how to detach itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.programs.structure import sample_sites

__all__ = ["log_q_stopped", "with_values"]


def with_values(trace: poutine.Trace, change: Callable[[str, Any], Any]) -> poutine.Trace:
    """A copy of a trace whose latent sites hold ``change(name, site)`` instead of their values."""
    copy = poutine.Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"]:
            copy.add_node(name, **{**site, "value": change(name, site)})
    return copy


def log_q_stopped(
    particles: Particles,
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: list[poutine.Trace] | None = None,
) -> Tensor:
    """:math:`\\log q` whose gradient reaches the guide's parameters through the samples only, ``(K, *shape)``.

    Sites that are not reparameterised are left out of the gradient: their direct term has expectation zero.

    :param values: traces of the values at which to evaluate, where they are not the guide's own.
    """

    def rerun(trace: poutine.Trace) -> dict[str, Any]:
        return sample_sites(particles.runner.run(guide, args, kwargs, trace))

    parts = []
    for k, ((_, guide_trace), original) in enumerate(zip(particles.pairs, particles.guides, strict=True)):
        sites = {n: s for n, s in sample_sites(guide_trace).items() if n not in particles.score_sites}
        cut = with_values(original, lambda _, site: site["value"].detach())
        if len(sample_sites(guide_trace)) > 1:
            # One latent's density may depend on another latent: evaluate the whole guide at the values.
            fixed = rerun(cut)
            moved = sites if values is None else rerun(values[k])
        else:
            fixed = {n: _at(s, s["value"].detach()) for n, s in sites.items()}
            moved = sites if values is None else {n: _at(s, values[k].nodes[n]["value"]) for n, s in sites.items()}
        total: Any = particles.log_q[k : k + 1].detach() if not particles.vectorized else particles.log_q.detach()
        for n, site in sites.items():
            direct = particles.log_prob(fixed[n])
            stopped = particles.log_prob(moved[n]) - direct
            total = total + particles.reduce(particles.inner(stopped - stopped.detach(), site), site)
        parts.append(total)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _at(site: Any, value: Any) -> dict[str, Any]:
    """The site at another value, without the log-probabilities remembered for its own."""
    stale = ("unscaled_log_prob", "score_parts", "log_prob")
    return {**{k: v for k, v in site.items() if k not in stale}, "value": value}
