"""Distributions that a program made under ``torch.vmap``, as one with the particles among its batch dimensions."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import Distribution, Transform, kl_divergence, register_kl

from pyro_dgm.infer.objectives.evaluation.vmap_noise import is_vmapped, own_noise

__all__ = ["Layout", "Slot", "VmappedDistribution", "rebuilt"]


class Layout(NamedTuple):
    """Where the particles are among a tensor's dimensions: to the left of ``nesting`` plates."""

    num_particles: int
    nesting: int
    device: torch.device | str = "cpu"

    @property
    def numbers(self) -> Tensor:
        """The particles' numbers, for vmap to run over."""
        return torch.arange(self.num_particles, device=self.device)

    def align(self, tensor: Tensor, event_dim: int) -> Tensor:
        """``(K, *batch, *event)`` with the particles put to the left of the plates, and ones in between.

        :raises ValueError: for a batch dimension that is no plate's.
        """
        batch = tensor.dim() - 1 - event_dim
        if batch <= self.nesting:
            return tensor.reshape(self.num_particles, *(1,) * (self.nesting - batch), *tensor.shape[1:])
        # Enumerated sites have dimensions of their own to the left of the particles' place, which is kept free.
        place = batch - self.nesting
        if tensor.shape[place] != 1:
            raise ValueError(
                f"a site has batch shape {tuple(tensor.shape[1 : 1 + batch])}, more dimensions than the {self.nesting} "
                "plates: declare its batch dimensions with pyro.plate or .to_event, or give max_plate_nesting"
            )
        return tensor.squeeze(place).movedim(0, place - 1)

    def front(self, tensor: Tensor, event_dim: int) -> tuple[Tensor, int | None]:
        """Undo :meth:`align` for a distribution's argument: the tensor, and where vmap finds the particles in it."""
        place = tensor.dim() - event_dim - self.nesting - 1
        if place < 0 or tensor.shape[place] != self.num_particles:
            return tensor, None
        tensor = tensor.movedim(place, 0)
        return (tensor.unsqueeze(place + 1) if place else tensor), 0

    def restore(self, value: Any, dims: int) -> tuple[Any, int | None]:
        """A site's value in the shape in which the program made it, of ``dims`` dimensions."""
        if not isinstance(value, Tensor) or value.dim() <= dims:
            return value, None
        return value.reshape(value.shape[0], *value.shape[value.dim() - dims :]), 0


class Slot(NamedTuple):
    """The place of a tensor among those that vmap gives back."""

    place: int
    event_dim: int


def rebuilt(obj: Any, change: Callable[[Any], Any], known: dict[int, Any]) -> Any:
    """A copy of a distribution, with ``change`` applied to the tensors that it is made of."""
    if isinstance(obj, (Tensor, Slot)):
        return change(obj)
    if id(obj) in known:
        return known[id(obj)]
    if isinstance(obj, (Distribution, Transform)):
        new = known[id(obj)] = copy.copy(obj)
        for name, value in list(vars(new).items()):
            if name not in ("_parameters", "_buffers", "_modules", "_cached_x_y"):
                new.__dict__[name] = rebuilt(value, change, known)
        if isinstance(new, Distribution):
            new._validate_args = False  # validation looks at values
        return new
    if type(obj) in (list, tuple):
        return type(obj)(rebuilt(v, change, known) for v in obj)
    if type(obj) is dict:
        return {k: rebuilt(v, change, known) for k, v in obj.items()}
    if isinstance(obj, functools.partial):
        return functools.partial(
            obj.func, *rebuilt(obj.args, change, known), **rebuilt(dict(obj.keywords), change, known)
        )
    return obj


class VmappedDistribution(TorchDistribution):
    """The distributions of K particles, made by a program under vmap, as one with the particles as a batch dimension.

    It is evaluated under vmap again, by the code of the program's own distribution.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, fn: Any, layout: Layout, keep: Callable[[Tensor, int], Slot]) -> None:
        slots: list[Slot] = []

        def strip(tensor: Any) -> Any:
            if not is_vmapped(tensor):
                return tensor
            slots.append(keep(tensor, 0))
            return Slot(len(slots) - 1, 0)

        self._template = rebuilt(fn, strip, {})
        self._slots, self._layout = slots, layout
        self._tensors: list[Tensor] = []
        self.has_rsample = fn.has_rsample
        batch, extra = tuple(fn.batch_shape), len(fn.batch_shape) - layout.nesting
        left = batch[: extra - 1] if extra > 0 else ()  # of enumerated sites
        shape = (*left, layout.num_particles, *(1,) * -extra, *batch[max(extra, 0) :])
        super().__init__(torch.Size(shape), fn.event_shape, validate_args=False)

    @property
    def base_dist(self) -> Any:
        """A distribution of the kind that the program made: without its tensors, which are of all particles."""
        return self._template

    def fill(self, found: Sequence[Tensor]) -> None:
        """Take the tensors of all particles."""
        self._tensors = [found[slot.place] for slot in self._slots]

    def call(self, fn: Callable[..., Any], *values: tuple[Any, int], others: Sequence[Any] = ()) -> Any:
        """``fn(distribution, *values, *others)`` of each particle: one tensor, its particles to the left of the plates.

        :param values: each with its number of event dimensions.
        :param others: further distributions of this kind.
        """
        given, dims = [], []
        for value, event_dim in values:
            tensor, dim = self._layout.front(value, event_dim)
            given.append(tensor)
            dims.append(dim)

        def one(made: list[list[Tensor]], *rest: Tensor) -> Tensor:
            fns = [rebuilt(d._template, _picker(t), {}) for d, t in zip((self, *others), made, strict=True)]
            return fn(fns[0], *rest, *fns[1:])

        def own(index: Tensor, *inputs: Any) -> Tensor:
            with own_noise(index):
                return one(*inputs)

        count = self._layout.num_particles
        made = [d._tensors for d in (self, *others)]
        try:
            return torch.vmap(own, in_dims=(0, 0, *dims), randomness="different")(self._layout.numbers, made, *given)
        except RuntimeError:  # vmap's word for operations that depend on values: x[mask] = 0, say
            rows = []
            for k in range(count):
                rest = (t if d is None else t[k] for t, d in zip(given, dims, strict=True))
                rows.append(one([[t[k] for t in tensors] for tensors in made], *rest))
            return torch.stack(rows)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        if tuple(sample_shape):
            raise ValueError(f"sample_shape must be empty under vmap, got {tuple(sample_shape)}")
        return self._layout.align(self.call(lambda fn: fn()), self.event_dim)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._layout.align(self.call(lambda fn, x: fn.log_prob(x), (value, self.event_dim)), 0)

    def score_parts(self, value: Tensor) -> ScoreParts:
        numbers: list[Any] = []

        def parts(fn: Any, x: Tensor) -> Tensor:
            numbers[:] = fn.score_parts(x)
            tensors = [t for t in numbers if isinstance(t, Tensor)]
            numbers[:] = [t if not isinstance(t, Tensor) else None for t in numbers]
            return torch.stack(torch.broadcast_tensors(*tensors))

        found = self._layout.align(self.call(parts, (value, self.event_dim)).movedim(1, -1), 1).unbind(-1)
        rest = iter(found)
        return ScoreParts(*(next(rest) if n is None else n for n in numbers))


@register_kl(VmappedDistribution, VmappedDistribution)
def _kl(p: VmappedDistribution, q: VmappedDistribution) -> Tensor:
    return p._layout.align(p.call(lambda fn, other: kl_divergence(fn, other), others=[q]), 0)


def _picker(tensors: Sequence[Tensor]) -> Callable[[Any], Any]:
    return lambda leaf: tensors[leaf.place] if isinstance(leaf, Slot) else leaf
