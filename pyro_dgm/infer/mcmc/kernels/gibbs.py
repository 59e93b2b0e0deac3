"""Block Gibbs sampling from given conditionals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.kernels.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.function import FunctionPotential
from pyro_dgm.infer.mcmc.potentials.wrapped import UnknownPotential, ValuePotential

__all__ = ["Gibbs"]

Conditional = Callable[[Position, Tensor], Tensor]
Source = str | Callable[[Tensor, torch.Generator], Tensor]


class Gibbs(Kernel):
    r"""Block Gibbs sampling: every block in turn is drawn from its distribution given the others. The usual sampler of
    Boltzmann machines.

    .. math:: u_b' \sim \pi(u_b \mid u_1', \ldots, u_{b-1}', u_{b+1}, \ldots, u_B), \qquad b = 1, \ldots, B

    A conditional is a *function of the state and of random numbers*: its arguments are the dict of all blocks (those
    before it already updated) and a tensor of noise; it returns the block's new value. It draws nothing itself, so that
    a sweep is a pure function that can be recorded and compiled. Uniform noise of the block's shape is enough for
    Bernoulli units, ``u < p``, and for every distribution with an inverse distribution function::

        Gibbs(
            {
                "h": lambda s, u: (u < torch.sigmoid(s["v"] @ W + c)).to(u.dtype),
                "v": lambda s, u: (u < torch.sigmoid(s["h"] @ W.T + b)).to(u.dtype),
            }
        )

    Each transition updates all blocks once, in the order given; nothing is ever rejected. The chain leaves the
    distribution with these conditionals invariant; conditionals that belong to no joint distribution are not detected.
    Blocks that are independent given the rest are best put next to each other, where they act as one block: ``v`` and
    ``h2`` of a deep Boltzmann machine, given ``h1``. Positions are real, integer or boolean tensors.

    :param conditionals: the conditional of each block; the first dimension of its arguments are the chains.
    :param noise: the noise of each block: ``"uniform"`` on [0, 1), ``"normal"``, or a function of the block's value and
        a generator that draws it (of any shape, chains first); one for all blocks, or a dict by block.
    :param potential_fn: :math:`U`, used for ``lp`` and ``energy`` only, which are NaN without it.
    :param model: not accepted: conditionals cannot be derived from a model.
    :raises TypeError: if a conditional is not callable.
    :raises ValueError: if there is none, or if a result does not have its block's shape and type; the message names it.

    Source: S. Geman and D. Geman (1984), "Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of
    images"; noise as an argument: P. Diaconis and D. Freedman (1999), "Iterated random
    functions".

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import MCMC, Gibbs
        >>> rho = 0.9  # a bivariate normal of that correlation
        >>> kernel = Gibbs(
        ...     {
        ...         "a": lambda s, xi: rho * s["b"] + (1 - rho**2) ** 0.5 * xi,
        ...         "b": lambda s, xi: rho * s["a"] + (1 - rho**2) ** 0.5 * xi,
        ...     },
        ...     noise="normal",
        ... )
        >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=10, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"a": torch.zeros(8), "b": torch.zeros(8)})
        >>> mcmc.get_samples(group_by_chain=True)["a"].shape
        torch.Size([8, 50])
    """

    name = "gibbs"
    uses_gradient = False
    discrete = True
    tempers = False  # conditionals know no temperature

    def __init__(
        self,
        conditionals: Mapping[str, Conditional],
        noise: Source | Mapping[str, Source] = "uniform",
        *,
        potential_fn: Callable[[Position], Tensor] | None = None,
        model: None = None,
    ) -> None:
        if model is not None:
            raise ValueError("Gibbs takes no model: a model does not give its conditionals; take HMC(model)")
        super().__init__(None, potential_fn)
        if not isinstance(conditionals, Mapping) or not conditionals:
            raise ValueError(f"conditionals must be a non-empty dict of functions by block, got {conditionals!r}")
        for block, fn in conditionals.items():
            if not callable(fn):
                raise TypeError(f"conditionals[{block!r}] must be a function of state and noise, got {fn!r}")
        sources = dict(noise) if isinstance(noise, Mapping) else dict.fromkeys(conditionals, noise)
        unknown = sorted(set(sources) - set(conditionals))
        if unknown:
            raise ValueError(f"noise is given for {unknown}, of which there is no conditional")
        for block, source in sources.items():
            if not callable(source) and source not in ("uniform", "normal"):
                raise ValueError(f"noise must be 'uniform', 'normal' or a function, got {source!r} for block {block!r}")
        self.conditionals = dict(conditionals)
        self.sources: dict[str, Source] = {block: sources.get(block, "uniform") for block in conditionals}

    def with_model(self, model: Callable[..., Any]) -> Kernel:
        raise ValueError("Gibbs cannot be bound to a model: a model does not give its conditionals; take method='hmc'")

    def condition(self, *args: Any, **kwargs: Any) -> Potential:
        if args or kwargs:
            raise ValueError("Gibbs takes no data: its conditionals contain them")
        known = self.potential_fn
        self.potential: Potential = (
            UnknownPotential() if known is None else ValuePotential(FunctionPotential(known), discrete=True)
        )
        return self.potential

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        state = super().init(params, generator)
        missing = sorted(set(params) - set(self.conditionals)), sorted(set(self.conditionals) - set(params))
        if missing[1]:
            raise ValueError(f"there are conditionals of {missing[1]}, but initial_params are of {sorted(params)}")
        if missing[0]:
            raise ValueError(f"blocks {missing[0]} have no conditional, and would never move")
        # A test sweep: each conditional must return a value of its block's shape and type.
        numbers = self.noise(replace(state, generator=generator.clone_state()))
        position = dict(state.position)
        for block, fn in self.conditionals.items():
            with torch.no_grad():
                value = fn(dict(position), numbers[block])
            was = position[block]
            if not isinstance(value, Tensor) or value.shape != was.shape or value.dtype != was.dtype:
                got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"conditionals[{block!r}] must give {was.dtype} {tuple(was.shape)}, got {got}")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"conditionals[{block!r}] gave a value that is not finite")
            position[block] = value
        return state

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        return {block: self._draw(state, block, source) for block, source in self.sources.items()}

    @staticmethod
    def _draw(state: KernelState, block: str, source: Source) -> Tensor:
        value = state.position[block]
        if callable(source):
            return source(value, state.generator)
        dtype = value.dtype if value.is_floating_point() else state.potential.dtype
        draw = torch.rand if source == "uniform" else torch.randn
        return draw(value.shape, generator=state.generator, dtype=dtype, device=value.device)

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        position = dict(state.position)
        for block, fn in self.conditionals.items():
            position[block] = fn(dict(position), noise[block])
        potential = self.potential.value(position)
        finite = torch.ones_like(potential, dtype=torch.bool)
        for v in position.values():
            finite = finite & torch.isfinite(v).reshape(len(v), -1).all(-1)
        ones = torch.ones_like(potential)
        no_gradients = torch.zeros_like(potential, dtype=torch.int64)
        new = replace(state, position=position, potential=potential)
        return new, Info(ones, torch.ones_like(finite), ~finite, potential, no_gradients)
