"""Where chains are, and what a transition did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.adaptation import Warmup
from pyro_dgm.infer.mcmc.mass_matrix import MassMatrix
from pyro_dgm.infer.mcmc.potentials.base import Position

__all__ = ["Info", "KernelState", "map_tensors"]


@dataclass(frozen=True)
class KernelState:
    """Where the chains are; a new one comes from every transition.

    A kernel that carries more has a subclass with fields of its own: tensors, dicts of tensors or dataclasses of them,
    ``(chains, ...)`` each unless the field is named in :attr:`shared`; or numbers of the host, which a transition does
    not change.

    :ivar position: unconstrained latents, each ``(chains, ...)``.
    :ivar potential: ``U`` at the position, ``(chains,)``, nats, at temperature 1.
    :ivar gradient: of ``U``, as ``position``; empty for a kernel that takes none.
    :ivar step_size: shared by all chains, scalar tensor.
    :ivar mass: the mass matrix, shared by all chains.
    :ivar num_steps: gradients a transition.
    :ivar generator: what all randomness comes from.
    :ivar warmup: adaptation under way, or ``None``.
    :ivar iteration: transitions taken since :meth:`Kernel.init`; what follows a schedule is a function of it.
    """

    position: Position
    potential: Tensor
    gradient: Position
    step_size: Tensor
    mass: MassMatrix
    num_steps: int
    generator: torch.Generator
    warmup: Warmup | None = None
    iteration: int = 0

    #: fields whose tensors have no chain dimension
    shared: ClassVar[frozenset[str]] = frozenset({"step_size", "mass", "warmup"})

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return self.potential.shape[0]

    @classmethod
    def extending(cls, state: KernelState, **own: Any) -> Self:
        """A state with the fields of another one, and its own."""
        return cls(**{f.name: getattr(state, f.name) for f in fields(KernelState)}, **own)

    def moved(
        self, where: Tensor, position: Position, potential: Tensor, gradient: Position | None = None, **own: Any
    ) -> Self:
        """The state in which the chains of ``where`` have gone to a proposal, and the others have stayed.

        :param where: ``(chains,)``, boolean.
        :param own: fields of a subclass, with their new values.
        """
        new, slope = {}, {}
        for k, v in self.position.items():
            mask = where.view(-1, *[1] * (v.dim() - 1))
            new[k] = torch.where(mask, position[k], v)
            if gradient is not None:
                slope[k] = torch.where(mask, gradient[k], self.gradient[k])
        value = torch.where(where, potential, self.potential)
        return replace(self, position=new, potential=value, gradient=slope, **own)

    def own(self) -> dict[str, Any]:
        """The fields that a subclass adds."""
        known = KernelState.__dataclass_fields__
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in known}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that a transition may read, by a name; adaptation under way is not among them."""
        kept = (f.name for f in fields(self) if f.name != "warmup")
        return {path: v for name in kept for path, v in _leaves(getattr(self, name), name)}

    def with_tensors(self, tensors: dict[str, Tensor]) -> Self:
        """The state with these tensors, named as by :meth:`tensors`, and without adaptation under way."""
        names = iter(self.tensors())
        return map_tensors(lambda _: tensors[next(names)], replace(self, warmup=None))

    def chains(self, index: Tensor | slice) -> Self:
        """The state of some of the chains, or of chains in another order."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.shared}
        return replace(self, **map_tensors(lambda v: v[index], own))


@dataclass(frozen=True)
class Info:
    """What one transition did, each ``(chains,)``.

    :ivar acceptance_rate: Metropolis acceptance probability, 0 where the proposal's energy was not finite.
    :ivar accepted: whether the chain moved.
    :ivar diverging: whether the energy error was above the kernel's bound, or not finite.
    :ivar energy: Hamiltonian of the state kept, nats.
    :ivar n_steps: gradients taken.
    """

    acceptance_rate: Tensor
    accepted: Tensor
    diverging: Tensor
    energy: Tensor
    n_steps: Tensor


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a tensor, a dict or a dataclass, with their paths."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from _leaves(v, f"{path} {k}")
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from _leaves(getattr(value, f.name), f"{path} {f.name}")


def map_tensors(fn: Callable[..., Tensor], value: Any, *others: Any) -> Any:
    """A function of each tensor in a tensor, a dict or a dataclass (and of those in others like it), in its place."""
    if isinstance(value, Tensor):
        return fn(value, *others)
    if isinstance(value, dict):
        return {k: map_tensors(fn, v, *(o[k] for o in others)) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in fields(value)]
        parts = {k: map_tensors(fn, getattr(value, k), *(getattr(o, k) for o in others)) for k in names}
        return replace(value, **parts)
    return value
