"""The continuous latents of a model, grouped by the plates that they are in, in unconstrained space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_dgm.ops.random_state import fork_rng

__all__ = ["Group", "Part", "find_groups"]


@dataclass(frozen=True)
class Part:
    """A latent site's share of its group's vector.

    :ivar name: of the site.
    :ivar support: of its distribution.
    :ivar event_dim: of its distribution.
    :ivar shape: of the unconstrained value, for one element of the plates.
    """

    name: str
    support: Any
    event_dim: int
    shape: torch.Size


@dataclass(frozen=True)
class Group:
    """The latents in the same plates.

    :ivar plates: the plates, outermost dimension first.
    :ivar parts: the sites, in the order of the model.
    :ivar values: unconstrained values of all sites, one after another: the plates' full sizes, then ``(size,)``.
    """

    plates: tuple[Any, ...]
    parts: tuple[Part, ...]
    values: Tensor

    @property
    def key(self) -> str:
        """A name for the group, of the names of its plates."""
        return "_".join(frame.name for frame in self.plates).replace(".", "_") or "latent"

    @property
    def size(self) -> int:
        """Length of the vector of one element."""
        return self.values.shape[-1]

    def split(self, vector: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """The unconstrained values of each site: ``batch + (size,)`` to ``batch + shape``."""
        start = 0
        for part in self.parts:
            size = part.shape.numel()
            yield part, vector[..., start : start + size].reshape(vector.shape[:-1] + part.shape)
            start += size


def find_groups(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Group, ...]:
    """Run a model once, and group its latents: those outside of plates first, then by the number of plates.

    Sites that are marked for enumeration are left out. The random state stays as it was.

    :raises ValueError: for other discrete latents, sequential plates, latents with batch dimensions that are no
        plates, or if there is no latent.
    """
    with torch.no_grad(), fork_rng(), poutine.block():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    found: dict[tuple[str, ...], list[tuple[Any, Part, Tensor]]] = {}
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, site in nodes.items():
        if site["type"] != "sample" or site["is_observed"] or isinstance(site["fn"], _Subsample):
            continue
        if site["infer"].get("enumerate"):
            continue
        frames = sorted(site["cond_indep_stack"], key=lambda frame: frame.dim or 0)
        if not all(frame.vectorized for frame in frames):
            raise ValueError(f"the latent {name!r} is in a sequential plate: use the plate as a context manager")
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"the latent {name!r} is discrete ({type(site['fn']).__name__}), which no flow can be: mark it with "
                'infer={"enumerate": "parallel"}, or hide it with poutine.block and give it a guide of its own'
            )
        _check_batch(name, site, frames)
        with helpful_support_errors(site):
            value = biject_to(site["fn"].support).inv(site["value"]).detach()
        event_dim = site["fn"].event_dim + value.dim() - site["value"].dim()
        split = value.dim() - event_dim
        part = Part(name, site["fn"].support, site["fn"].event_dim, value.shape[split:])
        batch = value.reshape(*value.shape[:split], part.shape.numel())
        found.setdefault(tuple(f.name for f in frames), []).append((frames, part, batch))
    if not found:
        raise ValueError("the model has no continuous latent for a flow")
    groups = (_group(entries[0][0], entries) for entries in found.values())
    return tuple(sorted(groups, key=lambda group: len(group.plates)))


def _check_batch(name: str, site: Any, frames: list[Any]) -> None:
    dims = {frame.dim for frame in frames}
    shape = site["fn"].batch_shape
    if any(size > 1 and dim - len(shape) not in dims for dim, size in enumerate(shape)):
        raise ValueError(
            f"the latent {name!r} has batch shape {tuple(shape)}, of which not every dimension is a plate: declare it "
            "with pyro.plate or .to_event"
        )


def _group(frames: list[Any], entries: list[tuple[Any, Part, Tensor]]) -> Group:
    width = -min((frame.dim for frame in frames), default=0)
    sizes = {frame.dim: frame.size for frame in frames}
    sampled = [sizes.get(dim, 1) for dim in range(-width, 0)]
    values = torch.cat(
        [batch.reshape((1,) * (width + 1 - batch.dim()) + batch.shape).expand(*sampled, -1) for *_, batch in entries],
        -1,
    )
    for frame in frames:
        full = frame.full_size or frame.size
        if full != frame.size:  # elements that are not in this subsample start as one that is
            index = torch.arange(full, device=values.device) % frame.size
            values = values.index_select(width + frame.dim, index)
    return Group(tuple(frames), tuple(part for _, part, _ in entries), values)
