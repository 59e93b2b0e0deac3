"""Hamiltonian Monte Carlo that learns how far to go."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.adaptation import Adaptation
from pyro_dgm.infer.mcmc.kernels.base import Info, KernelState
from pyro_dgm.infer.mcmc.kernels.hamiltonian import Hamiltonian, Trajectory
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.ops.arguments import check_positive

__all__ = ["ChEES"]

#: Adam's settings in the paper: no first moment, a short memory for the second
LEARNING_RATE, SECOND_MOMENT, EPSILON = 0.025, 0.95, 1e-8


@dataclass(frozen=True, kw_only=True)
class ChEESState(KernelState):
    """A state with the length of trajectories, as Python numbers, since it decides the number of steps.

    :ivar length_gradient: derivative of the criterion with respect to the length, from the last transition; scalar.
    :ivar log_length: logarithm of the longest trajectory, in units of the mass-scaled space.
    :ivar average: its running average, used after the warm-up.
    :ivar second_moment: Adam's.
    :ivar updates: number of updates of the length.
    """

    length_gradient: Tensor
    log_length: float = 0.0
    average: float = 0.0
    second_moment: float = 0.0
    updates: int = 0

    shared = KernelState.shared | {"length_gradient"}


class ChEES(Hamiltonian):
    r"""Hamiltonian Monte Carlo that learns its trajectory length from many chains. Use it where the best length is not
    known, in particular for correlated posteriors.

    The warm-up maximises over the length :math:`T` the *change in the estimator of the expected square*,

    .. math:: \mathrm{ChEES} = \tfrac14 E\left[\left(\|u' - E u'\|^2 - \|u - E u\|^2\right)^2\right], \qquad
              \widehat{\frac{\partial}{\partial T}} = \frac{\sum_c \alpha_c h_t
              \left(\|u'_c - \bar u'\|^2 - \|u_c - \bar u\|^2\right) (u'_c - \bar u')^\top v'_c}{\sum_c \alpha_c}

    by Adam on :math:`\log T`. The sample are the chains ``c``, with proposals :math:`u'`, their velocities :math:`v'`
    and acceptance probabilities :math:`\alpha_c`; means are over chains, and coordinates are scaled by the mass matrix.
    Transition ``t`` has length :math:`h_t T`, in equal steps no longer than the step size, with :math:`h_t` from the
    Halton sequence in base 2. These lengths fill :math:`(0, T)` evenly, so that they do not always match the period of
    an orbit. The step size is adapted to a *harmonic* mean of the acceptance over chains of 0.651; the mass matrix is
    learnt as in :class:`HMC`.

    Learning needs at least two chains, and works better with tens of them. After the warm-up, chains are independent.
    Without a warm-up this is :class:`HMC` with random lengths.

    :param model: a Pyro model; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param step_size: step size to start from.
    :param trajectory_length: :math:`T` to start from, in units of the mass-scaled space.
    :param adapt_trajectory_length: whether to learn :math:`T`.
    :param learning_rate: Adam's, of :math:`\log T`.
    :param adapt_step_size: as in :class:`HMC`, like the settings that follow it.
    :param adapt_mass_matrix: whether to learn the mass.
    :param dense_mass: a full matrix.
    :param target_accept_prob: harmonic mean of the acceptance probability to aim for.
    :param max_num_steps: most leapfrog steps a transition.
    :param max_energy_error: energy error above which a transition is marked diverging, nats.
    :param temperature: of the target; 1 for the posterior. :class:`Kernel` says more on this and the next four.
    :param init_strategy: where chains start: ``"uniform"``, ``"prior"`` or a per-site function.
    :param compile: whether to compile gradients: ``True``, ``False`` or ``"auto"``. Transitions are not compiled, since
        their lengths differ.
    :param transforms: from constrained to unconstrained space, by latent.
    :param max_plate_nesting: number of dimensions that the model's plates may take; found automatically by default.
    :raises ValueError: for a setting out of range, or fewer than two chains to learn from.

    Source: M. D. Hoffman, A. Radul and P. Sountsov (2021), "An adaptive-MCMC scheme for setting trajectory lengths in
    Hamiltonian Monte Carlo", AISTATS, PMLR 130.

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import MCMC, ChEES
        >>> kernel = ChEES(potential_fn=lambda u: 0.5 * u["x"].square().sum(-1))
        >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=50, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.zeros(8, 3)})
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([8, 50, 3])
    """

    name = "chees"
    varying_steps = True
    min_chains = 2

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        step_size: float = 1.0,
        trajectory_length: float = math.pi / 2,
        *,
        adapt_trajectory_length: bool = True,
        learning_rate: float = LEARNING_RATE,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        dense_mass: bool = False,
        target_accept_prob: float = 0.651,
        max_num_steps: int = 500,
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
            step_size=step_size,
            trajectory_length=trajectory_length,
            max_num_steps=max_num_steps,
            max_energy_error=max_energy_error,
            adaptation=Adaptation(bool(adapt_step_size), bool(adapt_mass_matrix), target_accept_prob, bool(dense_mass)),
            temperature=temperature,
            init_strategy=init_strategy,
            compile=compile,
            transforms=transforms,
            max_plate_nesting=max_plate_nesting,
        )
        check_positive("learning_rate", learning_rate)
        self.adapt_trajectory_length, self.learning_rate = bool(adapt_trajectory_length), float(learning_rate)

    def init(self, params: Position, generator: torch.Generator) -> ChEESState:
        state = super().init(params, generator)
        assert self.trajectory_length is not None
        length, zero = math.log(self.trajectory_length), state.potential.new_zeros(())
        return ChEESState.extending(state, length_gradient=zero, log_length=length, average=length)

    def steps_at(self, state: KernelState) -> int:
        return max(1, min(self.most_steps(state), math.ceil(self._length(state) / float(state.step_size))))

    def _length(self, state: KernelState) -> float:
        """Length of the next transition's trajectory."""
        assert isinstance(state, ChEESState)
        longest = math.exp(state.average if state.warmup is None else state.log_length)
        # A trajectory shorter than a step would accept at any step size, which would then grow without end.
        longest = max(longest, float(state.step_size))
        return min(halton(state.iteration + 1) * longest, self.most_steps(state) * float(state.step_size))

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        return {**super().noise(state), "length": state.step_size.new_full((), self._length(state))}

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        # Equal steps that add up to the length exactly: a rounded length would have no gradient.
        size = (noise["length"] / state.num_steps).expand(state.potential.shape)
        trajectory = self.integrate(state, noise, size, state.num_steps)
        new, info = self.metropolis(state, noise, trajectory)
        if not isinstance(new, ChEESState) or state.warmup is None or not self.adapt_trajectory_length:
            return new, info
        return replace(new, length_gradient=self._length_gradient(state, trajectory, info.acceptance_rate)), info

    def _length_gradient(self, state: KernelState, trajectory: Trajectory, acceptance: Tensor) -> Tensor:
        """Derivative of the criterion with respect to the length of this trajectory."""
        whiten = state.mass.whiten
        before, after = whiten(state.position), whiten(trajectory.position)
        velocity = whiten(state.mass.velocity(trajectory.momentum))
        # A chain whose proposal is not finite has weight zero, and must not make the others' means NaN.
        fine = (acceptance > 0) & torch.isfinite(after).all(-1) & torch.isfinite(velocity).all(-1)
        weight = torch.where(fine, acceptance, torch.zeros_like(acceptance))
        after = torch.where(fine[:, None], after, before)
        velocity = torch.where(fine[:, None], velocity, torch.zeros_like(velocity))
        total = weight.sum()
        centred = after - (weight[:, None] * after).sum(0) / total.clamp(min=1e-12)
        origin = before - before.mean(0)
        change = centred.square().sum(-1) - origin.square().sum(-1)
        slope = (weight * change * (centred * velocity).sum(-1)).sum() / total.clamp(min=1e-12)
        return torch.where(torch.isfinite(slope), slope, torch.zeros_like(slope))

    def adapt(self, state: KernelState, info: Info) -> KernelState:
        if isinstance(state, ChEESState) and state.warmup is not None and self.adapt_trajectory_length:
            # Not while chains still approach the typical set: they come closer to each other, and T would go to zero.
            if not state.warmup.searching:
                state = self._move_length(state)
        # The harmonic mean is dominated by the chains with the lowest acceptance.
        harmonic = info.acceptance_rate.clamp(min=1e-3).reciprocal().mean().reciprocal()
        return super().adapt(state, replace(info, acceptance_rate=harmonic.expand_as(info.acceptance_rate)))

    def _move_length(self, state: ChEESState) -> ChEESState:
        share = halton(state.iteration)  # of the transition just taken
        slope = float(state.length_gradient) * share * math.exp(state.log_length)
        updates = state.updates + 1
        second = SECOND_MOMENT * state.second_moment + (1 - SECOND_MOMENT) * slope * slope
        move = slope / (math.sqrt(second / (1 - SECOND_MOMENT**updates)) + EPSILON)
        length = state.log_length + self.learning_rate * move
        # Bounded above by the allowed steps, but not below by the step size, which is still being adapted.
        length = min(length, math.log(self.max_num_steps * float(state.step_size)))
        weight = updates**-0.5
        average = weight * length + (1 - weight) * state.average
        return replace(state, log_length=length, average=average, second_moment=second, updates=updates)

    def refresh(self, state: KernelState) -> KernelState:
        return state  # the number of steps differs in each transition

    def finish_warmup(self, state: KernelState) -> ChEESState:
        state = super().finish_warmup(state)
        assert isinstance(state, ChEESState)
        return replace(state, length_gradient=torch.zeros_like(state.length_gradient))


def halton(index: int) -> float:
    """Element of the Halton sequence in base 2 (van der Corput's), in (0, 1), from index 1.

    Example::

        >>> [halton(i) for i in range(1, 6)]
        [0.5, 0.25, 0.75, 0.125, 0.625]
    """
    result, share = 0.0, 0.5
    while index:
        result += share * (index & 1)
        index >>= 1
        share /= 2
    return result
