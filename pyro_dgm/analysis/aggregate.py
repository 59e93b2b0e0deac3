"""The aggregate posterior of a data set: every draw's density under every datum's posterior.

What follows from it, the information in the code and the distance of the code from the prior, is in
:mod:`~pyro_dgm.analysis.surgery` and :mod:`~pyro_dgm.analysis.information`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_dgm.analysis.prepared import Prepared
from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.infer.objectives.evaluation.vectorization import strategy_for
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.programs import as_program
from pyro_dgm.programs.structure import guide_messenger, sample_sites

__all__ = ["AggregateTerms", "aggregate_terms"]


@dataclass(frozen=True)
class AggregateTerms:
    """Log-densities at draws ``z`` of the posterior of each datum, each ``(num_samples, N)``, nats, float64.

    :ivar log_likelihood: :math:`\\log p(x_n|z)`.
    :ivar log_prior: :math:`\\log p(z)`.
    :ivar log_posterior: :math:`\\log q(z|x_n)`, the datum's own.
    :ivar log_aggregate: :math:`\\log \\frac1N \\sum_m q(z|x_m)`.
    :ivar log_others: the same over the other data, :math:`\\log \\frac1{N-1} \\sum_{m \\ne n} q(z|x_m)`.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    log_aggregate: Tensor
    log_others: Tensor


def aggregate_terms(
    who: str, program: Any, x: Any, num_samples: int, chunk_size: int, seed: int | None
) -> AggregateTerms:
    """Evaluate all pairs of draws and data, ``chunk_size`` pairs at once.

    :param who: the function that asks, for messages.
    :raises ValueError: for a program without one plate of data, or too few samples.
    """
    program = as_program(program)
    check_count("num_samples", num_samples, 2, why="a standard error needs two")
    check_count("chunk_size", chunk_size)
    if guide_messenger(program.guide) is not None:
        raise TypeError(f"{who} evaluates the guide at given values, which a GuideMessenger guide cannot do")
    with Prepared.of(program, x, seed).evaluating() as prepared:
        pair = prepared.pair
        if pair.structure.model_enumerates:
            raise ValueError(
                f"{who} needs draws of every latent, but the model enumerates one: give the guide its site"
            )
        rows = []
        for _ in range(num_samples):
            drawn = prepared.particles()
            if len(drawn.shape) != 1:
                raise ValueError(
                    f"{who} compares the posteriors of data, so every latent must be in one plate over data, but the "
                    f"plates that hold every site have sizes {tuple(drawn.shape)}: give a program with a datum's "
                    "latents only"
                )
            rows.append(_terms(drawn, pair, chunk_size))
    return AggregateTerms(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _terms(drawn: Particles, pair: Pair, chunk_size: int) -> tuple[Tensor, ...]:
    model_trace, guide_trace = drawn.pairs[0]

    def total(observed: bool) -> Tensor:
        out = drawn.log_q.new_zeros(drawn.log_q.shape)
        for site in sample_sites(model_trace).values():
            if site["is_observed"] == observed:
                out = out + drawn.reduce(drawn.inner(drawn.log_prob(site), site), site)
        return out[0].double()

    table = _all_pairs(drawn, guide_trace, pair, chunk_size)  # (draw of m, datum n)
    n = table.shape[0]
    everything = table.logsumexp(1) - math.log(n)
    others = table.masked_fill(torch.eye(n, dtype=torch.bool, device=table.device), -math.inf)
    return total(True), total(False), table.diagonal(), everything, others.logsumexp(1) - math.log(max(n - 1, 1))


def _all_pairs(drawn: Particles, trace: poutine.Trace, pair: Pair, chunk_size: int) -> Tensor:
    """``log q(z_m | x_n)``: the guide with draws as particles, each of which is given to all data."""
    (frame,) = drawn.plates
    count, rows = frame.size, []
    for start in range(0, count, max(chunk_size // count, 1)):
        index = torch.arange(count, device="cpu")[start : start + max(chunk_size // count, 1)]
        replayed = poutine.Trace()
        nodes: dict[str, Any] = dict(trace.nodes)
        for name, site in nodes.items():
            if site["type"] != "sample":
                continue
            value, event_dim = site["value"], site["fn"].event_dim
            # Batch dimensions padded to the nesting, so that the plate of data is where its frame says.
            batch = value.shape[: value.dim() - event_dim]
            value = value.reshape((1,) * (drawn.nesting - len(batch)) + value.shape)
            if sample_sites(trace).get(name) is None:  # the indices of a subsampled plate
                replayed.add_node(name, **site)
                continue
            at = drawn.nesting + frame.dim
            chosen = value.index_select(at, index.to(value.device)).movedim(at, 0).unsqueeze(at + 1)
            shape = list(chosen.shape)
            shape[at + 1] = count
            replayed.add_node(name, **{**site, "value": chosen.expand(shape)})
        runner = strategy_for(pair, len(index)).runner(len(index), drawn.nesting)
        given = [replayed] if runner.vectorized else [_of_draw(replayed, trace, k) for k in range(len(index))]
        again = [runner.run(pair.guide, pair.args, pair.kwargs, values, scores=True) for values in given]
        rows.append(Particles([(t, t) for t in again], len(index), drawn.nesting, runner.vectorized).log_q.double())
    return torch.cat(rows)


def _of_draw(many: poutine.Trace, one: poutine.Trace, k: int) -> poutine.Trace:
    """The values of one draw, in the shapes that they were drawn in."""
    values, drawn = poutine.Trace(), sample_sites(one)
    for name, site in many.nodes.items():
        value: Any = site["value"]
        if name in drawn:
            value = value[k].reshape(value.shape[value.dim() - drawn[name]["value"].dim() :])
        values.add_node(name, **{**site, "value": value})
    return values
