"""Which parameters are the model's and which the guide's, by what depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs.parameters import STORE_PREFIX, ParameterRecorder, module_roots
from pyro_dgm.programs.structure import guide_messenger, sample_sites

__all__ = ["Parameters", "find_parameters"]


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
    with forked_rng(), torch.enable_grad(), ParameterRecorder() as recorder:
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
    roots = module_roots(program).items()
    named = [((prefix + n).removeprefix(STORE_PREFIX), p) for prefix, m in roots for n, p in m.named_parameters()]
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
