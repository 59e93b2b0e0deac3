"""Microcanonical Langevin Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.adaptation import Adaptation, Warmup
from pyro_dgm.infer.mcmc.kernels.adjusted_mclmc import Whitened, require_two_dimensions
from pyro_dgm.infer.mcmc.kernels.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.kernels.isokinetic import minimal_norm_step, unit
from pyro_dgm.infer.mcmc.mass_matrix import flatten
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.ops.arguments import check_count, check_positive

__all__ = ["MCLMC"]

#: number of recent transitions in the running estimate of the energy error
MEMORY = 50


@dataclass(frozen=True)
class EnergyWarmup(Warmup):
    """A warm-up that adapts the step size to the energy error.

    :ivar error: discounted sum of squared energy errors, each divided by the sixth power of the step size.
    :ivar weight: discounted number of terms in that sum.
    """

    error: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MCLMCState(KernelState):
    """A state with the directions in which the chains move.

    :ivar velocity: unit vectors, ``(chains, D)``.
    :ivar squared_energy: mean squared energy error of a step of the last transition, ``(chains,)``.
    """

    velocity: Tensor
    squared_energy: Tensor


class MCLMC(Kernel):
    r"""Microcanonical Langevin Monte Carlo (MCLMC), unadjusted: for posteriors of many dimensions, where speed matters
    more than a bias of about the size of the Monte Carlo error.

    Chains move at constant speed along a direction that the force turns (``infer/mcmc/kernels/isokinetic.py``). After
    every step the direction is partly drawn anew:

    .. math:: u \leftarrow \frac{u + \nu z}{\|u + \nu z\|}, \quad z \sim N(0, I_d), \qquad
              \nu = \sqrt{\frac{e^{2 \epsilon / L} - 1}{d}}

    Nothing is rejected, so the draws have the target's distribution only in the limit :math:`\epsilon \to 0`. The
    energy error controls the bias: the warm-up sets the step size such that the variance of the energy's change in a
    step is ``energy_variance`` per dimension (and a step no longer than half of L). How large the bias then is depends
    on the target; compare with :class:`AdjustedMCLMC`, which is the same with a Metropolis step.

    A transition takes as many steps (two gradients each) as give the length L over which the direction is forgotten.
    Step size and length are in :class:`HMC`'s units, that is divided by :math:`\sqrt d`. A transition is marked
    diverging if it meets a potential or gradient that is not finite, or an energy error above ``max_energy_error``; the
    chain then stays where it was, and gets a new direction. ``acceptance_rate`` is always 1, ``energy`` is
    :math:`U / T`.

    :param model: a Pyro model, of two or more unconstrained dimensions; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param step_size: initial :math:`\epsilon / \sqrt d`; with ``adapt_step_size=False`` it is kept.
    :param trajectory_length: :math:`L / \sqrt d`.
    :param num_steps: steps in each transition, instead of as many as give the length L.
    :param adapt_step_size: whether to learn the step size in the warm-up.
    :param adapt_mass_matrix: whether to learn the variances by which coordinates are scaled.
    :param energy_variance: variance of the energy's change in a step, per dimension, to which the step size is adapted.
    :param max_num_steps: most steps in a transition.
    :param max_energy_error: energy error above which a step is marked diverging, nats.
    :param temperature: of the target; 1 for the posterior. :class:`Kernel` says more on this and the next four.
    :param init_strategy: where chains start: ``"uniform"``, ``"prior"`` or a per-site function.
    :param compile: whether to compile gradients and transitions: ``True``, ``False`` or ``"auto"``.
    :param transforms: from constrained to unconstrained space, by latent.
    :param max_plate_nesting: number of dimensions that the model's plates may take; found automatically by default.
    :raises ValueError: for a setting out of range, or a target of one dimension.

    Source: J. Robnik, G. B. De Luca, E. Silverstein and U. Seljak (2023), "Microcanonical Hamiltonian Monte Carlo",
    arXiv:2212.08549; J. Robnik and U. Seljak (2023), "Fluctuation without dissipation: microcanonical Langevin Monte
    Carlo", arXiv:2303.18221.

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import MCLMC, MCMC
        >>> kernel = MCLMC(potential_fn=lambda u: 0.5 * u["x"].square().sum(-1))
        >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=50, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.zeros(8, 30)})
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([8, 50, 30])
    """

    name = "mclmc"
    adjusted = False
    independent_chains = True

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        step_size: float = 0.2,
        trajectory_length: float = 1.0,
        num_steps: int | None = None,
        *,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        energy_variance: float = 5e-4,
        max_num_steps: int = 100,
        max_energy_error: float = 1000.0,
        temperature: float = 1.0,
        init_strategy: str | Callable[[Any], Tensor] = "uniform",
        compile: bool | str = "auto",
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
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
        check_positive("step_size", step_size)
        check_positive("trajectory_length", trajectory_length)
        check_positive("energy_variance", energy_variance)
        check_positive("max_energy_error", max_energy_error)
        check_count("num_steps", num_steps, optional=True)
        check_count("max_num_steps", max_num_steps)
        self.initial_step_size, self.trajectory_length = float(step_size), float(trajectory_length)
        self.num_steps, self.max_num_steps = num_steps, max_num_steps
        self.adaptation = Adaptation(bool(adapt_step_size), bool(adapt_mass_matrix))
        self.energy_variance, self.max_energy_error = float(energy_variance), float(max_energy_error)

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        require_two_dimensions(self, params)
        plain = super().init(params, generator)
        flat = flatten(plain.position)
        velocity = unit(torch.randn(flat.shape, generator=generator, dtype=flat.dtype, device=flat.device))
        zeros = torch.zeros_like(plain.potential)
        return self._refresh(MCLMCState.extending(plain, velocity=velocity, squared_energy=zeros))

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        assert isinstance(state, MCLMCState)
        velocity = state.velocity
        shape = (velocity.shape[0], state.num_steps, velocity.shape[1])
        return {"refresh": torch.randn(shape, generator=state.generator, dtype=velocity.dtype, device=velocity.device)}

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        assert isinstance(state, MCLMCState)
        white = Whitened(self, state)
        x, value, gradient, velocity = white.position, white.value, white.gradient, state.velocity
        dimensions = x.shape[1]
        size = (state.step_size * math.sqrt(dimensions)).expand(value.shape)
        nu = (torch.expm1(2.0 * state.step_size / self.trajectory_length) / dimensions).sqrt()
        squares, worst = torch.zeros_like(value), torch.zeros_like(value)
        for i in range(state.num_steps):
            before = value
            x, velocity, value, gradient, kinetic = minimal_norm_step(
                x, velocity, gradient, size, white.evaluate, white.slope
            )
            error = value - before + kinetic
            squares, worst = squares + error.square(), torch.maximum(worst, error.abs())
            velocity = unit(velocity + nu * noise["refresh"][:, i])
        fine = torch.isfinite(worst + x.sum(-1) + gradient.sum(-1)) & (worst <= self.max_energy_error)
        turned = unit(noise["refresh"][:, -1])
        new = state.moved(
            fine,
            *white.unwhitened(x, value, gradient),
            velocity=torch.where(fine[:, None], velocity, turned),
            squared_energy=torch.where(fine, squares / state.num_steps, torch.full_like(squares, math.inf)),
        )
        n_steps = torch.full_like(value, 2 * state.num_steps, dtype=torch.int64)
        energy = new.potential / self.temperature
        return new, Info(torch.ones_like(value), torch.ones_like(fine), ~fine, energy, n_steps)

    # Warm-up

    def start_warmup(self, state: KernelState, num_steps: int) -> KernelState:
        warmup = EnergyWarmup(num_steps, 0, self.adaptation.windows(num_steps), state.mass.estimate())
        return replace(state, warmup=warmup)

    def adapt(self, state: KernelState, info: Info) -> KernelState:
        if state.warmup is None:
            return state
        assert isinstance(state, MCLMCState) and isinstance(state.warmup, EnergyWarmup)
        warmup = replace(state.warmup, count=state.warmup.count + 1)
        if self.adaptation.step_size:
            state, warmup = self._follow_energy(state, warmup)
        warmup, mass = warmup.observe(state.position)
        if mass is not None:
            # The errors were measured in the old coordinates.
            state, warmup = replace(state, mass=mass), replace(warmup, error=0.0, weight=0.0)
        return self._refresh(replace(state, warmup=warmup))

    def _follow_energy(self, state: MCLMCState, warmup: EnergyWarmup) -> tuple[MCLMCState, EnergyWarmup]:
        """Set the step size at which errors, which grow as its sixth power, would have the wanted variance."""
        squares = state.squared_energy
        finite = torch.isfinite(squares)
        share = float(finite.double().mean())
        size = float(state.step_size)
        if share < 0.8:  # with this many divergent chains the errors of the others are no guide
            return replace(state, step_size=state.step_size * 0.5), replace(warmup, error=0.0, weight=0.0)
        dimensions = state.velocity.shape[1]
        mean = float(torch.where(finite, squares, torch.zeros_like(squares)).sum() / finite.sum()) / dimensions
        decay = 1.0 - 1.0 / MEMORY
        error, weight = decay * warmup.error + mean / size**6, decay * warmup.weight + 1.0
        wanted = (self.energy_variance / max(error / weight, 1e-300)) ** (1.0 / 6.0)
        wanted = min(max(wanted, 0.5 * size), 2.0 * size, 0.5 * self.trajectory_length)
        state = replace(state, step_size=torch.full_like(state.step_size, wanted))
        return state, replace(warmup, error=error, weight=weight)

    def finish_warmup(self, state: KernelState) -> KernelState:
        return self._refresh(replace(state, warmup=None))

    def _refresh(self, state: KernelState) -> KernelState:
        count = self.num_steps or round(self.trajectory_length / float(state.step_size))
        return replace(state, num_steps=max(1, min(self.max_num_steps, count)))
