"""A distribution made under ``torch.vmap``, with the particles among its batch dimensions."""

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
    """The particles' place among a tensor's dimensions: to the left of ``nesting`` plates."""

    num_particles: int
    nesting: int
    device: torch.device | str = "cpu"

    @property
    def numbers(self) -> Tensor:
        """The particles' numbers, over which vmap runs."""
        return torch.arange(self.num_particles, device=self.device)

    def align(self, tensor: Tensor, event_dim: int) -> Tensor:
        """Put the particles of ``(K, *batch, *event)`` to the left of the plates, with dimensions of size 1 in between.

        :raises ValueError: for a batch dimension that belongs to no plate.
        """
        batch = tensor.dim() - 1 - event_dim
        if batch <= self.nesting:
            return tensor.reshape(self.num_particles, *(1,) * (self.nesting - batch), *tensor.shape[1:])
        # Enumerated sites have dimensions further to the left; the particles' own dimension is kept free.
        place = batch - self.nesting
        if tensor.shape[place] != 1:
            raise ValueError(
                f"a site has batch shape {tuple(tensor.shape[1 : 1 + batch])}, more dimensions than the {self.nesting} "
                "plates: declare its batch dimensions with pyro.plate or .to_event, or give max_plate_nesting"
            )
        return tensor.squeeze(place).movedim(0, place - 1)

    def front(self, tensor: Tensor, event_dim: int) -> tuple[Tensor, int | None]:
        """Undo :meth:`align` for a distribution's argument: the tensor, and the dimension of the particles in it."""
        place = tensor.dim() - event_dim - self.nesting - 1
        if place < 0 or tensor.shape[place] != self.num_particles:
            return tensor, None
        tensor = tensor.movedim(place, 0)
        return (tensor.unsqueeze(place + 1) if place else tensor), 0

    def restore(self, value: Any, dims: int) -> tuple[Any, int | None]:
        """A site's value as ``(K, *shape)``, ``dims`` dimensions beside the particles, and the particles' dimension."""
        if not isinstance(value, Tensor) or value.dim() <= dims:
            return value, None
        return value.reshape(value.shape[0], *value.shape[value.dim() - dims :]), 0


class Slot(NamedTuple):
    """Stands for a tensor: its place among those that vmap returns."""

    place: int
    event_dim: int


def rebuilt(obj: Any, change: Callable[[Any], Any], known: dict[int, Any]) -> Any:
    """A copy of a distribution with ``change`` applied to its tensors."""
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
            new._validate_args = False  # validation reads values
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
    """The distribution of a site for K particles, whose program ran under vmap; the particles are a batch dimension.

    Its methods call those of the program's own distribution, under vmap again.
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
        left = batch[: extra - 1] if extra > 0 else ()  # dimensions of enumerated sites
        shape = (*left, layout.num_particles, *(1,) * -extra, *batch[max(extra, 0) :])
        super().__init__(torch.Size(shape), fn.event_shape, validate_args=False)

    @property
    def base_dist(self) -> Any:
        """The program's own distribution with slots instead of tensors; it shows of which class it is."""
        return self._template

    def fill(self, found: Sequence[Tensor]) -> None:
        """Set the tensors, which vmap has returned for all particles."""
        self._tensors = [found[slot.place] for slot in self._slots]

    def call(self, fn: Callable[..., Any], *values: tuple[Any, int], others: Sequence[Any] = ()) -> Any:
        """``fn(distribution, *values, *others)`` of each particle, as one tensor with the particles first.

        :param values: each with its number of event dimensions.
        :param others: further :class:`VmappedDistribution` objects, passed to ``fn`` as distributions of one particle.
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
        except RuntimeError:  # an operation that depends on values, such as x[mask] = 0: loop over the particles
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
