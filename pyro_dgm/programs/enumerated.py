"""A model's log-density with its enumerated discrete sites summed out; the sums are Pyro's tensor contraction."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.rings import LogRing, SampleRing
from torch import Tensor

__all__ = ["marginal_model_terms", "model_costs"]


def model_costs(
    model_trace: poutine.Trace, guide_trace: poutine.Trace, ring: type[LogRing] = SampleRing
) -> tuple[OrderedDict, Any]:
    """Packed log-densities of the model by plate set, its enumerated sites summed out; and the ordering of sites."""
    costs, log_factors, ordering, sum_dims, scale = _compute_model_factors(model_trace, guide_trace)
    if log_factors:
        sizes: dict[str, int] = {}
        for terms in log_factors.values():
            for term in terms:
                sizes.update(zip(term._pyro_dims, term.shape, strict=True))
        with shared_intermediates() as cache:
            contracted = contract_tensor_tree(log_factors, sum_dims, ring=ring(cache=cache, dim_to_size=sizes))
        for plates, terms in contracted.items():
            # The scale goes outside the log of the sum, the mask is already inside.
            costs.setdefault(plates, []).extend(packed.scale_and_mask(t, scale=scale) for t in terms)
    return costs, ordering


def marginal_model_terms(
    model_trace: poutine.Trace, guide_trace: poutine.Trace, *, ring: type[LogRing] = SampleRing
) -> Iterator[Tensor]:
    """The model's scaled log-densities with its enumerated sites summed out, in plate-aligned batch shapes.

    :param ring: of the sums and products; ``torch.func`` cannot transform Pyro's own.
    """
    guide_trace.compute_log_prob()
    guide_trace.pack_tensors()
    model_trace.compute_log_prob()
    model_trace.pack_tensors(guide_trace.plate_to_symbol)
    costs, _ = model_costs(model_trace, guide_trace, ring)
    for terms in costs.values():
        for term in terms:
            yield packed.unpack(term, model_trace.symbol_to_dim)
