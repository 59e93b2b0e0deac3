"""Base of the kernels that integrate Hamilton's equations and accept or reject the end point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.adaptation import Adaptation, StepSizeWarmup
from pyro_dgm.infer.mcmc.chains import normals_like, per_chain, uniform_per_chain
from pyro_dgm.infer.mcmc.kernels.adaptive import AdaptiveKernel
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.mcmc.state import Info, KernelState
from pyro_dgm.ops.arguments import check_count, check_number, check_positive

__all__ = ["Hamiltonian", "Trajectory"]

#: most leapfrog steps of a transition while chains approach the typical set
SEARCH_STEPS = 10


@dataclass(frozen=True)
class Trajectory:
    """The end of a trajectory.

    :ivar position: unconstrained latents.
    :ivar potential: ``U`` at that position, ``(chains,)``.
    :ivar gradient: of ``U`` at that position.
    :ivar before: energy at the beginning, ``(chains,)``; only the difference from ``after`` matters.
    :ivar after: energy at the end.
    :ivar momentum: at the end.
    """

    position: Position
    potential: Tensor
    gradient: Position
    before: Tensor
    after: Tensor
    momentum: Position


class Hamiltonian(AdaptiveKernel):
    r"""Base of :class:`HMC` and the kernels like it: a fresh momentum, a trajectory, a Metropolis step.

    :param step_size: initial step size of the integrator.
    :param trajectory_length: step size times number of steps; or
    :param num_steps: fixed number of steps.
    :param jitter: relative half width of the uniform distribution of step sizes, in [0, 1).
    :param max_num_steps: most steps in a transition.
    :param max_energy_error: energy error above which a transition is marked diverging, nats.
    :param adaptation: what to learn in the warm-up.

    The other arguments are those of :class:`Kernel`.
    """

    independent_chains = True
    #: gradient evaluations in each step of the integrator
    gradients_a_step = 1

    def __init__(
        self,
        model: Callable[..., Any] | None,
        potential_fn: Callable[[Position], Tensor] | None,
        *,
        step_size: float,
        trajectory_length: float | None = None,
        num_steps: int | None = None,
        jitter: float = 0.0,
        max_num_steps: int = 100,
        max_energy_error: float,
        adaptation: Adaptation,
        temperature: float,
        init_strategy: str | Callable[[Any], Tensor],
        compile: bool | str,
        transforms: Mapping[str, Transform] | None,
        max_plate_nesting: int | None,
    ) -> None:
        super().__init__(
            model,
            potential_fn,
            temperature=temperature,
            init_strategy=init_strategy,
            compile=compile,
            transforms=transforms,
            max_plate_nesting=max_plate_nesting,
        )
        if num_steps is not None and trajectory_length is not None:
            raise ValueError("give num_steps or trajectory_length, not both")
        check_positive("step_size", step_size)
        check_positive("trajectory_length", trajectory_length, optional=True)
        check_positive("max_energy_error", max_energy_error)
        check_count("num_steps", num_steps, optional=True)
        check_count("max_num_steps", max_num_steps)
        check_number("jitter", jitter, within="[0, 1)")
        self.initial_step_size, self.adaptation = float(step_size), adaptation
        self.trajectory_length, self.num_steps = trajectory_length, num_steps
        self.jitter, self.max_num_steps, self.max_energy_error = float(jitter), max_num_steps, float(max_energy_error)

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        return self.refresh(super().init(params, generator))

    # Transition

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        noise = normals_like(state.position, state.generator, "momentum")
        noise["jitter"] = uniform_per_chain(state.potential, state.generator)
        noise["accept"] = uniform_per_chain(state.potential, state.generator)
        return noise

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        step_size = state.step_size * (1.0 + self.jitter * (2.0 * noise["jitter"] - 1.0))
        return self.metropolis(state, noise, self.integrate(state, noise, step_size, state.num_steps))

    def integrate(
        self, state: KernelState, noise: Mapping[str, Tensor], step_size: Tensor, num_steps: int
    ) -> Trajectory:
        """Take ``num_steps`` leapfrog steps of each chain's size from a fresh momentum."""
        q, value, gradient = state.position, state.potential, state.gradient
        p = state.mass.momentum({k: noise[f"momentum {k}"] for k in q})
        before = state.potential / self.temperature + state.mass.kinetic_energy(p)
        sizes, kick, half = {}, {}, {}
        for k, v in q.items():
            sizes[k] = per_chain(step_size, v)
            kick[k] = sizes[k] / self.temperature
            half[k] = 0.5 * kick[k]
            p[k] = torch.addcmul(p[k], half[k], gradient[k], value=-1.0)
        drift = state.mass.drift(sizes)
        # Two consecutive half steps of the momentum are taken as one step.
        for _ in range(num_steps - 1):
            q = drift(q, p)
            gradient = self.potential.gradient(q)
            p = {k: torch.addcmul(v, kick[k], gradient[k], value=-1.0) for k, v in p.items()}
        q = drift(q, p)
        value, gradient = self.potential(q)
        p = {k: torch.addcmul(v, half[k], gradient[k], value=-1.0) for k, v in p.items()}
        return Trajectory(q, value, gradient, before, value / self.temperature + state.mass.kinetic_energy(p), p)

    def metropolis(self, state: KernelState, noise: Mapping[str, Tensor], end: Trajectory) -> tuple[KernelState, Info]:
        """Accept or reject the end of a trajectory, on each chain."""
        acceptance = _acceptance(end)
        accepted = noise["accept"] < acceptance
        error = end.after - end.before
        diverging = ~torch.isfinite(error) | (error > self.max_energy_error)
        n_steps = torch.full_like(error, state.num_steps * self.gradients_a_step, dtype=torch.int64)
        energy = torch.where(accepted, end.after, end.before)
        new = state.moved(accepted, end.position, end.potential, end.gradient)
        return new, Info(acceptance, accepted, diverging, energy, n_steps)

    # Warm-up

    def restarted(self, state: KernelState) -> KernelState:
        if not isinstance(state.warmup, StepSizeWarmup) or not self.adaptation.step_size:
            return state
        # The step size has adapted to the chains that were stuck.
        return self._from_new_step_size(state, replace(state.warmup, recent=None))

    def find_step_size(self, state: KernelState) -> KernelState:
        """Double or halve the step size until one leapfrog step's mean acceptance crosses 0.8."""
        noise = normals_like(state.position, state.generator, "momentum")
        direction, size = 0, float(state.step_size)
        for _ in range(60):
            sizes = state.step_size.new_full((state.num_chains,), size)
            acceptance = _acceptance(self.integrate(state, noise, sizes, 1))
            this = 1 if float(acceptance.mean()) > 0.8 else -1
            if direction not in (0, this):
                break
            direction = this
            size *= 2.0**this
        size = min(max(size, self.adaptation.min_stepsize), self.adaptation.max_stepsize)
        return replace(state, step_size=state.step_size.new_tensor(size))

    def refresh(self, state: KernelState) -> KernelState:
        """Set the number of leapfrog steps from the step size."""
        if self.num_steps is not None:
            return replace(state, num_steps=self.num_steps)
        assert self.trajectory_length is not None
        ratio = self.trajectory_length / float(state.step_size)
        return replace(state, num_steps=max(1, min(self.most_steps(state), round(ratio))))

    def most_steps(self, state: KernelState) -> int:
        """Most leapfrog steps of the next transition."""
        if state.warmup is not None and state.warmup.searching:
            # Steps may still be tiny, and a full trajectory would then take too many gradients.
            return min(self.max_num_steps, SEARCH_STEPS)
        return self.max_num_steps


def _acceptance(trajectory: Trajectory) -> Tensor:
    """Metropolis acceptance probability; 0 where the energy at the end is not finite."""
    error = trajectory.after - trajectory.before
    return torch.where(torch.isfinite(error), (-error).clamp(max=0.0).exp(), torch.zeros_like(error))
