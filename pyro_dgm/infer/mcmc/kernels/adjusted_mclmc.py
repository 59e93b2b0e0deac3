"""Metropolis-adjusted microcanonical sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.adaptation import Adaptation
from pyro_dgm.infer.mcmc.kernels.base import Kernel, KernelState
from pyro_dgm.infer.mcmc.kernels.hamiltonian import Hamiltonian, Trajectory
from pyro_dgm.infer.mcmc.kernels.hmc import TRAJECTORY_LENGTH
from pyro_dgm.infer.mcmc.kernels.isokinetic import minimal_norm_step, unit
from pyro_dgm.infer.mcmc.mass_matrix import DiagonalMass, flatten, unflatten
from pyro_dgm.infer.mcmc.potentials.base import Position

__all__ = ["AdjustedMCLMC", "Whitened", "require_two_dimensions"]


class AdjustedMCLMC(Hamiltonian):
    r"""Microcanonical Hamiltonian Monte Carlo with a Metropolis step: :class:`HMC` at constant speed.

    A fresh direction, uniform on the sphere, then a trajectory of the isokinetic dynamics
    (``infer/mcmc/kernels/isokinetic.py``), accepted with probability
    :math:`\min(1, e^{-(\Delta U / T + \Delta K)})`. The speed does not depend on the potential energy, so that one step
    size suits all places. A step takes two gradients; in many dimensions the kernel still needs fewer gradients than
    :class:`HMC`. :class:`MCLMC` is the same without the Metropolis step: faster, and biased.

    Step size and trajectory length are in :class:`HMC`'s units: a step has length :math:`\epsilon \sqrt d`, which is
    about the distance that HMC's momentum, d standard normal numbers, moves in a time :math:`\epsilon`. The warm-up is
    that of :class:`HMC`.

    :param model: a Pyro model, of two or more unconstrained dimensions; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param step_size: as in :class:`HMC`, like all that follow.
    :param trajectory_length: length of a trajectory over :math:`\sqrt d`.
    :param num_steps: steps, fixed, instead of ``trajectory_length``.
    :param jitter: of the step size, in [0, 1).
    :param adapt_step_size: whether to learn the step size.
    :param adapt_mass_matrix: whether to learn the diagonal mass.
    :param target_accept_prob: mean acceptance probability to aim for.
    :param max_num_steps: most steps a transition.
    :param max_energy_error: energy error above which a transition is marked diverging, nats.
    :param temperature: of the target; 1 for the posterior. :class:`Kernel` says more on this and the next four.
    :param init_strategy: where chains start: ``"uniform"``, ``"prior"`` or a per-site function.
    :param compile: whether to compile gradients and transitions: ``True``, ``False`` or ``"auto"``.
    :param transforms: from constrained to unconstrained space, by latent.
    :param max_plate_nesting: number of dimensions that the model's plates may take; found automatically by default.
    :raises ValueError: for a setting out of range, or a target of one dimension.

    Source: J. Robnik, R. Cohn-Gordon and U. Seljak (2025), "Metropolis adjusted microcanonical Hamiltonian Monte
    Carlo", arXiv:2503.01707.

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import MCMC, AdjustedMCLMC
        >>> kernel = AdjustedMCLMC(potential_fn=lambda u: 0.5 * u["x"].square().sum(-1))
        >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=50, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.zeros(8, 3)})
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([8, 50, 3])
    """

    name = "mclmc-adjusted"
    gradients_a_step = 2

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        step_size: float = 1.0,
        trajectory_length: float | None = None,
        num_steps: int | None = None,
        *,
        jitter: float = 0.25,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        target_accept_prob: float = 0.9,
        max_num_steps: int = 100,
        max_energy_error: float = 1000.0,
        temperature: float = 1.0,
        init_strategy: str | Callable[[Any], Tensor] = "uniform",
        compile: bool | str = "auto",
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
    ) -> None:
        if trajectory_length is None and num_steps is None:
            trajectory_length = TRAJECTORY_LENGTH
        super().__init__(
            model,
            potential_fn,
            step_size=step_size,
            trajectory_length=trajectory_length,
            num_steps=num_steps,
            jitter=jitter,
            max_num_steps=max_num_steps,
            max_energy_error=max_energy_error,
            adaptation=Adaptation(bool(adapt_step_size), bool(adapt_mass_matrix), target_accept_prob),
            temperature=temperature,
            init_strategy=init_strategy,
            compile=compile,
            transforms=transforms,
            max_plate_nesting=max_plate_nesting,
        )

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        require_two_dimensions(self, params)
        return super().init(params, generator)

    def integrate(
        self, state: KernelState, noise: Mapping[str, Tensor], step_size: Tensor, num_steps: int
    ) -> Trajectory:
        white = Whitened(self, state)
        velocity = unit(flatten({k: noise[f"momentum {k}"] for k in state.position}))
        x, value, gradient = white.position, white.value, white.gradient
        kinetic = torch.zeros_like(value)
        size = step_size * math.sqrt(x.shape[1])
        for _ in range(num_steps):
            x, velocity, value, gradient, change = minimal_norm_step(
                x, velocity, gradient, size, white.evaluate, white.slope
            )
            kinetic = kinetic + change
        return Trajectory(*white.unwhitened(x, value, gradient), white.value, value + kinetic, {})


class Whitened:
    """A potential divided by the temperature, in coordinates of unit variance, a row of ``D`` numbers for each chain.

    :param kernel: has the potential and the temperature.
    :param state: of that kernel, with a diagonal mass matrix.
    :ivar position: the state's, ``(chains, D)``.
    :ivar value: potential over temperature there, ``(chains,)``.
    :ivar gradient: of that, ``(chains, D)``.
    """

    def __init__(self, kernel: Kernel, state: KernelState) -> None:
        assert isinstance(state.mass, DiagonalMass)
        self.potential, self.temperature, self.like = kernel.potential, kernel.temperature, state.position
        self.scales = state.mass.scales
        self.position = state.mass.whiten(state.position)
        self.value, self.gradient = state.potential / self.temperature, self._whiten(state.gradient)

    def _whiten(self, gradient: Position) -> Tensor:
        return flatten({k: v * self.scales[k] for k, v in gradient.items()}) / self.temperature

    def _unwhiten(self, x: Tensor) -> Position:
        return {k: v * self.scales[k] for k, v in unflatten(x, self.like).items()}

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Potential over temperature, and its gradient."""
        value, gradient = self.potential(self._unwhiten(x))
        return value / self.temperature, self._whiten(gradient)

    def slope(self, x: Tensor) -> Tensor:
        """The gradient of :meth:`evaluate` alone."""
        return self._whiten(self.potential.gradient(self._unwhiten(x)))

    def unwhitened(self, x: Tensor, value: Tensor, gradient: Tensor) -> tuple[Position, Tensor, Position]:
        """Latents, potential and its gradient, from whitened coordinates and what :meth:`evaluate` gave there."""
        slopes = unflatten(gradient * self.temperature, self.like)
        return (self._unwhiten(x), value * self.temperature, {k: v / self.scales[k] for k, v in slopes.items()})


def require_two_dimensions(kernel: Kernel, params: Position) -> None:
    """:raises ValueError: for a target of one dimension, in which a direction cannot turn."""
    if sum(v[0].numel() for v in params.values()) < 2:
        raise ValueError(
            f"{type(kernel).__name__} needs a target of two dimensions or more (it turns a direction), got one: use HMC"
        )
