"""Parallel tempering around any kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.chains import uniform_per_chain
from pyro_dgm.infer.mcmc.kernels.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.kernels.composed import ComposedKernel
from pyro_dgm.infer.mcmc.kernels.hmc import HMC
from pyro_dgm.infer.mcmc.kernels.replicas import (
    Replicas,
    TemperedState,
    closes_round,
    equal_rejection,
    follow,
    ladder_of,
    swap_acceptance,
    swap_order,
    take,
)
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.mcmc.potentials.tempered import TemperedPotential
from pyro_dgm.infer.mcmc.state import map_tensors

__all__ = ["ParallelTempering"]


class ParallelTempering(ComposedKernel):
    r"""Parallel tempering: every chain has replicas at higher temperatures, with which it swaps; for separated modes.

    The inner kernel moves replica :math:`r` of a chain with the target :math:`e^{-\beta_r U / T}`,
    :math:`1 = \beta_0 > \ldots > \beta_{R-1}`. Then neighbours are swapped with probability

    .. math:: \min\Bigl(1, e^{(\beta_r - \beta_{r+1}) (U_r - U_{r+1}) / T}\Bigr)

    even pairs after one transition, odd pairs after the next. This order is *non-reversible*: a replica moves on in one
    direction until a swap is rejected, so that the time of a round trip does not grow with the number of temperatures;
    with random pairs it would diffuse. The warm-up adapts the temperatures, in rounds of doubling length, until all
    pairs of neighbours reject equally often, since round trips are then most frequent. If more than about half of the
    swaps are rejected, take more temperatures.

    Only the cold replicas, :math:`\beta = 1`, are chains: draws, statistics and divergences are theirs. ``n_steps`` is
    the number of gradients of all replicas, and ``acceptance_rate`` is the probability that the cold replica moved, by
    itself or by a swap. For the inner kernel all replicas of all chains are chains, each in units of
    :math:`\beta_r^{-1/2}`, so that one step size and one mass matrix suit all temperatures. :meth:`statistics`
    describes the swaps. The bias of an inner kernel such as :class:`Langevin` remains.

    :param model: a Pyro model, or an inner kernel with its model or potential; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param kernel: inner kernel, any of ours without temperatures or conditionals of its own; :class:`HMC` by default.
    :param num_temperatures: :math:`R`, replicas of each chain, at least 2.
    :param max_temperature: :math:`1 / \beta_{R-1}`: high enough that chains cross between the modes there.
    :param inverse_temperatures: :math:`\beta`, falling from 1, instead of the two arguments above.
    :param adapt_ladder: whether to adapt :math:`\beta` between its two ends in the warm-up.
    :param step_size: of the default inner kernel. This argument and the next six set up the :class:`HMC` that is made
        where ``kernel`` is not given; ``None`` keeps its default. With ``kernel``, give them to that kernel instead.
    :param target_accept_prob: mean acceptance probability to which the step size is adapted.
    :param temperature: of the target; see :class:`Kernel`, as for the next four.
    :param init_strategy: where chains start.
    :param compile: whether to compile gradients and transitions.
    :param transforms: from constrained to unconstrained space, by latent.
    :param max_plate_nesting: number of dimensions that the model's plates may take.
    :raises ValueError: for a setting out of range, or an inner kernel that cannot be tempered; the message names it.

    Source: S. Syed, A. Bouchard-Cote, G. Deligiannidis and A. Doucet (2022), "Non-reversible parallel tempering: a
    scalable highly parallel MCMC scheme", arXiv:1905.02939; C. J. Geyer (1991), "Markov chain Monte Carlo maximum
    likelihood".

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import HMC, MCMC, ParallelTempering
        >>> def modes(u):  # two, at -10 and 10
        ...     return -torch.logaddexp(-0.5 * (u["x"] - 10).square(), -0.5 * (u["x"] + 10).square())
        >>> kernel = ParallelTempering(HMC(potential_fn=modes), num_temperatures=6)
        >>> mcmc = MCMC(kernel, num_samples=300, warmup_steps=200, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.full((8,), 10.0)})
        >>> bool(0.3 < (mcmc.get_samples()["x"] > 0).double().mean() < 0.7)
        True
    """

    name = "parallel-tempering"
    tempers = False  # it has a ladder of its own

    def __init__(
        self,
        model: Callable[..., Any] | Kernel | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        *,
        kernel: Kernel | None = None,
        num_temperatures: int = 8,
        max_temperature: float = 100.0,
        inverse_temperatures: Sequence[float] | None = None,
        adapt_ladder: bool = True,
        step_size: float | None = None,
        target_accept_prob: float | None = None,
        temperature: float | None = None,
        init_strategy: str | Callable[[Any], Tensor] | None = None,
        compile: bool | str | None = None,
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(
            model,
            potential_fn,
            kernel,
            HMC,
            settings={
                "step_size": step_size,
                "target_accept_prob": target_accept_prob,
                "temperature": temperature,
                "init_strategy": init_strategy,
                "compile": compile,
                "transforms": transforms,
                "max_plate_nesting": max_plate_nesting,
            },
        )
        if not self.kernel.tempers:
            raise ValueError(f"kernel must be one that can be tempered, got {type(self.kernel).__name__}")
        self.ladder = ladder_of(num_temperatures, max_temperature, inverse_temperatures)
        self.adapt_ladder = bool(adapt_ladder)
        self.discrete = self.kernel.discrete
        self.min_chains = -(-self.kernel.min_chains // len(self.ladder))

    def init(self, params: Position, generator: torch.Generator) -> TemperedState:
        plain = super().init(params, generator)
        state = TemperedState.start(plain, self.ladder)
        return state.after(self._at(state).init(self._replicas(state).position, generator))

    # Replicas, to and from the inner kernel

    def _tempered(self, state: TemperedState) -> TemperedPotential:
        """The potential of all replicas at this ladder."""
        return TemperedPotential(self.potential, state.betas.repeat(state.num_chains), scaled=not self.discrete)

    def _at(self, state: TemperedState) -> Kernel:
        """The inner kernel, on that potential."""
        return self.inner(self._tempered(state))

    def _replicas(self, state: TemperedState) -> KernelState:
        """All replicas as chains of the inner kernel."""
        return state.of_inner(self._tempered(state))

    # Transition

    def steps_at(self, state: KernelState) -> int:
        assert isinstance(state, TemperedState)
        return self._at(state).steps_at(self._replicas(state))

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        assert isinstance(state, TemperedState)
        inner = self._at(state).noise(self._replicas(state))
        return {
            **{f"inner {k}": v for k, v in inner.items()},
            "swap": uniform_per_chain(state.swap_acceptance, state.generator),
            "parity": torch.full((), state.iteration % 2, dtype=torch.int64, device=state.betas.device),
        }

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        assert isinstance(state, TemperedState)
        tempered, shape = self._tempered(state), (state.num_chains, len(self.ladder))
        numbers = {k.removeprefix("inner "): v for k, v in noise.items() if k.startswith("inner ")}
        inner, info = self._at(state).transition(self._replicas(state), numbers)
        moved = Replicas(
            tempered.unscale(inner.position),
            inner.potential / tempered.betas,
            tempered.untemper_gradient(inner.gradient),
        )
        info = map_tensors(lambda v: v.reshape(shape), info)
        # A replica that was rejected keeps its exact position, without the rounding of a change of units.
        replicas = map_tensors(partial(_where, info.accepted), moved, state.replicas())
        acceptance = swap_acceptance(state.betas / self.temperature, replicas.potential)
        order = swap_order(noise["swap"] < acceptance, noise["parity"])
        replicas = map_tensors(lambda v: take(v, order), replicas)
        trip, done = follow(state.trip.gather(1, order))
        cold = map_tensors(lambda v: v[:, 0], replicas)
        new = replace(
            state.after(inner),
            position=cold.position,
            potential=cold.potential,
            gradient=cold.gradient,
            hot=map_tensors(lambda v: v[:, 1:], replicas),
            inner_info=info,
            swap_acceptance=acceptance,
            swaps=state.swaps + acceptance,
            taken=state.taken + 1,
            trip=trip,
            round_trips=state.round_trips + done,
        )
        changed = torch.zeros_like(info.accepted[:, 0])
        for k, v in state.position.items():
            changed = changed | (new.position[k] != v).reshape(len(v), -1).any(-1)
        # The cold replica moves by itself or by a swap with its neighbour, which has its turn at even parity.
        swapped = acceptance[:, 0] * (noise["parity"] == 0)
        return new, Info(
            1.0 - (1.0 - info.acceptance_rate[:, 0]) * (1.0 - swapped),
            changed,
            info.diverging[:, 0],
            new.potential / self.temperature,
            info.n_steps.sum(1),
        )

    def statistics(self, state: KernelState) -> dict[str, Tensor]:
        """Statistics of the swaps since the warm-up.

        :returns: ``swap_acceptance``, the mean over chains and transitions between each two neighbours, cold ones
            first, ``(R - 1,)``; ``round_trips`` from cold to hot and back of each chain, ``(chains,)``;
            ``inverse_temperatures``, ``(R,)``.
        """
        assert isinstance(state, TemperedState)
        swaps = state.swaps / state.taken.clamp(min=1).unsqueeze(-1)
        return {"swap_acceptance": swaps.mean(0), "round_trips": state.round_trips, "inverse_temperatures": state.betas}

    # Warm-up

    def start_warmup(self, state: KernelState, num_steps: int) -> KernelState:
        assert isinstance(state, TemperedState)
        return state.after(self._at(state).start_warmup(self._replicas(state), num_steps))

    def adapt(self, state: KernelState, info: Info) -> KernelState:
        assert isinstance(state, TemperedState)
        of_replicas = map_tensors(torch.flatten, state.inner_info)
        state = state.after(self._at(state).adapt(self._replicas(state), of_replicas))
        if not self.adapt_ladder:
            return state
        rejection = state.rejection + (1.0 - state.swap_acceptance).mean(0)
        if not closes_round(state.iteration):
            return replace(state, rejection=rejection)
        return replace(state, betas=equal_rejection(state.betas, rejection), rejection=torch.zeros_like(rejection))

    def finish_warmup(self, state: KernelState) -> KernelState:
        assert isinstance(state, TemperedState)
        state = state.after(self._at(state).finish_warmup(self._replicas(state)))
        return replace(
            state,
            warmup=None,
            round_trips=torch.zeros_like(state.round_trips),
            swaps=torch.zeros_like(state.swaps),
            taken=torch.zeros_like(state.taken),
        )


def _where(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """New values (chains and replicas in one dimension) where ``accepted``, ``(chains, R)``; old ones elsewhere."""
    return torch.where(accepted.reshape(*accepted.shape, *[1] * (old.dim() - 2)), new.reshape(old.shape), old)
