"""Hamiltonian Monte Carlo over a leading chain dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.adaptation import Adaptation
from pyro_dgm.infer.mcmc.kernels.hamiltonian import Hamiltonian
from pyro_dgm.infer.mcmc.potentials.base import Position

__all__ = ["HMC"]

#: default trajectory length; above pi / 2 successive draws are anticorrelated: better for means, worse for variances
TRAJECTORY_LENGTH = 2.0


class HMC(Hamiltonian):
    r"""Hamiltonian Monte Carlo (HMC), the default choice for continuous latents.

    .. math:: H(u, p) = \frac{U(u)}{T} + \tfrac12 p^\top M^{-1} p, \qquad p \sim N(0, M)

    A transition takes the same number of leapfrog steps on every chain, with a step size of :math:`\epsilon (1 + j (2
    v_c - 1))`, :math:`v_c` uniform for each chain and transition. Without this jitter, a chain does not mix if the
    trajectory length is a multiple of an orbit's period. The proposal is accepted with probability :math:`\min(1, e^{H
    - H'})`. A proposal of non-finite energy is rejected and marked diverging, on its chain alone.

    The warm-up learns step size and mass from all chains together, so with 64 chains it can be far shorter than with
    one. Otherwise chains are independent. A model of ``N`` independent data is *one* joint target here: the ``N`` moves
    are accepted together, and the step size shrinks as :math:`N^{-1/4}`.

    :param model: a Pyro model; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param step_size: initial :math:`\epsilon`; with ``adapt_step_size=False`` it is kept.
    :param trajectory_length: :math:`\epsilon L` in coordinates scaled by the mass, in which the posterior has standard
        deviations near 1; 2 by default. For a Gaussian with independent coordinates :math:`\pi / 2` gives independent
        draws. Correlated posteriors need longer trajectories. Above :math:`\pi / 2` successive draws are
        anticorrelated: that helps estimates of means and harms those of variances. :math:`L` follows the step size, up
        to ``max_num_steps``.
    :param num_steps: a fixed :math:`L`, instead of ``trajectory_length``.
    :param jitter: :math:`j` in [0, 1).
    :param adapt_step_size: whether to learn :math:`\epsilon` in the warm-up.
    :param adapt_mass_matrix: whether to learn :math:`M`.
    :param dense_mass: whether :math:`M` is a full matrix over the elements of all latents, shared by all chains. It
        removes the posterior's correlations, at the price of a matrix product in each step. Useful up to a few hundred
        elements, with enough chains to estimate it.
    :param target_accept_prob: mean acceptance probability to which the step size is adapted.
    :param max_num_steps: most leapfrog steps in a transition.
    :param max_energy_error: energy error above which a transition is marked diverging, nats.
    :param temperature: of the target; 1 for the posterior. :class:`Kernel` says more on this and the next four.
    :param init_strategy: where chains start: ``"uniform"``, ``"prior"`` or a per-site function.
    :param compile: whether to compile gradients and transitions: ``True``, ``False`` or ``"auto"``.
    :param transforms: from constrained to unconstrained space, by latent.
    :param max_plate_nesting: number of dimensions that the model's plates may take; found automatically by default.
    :param full_mass: Pyro's name of ``dense_mass``.
    :param min_stepsize: lower bound of the adapted step size.
    :param max_stepsize: its upper bound.
    :param jit_compile: an argument of Pyro's HMC that has no effect: the potential is always recorded as a graph.
    :param jit_options: likewise without effect.
    :param ignore_jit_warnings: likewise without effect.
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
        full_mass: bool | None = None,
        min_stepsize: float = 0.0,
        max_stepsize: float = math.inf,
        jit_compile: bool = False,
        jit_options: Mapping[str, Any] | None = None,
        ignore_jit_warnings: bool = False,
        temperature: float = 1.0,
        init_strategy: str | Callable[[Any], Tensor] = "uniform",
        compile: bool | str = "auto",
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
    ) -> None:
        if full_mass is not None and not isinstance(full_mass, bool):
            raise ValueError(
                f"full_mass must be True (one matrix over all latents) or False, got {full_mass!r}; matrices of "
                "some latents alone are not offered"
            )
        if trajectory_length is None and num_steps is None:
            trajectory_length = TRAJECTORY_LENGTH
        super().__init__(
            model,
            potential_fn,
            step_size=1.0 if step_size is None else step_size,
            trajectory_length=trajectory_length,
            num_steps=num_steps,
            jitter=jitter,
            max_num_steps=max_num_steps,
            max_energy_error=max_energy_error,
            adaptation=Adaptation(
                bool(adapt_step_size),
                bool(adapt_mass_matrix),
                target_accept_prob,
                bool(dense_mass if full_mass is None else full_mass),
                min_stepsize,
                max_stepsize,
            ),
            temperature=temperature,
            init_strategy=init_strategy,
            compile=compile,
            transforms=transforms,
            max_plate_nesting=max_plate_nesting,
        )
