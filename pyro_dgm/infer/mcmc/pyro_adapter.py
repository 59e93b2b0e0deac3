"""A kernel in ``pyro.infer.MCMC``: Pyro's methods, for one chain, by the kernel's functional core."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.sites import NoLatents
from pyro_dgm.infer.mcmc.state import Info, KernelState

__all__ = ["PyroAdapter"]


@dataclass
class _Run:
    """A run in ``pyro.infer.MCMC``.

    :ivar num_warmup: transitions of the warm-up.
    :ivar count: transitions taken.
    :ivar state: of the one chain, where the target has latents and the run is not over.
    :ivar params: what the last transition gave.
    :ivar empty: whether the target has no latents.
    :ivar divergences: draws that diverged.
    :ivar acceptance: mean acceptance probability of the draws.
    :ivar step_size: the last one, of a run that is over.
    """

    num_warmup: int = 0
    count: int = 0
    state: KernelState | None = None
    params: Position | None = None
    empty: bool = False
    divergences: list[int] = field(default_factory=list)
    acceptance: float = 0.0
    step_size: float = float("nan")

    def keep(self, state: KernelState) -> Position:
        self.state, self.params = state, {k: v[0] for k, v in state.position.items()}
        return self.params


class PyroAdapter(MCMCKernel):
    """What ``pyro.infer.MCMC`` asks of a kernel; :class:`Kernel` and its subclasses give the functional core."""

    potential: Potential
    potential_fn: Callable[[Position], Tensor] | None
    given_transforms: dict[str, Transform]
    _given_params: Position | None
    _run: _Run

    @abstractmethod
    def start(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int, num_chains: int, params: Position | None
    ) -> KernelState:
        """Bind to data, find initial values, and give the first state."""

    @abstractmethod
    def step(self, state: KernelState) -> tuple[KernelState, Info]:
        """One transition of every chain, with fresh random numbers."""

    def relocated(self, state: KernelState, position: Position) -> KernelState:
        """The state with all chains put elsewhere from outside; energies, and what else depends on them, follow."""
        value, gradient = self.potential(position)
        return replace(state, position=position, potential=value, gradient=gradient)

    @abstractmethod
    def start_warmup(self, state: KernelState, num_steps: int) -> KernelState:
        """Begin ``num_steps`` transitions of adaptation."""

    @abstractmethod
    def adapt(self, state: KernelState, info: Info) -> KernelState:
        """Learn from one transition of the warm-up."""

    @abstractmethod
    def finish_warmup(self, state: KernelState) -> KernelState:
        """Freeze what was learnt."""

    def _reset(self) -> None:
        self._run = _Run()
        self.__dict__.pop("potential", None)

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a run is rebuilt by setup; a vmapped function or a generator need not travel to a worker.
        return {k: v for k, v in self.__dict__.items() if k not in ("potential", "_run")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Begin a run of one chain in ``pyro.infer.MCMC``; the seed is drawn from torch's global generator.

        As with Pyro's kernels, a model without latents has one draw, which is empty, and a ``potential_fn`` is given no
        data.
        """
        self._reset()
        run = self._run
        run.num_warmup = warmup_steps
        seed = int(torch.randint(2**62, ()).item())
        params = None if self._given_params is None else {k: v[None] for k, v in self._given_params.items()}
        if self.potential_fn is not None:
            args, kwargs = (), {}
            run.empty = params == {}
        try:
            state = None if run.empty else self.start(args, kwargs, seed, 1, params)
        except NoLatents:
            state, run.empty = None, True
        if state is None:
            run.params, run.acceptance = {}, 1.0
            return
        run.keep(self.start_warmup(state, warmup_steps) if warmup_steps > 0 else state)

    def sample(self, params: Position) -> Position:
        """One transition of one chain from ``params`` (unconstrained, no chain dimension)."""
        run, state = self._run, self._run.state
        if run.empty:
            return params
        if state is None:
            raise RuntimeError("sample() before setup(): run the kernel in pyro.infer.MCMC or pyro_dgm.infer.mcmc.MCMC")
        if params is not run.params:
            # The chain was moved from outside (composition with another kernel).
            state = self.relocated(state, {k: v.detach()[None] for k, v in params.items()})
        state, info = self.step(state)
        run.count += 1
        draw = run.count - run.num_warmup
        if draw > 0:
            run.acceptance += (float(info.acceptance_rate[0]) - run.acceptance) / draw
            if bool(info.diverging[0]):
                run.divergences.append(draw - 1)
            return run.keep(state)
        state = self.adapt(state, info)
        return run.keep(self.finish_warmup(state) if draw == 0 else state)

    @property
    def initial_params(self) -> Position | None:
        """Unconstrained values that a run in ``pyro.infer.MCMC`` begins at, without a chain dimension."""
        return self._given_params if self._run.params is None else self._run.params

    @initial_params.setter
    def initial_params(self, params: Position | None) -> None:
        self._given_params = params

    @property
    def transforms(self) -> dict[str, Any] | None:
        """Constrained to unconstrained space, by latent; ``None`` before a model has met its data."""
        if self.potential_fn is not None:
            return self.given_transforms
        if self._run.empty:
            return {}
        return self.potential.transforms if "potential" in self.__dict__ else None

    @property
    def _step_size(self) -> float:
        return self._run.step_size if self._run.state is None else float(self._run.state.step_size)

    def diagnostics(self) -> dict[str, Any]:
        """Divergent draws, mean acceptance probability and step size of the one chain run."""
        run = self._run
        return {
            "divergences": list(run.divergences),
            "acceptance rate": run.acceptance,
            "step size": self._step_size,
        }

    def logging(self) -> OrderedDict[str, str]:
        """Step size and acceptance, for Pyro's progress bar."""
        return OrderedDict([("step size", f"{self._step_size:.2e}"), ("acc. prob", f"{self._run.acceptance:.3f}")])

    def clear_cache(self) -> None:
        """Does nothing: :meth:`sample` sees by itself that a chain was moved.  Pyro's HMC has this method."""

    def cleanup(self) -> None:
        """Forget the chain, keep what ``diagnostics`` and ``transforms`` need."""
        self._run.step_size = self._step_size
        self._run.state = self._run.params = None
