"""Random-walk Metropolis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.adaptation import Adaptation, DualAveraging
from pyro_dgm.infer.mcmc.chains import normals_like, per_chain, uniform_per_chain
from pyro_dgm.infer.mcmc.kernels.adaptive import AdaptiveKernel
from pyro_dgm.infer.mcmc.mass_matrix import DiagonalMass
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.wrapped import ValuePotential
from pyro_dgm.infer.mcmc.state import Info, KernelState
from pyro_dgm.ops.arguments import check_positive

__all__ = ["RandomWalk"]


class RandomWalk(AdaptiveKernel):
    r"""Random-walk Metropolis: a Gaussian step, accepted or rejected; for densities without a gradient.

    .. math:: u' = u + \epsilon M^{-1/2} \xi, \qquad \xi \sim N(0, I), \qquad
              \alpha = \min\bigl(1, e^{-(U(u') - U(u)) / T}\bigr)

    with :math:`M^{-1}` the diagonal of variances, which the warm-up learns from all chains together. The number of
    transitions between independent draws grows in proportion to the dimension (and with the condition number of the
    correlations). With a gradient and more than a few latents, take :class:`HMC`.

    ``potential_fn`` is only evaluated, never differentiated: it may contain branches and tables, or be piecewise
    constant. A proposal where :math:`U = +\infty` lies outside the support and is rejected; one where it is NaN or
    :math:`-\infty` is rejected and marked diverging.

    :param model: a Pyro model; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param step_size: initial :math:`\epsilon`; with ``adapt_step_size=False`` it is kept;
        :math:`2.38 / \sqrt d` for ``d`` unconstrained coordinates by default, optimal for a Gaussian whose variances
        are known.
    :param adapt_step_size: whether to learn :math:`\epsilon` in the warm-up.
    :param adapt_mass_matrix: whether to learn the diagonal :math:`M`.
    :param target_accept_prob: mean acceptance probability to which :math:`\epsilon` is adapted. The default 0.234 is
        optimal in many dimensions; in one dimension 0.44 is.
    :param temperature: of the target; 1 for the posterior. :class:`Kernel` says more on this and the next four.
    :param init_strategy: where chains start: ``"uniform"``, ``"prior"`` or a per-site function.
    :param compile: whether to compile gradients and transitions: ``True``, ``False`` or ``"auto"``.
    :param transforms: from constrained to unconstrained space, by latent.
    :param max_plate_nesting: number of dimensions that the model's plates may take; found automatically by default.
    :raises ValueError: for a setting out of range; the message names it.

    Source: N. Metropolis et al. (1953), "Equation of state calculations by fast computing machines"; scaling and
    acceptance: A. Gelman, W. R. Gilks and G. O. Roberts (1997), "Weak convergence and optimal scaling of random walk
    Metropolis algorithms".

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import MCMC, RandomWalk
        >>> kernel = RandomWalk(potential_fn=lambda u: u["x"].round().abs().sum(-1))  # a step function
        >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=50, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.zeros(8, 3)})
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([8, 50, 3])
    """

    name = "random-walk"
    uses_gradient = False
    independent_chains = True

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        step_size: float | None = None,
        *,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        target_accept_prob: float = 0.234,
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
        check_positive("step_size", step_size, optional=True)
        self.step_size = None if step_size is None else float(step_size)
        self.adaptation = Adaptation(bool(adapt_step_size), bool(adapt_mass_matrix), target_accept_prob)

    def potential_of_function(self, fn: Callable[..., Tensor]) -> Potential:
        return ValuePotential(super().potential_of_function(fn))

    def potential_of_model(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Potential:
        return ValuePotential(super().potential_of_model(model, args, kwargs))

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        return self.find_step_size(super().init(params, generator))

    def find_step_size(self, state: KernelState) -> KernelState:
        """The given step size, or the one that is optimal for a Gaussian with these scales."""
        size = self.step_size
        if size is None:
            size = 2.38 / math.sqrt(max(1, sum(v[0].numel() for v in state.position.values())))
        return replace(state, step_size=state.potential.new_tensor(size))

    def start_dual(self, state: KernelState, steps_left: int) -> DualAveraging:
        # For fewer than 50 updates dual averaging shrinks towards the first step, a good guess here, not ten times it.
        return super().start_dual(state, min(49, steps_left))

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        normals = normals_like(state.position, state.generator, "proposal")
        return {**normals, "accept": uniform_per_chain(state.potential, state.generator)}

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        assert isinstance(state.mass, DiagonalMass)
        scales = state.mass.scales
        proposal = {
            k: v + per_chain(state.step_size, v) * scales[k] * noise[f"proposal {k}"] for k, v in state.position.items()
        }
        value = self.potential.value(proposal)
        error = (value - state.potential) / self.temperature
        wrong = torch.isnan(value) | (value == -math.inf)
        acceptance = torch.where(wrong, torch.zeros_like(error), (-error).clamp(max=0.0).exp())
        accepted = noise["accept"] < acceptance
        new = state.moved(accepted, proposal, value)
        no_gradients = torch.zeros_like(value, dtype=torch.int64)
        return new, Info(acceptance, accepted, wrong, new.potential / self.temperature, no_gradients)
