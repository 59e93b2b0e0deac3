"""Base of the kernels that move chains by another kernel and a normalizing flow."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection
from pyro_dgm.infer.mcmc.flow_training import Flow, FlowTraining, check_flow, make_flow
from pyro_dgm.infer.mcmc.kernels.base import Kernel, KernelState
from pyro_dgm.infer.mcmc.mass_matrix import flatten
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.ops.arguments import check_count, check_positive

__all__ = ["FlowKernel", "FlowState"]

#: transitions of a warm-up below which no flow is trained
FEWEST_TRANSITIONS = 20

#: steps of training without train_steps, where the warm-up is long
MOST_TRAIN_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class FlowState(KernelState):
    """A state of the chains, with what the inner kernel carries, and the flow.

    :ivar inner_type: class of the inner kernel's states.
    :ivar inner_own: fields of its own of the inner kernel's state, ``(chains, ...)`` each.
    :ivar inner_shared: those that its chains share.
    :ivar flow: from standard normal variables to unconstrained latents, ``None`` as long as nothing is learnt.
    :ivar training: of the flow, under way.
    :ivar flow_loss: of the last step of training, nats.
    """

    inner_type: type[KernelState]
    inner_own: dict[str, Any]
    inner_shared: dict[str, Any]
    flow: Bijection | None
    training: FlowTraining | None = None
    flow_loss: float = float("nan")

    shared = KernelState.shared | {"inner_shared"}

    def of_inner(self, position: Position, potential: Tensor, gradient: Position) -> KernelState:
        """The inner kernel's state at a position."""
        inner = self.inner_type.extending(self, **self.inner_own, **self.inner_shared)
        return replace(inner, position=position, potential=potential, gradient=gradient)

    def after(self, inner: KernelState, **changed: Any) -> Self:
        """The state with what the inner kernel's carries, apart from where its chains are."""
        own = inner.own()
        return replace(
            self,
            step_size=inner.step_size,
            mass=inner.mass,
            num_steps=inner.num_steps,
            warmup=inner.warmup,
            inner_type=type(inner),
            inner_own={k: v for k, v in own.items() if k not in inner.shared},
            inner_shared={k: v for k, v in own.items() if k in inner.shared},
            **changed,
        )


class FlowKernel(Kernel):
    """A kernel made of another one and a flow: what its subclasses have in common.

    :param model: a Pyro model, or an inner kernel with its model or potential.
    :param potential_fn: ``U`` over chains.
    :param kernel: inner kernel.
    :param flow: the flow, or what makes it.
    :param train: whether to train it in the warm-up.
    :param train_steps: steps of the optimiser in a warm-up; ``None`` for two a transition, at most 1 000.
    :param learning_rate: of Adam.
    :param batch_size: draws a step.
    :param settings: of the default inner kernel.
    :raises ValueError: for a setting out of range, or an inner kernel that cannot be used; the message names it.
    """

    tempers = False  # a flow is of one temperature
    default_kernel: type[Kernel]

    def __init__(
        self,
        model: Callable[..., Any] | Kernel | None,
        potential_fn: Callable[[Position], Tensor] | None,
        *,
        kernel: Kernel | None,
        flow: Flow | None,
        train: bool,
        train_steps: int | None,
        learning_rate: float,
        batch_size: int,
        settings: Mapping[str, Any],
    ) -> None:
        if isinstance(model, Kernel):
            if kernel is not None:
                raise ValueError("give the inner kernel once: first, or as kernel=")
            kernel, model = model, None
        if kernel is not None and not isinstance(kernel, Kernel):
            raise TypeError(f"kernel must be a pyro_dgm.infer.mcmc.Kernel, got {type(kernel).__name__}")
        if kernel is not None and settings:
            raise ValueError(f"{sorted(settings)} are settings of the inner kernel: give them to it")
        kernel = self.default_kernel(**settings) if kernel is None else kernel
        if not kernel.tempers or kernel.discrete:
            raise ValueError(f"kernel must move continuous latents by their density alone, got {type(kernel).__name__}")
        own = kernel.model is not None or kernel.potential_fn is not None
        if own and (model is not None or potential_fn is not None):
            raise ValueError("the inner kernel already has a model or potential of its own; give it once")
        super().__init__(
            kernel.model if own else model,
            kernel.potential_fn if own else potential_fn,
            temperature=kernel.temperature,
            init_strategy=kernel.init_strategy,
            compile=kernel.compile,
            transforms=kernel.given_transforms,
            max_plate_nesting=kernel.max_plate_nesting,
        )
        check_flow(flow)
        check_count("train_steps", train_steps, optional=True)
        check_count("batch_size", batch_size)
        check_positive("learning_rate", learning_rate)
        if not train and flow is None:
            raise ValueError("train=False needs a flow that is trained: give flow=")
        self.kernel, self.given_flow, self.train = kernel, flow, bool(train)
        self.train_steps, self.learning_rate, self.batch_size = train_steps, float(learning_rate), batch_size
        self.uses_gradient, self.adjusted = kernel.uses_gradient, kernel.adjusted
        self.independent_chains, self.varying_steps = kernel.independent_chains, kernel.varying_steps
        self.min_chains, self.initial_step_size = kernel.min_chains, kernel.initial_step_size
        self.adaptation = kernel.adaptation

    def condition(self, *args: Any, **kwargs: Any) -> Potential:
        inner = copy.copy(self.kernel)
        inner.model, inner.potential_fn = self.model, self.potential_fn
        self._inner, self.potential = inner, inner.condition(*args, **kwargs)
        return self.potential

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_inner"}

    @staticmethod
    @abstractmethod
    def make_default_flow(dim: int) -> Bijection:
        """The flow of ``dim`` dimensions where none is given."""

    def inner(self, potential: Potential) -> Kernel:
        """The inner kernel on a potential."""
        bound = self.__dict__.get("_inner", self.kernel)
        # As it is: copy.copy would take off what it was bound to.
        kernel: Kernel = object.__new__(type(bound))
        kernel.__dict__.update(bound.__dict__)
        kernel.potential = potential
        return kernel

    def init(self, params: Position, generator: Any) -> FlowState:
        plain = self.inner(self.potential).init(params, generator)
        state = self.first_state(plain).after(plain)
        if self.train:
            return state
        assert self.given_flow is not None
        return self.with_flow(state, make_flow(self.given_flow, params, generator))

    def first_state(self, plain: KernelState) -> FlowState:
        """The state that extends the inner kernel's first one."""
        return FlowState.extending(plain, inner_type=KernelState, inner_own={}, inner_shared={}, flow=None)

    def with_flow(self, state: FlowState, flow: Bijection) -> FlowState:
        """The state with another flow."""
        return replace(state, flow=flow)

    def new_training(self, state: FlowState, num_steps: int) -> FlowTraining | None:
        """The training of a warm-up of ``num_steps`` transitions; none where it is too short."""
        if not self.train or num_steps < FEWEST_TRANSITIONS:
            return None
        flow = make_flow(self.given_flow or self.make_default_flow, state.position, state.generator)
        dtype = flatten(state.position).dtype
        steps = min(MOST_TRAIN_STEPS, 2 * num_steps) if self.train_steps is None else self.train_steps
        return FlowTraining(flow, state.generator, steps, self.learning_rate, self.batch_size, dtype)

    def statistics(self, state: KernelState) -> dict[str, Tensor]:
        """How the training of the flow ended.

        :returns: ``flow_loss``, of the last step, nats; NaN where nothing was trained.
        """
        assert isinstance(state, FlowState)
        return {"flow_loss": state.potential.new_tensor(state.flow_loss)}
