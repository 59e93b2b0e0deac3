"""Traces of guide and model with K particles, and the log-densities per datum from which objectives are computed.

A datum is an element of the plates that contain *every* sample site: each has importance weights of its own. The
subsampling scale of those plates, and a ``poutine.scale`` that all sites of model and guide share, multiply the
finished bound from outside, so that the logarithm of an average of weights stays a lower bound. A scale that only some
sites have is part of the weights. With a global latent no plate contains every site, and the weights are joint over
the data.

If the model masks a latent and the guide does not, its prior density is still included. The mask says that nothing else
depends on it, so the marginal likelihood does not change; without the prior, the guide's entropy would raise the bound
without limit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.runners import InPlate, OneByOne, Runner
from pyro_dgm.infer.objectives.evaluation.under_vmap import PLATE
from pyro_dgm.programs.enumerated import marginal_model_terms
from pyro_dgm.programs.structure import sample_sites, unmasked_latents

__all__ = ["Particles", "ScaleGradient"]

_NAME, _DIM, _SIZE, _VECTORIZED = map(attrgetter, ("name", "dim", "size", "vectorized"))


class Particles:
    """Guide and model traces of K particles, and the log-densities from which objectives are computed.

    :ivar pairs: ``(model_trace, guide_trace)``: one pair whose leftmost plate is the particles, or K pairs.
    :ivar num_particles: K.
    :ivar runner: what ran the particles; it can run another program on the same ones.
    :ivar plates: the plates that index the weights, leftmost dimension first.
    :ivar shape: shape of a per-datum quantity: the sizes of these plates.
    :ivar outer_scale: factor of the sum of the bounds (subsampling and mini-batch scale).
    :ivar guides: the guide's traces with the index draws of subsampled plates, which ``pairs`` does not have.
    :ivar stopped: for path-derivative estimators: ``log_q``, with a gradient through the samples alone.
    :ivar holders: for :class:`ScaleGradient`: ``(index of the pair, holder, guide site)`` of each scaled sample.
    :ivar dream_log_q: for wake-sleep objectives, the guide's log-density at a dream of the model, ``(1, *shape)``.
    """

    #: latents whose KL divergence is estimated by sampling although a closed form exists
    sampled_kl: frozenset[str] = frozenset()
    #: whether the weights are averaged inside a logarithm
    averages_weights = True
    guides: list[poutine.Trace]
    stopped: Tensor
    dream_log_q: Tensor
    holders: list[tuple[int, list[Tensor], Any]]

    def __init__(
        self,
        pairs: Sequence[tuple[poutine.Trace, poutine.Trace]],
        num_particles: int,
        nesting: int,
        vectorized: bool,
        model_enumerates: bool = False,
        runner: Runner | None = None,
    ) -> None:
        self.pairs: list[tuple[poutine.Trace, poutine.Trace]] = []
        sites: list[Any] = []
        for model, guide in pairs:
            model, guide = prune_subsample_sites(model), prune_subsample_sites(guide)
            model_sites, guide_sites = sample_sites(model), sample_sites(guide)
            for name in unmasked_latents(model_sites, guide_sites):
                model_sites[name] = {**model_sites[name], "mask": None}
                model.nodes[name] = model_sites[name]
            self.pairs.append((model, guide))
            sites = sites or [*model_sites.values(), *guide_sites.values()]  # of the first pair
        self.num_particles, self.nesting, self.vectorized = num_particles, nesting, vectorized
        self.model_enumerates = model_enumerates
        self.runner = (InPlate if vectorized else OneByOne)(num_particles, nesting) if runner is None else runner
        self._cache: dict[str, Any] = {}
        names = [set(map(_NAME, s["cond_indep_stack"])) for s in sites]
        shared = set.intersection(*names) - {PLATE} if names else set()
        common = {f.name: f for s in sites for f in s["cond_indep_stack"] if f.name in shared}
        self.plates = sorted(filter(_VECTORIZED, common.values()), key=_DIM)
        self.shape = torch.Size(map(_SIZE, self.plates))
        self._summed = sorted(set(range(-nesting, 0)).difference(map(_DIM, self.plates)))
        self.outer_scale = self._outer_scale(sites, list(common.values()))

    @staticmethod
    def _outer_scale(sites: list[Any], common: list[Any]) -> Any:
        scale = _subsampling(common)
        # A factor that all sites have beside their plates' scale. One that only some have is part of the weights.
        rest = set()
        for site in sites:
            if isinstance(site["scale"], Tensor):
                return scale  # comparing tensors would wait for the device: such scales stay with their site
            rest.add(round(float(site["scale"] / _subsampling(site["cond_indep_stack"])), 12))
        return scale * rest.pop() if len(rest) == 1 else scale

    def reduce(self, tensor: Tensor, site: Any = None) -> Tensor:
        """Sum a site's log-probability over the plates that do not index weights, to shape ``(K or 1, *shape)``."""
        width = self.nesting + self.vectorized
        if tensor.dim() > width:
            name = "" if site is None else f" at site {site['name']!r}"
            raise ValueError(
                f"log_prob{name} has shape {tuple(tensor.shape)}, more dimensions than the {width} plates (particles "
                "included): declare its batch dimensions with pyro.plate or .to_event, or give max_plate_nesting"
            )
        tensor = tensor.reshape((1,) * (width - tensor.dim()) + tensor.shape)
        if not self.vectorized:
            tensor = tensor.unsqueeze(0)
        tensor = tensor.sum(self._summed) if self._summed else tensor
        return tensor.expand((tensor.shape[0], *self.shape))

    def inner(self, tensor: Tensor, site: Any) -> Tensor:
        """Apply a site's mask and its scale, divided by :attr:`outer_scale`, to an unscaled log-probability."""
        scale = site["scale"]
        if isinstance(scale, Tensor) or not math.isclose(scale, self.outer_scale, rel_tol=1e-9):
            if (
                self.averages_weights
                and not self._cache.get("warned")
                and self.num_particles > 1
                and _subsampled_inside(site, self.plates)
            ):
                self._cache["warned"] = True
                warnings.warn(
                    f"site {site['name']!r} is in a subsampled plate that does not contain every latent: the weights "
                    "are joint over the data and the subsampling scale is inside the logarithm, so for more than one "
                    "particle this is an estimate, not a bound",
                    stacklevel=2,
                )
            return scale_and_mask(tensor, scale / self.outer_scale, site["mask"])
        return scale_and_mask(tensor, 1.0, site["mask"])

    # Per-site terms

    def log_prob(self, site: Any) -> Tensor:
        """Unscaled, unmasked log-probability of a site in its batch shape (memoised on the trace)."""
        if "unscaled_log_prob" not in site:
            if "score_parts" in site:
                site["unscaled_log_prob"] = site["score_parts"].log_prob
            else:
                site["unscaled_log_prob"] = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        return site["unscaled_log_prob"]

    def score_parts(self, site: Any) -> Any:
        """Unscaled ``(log_prob, score_function, entropy_term)`` of a guide site (Pyro's ``ScoreParts``)."""
        if "score_parts" not in site:
            site["score_parts"] = site["fn"].score_parts(site["value"], *site["args"], **site["kwargs"])
        return site["score_parts"]

    def scaled_log_prob(self, site: Any) -> Tensor:
        """Log-probability of a site with its whole scale and its mask, in its batch shape."""
        return scale_and_mask(self.log_prob(site), site["scale"], site["mask"])

    def stack(self, per_pair: Callable[[poutine.Trace, poutine.Trace], Tensor]) -> Tensor:
        """Concatenate a ``(K or 1, *shape)`` quantity of each pair of traces along the particles."""
        parts = [per_pair(m, g) for m, g in self.pairs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def zero(self, *pair: poutine.Trace) -> Tensor:
        """The contribution of a side without sites: zeros of shape ``(K or 1, *shape)``."""
        shape = (self.num_particles if self.vectorized else 1, *self.shape)
        for trace in reversed(pair):
            for site in sample_sites(trace).values():
                return self.log_prob(site).new_zeros(shape)
        return torch.zeros(shape, device="cpu")  # neither model nor guide has a site

    def _sum(self, side: int) -> Callable[[poutine.Trace, poutine.Trace], Tensor]:
        def total(*pair: poutine.Trace) -> Tensor:
            if side == 0 and self.model_enumerates:
                return sum((self.reduce(t / self.outer_scale) for t in marginal_model_terms(*pair)), self.zero(*pair))
            terms = [
                self.reduce(self.inner(self.log_prob(site), site), site) for site in sample_sites(pair[side]).values()
            ]
            return sum(terms[1:], terms[0]) if terms else self.zero(*pair)

        return total

    @property
    def log_p(self) -> Tensor:
        """Joint log-density of the model, ``(K, *shape)``, nats, without the outer scale."""
        if "log_p" not in self._cache:
            self._cache["log_p"] = self.stack(self._sum(0))
        return self._cache["log_p"]

    @property
    def log_q(self) -> Tensor:
        """Log-density of the guide, ``(K, *shape)``, nats, without the outer scale."""
        if "log_q" not in self._cache:
            self._cache["log_q"] = self.stack(self._sum(1))
        return self._cache["log_q"]

    @property
    def log_weights(self) -> Tensor:
        """:math:`\\log w = \\log p - \\log q`, ``(K, *shape)``, nats."""
        return self.log_p - self.log_q

    @property
    def score_sites(self) -> list[str]:
        """Guide sites whose samples have no pathwise gradient, so that a score-function term is needed."""
        _, guide = self.pairs[0]
        return [
            n for n, s in sample_sites(guide).items() if not is_identically_zero(self.score_parts(s).score_function)
        ]

    def scores(self) -> Tensor | None:
        """Sum of the log-probabilities that need a score-function term, ``(K, *shape)``; ``None`` if none does."""
        if not self.score_sites:
            return None

        def total(_: poutine.Trace, guide: poutine.Trace) -> Tensor:
            sites = [s for s in sample_sites(guide).values() if s["name"] in self.score_sites]
            terms = [self.reduce(self.score_parts(s).score_function, s) for s in sites]
            return sum(terms[1:], terms[0])

        return self.stack(total)

    def at_particles(self, weights: Tensor, value: Tensor, pair: int, event_dim: int) -> Tensor:
        """Reshape ``(K, *shape)`` weights to broadcast against a site's value (batch and event dimensions)."""
        sizes = [1] * (self.nesting + 1)
        for frame in self.plates:
            sizes[frame.dim] = frame.size
        if self.vectorized:
            sizes[0] = self.num_particles
        else:
            weights = weights[pair]
        shaped = weights.reshape(sizes + [1] * event_dim)
        extra = shaped.dim() - value.dim()
        return shaped.reshape(shaped.shape[extra:]) if extra > 0 else shaped


def _subsampling(plates: Sequence[Any]) -> float:
    """The subsampling scale of these plates: full size over size."""
    scale = 1.0
    for frame in plates:
        scale *= (frame.full_size or frame.size) / frame.size
    return scale


def _subsampled_inside(site: Any, plates: Sequence[Any]) -> bool:
    outer = {f.name for f in plates}
    return any(
        f.full_size is not None and f.full_size > f.size and f.name not in outer for f in site["cond_indep_stack"]
    )


class ScaleGradient(torch.autograd.Function):
    """The identity, with its gradient multiplied by ``holder[0]``, a tensor that is set before the backward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, holder: list[Tensor]) -> Tensor:
        ctx.holder = holder
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.holder[0], None
