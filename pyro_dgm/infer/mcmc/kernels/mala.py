"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.adaptation import Adaptation
from pyro_dgm.infer.mcmc.kernels.hamiltonian import Hamiltonian
from pyro_dgm.infer.mcmc.potentials.base import Position

__all__ = ["MALA"]


class MALA(Hamiltonian):
    r"""The Metropolis-adjusted Langevin algorithm (MALA): one gradient in each transition, preconditioned by the mass.

    .. math:: u' = u - \frac{\epsilon^2}{2 T} M^{-1} \nabla U(u) + \epsilon M^{-1/2} \xi, \qquad \xi \sim N(0, I)

    accepted with probability :math:`\min\bigl(1, \frac{\pi(u') q(u|u')}{\pi(u) q(u'|u)}\bigr)`.  The proposal is one
    leapfrog step from a fresh momentum, and the acceptance ratio that step's energy error (Neal 2011, section 5.2), so
    the transition is :class:`HMC`'s with one step and no jitter.

    Use it if gradients are expensive and the target is close to a Gaussian with independent coordinates, or as a cheap
    check. Otherwise :class:`HMC` nearly always decorrelates faster per gradient.

    :param model: a Pyro model; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param step_size: initial :math:`\epsilon`; :math:`\epsilon^2 / 2` is the Langevin time step.
    :param adapt_step_size: whether to learn :math:`\epsilon` in the warm-up.
    :param adapt_mass_matrix: whether to learn :math:`M`.
    :param dense_mass: whether :math:`M` is a full matrix, as in :class:`HMC`.
    :param target_accept_prob: mean acceptance probability to which :math:`\epsilon` is adapted; the default 0.574 is
        optimal in many dimensions.
    :param max_energy_error: as in :class:`HMC`.
    :param temperature: of the target; 1 for the posterior. :class:`Kernel` says more on this and the next four.
    :param init_strategy: where chains start: ``"uniform"``, ``"prior"`` or a per-site function.
    :param compile: whether to compile gradients and transitions: ``True``, ``False`` or ``"auto"``.
    :param transforms: from constrained to unconstrained space, by latent.
    :param max_plate_nesting: number of dimensions that the model's plates may take; found automatically by default.
    :raises ValueError: for a setting out of range; the message names it.

    Source: G. O. Roberts and R. L. Tweedie (1996), "Exponential convergence of Langevin distributions and their
    discrete approximations"; the target: G. O. Roberts and J. S. Rosenthal (1998), "Optimal scaling of discrete
    approximations to Langevin diffusions".

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import MALA, MCMC
        >>> kernel = MALA(potential_fn=lambda u: 0.5 * u["x"].square().sum(-1))
        >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=50, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.zeros(8, 3)})
        >>> mcmc.posterior.sample_stats["acceptance_rate"].shape
        torch.Size([8, 50])
    """

    name = "mala"
    # One step's acceptance falls steeply with the step size: at 0.05 the step size oscillates, and its average is low.
    adaptation_gamma = 0.2

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        step_size: float = 1.0,
        *,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        dense_mass: bool = False,
        target_accept_prob: float = 0.574,
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
            num_steps=1,
            max_energy_error=max_energy_error,
            adaptation=Adaptation(bool(adapt_step_size), bool(adapt_mass_matrix), target_accept_prob, bool(dense_mass)),
            temperature=temperature,
            init_strategy=init_strategy,
            compile=compile,
            transforms=transforms,
            max_plate_nesting=max_plate_nesting,
        )
