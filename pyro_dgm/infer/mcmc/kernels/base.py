"""The kernel contract: a functional core over a leading chain dimension, and a thin adapter to ``pyro.infer.MCMC``."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.adaptation import Warmup
from pyro_dgm.infer.mcmc.initial import device_of, initial_position, new_generator
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.function import FunctionPotential
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential
from pyro_dgm.infer.mcmc.potentials.sites import NoLatents
from pyro_dgm.ops.arguments import check_count, check_number
from pyro_dgm.ops.random_state import forked_rng

__all__ = ["Info", "Kernel", "KernelState"]


@dataclass(frozen=True)
class KernelState:
    """Where the chains are; a new one comes from every step.

    :ivar position: unconstrained latents, each ``(chains, ...)``.
    :ivar potential: ``U`` at the position, ``(chains,)``, nats, at temperature 1.
    :ivar gradient: of ``U``, as ``position``; empty for a kernel that takes none.
    :ivar step_size: shared by all chains, scalar tensor.
    :ivar inverse_mass: diagonal of the inverse mass matrix (estimated variances), each ``(...)``, shared by all chains;
        or the whole matrix, by the names of ``adaptation.dense_inverse_mass``.
    :ivar num_steps: gradients a transition.
    :ivar generator: what all randomness comes from.
    :ivar warmup: adaptation under way, or ``None``.
    :ivar extra: what a kernel carries besides (momenta, ladders), each ``(chains, ...)`` or shared by all chains.
    :ivar iteration: transitions taken since :meth:`Kernel.init`; what follows a schedule is a function of it.
    """

    position: Position
    potential: Tensor
    gradient: Position
    step_size: Tensor
    inverse_mass: Position
    num_steps: int
    generator: torch.Generator
    warmup: Warmup | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    iteration: int = 0

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return self.potential.shape[0]


@dataclass(frozen=True)
class Info:
    """What one transition did, each ``(chains,)``.

    :ivar acceptance_rate: Metropolis acceptance probability, 0 where the proposal's energy was not finite.
    :ivar accepted: whether the chain moved.
    :ivar diverging: whether the energy error was above the kernel's bound, or not finite.
    :ivar energy: Hamiltonian of the state kept, nats.
    :ivar n_steps: gradients taken.
    """

    acceptance_rate: Tensor
    accepted: Tensor
    diverging: Tensor
    energy: Tensor
    n_steps: Tensor


class Kernel(MCMCKernel):
    r"""Base of the kernels: :math:`\pi(u) \propto e^{-U(u) / T}` left invariant, all chains at once.

    A kernel gives :meth:`noise` and :meth:`transition`: all random numbers of a transition, and the transition as a
    function of the state and those numbers, which has no other randomness and can be recorded and compiled.  It may
    override :meth:`init`, :meth:`start_warmup`, :meth:`adapt` and :meth:`finish_warmup`.  It runs in
    :class:`pyro_dgm.infer.mcmc.MCMC` and in :class:`pyro.infer.MCMC` (one chain a process).

    :param model: a Pyro model, or ``None``.
    :param potential_fn: ``U`` over chains: a dict of ``(chains, ...)`` tensors to ``(chains,)``; or of one chain, to a
        scalar (Pyro's); or ``None``.
    :param temperature: ``T``; 1 samples the posterior, and draws at another are no posterior draws.
    :param init_strategy: ``"uniform"`` (uniform on (-2, 2) in unconstrained space), ``"prior"``, or a Pyro
        per-site function such as :func:`pyro.infer.autoguide.init_to_median`.
    :param compile: have inductor compile the gradient and the transition: ``True``, ``False`` (they run as recorded),
        or ``"auto"``, in :class:`~pyro_dgm.infer.mcmc.MCMC`, the transition where a run is long enough to win the
        seconds back.  It goes by counts, never by a clock: the same run is compiled the same way each time.
    :param transforms: by latent, from constrained to unconstrained space (Pyro's convention): of a model in place of
        what its supports say, of a ``potential_fn`` what its values stand for.
    :param max_plate_nesting: dimensions that a model's plates may take; found by itself.
    :raises ValueError: if both ``model`` and ``potential_fn`` are given, or a setting is out of range.
    """

    #: name in sample statistics and in :func:`pyro_dgm.sample_posterior`
    name = "kernel"
    #: whether transitions use the gradient of the potential; without it ``potential_fn`` need not be differentiable
    uses_gradient = True
    #: whether a transition of some chains is that of all, cut: noise and ``extra`` are each ``(chains, ...)`` or scalar
    independent_chains = False
    #: whether transitions leave the target invariant; where not, nothing is rejected, and draws have a bias
    adjusted = True
    #: whether :meth:`steps_at` changes from one transition to the next
    varying_steps = False
    #: fewest chains that the kernel adapts with
    min_chains = 1

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        *,
        temperature: float = 1.0,
        init_strategy: str | Callable[[Any], Tensor] = "uniform",
        compile: bool | str = "auto",
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
    ) -> None:
        if compile not in (True, False, "auto"):
            raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")
        if model is not None and potential_fn is not None:
            raise ValueError("give model or potential_fn, not both")
        for argument, fn in (("model", model), ("potential_fn", potential_fn)):
            if fn is not None and not callable(fn):
                raise TypeError(f"{argument} must be callable, got {type(fn).__name__}")
        check_number("temperature", temperature)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        if not callable(init_strategy) and init_strategy not in ("uniform", "prior"):
            raise ValueError(f"init_strategy must be 'uniform', 'prior' or a function of a site, got {init_strategy!r}")
        for name, transform in (transforms or {}).items():
            if not isinstance(transform, Transform):
                raise TypeError(f"transforms[{name!r}] must be a torch transform, got {type(transform).__name__}")
        check_count("max_plate_nesting", max_plate_nesting, 0, optional=True)
        self.given_transforms, self.max_plate_nesting = dict(transforms or {}), max_plate_nesting
        self.model, self.potential_fn = model, potential_fn
        self.temperature, self.init_strategy, self.compile = float(temperature), init_strategy, compile
        self._given_params: Position | None = None
        self._reset()

    def with_model(self, model: Callable[..., Any]) -> Kernel:
        """A copy of this kernel's settings for a model.

        :raises ValueError: if the kernel has another model, or a potential.
        """
        if self.potential_fn is not None or self.model not in (None, model):
            raise ValueError(
                "the kernel already has a model or potential of its own; leave both out to bind it to this one"
            )
        bound = copy.copy(self)
        bound.model = model
        bound._reset()
        return bound

    # The functional core

    def condition(self, *args: Any, **kwargs: Any) -> Potential:
        """Bind the kernel to data, and give its potential.  Prior draws find the model's latents."""
        if self.potential_fn is not None:
            if args or kwargs:
                raise ValueError("a kernel with potential_fn takes no data: the potential has them in it")
            self.potential: Potential = FunctionPotential(self.potential_fn, self.given_transforms)
        elif self.model is not None:
            self.potential = ModelPotential(
                self.model, args, kwargs, transforms=self.given_transforms, max_plate_nesting=self.max_plate_nesting
            )
        else:
            raise ValueError(f"{type(self).__name__} needs model= or potential_fn=")
        self.potential.compile = self.compile is True
        return self.potential

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        """The state at unconstrained ``params``, each ``(chains, ...)``."""
        params = {k: v.detach().clone() for k, v in params.items()}
        value, gradient = self.potential(params) if self.uses_gradient else (self.potential.value(params), {})
        step_size = value.new_tensor(self.initial_step_size)
        inverse_mass = {k: torch.ones_like(v[0]) for k, v in params.items()}
        return KernelState(params, value, gradient, step_size, inverse_mass, 1, generator)

    @abstractmethod
    def noise(self, state: KernelState) -> dict[str, Tensor]:
        """All random numbers of one transition, drawn from the state's generator, by names of the kernel's own.

        Numbers that change from transition to transition without being random (a scheduled step size, say) belong here
        too, as tensors: a recorded transition sees nothing else.
        """

    @abstractmethod
    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        """One transition of every chain: tensor operations of the state's tensors and ``noise``, and nothing else.

        No random draw, no look at a tensor's value, no host synchronisation; chains do not meet, except in a kernel
        that says so.
        """

    def steps_at(self, state: KernelState) -> int:
        """Gradients that the next transition takes: :attr:`KernelState.num_steps`, where they do not vary."""
        return state.num_steps

    def step(self, state: KernelState) -> tuple[KernelState, Info]:
        """One transition of every chain, with fresh random numbers."""
        state = replace(state, num_steps=self.steps_at(state))
        new, info = self.transition(state, self.noise(state))
        return replace(new, iteration=state.iteration + 1), info

    #: step size before any adaptation
    initial_step_size: float = 1.0

    def start_warmup(self, state: KernelState, num_steps: int) -> KernelState:
        """Begin ``num_steps`` transitions of adaptation (none, for a kernel that does not adapt)."""
        return state

    def adapt(self, state: KernelState, info: Info) -> KernelState:
        """Learn from one transition of the warm-up."""
        return state

    def restarted(self, state: KernelState) -> KernelState:
        """What to learn anew in the warm-up where chains that stood still have been put elsewhere."""
        return state

    def finish_warmup(self, state: KernelState) -> KernelState:
        """Freeze what was learnt."""
        return replace(state, warmup=None)

    def statistics(self, state: KernelState) -> dict[str, Tensor]:
        """What there is to say of a run at its end; it goes into ``Posterior.attrs``."""
        return {}

    def start(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seed: int,
        num_chains: int,
        params: Position | None,
        chunk_size: int | None = None,
        bound: bool = False,
    ) -> KernelState:
        """Bind to data, find initial values, and give the first state; all randomness follows ``seed``.

        :param chunk_size: most chains whose potential is evaluated at once.
        :param bound: whether the kernel is bound to these data already.
        """
        device = device_of(self.model, args, kwargs, params)
        generator = new_generator(seed, device)
        with forked_rng(device, seed):
            if not bound:
                self.condition(*args, **kwargs).chunk_size = chunk_size
            params = initial_position(self.potential, self.init_strategy, num_chains, generator, params)
        return self.init(params, generator)

    # The adapter to pyro.infer.MCMC

    def _reset(self) -> None:
        self._state: KernelState | None = None
        self._last: Position | None = None
        self._count = self._num_warmup = 0
        self._divergences: list[int] = []
        self._acceptance = 0.0
        self._step_size = float("nan")
        self._nothing = False
        if "potential" in self.__dict__:
            del self.potential

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a run is rebuilt by setup; a vmapped function or a generator need not travel to a worker.
        runtime = {"potential", "_state", "_last"}
        return {k: v for k, v in self.__dict__.items() if k not in runtime}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Begin a run of one chain in ``pyro.infer.MCMC``; the seed is drawn from torch's global generator.

        As with Pyro's kernels, a model without latents has one draw, which is empty, and a ``potential_fn`` is given no
        data.
        """
        self._reset()
        seed = int(torch.randint(2**62, ()).item())
        params = None if self._given_params is None else {k: v[None] for k, v in self._given_params.items()}
        if self.potential_fn is not None:
            args, kwargs = (), {}
            self._nothing = params == {}
        try:
            state = None if self._nothing else self.start(args, kwargs, seed, 1, params)
        except NoLatents:
            state, self._nothing = None, True
        if state is None:
            self._last, self._acceptance, self._num_warmup = {}, 1.0, warmup_steps
            return
        if warmup_steps > 0:
            state = self.start_warmup(state, warmup_steps)
        self._num_warmup = warmup_steps
        self._keep(state)

    def _keep(self, state: KernelState) -> Position:
        self._state = state
        self._last = {k: v[0] for k, v in state.position.items()}
        return self._last

    def sample(self, params: Position) -> Position:
        """One transition of one chain from ``params`` (unconstrained, no chain dimension)."""
        if self._nothing:
            return params
        if self._state is None:
            raise RuntimeError("sample() before setup(): run the kernel in pyro.infer.MCMC or pyro_dgm.infer.mcmc.MCMC")
        state = self._state
        if params is not self._last:
            # Someone moved the chain (composition with another kernel): energies must follow.
            position = {k: v.detach()[None] for k, v in params.items()}
            value, gradient = self.potential(position)
            state = replace(state, position=position, potential=value, gradient=gradient)
        state, info = self.step(state)
        self._count += 1
        if self._count <= self._num_warmup:
            state = self.adapt(state, info)
            if self._count == self._num_warmup:
                state = self.finish_warmup(state)
        else:
            n = self._count - self._num_warmup
            self._acceptance += (float(info.acceptance_rate[0]) - self._acceptance) / n
            if bool(info.diverging[0]):
                self._divergences.append(n - 1)
        return self._keep(state)

    @property
    def initial_params(self) -> Position | None:
        """Unconstrained values that a run in ``pyro.infer.MCMC`` begins at, without a chain dimension."""
        return self._given_params if self._last is None else self._last

    @initial_params.setter
    def initial_params(self, params: Position | None) -> None:
        self._given_params = params

    @property
    def transforms(self) -> dict[str, Any] | None:
        """Constrained to unconstrained space, by latent; ``None`` before a model has met its data."""
        if self.potential_fn is not None:
            return self.given_transforms
        if self._nothing:
            return {}
        return self.potential.transforms if "potential" in self.__dict__ else None

    def diagnostics(self) -> dict[str, Any]:
        """Divergent draws, mean acceptance probability and step size of the one chain run."""
        step_size = self._step_size if self._state is None else float(self._state.step_size)
        return {"divergences": list(self._divergences), "acceptance rate": self._acceptance, "step size": step_size}

    def logging(self) -> OrderedDict[str, str]:
        """Step size and acceptance, for Pyro's progress bar."""
        step_size = self._step_size if self._state is None else float(self._state.step_size)
        return OrderedDict([("step size", f"{step_size:.2e}"), ("acc. prob", f"{self._acceptance:.3f}")])

    def clear_cache(self) -> None:
        """Nothing: :meth:`sample` sees by itself that a chain was moved.  Pyro's HMC has it."""

    def cleanup(self) -> None:
        """Forget the run, keep what ``diagnostics`` and ``transforms`` need."""
        if self._state is not None:
            self._step_size = float(self._state.step_size)
        self._state = self._last = None
