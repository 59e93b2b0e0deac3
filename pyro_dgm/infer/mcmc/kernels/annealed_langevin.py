"""Langevin dynamics at falling temperatures or noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.kernels.base import Info, KernelState
from pyro_dgm.infer.mcmc.kernels.langevin import Langevin
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.function import FunctionPotential
from pyro_dgm.ops.arguments import check_number

__all__ = ["AnnealedLangevin"]


@dataclass(frozen=True, kw_only=True)
class AnnealedState(KernelState):
    """A state with the schedule of the ladder.

    :ivar descent: number of transitions from the first to the last rung, a scalar; 0 without a warm-up.
    :ivar ladder: temperatures or noise levels.
    """

    descent: Tensor
    ladder: Tensor

    shared = KernelState.shared | {"descent", "ladder"}


class AnnealedLangevin(Langevin):
    r"""Annealed Langevin dynamics: the warm-up goes down a ladder of temperatures or noise levels, and draws are made
    on the last rung. Use it to reach distant modes.

    The ladder is either of *temperatures* :math:`T_1 > \ldots > T_L`, all for one potential, or of *noise levels*
    :math:`\sigma_1 > \ldots > \sigma_L`, for a potential :math:`U(u, \sigma)` of the density convolved with Gaussian
    noise of that standard deviation. On rung :math:`i`

    .. math:: u' = u - \frac{\epsilon_i^2}{2 T_i} \nabla U_i(u) + \epsilon_i \xi, \qquad
              \epsilon_i = \epsilon \frac{\sigma_i}{\sigma_L}
              \quad\text{or}\quad \epsilon \sqrt{\frac{T_i}{T_L}}

    so that the step is in a fixed ratio to the rung's standard deviation, as in the paper (its :math:`\alpha_i` is
    :math:`\epsilon_i^2`, its score :math:`-\nabla U`). The warm-up's transitions are divided evenly among the rungs; if
    there are fewer transitions than rungs, some rungs are skipped. Without a warm-up this is :class:`Langevin` on the
    last rung. Draws have that kernel's bias. The number of chains that end in each mode depends on the annealing and is
    no estimate of the modes' weights: for these, take :class:`ParallelTempering`.

    :param model: a Pyro model, with ``temperatures``; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``; with
        ``noise_levels`` a function of that and :math:`\sigma`, a scalar tensor.
    :param step_size: :math:`\epsilon`, on the last rung.
    :param temperatures: falling; the last is the one sampled at.  Ten from :math:`10\, T` down to :math:`T` by default,
        each in one ratio to the next.
    :param noise_levels: falling, instead of ``temperatures``.
    :param max_grad_norm: see :class:`Langevin`.
    :param max_grad_value: see :class:`Langevin`.
    :param temperature: :math:`T` of the default ladder, or of every noise level; 1 by default.
    :param init_strategy: see :class:`Kernel`.
    :param compile: see :class:`Kernel`.
    :param transforms: see :class:`Kernel`.
    :param max_plate_nesting: see :class:`Kernel`.
    :raises ValueError: for a setting out of range; the message names it.

    Source: Y. Song and S. Ermon (2019), "Generative modeling by estimating gradients of the data distribution",
    arXiv:1907.05600; temperatures: S. Kirkpatrick, C. D. Gelatt and M. P. Vecchi (1983), "Optimization by simulated
    annealing".

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import MCMC, AnnealedLangevin
        >>> def blurred(u, sigma):  # a standard normal blurred with noise
        ...     return 0.5 * u["x"].square().sum(-1) / (1.0 + sigma**2)
        >>> kernel = AnnealedLangevin(potential_fn=blurred, noise_levels=[3.0, 1.0, 0.3, 0.1])
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=40, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": 5.0 * torch.randn(8, 2)})
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([8, 20, 2])
    """

    name = "annealed-langevin"
    independent_chains = False  # they share the ladder
    tempers = False  # it has a ladder of its own

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[..., Tensor] | None = None,
        step_size: float = 0.1,
        *,
        temperatures: Sequence[float] | None = None,
        noise_levels: Sequence[float] | None = None,
        max_grad_norm: float | None = None,
        max_grad_value: float | None = None,
        temperature: float | None = None,
        init_strategy: str | Callable[[Any], Tensor] = "uniform",
        compile: bool | str = "auto",
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
    ) -> None:
        if temperatures is not None and noise_levels is not None:
            raise ValueError("give temperatures or noise_levels, not both")
        if temperatures is not None and temperature is not None:
            raise ValueError("give temperatures or temperature, not both: the last of temperatures is sampled at")
        if noise_levels is not None and model is not None:
            raise ValueError("noise_levels need potential_fn: a model has one density, not one for each level")
        check_number("temperature", temperature, optional=True)
        last = 1.0 if temperature is None else float(temperature)
        if noise_levels is None and temperatures is None:
            temperatures = [last * 10.0 ** (1.0 - i / 9.0) for i in range(10)]
        ladder = _falling("temperatures", temperatures) if noise_levels is None else None
        super().__init__(
            model,
            potential_fn,
            step_size,
            max_grad_norm=max_grad_norm,
            max_grad_value=max_grad_value,
            temperature=last if ladder is None else ladder[-1],
            init_strategy=init_strategy,
            compile=compile,
            transforms=transforms,
            max_plate_nesting=max_plate_nesting,
        )
        self.noise_levels = None if noise_levels is None else _falling("noise_levels", noise_levels)
        self.temperatures = ladder

    def potential_of_function(self, fn: Callable[..., Tensor]) -> Potential:
        return super().potential_of_function(fn) if self.noise_levels is None else _Blurred(fn, self.noise_levels[-1])

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        state = super().init(params, generator)
        descent = torch.zeros((), dtype=torch.int64, device=state.potential.device)
        return AnnealedState.extending(state, descent=descent, ladder=state.potential.new_tensor(self._ladder))

    def start_warmup(self, state: KernelState, num_steps: int) -> KernelState:
        assert isinstance(state, AnnealedState)
        state = replace(state, descent=torch.full_like(state.descent, num_steps))
        if self.noise_levels is not None:
            value, gradient = self._evaluate(state.position, {"next level": self._rung(state, 0)})
            state = replace(state, potential=value, gradient=gradient)
        return state

    @property
    def _ladder(self) -> list[float]:
        return self.noise_levels if self.noise_levels is not None else self.temperatures or []

    def _rung(self, state: KernelState, iteration: int) -> Tensor:
        """Temperature or noise level at a transition, as a tensor, without waiting for the device."""
        assert isinstance(state, AnnealedState)
        descent, count = state.descent, len(state.ladder)
        rung = ((descent.new_zeros(()) + iteration * count) // descent.clamp(min=1)).clamp(max=count - 1)
        return state.ladder[torch.where(descent == 0, count - 1, rung)]

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        noise = super().noise(state)
        level = self._rung(state, state.iteration)
        if self.noise_levels is None:
            noise["temperature"] = level
            noise["step size"] = self.initial_step_size * (level / self.temperature).sqrt()
        else:
            noise["step size"] = self.initial_step_size * level / self.noise_levels[-1]
            noise["next level"] = self._rung(state, state.iteration + 1)
        return noise

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        state = replace(state, step_size=noise["step size"])
        temperature = noise.get("temperature", self.temperature)
        return self._settle(state, self._propose(state, noise, temperature), noise, temperature)

    def _evaluate(self, position: Position, noise: Mapping[str, Tensor]) -> tuple[Tensor, Position]:
        # The next transition uses the gradient computed here, so it is taken at that transition's noise level.
        if self.noise_levels is None:
            return self.potential(position)
        assert isinstance(self.potential, _Blurred)
        return self.potential.at(noise["next level"])(position)


class _Blurred(FunctionPotential):
    """A potential with a noise level, at first the last one."""

    def __init__(self, fn: Callable[..., Tensor], level: float | Tensor) -> None:
        super().__init__(lambda u: fn(u, torch.as_tensor(level, **_like(u))))
        self._of_level = fn

    def at(self, level: Tensor) -> _Blurred:
        return _Blurred(self._of_level, level)


def _like(position: Position) -> dict[str, Any]:
    first = next(iter(position.values()))
    return {"dtype": first.dtype, "device": first.device}


def _falling(argument: str, values: Sequence[float] | None) -> list[float]:
    if not isinstance(values, Iterable):
        raise TypeError(f"{argument} must be a sequence of numbers, got {values!r}")
    ladder = [float(check_number(argument, v)) for v in values]
    if not ladder or not all(v > 0 and math.isfinite(v) for v in ladder):
        raise ValueError(f"{argument} must be positive finite numbers, at least one, got {values!r}")
    if any(a <= b for a, b in zip(ladder, ladder[1:], strict=False)):
        raise ValueError(f"{argument} must fall from one rung to the next, got {ladder}")
    return ladder
