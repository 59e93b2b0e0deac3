"""Gibbs with gradients: Metropolis for discrete states, its proposals informed by a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.chains import per_chain
from pyro_dgm.infer.mcmc.kernels.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.mass_matrix import unflatten
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.relaxed import RelaxedPotential, RelaxedSites
from pyro_dgm.ops.arguments import check_count

__all__ = ["GibbsWithGradients"]


class GibbsWithGradients(Kernel):
    r"""Gibbs with gradients: Metropolis steps that change one discrete variable, chosen by the gradient of the
    potential. For energy-based models, Ising and Potts lattices, and discrete latents of a Pyro model.

    Let :math:`f = -U / T` be differentiable in real arguments. For a binary state, one gradient estimates how much
    :math:`f` would change with each variable :math:`i`, and a variable is proposed by these estimates:

    .. math:: d_i(x) = -(2 x_i - 1) \frac{\partial f}{\partial x_i}, \qquad
              q(i \mid x) = \operatorname{softmax}\bigl(d(x) / 2\bigr)_i, \qquad
              \alpha = \min\Bigl(1, e^{f(x') - f(x)} \frac{q(i \mid x')}{q(i \mid x)}\Bigr)

    For categories, with :math:`x` one-hot, :math:`d_{ij}(x) = \partial f / \partial x_{ij} - \sum_k x_{ik} \partial f /
    \partial x_{ik}`, over all pairs whose :math:`j` is not the present category. The estimates only affect how fast the
    chain mixes: because of the acceptance step, :math:`e^{-U / T}` is exactly invariant. They are exact for a potential
    that is linear in each variable, such as a Boltzmann machine's.

    States of a ``potential_fn`` are given in ``initial_params``: zeros and ones (any type), or with
    ``num_categories=K`` integers below ``K``, or real tensors that are one-hot in a last dimension of size ``K``.
    The function always gets real tensors: 0/1, or one-hot, and must be differentiable in them.  In a Pyro model the
    latents must be ``Bernoulli`` or ``OneHotCategorical``.

    A proposal where :math:`U = +\infty` is impossible and is rejected; one where it is NaN or :math:`-\infty`, or where
    a finite :math:`U` has a gradient that is not, is rejected and marked diverging.

    :param model: a Pyro model with discrete latents; or
    :param potential_fn: :math:`U` over chains, a dict of real ``(chains, ...)`` tensors to ``(chains,)``.
    :param num_categories: :math:`K` for categorical states of a ``potential_fn``, or a dict of it by name with ``None``
        for binary ones; ``None``, all are binary.
    :param num_updates: proposed changes in each transition; ``acceptance_rate`` is their mean.
    :param dtype: real type to which integer states are converted for ``potential_fn``; torch's default type if not
        given.
    :param temperature: :math:`T`; see :class:`Kernel`.
    :param compile: see :class:`Kernel`.
    :param max_plate_nesting: see :class:`Kernel`.
    :raises ValueError: for a setting out of range, a state that is not binary or categorical, or a continuous latent;
        the message names it.

    Source: W. Grathwohl, K. Swersky, M. Hashemi, D. Duvenaud and C. J. Maddison (2021), "Oops I took a gradient:
    scalable sampling for discrete distributions", arXiv:2102.04509. There, a category may also be
    proposed to stay as it is; here it may not.

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import MCMC, GibbsWithGradients
        >>> def ring(s):  # an Ising model on a ring of eight spins
        ...     spin = 2.0 * s["x"] - 1.0
        ...     return -0.3 * (spin * spin.roll(1, -1)).sum(-1)
        >>> mcmc = MCMC(GibbsWithGradients(potential_fn=ring), 50, 50, num_chains=4, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.zeros(4, 8, dtype=torch.int64)})
        >>> sorted(set(mcmc.get_samples()["x"].flatten().tolist()))
        [0, 1]
    """

    name = "gibbs-with-gradients"
    discrete = True

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        *,
        num_categories: int | Mapping[str, int | None] | None = None,
        num_updates: int = 1,
        dtype: torch.dtype | None = None,
        temperature: float = 1.0,
        compile: bool | str = "auto",
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(
            model,
            potential_fn,
            temperature=temperature,
            init_strategy="prior",
            compile=compile,
            max_plate_nesting=max_plate_nesting,
        )
        given = num_categories.values() if isinstance(num_categories, Mapping) else [num_categories]
        for k in given:
            check_count("num_categories", k, 2, optional=True)
        check_count("num_updates", num_updates)
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, got {dtype}")
        self.num_categories, self.num_updates, self.dtype = num_categories, num_updates, dtype

    def potential_of_function(self, fn: Callable[..., Tensor]) -> Potential:
        self._relaxed = RelaxedPotential(super().potential_of_function(fn), self.num_categories, self.dtype)
        return self._relaxed

    def potential_of_model(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Potential:
        if self.num_categories is not None:
            raise ValueError("num_categories is for potential_fn: a model's sites have their own numbers of categories")
        sites = RelaxedSites(model)
        base = super().potential_of_model(sites, args, kwargs)
        self._relaxed = RelaxedPotential(base, sites.num_categories, None)
        return self._relaxed

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_relaxed"}

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        self._relaxed.check(params)
        return super().init(params, generator)

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        # The argmax of logits plus Gumbel noise is a draw from their softmax; one number for each possible change.
        first = state.potential
        width = sum(v[0].numel() for v in state.gradient.values())
        shape = (state.num_chains, self.num_updates)
        options: dict[str, Any] = {"dtype": first.dtype, "device": first.device}
        exponential = torch.empty(*shape, width, **options).exponential_(generator=state.generator)
        return {"gumbel": -exponential.log(), "accept": torch.rand(shape, generator=state.generator, **options)}

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        acceptance = torch.zeros_like(state.potential)
        moved = torch.zeros_like(state.potential, dtype=torch.bool)
        diverging = torch.zeros_like(moved)
        current = replace(state, position=self._relaxed.relax(state.position))
        for i in range(self.num_updates):
            current, rate, accepted, wrong = self._update(current, noise["gumbel"][:, i], noise["accept"][:, i])
            acceptance, moved, diverging = acceptance + rate / self.num_updates, moved | accepted, diverging | wrong
        new = replace(current, position=self._relaxed.restore(current.position, state.position))
        n_steps = torch.full_like(moved, self.num_updates, dtype=torch.int64)
        return new, Info(acceptance, moved, diverging, new.potential / self.temperature, n_steps)

    def _update(
        self, state: KernelState, gumbel: Tensor, uniform: Tensor
    ) -> tuple[KernelState, Tensor, Tensor, Tensor]:
        """Propose one change on every chain, and accept or reject it."""
        x = state.position
        log_q = self._log_proposal(x, state.gradient)
        choice = (log_q + gumbel).argmax(-1, keepdim=True)
        forward = log_q.gather(-1, choice).squeeze(-1)
        chosen = torch.arange(log_q.shape[-1], device=log_q.device) == choice
        proposal, back = {}, []
        for k, mask in unflatten(chosen, x).items():
            if self._relaxed.categories(k) is None:
                proposal[k] = torch.where(mask, 1.0 - x[k], x[k])
                back.append(mask)
            else:
                changed = mask.any(-1, keepdim=True)
                proposal[k] = torch.where(changed, mask.to(x[k].dtype), x[k])
                back.append(changed & (x[k] > 0.5))  # the change back to the old category
        value, gradient = self.potential(proposal)
        log_back = self._log_proposal(proposal, gradient)
        undo = torch.cat([m.reshape(len(m), -1) for m in back], -1)
        reverse = torch.where(undo, log_back, torch.zeros_like(log_back)).sum(-1)
        log_ratio = (state.potential - value) / self.temperature + reverse - forward
        usable = torch.isfinite(log_ratio)
        rate = torch.where(usable, log_ratio.clamp(max=0.0).exp(), torch.zeros_like(log_ratio))
        accepted = uniform < rate
        return state.moved(accepted, proposal, value, gradient), rate, accepted, ~usable & (value != math.inf)

    def _log_proposal(self, x: Position, gradient: Position) -> Tensor:
        """Log-probability of each change, ``(chains, changes)``; minus infinity if a category would stay the same."""
        gains = []
        for k, v in x.items():
            slope = -gradient[k] / per_chain(v.new_tensor(self.temperature), v)
            if self._relaxed.categories(k) is None:
                gain = -(2.0 * v - 1.0) * slope
            else:
                gain = slope - (v * slope).sum(-1, keepdim=True)
                gain = gain.masked_fill(v > 0.5, -math.inf)
            gains.append(gain.reshape(len(v), -1))
        return torch.log_softmax(0.5 * torch.cat(gains, -1), -1)
