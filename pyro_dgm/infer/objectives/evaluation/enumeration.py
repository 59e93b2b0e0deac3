"""Exact sums over discrete sites that Pyro marks with ``infer={"enumerate": ...}``.

The sums themselves are Pyro's (``TraceEnum_ELBO`` and its tensor contraction). Added here: the result per datum, and
the model's marginal density for objectives with several particles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.util import Dice
from pyro.ops import packed
from pyro.ops.rings import LogRing
from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.evaluation.runners import OneBatch
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.infer.objectives.evaluation.vectorization import strategy_for
from pyro_dgm.programs.enumerated import model_costs
from pyro_dgm.programs.structure import WithPriors

__all__ = ["enumerated_bound", "enumerated_elbo"]


class _Expectation(Dice):
    """Pyro's DiCE factors, summed by the same operations whatever the values are.

    Pyro leaves out the terms whose probability is zero, since their cost may be infinite. Here they are masked, so that
    the sum can be recorded as a graph.
    """

    def compute_expectation(self, costs: dict[Any, list[Tensor]]) -> Any:
        total: Any = 0.0
        with shared_intermediates() as cache:
            ring = LogRing(cache=cache)
            for ordinal, terms in costs.items():
                factors = self._get_log_factors(ordinal)
                number = math.exp(sum(f for f in factors if not isinstance(f, Tensor)))
                factors = [f for f in factors if isinstance(f, Tensor)]
                for cost in terms:
                    total = total + number * self._mean(ring, factors, cost, ordinal)
        return total

    @staticmethod
    def _mean(ring: LogRing, factors: list[Any], cost: Any, ordinal: Any) -> Tensor:
        if not factors:
            return cost.sum()
        summed = set().union(*(f._pyro_dims for f in factors)) - set(ordinal) - set(cost._pyro_dims)
        probability: Any = ring.sumproduct(factors, frozenset(summed))
        names = probability._pyro_dims
        probability = probability.exp()
        probability._pyro_dims = names
        value, probability = packed.broadcast_all(cost, probability)
        possible = probability > 0
        # A cost of probability zero may be infinite: the outer mask drops it, the inner one keeps NaN out of gradients.
        return torch.where(possible, probability * torch.where(possible, value, 0.0), 0.0).sum()


def enumerated_elbo(
    objective: Any, pair: Pair, weights: Callable[[poutine.Trace, poutine.Trace], Tensor] | None = None
) -> Tensor:
    """The ELBO with all marked sites summed out (Pyro's DiCE estimator), averaged over particles.

    :param weights: gives a tensor over the plates that multiplies every cost. The ELBO is linear in its costs, so the
        derivative with respect to this tensor is the ELBO of each datum.
    """
    structure = replace(pair.structure, under_vmap=False)
    strategy = strategy_for(
        replace(pair, structure=structure), objective.num_particles, vectorize=objective.vectorize_particles
    )
    vectorized = strategy.kind.vectorized
    elbo = TraceEnum_ELBO(
        num_particles=objective.num_particles,
        max_plate_nesting=structure.nesting,
        vectorize_particles=vectorized,
        strict_enumeration_warning=objective.strict_enumeration_warning,
    )
    total: Any = 0.0
    for model_trace, guide_trace in elbo._get_traces(
        WithPriors(structure.unmasked)(pair.model), OneBatch()(pair.guide), pair.args, pair.kwargs
    ):
        costs, ordering = model_costs(model_trace, guide_trace)
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample":
                costs.setdefault(ordering[name], []).append(packed.neg(site["packed"]["log_prob"]))
        if weights is not None:
            leaf = weights(model_trace, guide_trace)
            dims = {d: s for s, d in model_trace.symbol_to_dim.items()}
            leaf_packed = packed.pack(leaf, {d: dims[d] for d in range(-leaf.dim(), 0) if leaf.shape[d] > 1})
            for terms in costs.values():
                terms[:] = [_multiply(leaf_packed, t) for t in terms]
        total = total + _Expectation(guide_trace, ordering).compute_expectation(costs)
    return torch.as_tensor(total) / objective.num_particles


def enumerated_bound(objective: Any, pair: Pair) -> Tensor:
    """The ELBO of each datum with all marked sites summed out, without the outer scale or gradients."""
    found: list[Any] = []

    def weights(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
        # Ones over the plates that contain every site: the gradient with respect to them is the scaled ELBO per datum.
        if not found:
            frames = Particles([(model_trace, guide_trace)], 1, pair.structure.nesting, False)
            like = frames.zero(model_trace, guide_trace)
            sizes = [1] * pair.structure.nesting
            for frame in frames.plates:
                sizes[frame.dim] = frame.size
            found.extend([like.new_ones(sizes).requires_grad_(), frames.outer_scale, frames.shape])
        return found[0]

    with torch.enable_grad():
        elbo = enumerated_elbo(objective, pair, weights)
        if not elbo.requires_grad:  # neither model nor guide has a site
            return elbo.expand(found[2])
        (per_datum,) = torch.autograd.grad(elbo, found[0])
    return (per_datum / found[1]).reshape(found[2])


def _multiply(weights: Tensor, cost: Any) -> Tensor:
    a, b = packed.broadcast_all(weights, cost)
    product = a * b
    product._pyro_dims = a._pyro_dims
    return product
