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
from torch.distributions.constraints import Constraint

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
    :ivar innermost: name of the plate that the model enters last.
    """

    plates: tuple[Any, ...]
    parts: tuple[Part, ...]
    values: Tensor
    innermost: str | None = None

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
        plates, a support that depends on other latents, or if there is no latent.
    """
    with torch.no_grad(), fork_rng(), poutine.block():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    found: dict[tuple[str, ...], list[tuple[Any, Part, Tensor]]] = {}
    innermost: dict[tuple[str, ...], str | None] = {}
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
        key = tuple(f.name for f in frames)
        found.setdefault(key, []).append((frames, part, batch))
        innermost[key] = site["cond_indep_stack"][-1].name if frames else None
    if not found:
        raise ValueError("the model has no continuous latent for a flow")
    _check_supports(model, args, kwargs, trace, [part for entries in found.values() for _, part, _ in entries])
    groups = (_group(entries[0][0], entries, innermost[key]) for key, entries in found.items())
    return tuple(sorted(groups, key=lambda group: len(group.plates)))


def _check_supports(model: Any, args: Any, kwargs: Any, trace: Any, parts: list[Part]) -> None:
    """Refuse supports that follow the values of other latents: the flow keeps those of its first call."""
    moved = trace.copy()
    with torch.no_grad(), fork_rng(), poutine.block():
        for part in parts:
            node, transform = trace.nodes[part.name], biject_to(part.support)
            # Not by a random number: whatever the values were, these are others.
            moved.nodes[part.name] = {**node, "value": transform(transform.inv(node["value"]) + 0.5)}
        again: dict[str, Any] = dict(poutine.trace(poutine.replay(model, trace=moved)).get_trace(*args, **kwargs).nodes)
    for part in parts:
        if part.name in again and not _equal(part.support, again[part.name]["fn"].support):
            raise ValueError(
                f"the support {part.support} of the latent {part.name!r} depends on other latents, but a flow has one "
                "support: draw the site on a fixed one, and compute from it what the model needs. For Uniform(0, scale)"
                ", say: share = pyro.sample('share', dist.Uniform(0, 1)), then "
                f"pyro.deterministic({part.name!r}, scale * share)"
            )


def _equal(a: Any, b: Any) -> bool:
    """Whether two constraints, or what they hold, are the same."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        return a.shape == b.shape and bool((a == b).all())
    if isinstance(a, list | tuple):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Constraint):
        return (
            type(a) is type(b)
            and vars(a).keys() == vars(b).keys()
            and all(_equal(x, vars(b)[k]) for k, x in vars(a).items())
        )
    return bool(a == b)


def _check_batch(name: str, site: Any, frames: list[Any]) -> None:
    dims = {frame.dim for frame in frames}
    shape = site["fn"].batch_shape
    if any(size > 1 and dim - len(shape) not in dims for dim, size in enumerate(shape)):
        raise ValueError(
            f"the latent {name!r} has batch shape {tuple(shape)}, of which not every dimension is a plate: declare it "
            "with pyro.plate or .to_event"
        )


def _group(frames: list[Any], entries: list[tuple[Any, Part, Tensor]], innermost: str | None) -> Group:
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
    return Group(tuple(frames), tuple(part for _, part, _ in entries), values, innermost)
