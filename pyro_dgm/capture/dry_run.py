"""A call that leaves nothing changed: random state and tensors are put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_dgm.ops.random_state import fork_rng

__all__ = ["DryRun", "dry_run"]


class DryRun(NamedTuple):
    """What a function gave, and what it would have left behind."""

    results: Any
    #: values of the state tensors that it wrote, by position
    written: dict[int, Tensor]
    #: the CPU's random state after it
    random_state: Tensor


def dry_run(fn: Callable[..., Any], inputs: Sequence[Tensor], state: Iterable[Tensor]) -> DryRun:
    """Call ``fn(*inputs)``, then put back the random state and the tensors of ``state`` that it wrote in place."""
    state = list(state)
    kept = [t.detach().clone() for t in state]
    written: dict[int, Tensor] = {}
    with fork_rng(), pyro.validation_enabled(False):
        try:
            results = fn(*inputs)
            after = torch.get_rng_state()
        finally:
            with torch.no_grad():
                for i, (tensor, value) in enumerate(zip(state, kept, strict=True)):
                    # By value: compiled code writes without a version to tell by.
                    if not torch.equal(tensor, value):
                        written[i] = tensor.detach().clone()
                        tensor.copy_(value)
    return DryRun(results, written, after)
