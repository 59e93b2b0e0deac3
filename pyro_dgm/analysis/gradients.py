"""Gradients of an objective over replicates: whose parameters they are, their means, variances and directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_dgm.infer.elbo.structure import fork_rng, guide_messenger, sample_sites
from pyro_dgm.infer.parameters import ParameterRecorder, module_roots

__all__ = ["Moments", "Parameters", "find_parameters", "gradient", "signal_to_noise"]


@dataclass(frozen=True)
class Parameters:
    """Leaf tensors that a program trains, by name, and which of them its model and its guide depend on."""

    tensors: dict[str, Tensor]
    model: frozenset[str]
    guide: frozenset[str]

    @property
    def values(self) -> list[Tensor]:
        """The tensors, in order."""
        return list(self.tensors.values())

    def indices(self, side: str) -> list[int]:
        """Positions of the parameters of ``"model"`` or ``"guide"``."""
        names = self.model if side == "model" else self.guide
        return [i for i, name in enumerate(self.tensors) if name in names]


def find_parameters(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parameters:
    """Find a program's parameters and split them by what depends on them.

    A parameter is the guide's if the guide's samples or their log-densities depend on it (by autograd), and the
    model's if the model's log-densities do, with the latents held fixed; one that both use (a shared network) is
    both's.  So families that keep both in one module are split as rightly as two modules.
    """
    model, guide = program.model, program.guide
    messenger = guide_messenger(guide)
    with fork_rng(), torch.enable_grad(), ParameterRecorder() as recorder:
        if messenger is not None:
            guide(*args, **kwargs)
            guide_trace = messenger.get_traces()[1]
        else:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        fixed = guide_trace.copy()
        for name, site in sample_sites(guide_trace).items():
            fixed.nodes[name] = {**site, "value": site["value"].detach()}
        model_trace = poutine.trace(poutine.replay(model, trace=fixed)).get_trace(*args, **kwargs)
        tensors = _collect(program, recorder.found)
        guide_terms = [v for s in sample_sites(guide_trace).values() for v in (s["value"], _density(s))]
        model_terms = [_density(s) for s in sample_sites(model_trace).values()]
        sides = [_depends(terms, tensors) for terms in (model_terms, guide_terms)]
    used = {n: t for n, t in tensors.items() if n in sides[0] or n in sides[1]}
    return Parameters(used, sides[0], sides[1])


def _collect(program: Any, recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    named = [(prefix + n, p) for prefix, m in module_roots(program).items() for n, p in m.named_parameters()]
    for name, tensor in (*named, *recorded.items()):
        if tensor.requires_grad and id(tensor) not in found:
            found[id(tensor)] = name
            tensors[name] = tensor
    return tensors


def _density(site: Any) -> Tensor:
    return scale_and_mask(site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"]), mask=site["mask"])


def _depends(terms: Sequence[Any], tensors: dict[str, Tensor]) -> frozenset[str]:
    sums = [t.sum() for t in terms if isinstance(t, Tensor) and t.requires_grad]
    if not sums or not tensors:
        return frozenset()
    grads = torch.autograd.grad(sum(sums[1:], sums[0]), list(tensors.values()), allow_unused=True, retain_graph=True)
    return frozenset(name for name, g in zip(tensors, grads, strict=True) if g is not None)


class Moments:
    """Mean and variance of each element of the gradient over replicates (Welford), without keeping the replicates."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: list[Tensor] = []
        self.squares: list[Tensor] = []

    def add(self, grads: Sequence[Tensor]) -> None:
        """Take one replicate."""
        if not self.mean:
            self.mean = [torch.zeros_like(g, dtype=torch.float64) for g in grads]
            self.squares = [torch.zeros_like(m) for m in self.mean]
        self.count += 1
        for mean, squares, g in zip(self.mean, self.squares, grads, strict=True):
            delta = g.double() - mean
            mean += delta / self.count
            squares += delta * (g.double() - mean)

    def merged(self, other: Moments) -> Moments:
        """Moments of both sets of replicates (Chan's formula)."""
        out = Moments()
        out.count = self.count + other.count
        for m1, s1, m2, s2 in zip(self.mean, self.squares, other.mean, other.squares, strict=True):
            delta = m2 - m1
            out.mean.append(m1 + delta * (other.count / out.count))
            out.squares.append(s1 + s2 + delta.square() * (self.count * other.count / out.count))
        return out

    def flat(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of the elements of the parameters at ``indices``, each one vector."""
        mean = torch.cat([self.mean[i].flatten() for i in indices])
        return mean, torch.cat([self.squares[i].flatten() for i in indices]) / (self.count - 1)


def signal_to_noise(mean: Tensor, variance: Tensor) -> float:
    """Mean over parameters of \\|mean\\| / sd; those whose gradient never changes (sd 0) are left out.

    Infinite if no gradient has noise, but some has signal; NaN if all are zero.
    """
    noisy = variance > 0
    if bool(noisy.any()):
        return float((mean[noisy].abs() / variance[noisy].sqrt()).mean())
    return float("inf") if bool((mean != 0).any()) else float("nan")


def gradient(fn: Callable[[], Tensor], parameters: Parameters, scale: float) -> tuple[float, list[Tensor]]:
    """Value and gradient of ``fn() * scale``, zeros where a parameter has no part; ``.grad`` is not touched."""
    with torch.enable_grad():
        loss = fn() * scale
        grads = torch.autograd.grad(loss, parameters.values, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters.values, strict=True)]
    return float(loss.detach()), filled
