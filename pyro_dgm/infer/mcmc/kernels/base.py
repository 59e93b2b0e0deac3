"""The kernel contract: a functional core over a leading chain dimension."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypedDict

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

__all__ = ["Info", "Kernel", "KernelOptions", "KernelState"]


class KernelOptions(TypedDict, total=False):
    """What every kernel passes on to :class:`Kernel`, which says what each is."""

    temperature: float
    init_strategy: str | Callable[[Any], Tensor]
    compile: bool | str
    transforms: Mapping[str, Transform] | None
    max_plate_nesting: int | None


class Kernel(PyroAdapter):
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
    #: whether chains do not interact: noise and what a state adds are each ``(chains, ...)`` or scalar
    independent_chains = False
    #: whether transitions leave the target invariant; where not, nothing is rejected, and draws have a bias
    adjusted = True
    #: whether positions may be integers or booleans
    discrete = False
    #: whether the kernel may run inside of :class:`ParallelTempering`
    tempers = True
    #: what there is to learn in a warm-up
    adaptation = Adaptation(mass_matrix=False)
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
        """Bind the kernel to data, and give its potential.  Prior draws find the model's latents."""
        if self.potential_fn is not None:
            if args or kwargs:
                raise ValueError("a kernel with potential_fn takes no data: the potential has them in it")
            self.potential = self.potential_of_function(self.potential_fn)
        elif self.model is not None:
            self.potential = self.potential_of_model(self.model, args, kwargs)
        else:
            raise ValueError(f"{type(self).__name__} needs model= or potential_fn=")
        self.potential.evaluator.compile = self.compile is True
        return self.potential

    def potential_of_function(self, fn: Callable[..., Tensor]) -> Potential:
        """The potential that a ``potential_fn`` stands for."""
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
        """All random numbers of one transition, drawn from the state's generator, by names of the kernel's own.

        Numbers that change from transition to transition without being random (a scheduled step size, say) belong here
        too, as tensors: a recorded transition sees nothing else.
        """

    @abstractmethod
    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        """One transition of every chain: tensor operations of the state's tensors and ``noise``, and nothing else.

        No random draw, no branch on a tensor's value, no host synchronisation; chains do not interact, except in a
        kernel that says so.
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
                self.condition(*args, **kwargs).evaluator.chunk_size = chunk_size
            params = initial_position(self.potential, self.init_strategy, num_chains, generator, params)
        return self.init(params, generator)
