"""Replicas of chains at several temperatures: their state, their swaps, and the ladder of temperatures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.mcmc.potentials.tempered import TemperedPotential
from pyro_dgm.infer.mcmc.state import Info, KernelState, map_tensors
from pyro_dgm.ops.arguments import check_count, check_number

__all__ = [
    "Replicas",
    "TemperedState",
    "closes_round",
    "equal_rejection",
    "follow",
    "ladder_of",
    "swap_acceptance",
    "swap_order",
    "take",
]

#: transitions of the warm-up before the ladder is adapted for the first time; each later round is twice as long
FIRST_ROUND = 16


@dataclass(frozen=True)
class Replicas:
    """Positions of replicas: unconstrained latents, ``U`` and its gradient, each ``(chains, R, ...)``."""

    position: Position
    potential: Tensor
    gradient: Position


@dataclass(frozen=True, kw_only=True)
class TemperedState(KernelState):
    """A state of the cold replicas, with the hot ones and the inner kernel's state.

    :ivar hot: the hot replicas.
    :ivar betas: inverse temperatures, ``(R,)``.
    :ivar inner_type: class of the inner kernel's states.
    :ivar inner_own: fields that this class adds to :class:`KernelState`, ``(chains, R, ...)`` each.
    :ivar inner_shared: those of them that all chains share.
    :ivar inner_info: of the last transition of each replica, ``(chains, R)``.
    :ivar trip: stage of each replica's round trip, ``(chains, R)``; see :func:`follow`.
    :ivar round_trips: number of round trips of each chain, ``(chains,)``.
    :ivar swap_acceptance: acceptance probability of the swaps of the last transition, ``(chains, R - 1)``.
    :ivar swaps: its sum over transitions.
    :ivar taken: number of transitions in that sum, ``(chains,)``.
    :ivar rejection: mean rejection over chains, summed over transitions since the ladder was last adapted, ``(R -
        1,)``.
    """

    hot: Replicas
    betas: Tensor
    inner_type: type[KernelState]
    inner_own: dict[str, Any]
    inner_shared: dict[str, Any]
    inner_info: Info
    trip: Tensor
    round_trips: Tensor
    swap_acceptance: Tensor
    swaps: Tensor
    taken: Tensor
    rejection: Tensor

    shared = KernelState.shared | {"betas", "inner_shared", "rejection"}

    @classmethod
    def start(cls, cold: KernelState, ladder: Sequence[float]) -> TemperedState:
        """The first state, with every replica at the cold one's position.

        :param ladder: inverse temperatures.
        """
        betas, hot, zeros = cold.potential.new_tensor(ladder), len(ladder) - 1, cold.potential.new_zeros
        trip = torch.zeros(cold.num_chains, hot + 1, dtype=torch.int64, device=betas.device)
        trip[:, 0] = 1  # has been cold
        types = {"accepted": torch.bool, "diverging": torch.bool, "n_steps": torch.int64}
        info = Info(**{f.name: torch.zeros_like(trip, dtype=types.get(f.name, betas.dtype)) for f in fields(Info)})
        where = Replicas(cold.position, cold.potential, cold.gradient)
        return cls.extending(
            cold,
            hot=map_tensors(lambda v: v.unsqueeze(1).expand(-1, hot, *v.shape[1:]).clone(), where),
            betas=betas,
            inner_type=KernelState,
            inner_own={},
            inner_shared={},
            inner_info=info,
            trip=trip,
            round_trips=torch.zeros_like(trip[:, 0]),
            swap_acceptance=zeros(cold.num_chains, hot),
            swaps=zeros(cold.num_chains, hot),
            taken=torch.zeros_like(trip[:, 0]),
            rejection=zeros(hot),
        )

    def of_inner(self, tempered: TemperedPotential) -> KernelState:
        """All replicas as chains of the inner kernel, in the coordinates of its potential."""
        flat, own = map_tensors(_rows, self.replicas()), map_tensors(_rows, self.inner_own)
        return replace(
            self.inner_type.extending(self, **own, **self.inner_shared),
            position=tempered.scale(flat.position),
            potential=tempered.betas * flat.potential,
            gradient=tempered.temper_gradient(flat.gradient),
        )

    def after(self, inner: KernelState) -> TemperedState:
        """The state with the inner kernel's step size, mass and own fields; positions stay as they are."""
        shape, own = (self.num_chains, len(self.betas)), inner.own()
        of_chains = {k: v for k, v in own.items() if k not in inner.shared}
        return replace(
            self,
            step_size=inner.step_size,
            mass=inner.mass,
            num_steps=inner.num_steps,
            warmup=inner.warmup,
            inner_type=type(inner),
            inner_own=map_tensors(lambda v: v.unflatten(0, shape), of_chains),
            inner_shared={k: v for k, v in own.items() if k in inner.shared},
        )

    def replicas(self) -> Replicas:
        """All replicas, the cold one first."""
        cold = Replicas(self.position, self.potential, self.gradient)
        return map_tensors(lambda c, h: torch.cat([c.unsqueeze(1), h], 1), cold, self.hot)


def _rows(values: Tensor) -> Tensor:
    """Merge the dimensions of chains and replicas."""
    return values.flatten(0, 1)


def swap_acceptance(betas: Tensor, energies: Tensor) -> Tensor:
    r"""Probability that neighbours swap, :math:`\min(1, e^{(\beta_r - \beta_{r+1})(U_r - U_{r+1})})`.

    :param betas: ``(R,)``.
    :param energies: ``(chains, R)``.
    :returns: ``(chains, R - 1)``; 0 where an energy is not finite.

    Example::

        >>> swap_acceptance(torch.tensor([1.0, 0.5]), torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
        tensor([[0.3679],
                [1.0000]])
    """
    exponent = (betas[:-1] - betas[1:]) * (energies[:, :-1] - energies[:, 1:])
    return torch.where(torch.isfinite(exponent), exponent.clamp(max=0.0).exp(), torch.zeros_like(exponent))


def swap_order(wanted: Tensor, parity: Tensor) -> Tensor:
    """The replica that each rung gets when the pairs (r, r + 1) with r of this parity swap if accepted.

    :param wanted: whether each pair's swap is accepted, ``(chains, R - 1)``.
    :param parity: 0 or 1, a scalar tensor.
    :returns: ``(chains, R)``, rows of a permutation.

    Example::

        >>> swap_order(torch.tensor([[True, True, False]]), torch.tensor(0))
        tensor([[1, 0, 2, 3]])
        >>> swap_order(torch.tensor([[True, True, False]]), torch.tensor(1))
        tensor([[0, 2, 1, 3]])
    """
    pairs = torch.arange(wanted.shape[1], device=wanted.device)
    swap = (wanted & (pairs % 2 == parity)).to(torch.int64)
    rungs = torch.arange(wanted.shape[1] + 1, device=wanted.device)
    none = torch.zeros_like(swap[:, :1])
    return rungs + torch.cat([swap, none], 1) - torch.cat([none, swap], 1)


def equal_rejection(betas: Tensor, rejection: Tensor) -> Tensor:
    r"""The ladder with the same ends whose neighbours would reject swaps equally often.

    The sum of rejection rates up to :math:`\beta` estimates the communication barrier :math:`\Lambda(\beta)`, which
    does not depend on the ladder. It is interpolated linearly in :math:`\log\beta` and divided into equal parts.

    :param betas: inverse temperatures, falling, ``(R,)``.
    :param rejection: rejection rate of each pair of neighbours, or a multiple of it, ``(R - 1,)``.

    Source: S. Syed et al. (2022), arXiv:1905.02939, section 5.1.

    Example::

        >>> equal_rejection(torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.6, 0.2]))
        tensor([1.0000, 0.6298, 0.2500])
    """
    # A pair that never rejected would make the barrier flat, and its inverse undefined.
    steps = rejection.clamp(min=0.0) + 1e-3 * rejection.sum().clamp(min=1e-6)
    barrier = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])
    barrier = barrier / barrier[-1]
    wanted = torch.arange(1, len(steps), dtype=betas.dtype, device=betas.device) / len(steps)
    left = torch.searchsorted(barrier, wanted, right=True) - 1
    weight = (wanted - barrier[left]) / (barrier[left + 1] - barrier[left])
    logs = betas.log()
    inside = torch.lerp(logs[left], logs[left + 1], weight).exp()
    return torch.cat([betas[:1], inside, betas[-1:]])


def take(values: Tensor, order: Tensor) -> Tensor:
    """Reorder each chain's replicas of ``(chains, R, ...)`` values, by indices ``(chains, R)``."""
    index = order.reshape(*order.shape, *(1 for _ in values.shape[2:])).expand(values.shape)
    return values.gather(1, index)


def follow(trip: Tensor) -> tuple[Tensor, Tensor]:
    """Update the stage of each replica's round trip, and tell which trips end now.

    Stages: 0 not yet cold, 1 last at the cold end, 2 last at the hot end after that.
    """
    done = (trip[:, 0] == 2).to(torch.int64)
    hottest = torch.where(trip[:, -1:] == 1, 2, trip[:, -1:])
    return torch.cat([torch.ones_like(trip[:, :1]), trip[:, 1:-1], hottest], 1), done


def closes_round(iteration: int) -> bool:
    """Whether the ladder is adapted after this many transitions of the warm-up."""
    rounds = iteration // FIRST_ROUND
    return iteration % FIRST_ROUND == 0 and rounds & (rounds - 1) == 0 and rounds > 0


def ladder_of(num_temperatures: int, max_temperature: float, given: Sequence[float] | None) -> list[float]:
    """Inverse temperatures: those given, or a geometric sequence.

    :raises ValueError: for an invalid ladder; the message names the setting.
    """
    if given is not None:
        if not isinstance(given, Iterable):
            raise TypeError(f"inverse_temperatures must be a sequence of numbers, got {given!r}")
        ladder = [float(check_number("inverse_temperatures", b)) for b in given]
        falls = all(a > b > 0 for a, b in zip(ladder, ladder[1:], strict=False))
        if len(ladder) < 2 or ladder[0] != 1.0 or not falls:
            raise ValueError(f"inverse_temperatures must fall from 1 and stay positive, at least two, got {ladder}")
        return ladder
    check_count("num_temperatures", num_temperatures, 2)
    check_number("max_temperature", max_temperature)
    if not (max_temperature > 1 and math.isfinite(max_temperature)):
        raise ValueError(f"max_temperature must be above 1 and finite, got {max_temperature}")
    return [max_temperature ** (-r / (num_temperatures - 1)) for r in range(num_temperatures)]
