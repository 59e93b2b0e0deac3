"""Discrete latents of a model, summed out of its joint density so that a gradient can move the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_dgm.infer.mcmc.potentials.masked import Masked
from pyro_dgm.ops.log_einsum import LogSumRing
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs.enumerated import marginal_model_terms

__all__ = ["Marginalised", "marginalised"]


@dataclass(frozen=True)
class Marginalised:
    r"""The discrete latents that are summed out, exactly:

    .. math:: \log p(x, z) = \log \sum_k p(x, z, k)

    Sums run over each site's support, plate by plate, in the order that the model's dependencies allow (Pyro's tensor
    variable elimination), so a plate of ``N`` assignments to ``K`` components costs ``N K`` terms, not ``K^N``.

    :ivar names: of the sites.
    :ivar nesting: dimensions that plates take.

    Source: F. Obermeyer et al. (2019), "Tensor variable elimination for plated factor graphs", arXiv:1902.03210.
    """

    names: frozenset[str]
    nesting: int

    def log_prob(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        by_site: dict[str, float] | None = None,
        masked: Masked | None = None,
    ) -> Tensor:
        """The marginal log-density of a model whose other latents have their values from a handler outside.

        :param by_site: filled with the largest log-probability of each site over what is summed, or NaN.
        :param masked: what stands in the place of masked values.
        """

        trace = self._enumerated(model, args, kwargs)
        site: Any
        for name, site in trace.nodes.items():
            if masked is not None and site["type"] == "sample":
                site["value"] = masked.filled(name, site["value"])
        terms = list(marginal_model_terms(trace, poutine.Trace(), ring=LogSumRing))
        if by_site is not None:
            for name, site in trace.nodes.items():
                if site["type"] == "sample":
                    by_site[name] = float(site["log_prob"].max())
        return torch.stack([t.sum() for t in terms]).sum()

    def _enumerated(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> poutine.Trace:
        def marked(*args: Any, **kwargs: Any) -> None:
            with _Marking(self.names):
                model(*args, **kwargs)

        enumerated = _Enumerating(first_available_dim=-1 - self.nesting)(marked)
        return prune_subsample_sites(poutine.trace(enumerated).get_trace(*args, **kwargs))

    def check(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[str, Tensor]
    ) -> None:
        """Compare the model's densities for all values of its discrete latents with those for the first and last alone.

        A discrete latent that is summed out has a further dimension, on the left; a model that does not expect it
        (``.expand([2])`` of something of two elements, ``k[0]``) computes something else, often of a fitting shape.

        :param values: of the other latents.
        :raises ValueError: naming the site.
        """
        given = poutine.condition(model, data=dict(values))
        device = next(iter(values.values())).device
        # The same random numbers each time: plates may choose their mini-batch.
        with forked_rng(device, 0):
            together = self._enumerated(given, args, kwargs)
        together.compute_log_prob()
        for index in (0, -1):
            with forked_rng(device, 0), _Single(self.names, index):
                alone = prune_subsample_sites(poutine.trace(given).get_trace(*args, **kwargs))
            alone.compute_log_prob()
            for name, site in alone.nodes.items():
                if site["type"] != "sample":
                    continue
                expected, found = site["log_prob"], together.nodes[name]["log_prob"]
                for dim in range(found.dim() - self.nesting):
                    found = found.narrow(dim, index % found.shape[dim], 1)
                if not _same(expected, found):
                    raise ValueError(
                        f"site {name!r} has another density where {sorted(self.names)} take all their values at once "
                        "than where they take one: summed out they have one more dimension, left of the plates'; "
                        "write the model for that (k.unsqueeze(-1) against events, pyro.ops.indexing.Vindex, ...)"
                    )


class _Enumerating(EnumMessenger):
    """Pyro's handler, told the shapes of values and not their data, which ``vmap`` does not let it read."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if value is not None:
            msg = {**msg, "value": torch.empty(value.shape, device="meta")}
        super()._pyro_post_sample(msg)


def _same(expected: Tensor, found: Tensor) -> bool:
    """Up to rounding; one may have been expanded where the other is the same for all."""
    expected, found = expected.detach(), found.detach().to(expected.dtype)
    try:
        expected, found = torch.broadcast_tensors(expected, found)
    except RuntimeError:
        return False
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    return torch.allclose(expected, found, rtol=tolerance, atol=tolerance, equal_nan=True)


class _Single(Messenger):
    """Give discrete latents one value of their support, by its number."""

    def __init__(self, names: frozenset[str], index: int) -> None:
        super().__init__()
        self.names, self.index = names, index

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            value = msg["fn"].enumerate_support(expand=False)[self.index]
            msg["value"], msg["done"] = value.expand(msg["fn"].shape()), True


class _Marking(Messenger):
    """Mark sites for enumeration, whatever the model says of them."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["infer"] = {**msg["infer"], "enumerate": "parallel"}


def marginalised(sites: Mapping[str, Any], trace: Any, max_plate_nesting: int | None = None) -> Marginalised | None:
    """What is to be summed out of a model: its discrete latents, of finitely many values each.

    :param sites: the latent sites of one run.
    :param trace: that run, whose plates are counted.
    :param max_plate_nesting: dimensions to leave to plates, at least as many as they take.
    :returns: ``None`` where there is none.
    :raises ValueError: for a discrete latent that cannot be enumerated, or where all latents are discrete; by name.
    """
    discrete = {name: site for name, site in sites.items() if site["fn"].support.is_discrete}
    for name, site in discrete.items():
        if not getattr(site["fn"], "has_enumerate_support", False):
            raise ValueError(
                f"latent site {name!r} is discrete ({type(site['fn']).__name__}) and cannot be enumerated, so "
                "gradient-based MCMC can neither move it nor sum it out: sum it out in the model, put it in a plate of "
                "single values if it is an event of several, observe it, or use a guide"
            )
    frames = [f for s in trace.nodes.values() if s["type"] == "sample" for f in s["cond_indep_stack"] if f.vectorized]
    nesting = max((-f.dim for f in frames), default=0)
    if max_plate_nesting is not None and max_plate_nesting < nesting:
        raise ValueError(
            f"max_plate_nesting must be at least {nesting}, which the model's plates take, got {max_plate_nesting}"
        )
    if not discrete:
        return None
    if len(discrete) == len(sites):
        raise ValueError(
            f"latent sites {sorted(discrete)} are all that there are, and are discrete: with them summed out nothing "
            "is left to sample. Gibbs and GibbsWithGradients draw discrete states; TraceEnumELBO sums them"
        )
    return Marginalised(frozenset(discrete), max(nesting, max_plate_nesting or 0))
