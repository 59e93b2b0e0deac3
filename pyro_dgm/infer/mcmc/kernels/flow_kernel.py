"""Base of the kernels that move chains by another kernel and a normalizing flow."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from pyro_dgm.distributions.transforms.base import Bijection
from pyro_dgm.infer.mcmc.flow_training import Flow, FlowTraining, check_flow, make_flow
from pyro_dgm.infer.mcmc.kernels.base import Kernel, KernelState
from pyro_dgm.infer.mcmc.kernels.composed import ComposedKernel
from pyro_dgm.infer.mcmc.mass_matrix import flatten
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.ops.arguments import check_count, check_positive

__all__ = ["FlowKernel", "FlowSettings", "FlowState"]

#: shortest warm-up, in transitions, in which a flow is trained
FEWEST_TRANSITIONS = 20


@dataclass(frozen=True, kw_only=True)
class FlowState(KernelState):
    """A state of the chains, with the inner kernel's state and the flow.

    :ivar inner_type: class of the inner kernel's states.
    :ivar inner_own: fields that this class adds to :class:`KernelState`, ``(chains, ...)`` each.
    :ivar inner_shared: those of them that all chains share.
    :ivar flow: from standard normal variables to unconstrained latents; ``None`` before the first training.
    :ivar training: the training of the flow, during the warm-up.
    :ivar flow_loss: loss of the last training step, nats.
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
        """The state with the inner kernel's step size, mass and own fields; positions stay as they are."""
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


@dataclass(frozen=True)
class FlowSettings:
    """The flow of a kernel and how it is trained in the warm-up.

    :ivar flow: the flow, or a function that makes it from a number of dimensions; ``None`` for the kernel's default.
    :ivar train: whether to train it.
    :ivar train_steps: optimiser steps in a warm-up; ``None`` for the kernel's default.
    :ivar learning_rate: of Adam.
    :ivar batch_size: draws in each step.
    :raises TypeError: if the flow is neither a bijection nor a function.
    :raises ValueError: for a setting out of range; the message names it.
    """

    flow: Flow | None
    train: bool
    train_steps: int | None
    learning_rate: float
    batch_size: int

    def __post_init__(self) -> None:
        check_flow(self.flow)
        check_count("train_steps", self.train_steps, optional=True)
        check_count("batch_size", self.batch_size)
        check_positive("learning_rate", self.learning_rate)
        if not self.train and self.flow is None:
            raise ValueError("train=False needs a flow that is trained: give flow=")


class FlowKernel(ComposedKernel):
    """A kernel made of an inner kernel and a flow.

    :param model: a Pyro model, or an inner kernel with its model or potential.
    :param potential_fn: ``U`` over chains.
    :param kernel: the inner kernel.
    :param default: makes the inner kernel where none is given, from ``settings``.
    :param flow: the flow and its training.
    :param settings: keywords for ``default``; those that are ``None`` are left out.
    :raises ValueError: for an inner kernel that cannot be used; the message names it.
    """

    tempers = False  # a flow is of one temperature

    def __init__(
        self,
        model: Callable[..., Any] | Kernel | None,
        potential_fn: Callable[[Position], Tensor] | None,
        *,
        kernel: Kernel | None,
        default: Callable[..., Kernel],
        flow: FlowSettings,
        settings: Mapping[str, Any],
    ) -> None:
        super().__init__(model, potential_fn, kernel, default, settings)
        kernel = self.kernel
        if not kernel.tempers or kernel.discrete:
            raise ValueError(f"kernel must move continuous latents by their density alone, got {type(kernel).__name__}")
        self.flow_settings = flow
        self.independent_chains, self.min_chains = kernel.independent_chains, kernel.min_chains
        self.adaptation = kernel.adaptation

    @staticmethod
    @abstractmethod
    def default_train_steps(num_transitions: int, dim: int) -> int:
        """Optimiser steps in a warm-up of ``num_transitions``, for a flow of ``dim`` dimensions."""

    @staticmethod
    @abstractmethod
    def make_default_flow(dim: int) -> Bijection:
        """The flow of ``dim`` dimensions where none is given."""

    def init(self, params: Position, generator: Any) -> FlowState:
        plain = self.inner(self.potential).init(params, generator)
        state = self.first_state(plain).after(plain)
        settings = self.flow_settings
        if settings.train:
            return state
        assert settings.flow is not None
        return self.with_flow(state, make_flow(settings.flow, params, generator))

    def first_state(self, plain: KernelState) -> FlowState:
        """The state that extends the inner kernel's first one."""
        return FlowState.extending(plain, inner_type=KernelState, inner_own={}, inner_shared={}, flow=None)

    def with_flow(self, state: FlowState, flow: Bijection) -> FlowState:
        """The state with another flow."""
        return replace(state, flow=flow)

    def new_training(self, state: FlowState, num_steps: int) -> FlowTraining | None:
        """The training in a warm-up of ``num_steps`` transitions; ``None`` if that is too short."""
        settings = self.flow_settings
        if not settings.train or num_steps < FEWEST_TRANSITIONS:
            return None
        flow = make_flow(settings.flow or self.make_default_flow, state.position, state.generator)
        dtype = flatten(state.position).dtype
        dim = flatten(state.position).shape[1]
        steps = self.default_train_steps(num_steps, dim) if settings.train_steps is None else settings.train_steps
        return FlowTraining(flow, state.generator, steps, settings.learning_rate, settings.batch_size, dtype)

    def statistics(self, state: KernelState) -> dict[str, Tensor]:
        """The result of training the flow.

        :returns: ``flow_loss``, the loss of the last step, nats; NaN if nothing was trained.
        """
        assert isinstance(state, FlowState)
        return {"flow_loss": state.potential.new_tensor(state.flow_loss)}
