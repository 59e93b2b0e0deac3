"""Base of the kernels that learn a step size and a mass matrix from acceptance probabilities."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch

from pyro_dgm.infer.mcmc.adaptation import DualAveraging, StepSizeWarmup
from pyro_dgm.infer.mcmc.kernels.base import Kernel
from pyro_dgm.infer.mcmc.mass_matrix import DenseMass
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.mcmc.state import Info, KernelState

__all__ = ["AdaptiveKernel"]

#: transitions of the warm-up between two updates of the number of steps; each update waits for the device
REFRESH = 10


class AdaptiveKernel(Kernel):
    """A kernel that adapts its step size to the acceptance probability, and estimates its mass matrix in windows.

    A subclass sets :attr:`adaptation` from its arguments; it says what is learnt.
    """

    #: dual averaging's gamma: the larger, the smaller the changes of the step size; Hoffman and Gelman's value
    adaptation_gamma = 0.05

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        state = super().init(params, generator)
        return replace(state, mass=DenseMass.identity(state.position)) if self.adaptation.dense_mass else state

    @abstractmethod
    def find_step_size(self, state: KernelState) -> KernelState:
        """The state with a step size from which to adapt, for the present mass matrix."""

    def start_dual(self, state: KernelState, steps_left: int) -> DualAveraging:
        """Dual averaging that starts at the present step size, for ``steps_left`` updates."""
        return DualAveraging.start(state.step_size, self.adaptation_gamma, steps_left)

    def refresh(self, state: KernelState) -> KernelState:
        """Update what depends on the step size."""
        return state

    def start_warmup(self, state: KernelState, num_steps: int) -> KernelState:
        if not self.adaptation.anything:
            return state
        windows = self.adaptation.windows(num_steps)
        dual = DualAveraging.start(state.step_size)
        warmup = StepSizeWarmup(num_steps, 0, windows, state.mass.estimate(), dual)
        return self._from_new_step_size(state, warmup)

    def adapt(self, state: KernelState, info: Info) -> KernelState:
        if state.warmup is None:
            return state
        assert isinstance(state.warmup, StepSizeWarmup)
        warmup, acceptance = state.warmup.accept(info.acceptance_rate)
        if self.adaptation.step_size:
            warmup = replace(warmup, dual=warmup.dual.update(acceptance, self.adaptation.target_accept_prob))
            state = replace(state, step_size=self.adaptation.bounded(warmup.dual.log_step.exp()))
        warmup, mass = warmup.observe(state.position)
        if mass is not None:
            return self._from_new_step_size(replace(state, mass=mass), warmup)
        if warmup.count % REFRESH == 0:
            state = self.refresh(state)
        return replace(state, warmup=warmup)

    def finish_warmup(self, state: KernelState) -> KernelState:
        warmup = state.warmup
        if isinstance(warmup, StepSizeWarmup) and self.adaptation.step_size and warmup.dual.count > 0:
            state = replace(state, step_size=self.adaptation.bounded(warmup.dual.log_step_average.exp()))
        return self.refresh(replace(state, warmup=None))

    def _from_new_step_size(self, state: KernelState, warmup: StepSizeWarmup) -> KernelState:
        if self.adaptation.step_size:
            state = self.find_step_size(state)
        return self.refresh(replace(state, warmup=replace(warmup, dual=self.start_dual(state, warmup.steps_left))))
