"""Transitions of a kernel along a path of densities, with settings of their own at each temperature."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyro_dgm.distributions import chains
from pyro_dgm.infer.mcmc.kernels.base import Kernel, KernelState
from pyro_dgm.infer.mcmc.kernels.hmc import HMC
from pyro_dgm.infer.mcmc.mass_matrix import DiagonalMass
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.smc.potential import PathPotential
from pyro_dgm.ops.annealing import anneal
from pyro_dgm.ops.arguments import check_count

__all__ = ["KernelPath"]

#: temperatures at which the pilot run stops, and transitions there; more at the first, where nothing is known
PILOT_TEMPERATURES, PILOT_TRANSITIONS, FIRST_TRANSITIONS = 30, 8, 25


class KernelPath:
    r"""A kernel, and what it needs to know at each temperature of a path.

    Step sizes and masses come from a pilot run and are then functions of the temperature alone: adapted to the chains
    that they move they would spoil the identity that weights have a mean of :math:`Z_1 / Z_0`.

    :param both: :math:`U_0` and :math:`U_1` over chains.
    :param kernel: one of :mod:`pyro_dgm.infer.mcmc`, without a model or potential of its own.
    :param num_steps: transitions at each temperature.
    :param plates: shape of the data that have chains of their own; a position holds ``chains * data`` rows.
    """

    def __init__(
        self,
        both: Callable[[Position], tuple[Tensor, Tensor]],
        kernel: Kernel,
        num_steps: int = 1,
        plates: Sequence[int] = (),
    ) -> None:
        check_kernel(kernel)
        check_count("num_steps", num_steps)
        self.kernel = copy.copy(kernel)
        self.kernel.potential = self.potential = PathPotential(both)
        self.num_steps, self.data = num_steps, torch.Size(plates).numel()
        #: settings by inverse temperature, rising; ``None`` before the pilot run
        self.betas: Tensor | None = None
        self.log_steps: Tensor | None = None
        self.scales: list[Position] = []

    # Settings

    def settle(self, state: KernelState, beta: float) -> KernelState:
        """The state with the settings of a temperature, between those of the pilot run."""
        if self.betas is None or self.log_steps is None:
            return state
        here = torch.tensor(beta, dtype=torch.float64, device=self.betas.device)
        right = int(torch.searchsorted(self.betas, here).clamp(1, len(self.betas) - 1))
        left = right - 1
        gap = float(self.betas[right] - self.betas[left])
        weight = min(1.0, max(0.0, (beta - float(self.betas[left])) / gap)) if gap > 0 else 0.0
        log_step = torch.lerp(self.log_steps[left], self.log_steps[right], weight)
        state = replace(state, step_size=log_step.exp().to(state.step_size))
        if self.scales:
            low, high = self.scales[left], self.scales[right]
            variances = {k: torch.lerp(low[k], high[k], weight).exp() for k in low}
            state = replace(state, mass=DiagonalMass(variances))
        return self.kernel.finish_warmup(state)

    def pilot(self, position: Position, betas: Tensor, generator: torch.Generator) -> None:
        """Move chains along some of the temperatures, and note the step size and the scales that suit each.

        :param position: rows at inverse temperature 0; they are not changed.
        """
        if not self.kernel.adaptation.step_size:
            return
        last = len(betas) - 1
        stops = torch.linspace(1, last, min(PILOT_TEMPERATURES, last), device="cpu").round().long().unique()
        state = self._start(position, float(betas[stops[0]]), generator)
        masses = self.adapts_mass(state)
        steps, scales = [], []
        for i, beta in enumerate(betas[stops].tolist()):
            self.potential.beta = beta
            value, gradient, _ = self.potential.with_slope(state.position)
            state = replace(state, potential=value, gradient=gradient)
            if masses and i > 0:
                state = replace(state, mass=self.estimated_mass(state))
            state = self.tune(state, FIRST_TRANSITIONS if i == 0 else PILOT_TRANSITIONS)
            steps.append(state.step_size.double().log())
            if masses:
                scales.append({k: v.log() for k, v in self.estimated_mass(state).variances.items()})
        if len(steps) == 1:
            steps, scales = steps * 2, scales * 2
            self.betas = torch.tensor([0.0, 1.0], dtype=torch.float64)
        else:
            self.betas = betas[stops].double()
        self.log_steps, self.scales = torch.stack(steps).cpu(), scales

    def tune(self, state: KernelState, num_steps: int) -> KernelState:
        """Move, and let the step size follow the acceptance (Robbins and Monro's recursion)."""
        target = self.kernel.adaptation.target_accept_prob
        log_step = state.step_size.log()
        average, weight = torch.zeros_like(log_step), 0.0
        for t in range(num_steps):
            state = self.kernel.finish_warmup(replace(state, step_size=log_step.exp()))
            state, info = self.kernel.step(state)
            log_step = log_step + 1.5 / (1.0 + 0.3 * t) * (info.acceptance_rate.mean() - target)
            if 2 * t >= num_steps - 1:
                average, weight = average + log_step, weight + 1.0
        return self.kernel.finish_warmup(replace(state, step_size=(average / weight).exp()))

    def adapts_mass(self, state: KernelState) -> bool:
        """Whether a mass matrix is to be estimated from the chains: a diagonal one."""
        return self.kernel.adaptation.mass_matrix and isinstance(state.mass, DiagonalMass)

    def estimated_mass(self, state: KernelState) -> DiagonalMass:
        """From variances over the chains of a datum, averaged over data; the present one for fewer than 8 chains."""
        assert isinstance(state.mass, DiagonalMass)
        rows = {k: v.reshape(-1, self.data, *v.shape[1:]) for k, v in state.position.items()}
        if state.num_chains < 8 * self.data:
            return state.mass
        return DiagonalMass({k: v.var(0).mean(0).clamp_min(1e-10) for k, v in rows.items()})

    # Chains

    def _start(self, position: Position, beta: float, generator: torch.Generator) -> KernelState:
        self.potential.beta = beta
        return self.kernel.init(position, generator)

    def reweight(self, state: KernelState, previous: float, beta: float) -> tuple[KernelState, Tensor]:
        """Take the chains to another temperature: the log weights, and the state with its energies there."""
        self.potential.beta = beta
        value, gradient, slope = self.potential.with_slope(state.position)
        state = replace(state, potential=value, gradient=gradient if self.kernel.uses_gradient else {})
        return state, (previous - beta) * slope.double()

    def move(self, state: KernelState, beta: float) -> KernelState:
        """Transitions at the temperature that the chains were taken to."""
        state = self.settle(state, beta)
        for _ in range(self.num_steps):
            state, _ = self.kernel.step(state)
        return state

    def anneal(self, position: Position, betas: Tensor, generator: torch.Generator) -> tuple[Position, Tensor]:
        """Chains along the temperatures in their order: where they end, and their log weights."""
        # At the second temperature: at the first the other density may be zero, and need not be looked at.
        state = self._start(position, float(betas[1]), generator)
        state, log_weights = anneal(state, betas, self.reweight, self.move)
        return state.position, log_weights


def default_kernel() -> HMC:
    """HMC by a quarter turn: scales are what changes most along a path, and longer trajectories forget them less."""
    return HMC(trajectory_length=math.pi / 2)


def check_kernel(kernel: Kernel) -> None:
    """Refuse a kernel that a path cannot be walked with.

    :raises TypeError: for what is no kernel.
    :raises ValueError: for one with a target of its own, at another temperature, or that leaves no density invariant.
    """
    chains.check_kernel(kernel, "the path", "the path has temperatures of its own")
    if not kernel.adjusted:
        raise ValueError(
            f"kernel must leave its target invariant, which {type(kernel).__name__} does not: take HMC() or MALA()"
        )
