"""The unadjusted Langevin algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.chains import finite_chains, normals_like, per_chain
from pyro_dgm.infer.mcmc.kernels.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.ops.arguments import check_positive
from pyro_dgm.ops.langevin import langevin_step

__all__ = ["Langevin"]


class Langevin(Kernel):
    r"""The unadjusted Langevin algorithm (ULA): a gradient step plus noise, never rejected. Use it to train energies,
    in very many dimensions, and where a small bias of known size is acceptable.

    .. math:: u' = u - \frac{\epsilon^2}{2 T} \nabla U(u) + \epsilon \xi, \qquad \xi \sim N(0, I)

    The Langevin *time* step is :math:`h = \epsilon^2 / 2`. The stationary distribution is :math:`e^{-U / T}` only in
    the limit :math:`\epsilon \to 0`: for a Gaussian of variance :math:`s^2` it has variance :math:`T s^2 / (1 -
    \epsilon^2 / (4 T s^2))`, and from :math:`\epsilon = 2 s \sqrt T` on the iteration is unstable. Nothing is learnt in
    the warm-up, so choose the step size yourself. :class:`MALA` has the same proposal and no bias.

    **Temperature.** Papers on energy-based models write
    :math:`u' = u - \lambda \nabla U + \sigma \xi` and choose :math:`\lambda` and :math:`\sigma` independently. That is
    this kernel with :math:`\epsilon = \sigma` and :math:`T = \sigma^2 / (2 \lambda)`: a step of 10 and noise of 0.005
    sample at :math:`T = 1.25 \cdot 10^{-6}`, which is gradient descent with a little noise, not sampling from
    :math:`e^{-U}`. :meth:`from_recipe` does the conversion.

    **Divergence.** If the proposal, its potential or its gradient is not finite, the chain is marked diverging and
    stays at its last finite position. Nothing else is ever rejected: ``acceptance_rate`` is 1 and ``accepted`` is true.
    ``energy`` is :math:`U / T`.

    :param model: a Pyro model; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param step_size: :math:`\epsilon`, in units of the unconstrained latents.
    :param schedule: a function from the transition's number (from 0, including the warm-up) to a factor for
        :math:`\epsilon`, such as :class:`PolynomialDecay`; constant by default.
    :param max_grad_norm: largest :math:`\|\nabla U\|` of a chain, over all its latents; longer gradients are scaled
        down to it, which changes the target there.
    :param max_grad_value: largest :math:`|\partial U / \partial u_i|` of an element; larger ones are clipped, which
        also changes the target.
    :param temperature: of the target; 1 for the posterior. :class:`Kernel` says more on this and the next four.
    :param init_strategy: where chains start: ``"uniform"``, ``"prior"`` or a per-site function.
    :param compile: whether to compile gradients and transitions: ``True``, ``False`` or ``"auto"``.
    :param transforms: from constrained to unconstrained space, by latent.
    :param max_plate_nesting: number of dimensions that the model's plates may take; found automatically by default.
    :raises ValueError: for a setting out of range; the message names it.

    Source: G. Parisi (1981), "Correlation functions and computer simulations"; G. O. Roberts and R. L. Tweedie (1996),
    "Exponential convergence of Langevin distributions and their discrete approximations".

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import MCMC, Langevin
        >>> kernel = Langevin(potential_fn=lambda u: 0.5 * u["x"].square().flatten(1).sum(-1), step_size=0.5)
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.zeros(8, 1, 28, 28)})
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([8, 20, 1, 28, 28])
    """

    name = "langevin"
    independent_chains = True
    adjusted = False

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[..., Tensor] | None = None,
        step_size: float = 0.1,
        *,
        schedule: Callable[[int], float] | None = None,
        max_grad_norm: float | None = None,
        max_grad_value: float | None = None,
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
        check_positive("max_grad_norm", max_grad_norm, optional=True)
        check_positive("max_grad_value", max_grad_value, optional=True)
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule must be a function of the transition's number, got {type(schedule).__name__}")
        self.initial_step_size = float(step_size)
        self.schedule, self.max_grad_norm, self.max_grad_value = schedule, max_grad_norm, max_grad_value

    @classmethod
    def from_recipe(
        cls,
        step: float,
        noise: float,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[..., Tensor] | None = None,
        *,
        schedule: Callable[[int], float] | None = None,
        max_grad_norm: float | None = None,
        max_grad_value: float | None = None,
        init_strategy: str | Callable[[Any], Tensor] = "uniform",
        compile: bool | str = "auto",
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
    ) -> Langevin:
        r"""The kernel for a paper's :math:`u' = u - \lambda \nabla U + \sigma \xi`, at the temperature that this
        implies.

        :param step: :math:`\lambda`.
        :param noise: :math:`\sigma`.
        :param model: this argument and all that follow are those of :class:`Langevin`.
        :param potential_fn: :math:`U` over chains.
        :param schedule: a factor for the step size, by transition.
        :param max_grad_norm: largest norm of a chain's gradient.
        :param max_grad_value: largest absolute value of a gradient's element.
        :param init_strategy: where chains start.
        :param compile: whether to compile gradients and transitions.
        :param transforms: from constrained to unconstrained space, by latent.
        :param max_plate_nesting: number of dimensions that the model's plates may take.
        :raises ValueError: if ``step`` or ``noise`` is not positive and finite.
        :raises TypeError: if called on a subclass, whose arguments are different.

        Example::

            >>> from pyro_dgm.infer.mcmc import Langevin
            >>> f"{Langevin.from_recipe(step=10.0, noise=0.005).temperature:.3g}"
            '1.25e-06'
        """
        check_positive("step", step)
        check_positive("noise", noise)
        if cls is not Langevin:
            raise TypeError(
                f"from_recipe makes a Langevin kernel; give {cls.__name__} step_size=noise and "
                "temperature=noise**2 / (2 * step)"
            )
        return Langevin(
            model,
            potential_fn,
            step_size=noise,
            schedule=schedule,
            max_grad_norm=max_grad_norm,
            max_grad_value=max_grad_value,
            temperature=noise**2 / (2.0 * step),
            init_strategy=init_strategy,
            compile=compile,
            transforms=transforms,
            max_plate_nesting=max_plate_nesting,
        )

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        noise = normals_like(state.position, state.generator, "noise")
        if self.schedule is not None:
            factor = float(self.schedule(state.iteration))
            if not (factor > 0 and math.isfinite(factor)):
                raise ValueError(f"schedule must give positive finite factors, got {factor} at {state.iteration}")
            noise["step size"] = state.step_size.new_full((), self.initial_step_size * factor)
        return noise

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        state = replace(state, step_size=noise.get("step size", state.step_size))
        return self._settle(state, self._propose(state, noise, self.temperature), noise, self.temperature)

    def _propose(self, state: KernelState, noise: Mapping[str, Tensor], temperature: float | Tensor) -> Position:
        gradient = self._clipped(state.gradient)

        def moved(k: str, v: Tensor) -> Tensor:
            heat = per_chain(temperature, v) if isinstance(temperature, Tensor) else temperature
            return langevin_step(v, gradient[k], noise[f"noise {k}"], per_chain(state.step_size, v), heat)

        return {k: moved(k, v) for k, v in state.position.items()}

    def _settle(
        self, state: KernelState, proposal: Position, noise: Mapping[str, Tensor], temperature: float | Tensor
    ) -> tuple[KernelState, Info]:
        """Accept the proposal, except on chains where it, its potential or its gradient is not finite."""
        value, gradient = self._evaluate(proposal, noise)
        finite = finite_chains(value, proposal, gradient)
        new = state.moved(finite, proposal, value, gradient)
        ones = torch.ones_like(value)
        n_steps = torch.ones_like(value, dtype=torch.int64)
        return new, Info(ones, torch.ones_like(finite), ~finite, new.potential / temperature, n_steps)

    def _evaluate(self, position: Position, noise: Mapping[str, Tensor]) -> tuple[Tensor, Position]:
        return self.potential(position)

    def _clipped(self, gradient: Position) -> Position:
        if self.max_grad_value is not None:
            limit = self.max_grad_value
            gradient = {k: g.clamp(-limit, limit) for k, g in gradient.items()}
        if self.max_grad_norm is not None:
            squares: Any = sum(g.reshape(len(g), -1).square().sum(-1) for g in gradient.values())
            # The clamp keeps the factor finite for a gradient of zero, which stays zero.
            factor = (self.max_grad_norm / squares.sqrt().clamp(min=1e-30)).clamp(max=1.0)
            gradient = {k: g * per_chain(factor, g) for k, g in gradient.items()}
        return gradient
