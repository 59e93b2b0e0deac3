"""Hamiltonian Monte Carlo over a leading chain dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.adaptation import (
    COVARIANCE,
    WHITENING,
    DualAveraging,
    Warmup,
    Welford,
    WelfordDense,
    dense_inverse_mass,
    flatten,
    unflatten,
    warmup_windows,
)
from pyro_dgm.infer.mcmc.chains import normals_like, per_chain, select, uniform_per_chain
from pyro_dgm.infer.mcmc.kernels.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.ops.arguments import check_count, check_number

__all__ = ["HMC"]

#: transitions between two looks at the step size while warming up, each a host synchronisation
REFRESH = 10
#: most leapfrog steps of a transition while chains look for the typical set
SEARCH_STEPS = 10
#: by default.  Beyond a quarter turn successive draws lie on opposite sides: better for means, worse for variances
TRAJECTORY_LENGTH = 2.0


class HMC(Kernel):
    r"""Hamiltonian Monte Carlo: long moves along the gradient, all chains in step.  The default choice for latents with
    a gradient.

    .. math:: H(u, p) = \frac{U(u)}{T} + \tfrac12 p^\top M^{-1} p, \qquad p \sim N(0, M)

    A transition takes the same number of leapfrog steps on every chain, with a step size of
    :math:`\epsilon (1 + j (2 v_c - 1))`, :math:`v_c` uniform for each chain and transition: without this jitter an
    orbit whose period divides the trajectory never mixes.  The proposal is kept with probability
    :math:`\min(1, e^{H - H'})`; one of non-finite energy is rejected and marked diverging, on its chain alone.

    Step size and mass are learnt in the warm-up from all chains together, so 64 chains need a far shorter one
    than a single chain would.  Chains are otherwise independent.  A model of ``N`` independent data is *one* joint
    target here: the acceptance is of the ``N`` moves together, and the step size shrinks as :math:`N^{-1/4}`.

    :param model: a Pyro model; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param step_size: :math:`\epsilon` to start from (or to keep, with ``adapt_step_size=False``).
    :param trajectory_length: :math:`\epsilon L` in units of the mass-scaled space, where the posterior has standard
        deviations near 1; 2 by default.  After a quarter turn, :math:`\pi / 2`, a Gaussian with independent
        coordinates has forgotten where it was; most posteriors are correlated and turn more slowly in some
        direction.  Take more where they are strongly so; take a quarter turn where variances matter more than means,
        which the opposite sides of a longer one favour.  :math:`L` follows the step size, up to ``max_num_steps``.
    :param num_steps: :math:`L`, fixed, instead of ``trajectory_length``.
    :param jitter: :math:`j` in [0, 1).
    :param adapt_step_size: whether to learn :math:`\epsilon` in the warm-up.
    :param adapt_mass_matrix: whether to learn :math:`M`.
    :param dense_mass: whether :math:`M` is a full matrix over the elements of all latents, shared by all chains: the
        posterior's correlations are then gone from the trajectory, for one product of matrices a step.  Worth it up to
        a few hundred elements, with chains enough to estimate it.
    :param target_accept_prob: mean acceptance probability to aim for.
    :param max_num_steps: most leapfrog steps a transition.
    :param max_energy_error: energy error above which a transition is marked diverging, nats.
    :param temperature: :math:`T`; see :class:`Kernel`.
    :param init_strategy: see :class:`Kernel`.
    :param compile: see :class:`Kernel`.
    :param transforms: see :class:`Kernel`, like ``max_plate_nesting``.
    :param full_mass: Pyro's name of ``dense_mass``.
    :param min_stepsize: least step size that adaptation may take, and ``max_stepsize`` the largest.
    :param jit_compile: Pyro's, like ``jit_options`` and ``ignore_jit_warnings``; taken and not needed, since the
        potential is recorded as a graph in any case (see ``compile``).
    :raises ValueError: for a setting out of range; the message names it.

    Source: R. M. Neal (2011), "MCMC using Hamiltonian dynamics", arXiv:1206.1901; step-size adaptation of M. D. Hoffman
    and A. Gelman (2014), arXiv:1111.4246; windows of the Stan Reference Manual.

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import HMC, MCMC
        >>> kernel = HMC(potential_fn=lambda u: 0.5 * u["x"].square().sum(-1))
        >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=50, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.zeros(8, 3)})
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([8, 50, 3])
    """

    name = "hmc"
    independent_chains = True
    #: gradients that a step of the integrator takes
    gradients_a_step = 1
    #: how gently the step size follows the acceptance; Hoffman and Gelman's value
    adaptation_gamma = 0.05

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        step_size: float | None = 1.0,
        trajectory_length: float | None = None,
        num_steps: int | None = None,
        *,
        jitter: float = 0.25,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        dense_mass: bool = False,
        target_accept_prob: float = 0.8,
        max_num_steps: int = 100,
        max_energy_error: float = 1000.0,
        temperature: float = 1.0,
        init_strategy: str | Callable[[Any], Tensor] = "uniform",
        compile: bool | str = "auto",
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
        full_mass: bool | None = None,
        min_stepsize: float = 0.0,
        max_stepsize: float = math.inf,
        jit_compile: bool = False,
        jit_options: Mapping[str, Any] | None = None,
        ignore_jit_warnings: bool = False,
    ) -> None:
        super().__init__(
            model, potential_fn, temperature=temperature, init_strategy=init_strategy, compile=compile,
            transforms=transforms, max_plate_nesting=max_plate_nesting,
        )  # fmt: skip
        step_size = 1.0 if step_size is None else step_size
        if full_mass is not None:
            if not isinstance(full_mass, bool):
                raise ValueError(
                    f"full_mass must be True (one matrix over all latents) or False, got {full_mass!r}; matrices of "
                    "some latents alone are not offered"
                )
            dense_mass = full_mass
        check_number("min_stepsize", min_stepsize)
        check_number("max_stepsize", max_stepsize)
        if not 0.0 <= min_stepsize < max_stepsize:
            raise ValueError(
                f"min_stepsize must be below max_stepsize and at least 0, got {min_stepsize}, {max_stepsize}"
            )
        self.step_size_bounds = float(min_stepsize), float(max_stepsize)
        if num_steps is not None and trajectory_length is not None:
            raise ValueError("give num_steps or trajectory_length, not both")
        for argument, value in (
            ("step_size", step_size),
            ("trajectory_length", trajectory_length),
            ("max_energy_error", max_energy_error),
        ):
            check_number(argument, value, optional=argument == "trajectory_length")
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{argument} must be positive and finite, got {value}")
        for argument, count in (("num_steps", num_steps), ("max_num_steps", max_num_steps)):
            check_count(argument, count, optional=True)
        check_number("jitter", jitter)
        if not 0.0 <= jitter < 1.0:
            raise ValueError(f"jitter must be in [0, 1), got {jitter}")
        check_number("target_accept_prob", target_accept_prob)
        if not 0.0 < target_accept_prob < 1.0:
            raise ValueError(f"target_accept_prob must be in (0, 1), got {target_accept_prob}")
        self.initial_step_size = float(step_size)
        if trajectory_length is None and num_steps is None:
            trajectory_length = TRAJECTORY_LENGTH
        self.trajectory_length = trajectory_length
        self.num_steps = num_steps
        self.jitter, self.max_num_steps, self.max_energy_error = float(jitter), max_num_steps, float(max_energy_error)
        self.adapt_step_size, self.adapt_mass_matrix = bool(adapt_step_size), bool(adapt_mass_matrix)
        self.dense_mass = bool(dense_mass)
        self.target_accept_prob = float(target_accept_prob)

    # Transition

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        state = super().init(params, generator)
        if self.dense_mass:
            size = flatten(state.position).shape[1]
            eye = torch.eye(size, dtype=state.potential.dtype, device=state.potential.device)
            state = replace(state, inverse_mass=dense_inverse_mass(eye))
        return self._refresh(state)

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        normals = normals_like(state.position, state.generator, "momentum")
        jitter, accept = (uniform_per_chain(state.potential, state.generator) for _ in range(2))
        return {**normals, "jitter": jitter, "accept": accept}

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        return self._metropolis(state, noise, self._trajectory(state, noise))

    def _trajectory(self, state: KernelState, noise: Mapping[str, Tensor]) -> Trajectory:
        """The proposal of a transition."""
        step_size = state.step_size * (1.0 + self.jitter * (2.0 * noise["jitter"] - 1.0))
        return self._integrate(state, noise, step_size, state.num_steps)

    def _integrate(
        self, state: KernelState, noise: Mapping[str, Tensor], step_size: Tensor, num_steps: int
    ) -> Trajectory:
        """Follow the dynamics from a fresh momentum, ``num_steps`` steps of each chain's size."""
        momentum = self._momentum(state, noise)
        end, end_momentum = self._leapfrog(state, momentum, step_size, num_steps)
        return Trajectory(end, self._energy(state, momentum), self._energy(end, end_momentum), end_momentum)

    def _metropolis(
        self, state: KernelState, noise: Mapping[str, Tensor], trajectory: Trajectory
    ) -> tuple[KernelState, Info]:
        end, before, after = trajectory.end, trajectory.before, trajectory.after
        acceptance, diverging = self._acceptance_rate(before, after)
        accepted = noise["accept"] < acceptance
        new = replace(
            state,
            position=select(accepted, end.position, state.position),
            potential=torch.where(accepted, end.potential, state.potential),
            gradient=select(accepted, end.gradient, state.gradient),
        )
        n_steps = torch.full_like(before, state.num_steps * self.gradients_a_step, dtype=torch.int64)
        return new, Info(acceptance, accepted, diverging, torch.where(accepted, after, before), n_steps)

    def _momentum(self, state: KernelState, noise: Mapping[str, Tensor]) -> Position:
        normals = {k: noise[f"momentum {k}"] for k in state.position}
        if self.dense_mass:
            # With Sigma = L L' the inverse mass, momenta L'^-1 xi have covariance Sigma^-1.
            return unflatten(flatten(normals) @ state.inverse_mass[WHITENING], normals)
        return {k: v / state.inverse_mass[k].sqrt() for k, v in normals.items()}

    def _velocity(self, state: KernelState, momentum: Position) -> Position:
        if self.dense_mass:
            return unflatten(flatten(momentum) @ state.inverse_mass[COVARIANCE], momentum)
        return {k: v * state.inverse_mass[k] for k, v in momentum.items()}

    def _leapfrog(
        self, state: KernelState, momentum: Position, step_size: Tensor, num_steps: int
    ) -> tuple[KernelState, Position]:
        """``num_steps`` leapfrog steps; the half steps in momentum between two of them are taken as one."""
        drift = {k: per_chain(step_size, v) for k, v in state.position.items()}
        kick = {k: v / self.temperature for k, v in drift.items()}
        half = {k: 0.5 * v for k, v in kick.items()}
        if not self.dense_mass:
            drift = {k: v * state.inverse_mass[k] for k, v in drift.items()}
        q, value, gradient = state.position, state.potential, state.gradient
        p = {k: torch.addcmul(momentum[k], half[k], gradient[k], value=-1.0) for k in q}
        for i in range(num_steps):
            velocity = self._velocity(state, p) if self.dense_mass else p
            q = {k: torch.addcmul(v, drift[k], velocity[k]) for k, v in q.items()}
            if i == num_steps - 1:
                value, gradient = self.potential(q)
                p = {k: torch.addcmul(v, half[k], gradient[k], value=-1.0) for k, v in p.items()}
            else:
                gradient = self.potential.gradient(q)
                p = {k: torch.addcmul(v, kick[k], gradient[k], value=-1.0) for k, v in p.items()}
        return replace(state, position=q, potential=value, gradient=gradient), p

    def _energy(self, state: KernelState, momentum: Position) -> Tensor:
        velocity = self._velocity(state, momentum)
        kinetic = sum((v * velocity[k]).reshape(len(v), -1).sum(-1) for k, v in momentum.items())
        return state.potential / self.temperature + 0.5 * kinetic

    def _acceptance_rate(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        error = after - before
        finite = torch.isfinite(error)
        acceptance = torch.where(finite, (-error).clamp(max=0.0).exp(), torch.zeros_like(error))
        return acceptance, ~finite | (error > self.max_energy_error)

    # Warm-up

    def start_warmup(self, state: KernelState, num_steps: int) -> KernelState:
        if not (self.adapt_step_size or self.adapt_mass_matrix):
            return state
        if self.adapt_step_size:
            state = self._find_step_size(state)
        windows = tuple(warmup_windows(num_steps)) if self.adapt_mass_matrix else ()
        warmup = Warmup(num_steps, 0, windows, DualAveraging.start(state.step_size), self._moments(state))
        return self._refresh(replace(state, warmup=replace(warmup, dual=self._dual(state, warmup))))

    def adapt(self, state: KernelState, info: Info) -> KernelState:
        warmup = state.warmup
        if warmup is None:
            return state
        warmup, acceptance = warmup.see(info.acceptance_rate)
        if self.adapt_step_size:
            warmup = replace(warmup, dual=warmup.dual.update(acceptance, self.target_accept_prob))
            state = replace(state, step_size=warmup.dual.log_step.exp().clamp(*self.step_size_bounds))
        if warmup.in_window:
            warmup = replace(warmup, moments=warmup.moments.update(state.position))
            if warmup.closes_window:
                state = replace(state, inverse_mass=warmup.moments.inverse_mass())
                if self.adapt_step_size:
                    state = self._find_step_size(state)
                warmup = replace(warmup, dual=self._dual(state, warmup), moments=self._moments(state))
                state = self._refresh(state)
        if warmup.count % REFRESH == 0:
            state = self._refresh(state)
        return replace(state, warmup=warmup)

    def restarted(self, state: KernelState) -> KernelState:
        warmup = state.warmup
        if warmup is None or not self.adapt_step_size:
            return state
        # The step size has followed the chains that were stuck.
        state = self._find_step_size(state)
        return self._refresh(replace(state, warmup=replace(warmup, dual=self._dual(state, warmup), moving=None)))

    def finish_warmup(self, state: KernelState) -> KernelState:
        if state.warmup is not None and self.adapt_step_size and state.warmup.dual.count > 0:
            step_size = state.warmup.dual.log_step_average.exp()
            state = replace(state, step_size=step_size.clamp(*self.step_size_bounds))
        return self._refresh(replace(state, warmup=None))

    def _moments(self, state: KernelState) -> Welford | WelfordDense:
        return (WelfordDense if self.dense_mass else Welford).start(state.position)

    def _dual(self, state: KernelState, warmup: Warmup) -> DualAveraging:
        return DualAveraging.start(state.step_size, self.adaptation_gamma, warmup.steps_left)

    def _refresh(self, state: KernelState) -> KernelState:
        """Let the number of leapfrog steps follow the step size."""
        if self.num_steps is not None:
            return replace(state, num_steps=self.num_steps)
        assert self.trajectory_length is not None
        ratio = self.trajectory_length / float(state.step_size)
        return replace(state, num_steps=max(1, min(self._most_steps(state), round(ratio))))

    def _most_steps(self, state: KernelState) -> int:
        """Most leapfrog steps of the next transition."""
        if state.warmup is not None and state.warmup.searching:
            # Steps that are as small as the steepest place needs make no length worth its gradients yet.
            return min(self.max_num_steps, SEARCH_STEPS)
        return self.max_num_steps

    def _find_step_size(self, state: KernelState) -> KernelState:
        """Double or halve the step size until one leapfrog step's mean acceptance crosses 0.8."""
        noise = normals_like(state.position, state.generator, "momentum")
        direction = 0
        size = float(state.step_size)
        for _ in range(60):
            found = self._integrate(state, noise, state.step_size.new_full((state.num_chains,), size), 1)
            acceptance, _ = self._acceptance_rate(found.before, found.after)
            this = 1 if float(acceptance.mean()) > 0.8 else -1
            if direction not in (0, this):
                break
            direction = this
            size *= 2.0**this
        least, most = self.step_size_bounds
        return replace(state, step_size=state.step_size.new_tensor(min(max(size, least), most)))


@dataclass(frozen=True)
class Trajectory:
    """Where a trajectory ended.

    :ivar end: state there.
    :ivar before: energy at its beginning, ``(chains,)``; only the difference from ``after`` matters.
    :ivar after: energy at its end.
    :ivar momentum: at its end.
    """

    end: KernelState
    before: Tensor
    after: Tensor
    momentum: Position
