"""The kernel contract: a functional core over a leading chain dimension."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.adaptation import Adaptation
from pyro_dgm.infer.mcmc.initial import device_of, initial_position, new_generator
from pyro_dgm.infer.mcmc.mass_matrix import DiagonalMass
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.function import FunctionPotential
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential
from pyro_dgm.infer.mcmc.pyro_adapter import PyroAdapter
from pyro_dgm.infer.mcmc.state import Info, KernelState
from pyro_dgm.ops.arguments import check_choice, check_count, check_positive
from pyro_dgm.ops.random_state import forked_rng

__all__ = ["Info", "Kernel", "KernelState"]


class Kernel(PyroAdapter):
    r"""Base of the kernels, whose transitions leave :math:`\pi(u) \propto e^{-U(u) / T}` invariant, all chains at once.

    A kernel implements :meth:`noise`, which draws all random numbers of a transition, and :meth:`transition`, a
    function of the state and those numbers. That function has no other randomness, so that it can be recorded and
    compiled. A kernel may override :meth:`init`, :meth:`start_warmup`, :meth:`adapt` and :meth:`finish_warmup`. It runs
    in :class:`pyro_dgm.infer.mcmc.MCMC` and in :class:`pyro.infer.MCMC` (one chain per process).

    :param model: a Pyro model, or ``None``.
    :param potential_fn: the potential energy ``U``: from a dict of ``(chains, ...)`` tensors to ``(chains,)``; or, as
        in Pyro, from a dict of tensors of one chain to a scalar; or ``None``.
    :param temperature: ``T``. At 1 the target is the posterior; at another temperature it is not.
    :param init_strategy: where chains start: ``"uniform"`` (uniform on (-2, 2) in unconstrained space), ``"prior"``
        (draws from the prior), or a Pyro per-site function such as :func:`pyro.infer.autoguide.init_to_median`.
    :param compile: ``True`` has inductor compile the gradient and the transition, ``False`` runs both as recorded. With
        ``"auto"``, :class:`~pyro_dgm.infer.mcmc.MCMC` compiles the transition if the run is long enough to save the
        time that compiling takes. It decides by the number of transitions, never by a clock, so that the same run is
        compiled the same way each time.
    :param transforms: by latent, from constrained to unconstrained space (Pyro's convention). For a model they replace
        the transforms that its supports give; for a ``potential_fn`` they give the constrained values of its arguments.
    :param max_plate_nesting: number of dimensions that the model's plates may take; found automatically by default.
    :raises ValueError: if both ``model`` and ``potential_fn`` are given, or a setting is out of range.
    """

    #: name in sample statistics and in :func:`pyro_dgm.sample_posterior`
    name = "kernel"
    #: whether transitions use the gradient of the potential; without it ``potential_fn`` need not be differentiable
    uses_gradient = True
    #: whether chains do not interact: every tensor of the noise and of the state is ``(chains, ...)`` or a scalar
    independent_chains = False
    #: whether transitions leave the target exactly invariant; if not, nothing is rejected and draws have a bias
    adjusted = True
    #: whether positions may be integers or booleans
    discrete = False
    #: whether the kernel may run inside of :class:`ParallelTempering`
    tempers = True
    #: what the warm-up learns
    adaptation = Adaptation(mass_matrix=False)
    #: whether :meth:`steps_at` changes from one transition to the next
    varying_steps = False
    #: smallest number of chains for adaptation
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
        check_choice("compile", compile, True, False, "auto")
        if model is not None and potential_fn is not None:
            raise ValueError("give model or potential_fn, not both")
        for argument, fn in (("model", model), ("potential_fn", potential_fn)):
            if fn is not None and not callable(fn):
                raise TypeError(f"{argument} must be callable, got {type(fn).__name__}")
        check_positive("temperature", temperature)
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
        """Bind the kernel to data, and return its potential. The model is run to find its latents."""
        if self.potential_fn is not None:
            if args or kwargs:
                raise ValueError("a kernel with potential_fn takes no data: the potential contains them")
            self.potential = self.potential_of_function(self.potential_fn)
        elif self.model is not None:
            self.potential = self.potential_of_model(self.model, args, kwargs)
        else:
            raise ValueError(f"{type(self).__name__} needs model= or potential_fn=")
        self.potential.evaluator.compile = self.compile is True
        return self.potential

    def potential_of_function(self, fn: Callable[..., Tensor]) -> Potential:
        """The potential made of a ``potential_fn``."""
        return FunctionPotential(fn, self.given_transforms)

    def potential_of_model(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Potential:
        """The potential of a model given its data."""
        return ModelPotential(
            model, args, kwargs, transforms=self.given_transforms, max_plate_nesting=self.max_plate_nesting
        )

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        """The state at unconstrained ``params``, each ``(chains, ...)``."""
        params = {k: v.detach().clone() for k, v in params.items()}
        value, gradient = self.potential(params) if self.uses_gradient else (self.potential.value(params), {})
        step_size = value.new_tensor(self.initial_step_size)
        return KernelState(params, value, gradient, step_size, DiagonalMass.identity(params), 1, generator)

    @abstractmethod
    def noise(self, state: KernelState) -> dict[str, Tensor]:
        """All random numbers of one transition, drawn from the state's generator, by names that the kernel chooses.

        Numbers that change from one transition to the next without being random (a scheduled step size, for example)
        belong here too, as tensors: a recorded transition reads nothing else.
        """

    @abstractmethod
    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        """One transition of every chain, by tensor operations on the state and ``noise`` alone.

        No random draw, no branch on a tensor's value, no host synchronisation. Chains do not interact if
        :attr:`independent_chains` says so.
        """

    def steps_at(self, state: KernelState) -> int:
        """Steps of the next transition: :attr:`KernelState.num_steps`, unless the kernel varies them."""
        return state.num_steps

    def step(self, state: KernelState) -> tuple[KernelState, Info]:
        """One transition of every chain, with fresh random numbers."""
        state = replace(state, num_steps=self.steps_at(state))
        new, info = self.transition(state, self.noise(state))
        return replace(new, iteration=state.iteration + 1), info

    #: step size before any adaptation
    initial_step_size: float = 1.0

    def start_warmup(self, state: KernelState, num_steps: int) -> KernelState:
        """Begin a warm-up of ``num_steps`` transitions; a kernel that learns nothing returns the state."""
        return state

    def adapt(self, state: KernelState, info: Info) -> KernelState:
        """Learn from one transition of the warm-up."""
        return state

    def restarted(self, state: KernelState) -> KernelState:
        """The state after chains that did not move were put elsewhere in the warm-up; adaptation may start again."""
        return state

    def finish_warmup(self, state: KernelState) -> KernelState:
        """Freeze what was learnt."""
        return replace(state, warmup=None)

    def statistics(self, state: KernelState) -> dict[str, Tensor]:
        """Summary of a run, by name, at its end; it goes into ``Posterior.attrs``."""
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
        """Bind to data, find initial values, and return the first state; all randomness follows ``seed``.

        :param chunk_size: largest number of chains whose potential is evaluated at once.
        :param bound: whether the kernel is already bound to these data.
        """
        device = device_of(self.model, args, kwargs, params)
        generator = new_generator(seed, device)
        with forked_rng(device, seed):
            if not bound:
                self.condition(*args, **kwargs).evaluator.chunk_size = chunk_size
            params = initial_position(self.potential, self.init_strategy, num_chains, generator, params)
        return self.init(params, generator)
