"""A gradient kernel in the base space of a normalizing flow that is learnt in the warm-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_dgm.distributions.transforms import Autoregressive, Bijection, Compose
from pyro_dgm.distributions.transforms.scaled_shift import ScaledShiftFamily
from pyro_dgm.infer.mcmc.adaptation import search_steps
from pyro_dgm.infer.mcmc.flow_training import Flow
from pyro_dgm.infer.mcmc.kernels.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.kernels.flow_kernel import FlowKernel, FlowSettings, FlowState
from pyro_dgm.infer.mcmc.kernels.hmc import HMC
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.transported import TransportedPotential
from pyro_dgm.ops.arguments import check_count

__all__ = ["NeuTra", "NeuTraState"]

#: fraction of the warm-up after which the flow is frozen, and the inner kernel adapts to it
FROZEN_AFTER = 0.5

#: of the default inner kernel; above HMC's 0.8, because the flow fits worst in the tails, where steps may then diverge
TARGET_ACCEPT_PROB = 0.9


@dataclass(frozen=True, kw_only=True)
class NeuTraState(FlowState):
    """A state of the chains, with their positions in base space.

    :ivar base: these positions, by latent; empty before the flow is trained.
    :ivar rounds: the transitions of the warm-up after which the flow is trained; last, the length of the warm-up.
    """

    base: Position
    rounds: tuple[int, ...] = ()


class NeuTra(FlowKernel):
    r"""Neural transport (NeuTra): HMC, or another gradient kernel, in coordinates in which the target is nearly normal.

    .. math:: U_z(z) = U(f(z)) - T \log \Bigl|\det \frac{\partial f}{\partial z}\Bigr|, \qquad u = f(z)

    Use it if the curvature of the target changes from place to place (funnels, bananas), so that no step size and mass
    matrix are right everywhere. The flow :math:`f` acts like a mass matrix that depends on the position. In the first
    half of the warm-up it is trained in a few rounds, by minimising the KL divergence from :math:`f(N(0, I))` to the
    target. In the second half it is frozen, and the inner kernel learns its step size and mass in base space. Draws are
    exact for every flow; with one that fits badly, chains mix slowly. NeuTra does not connect separate modes; for these
    see :class:`FlowMC` and :class:`ParallelTempering`.

    A transition takes one gradient more than the inner kernel's. A warm-up of fewer than 20 transitions trains nothing,
    and the inner kernel then runs as it is.

    :param model: a Pyro model, or an inner kernel with its model or potential; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param kernel: inner kernel, one that takes gradients; :class:`HMC` by default.
    :param flow: :math:`f`, a :class:`~pyro_dgm.distributions.transforms.Bijection` over the ``D`` elements of all
        unconstrained latents, one after another, from standard normal variables to latents; or a function of ``D`` that
        makes one. Its forward direction should be the fast one. By default three inverse
        autoregressive layers. A bijection is copied.
    :param train: whether to train the flow; ``False`` uses the given flow as it is.
    :param train_steps: optimiser steps in a warm-up; by default ten for each transition, at most 1 000 + 10 ``D``.
    :param learning_rate: of Adam, falling to zero by a cosine.
    :param batch_size: base draws in each step, for each of which the gradient of :math:`U` is computed.
    :param num_rounds: rounds of training; after each one the chains continue in the new coordinates.
    :param step_size: of the default inner kernel. This argument and the next six set up the :class:`HMC` that is made
        where ``kernel`` is not given; ``None`` keeps its default. With ``kernel``, give them to that kernel instead.
    :param target_accept_prob: mean acceptance probability to which the step size is adapted. The default is 0.9, above
        that of :class:`HMC`: a flow fits worst in the tails, and large steps diverge there.
    :param temperature: of the target; see :class:`Kernel`, as for the next four.
    :param init_strategy: where chains start.
    :param compile: whether to compile gradients and transitions.
    :param transforms: from constrained to unconstrained space, by latent.
    :param max_plate_nesting: number of dimensions that the model's plates may take.
    :raises TypeError: if ``flow`` is no flow or ``kernel`` no kernel.
    :raises ValueError: for a setting out of range, a flow over other events, or a kernel without gradients; the message
        names it.

    Source: M. D. Hoffman et al. (2019), "NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural
    transport", arXiv:1903.03704.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import ElementwiseAffine
        >>> from pyro_dgm.infer.mcmc import MCMC, NeuTra
        >>> def normal(u):
        ...     return 0.5 * ((u["x"] - 5.0) / 0.1).square().sum(-1)
        >>> kernel = NeuTra(potential_fn=normal, flow=ElementwiseAffine, train_steps=50)
        >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=60, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.full((8, 2), 5.0)})
        >>> bool((mcmc.get_samples()["x"].mean() - 5.0).abs() < 0.05)
        True
    """

    name = "neutra"

    def __init__(
        self,
        model: Callable[..., Any] | Kernel | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        *,
        kernel: Kernel | None = None,
        flow: Flow | None = None,
        train: bool = True,
        train_steps: int | None = None,
        learning_rate: float = 0.01,
        batch_size: int = 128,
        num_rounds: int = 3,
        step_size: float | None = None,
        target_accept_prob: float | None = None,
        temperature: float | None = None,
        init_strategy: str | Callable[[Any], Tensor] | None = None,
        compile: bool | str | None = None,
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(
            model,
            potential_fn,
            kernel=kernel,
            default=partial(HMC, target_accept_prob=TARGET_ACCEPT_PROB),
            flow=FlowSettings(flow, bool(train), train_steps, learning_rate, batch_size),
            settings={
                "step_size": step_size,
                "target_accept_prob": target_accept_prob,
                "temperature": temperature,
                "init_strategy": init_strategy,
                "compile": compile,
                "transforms": transforms,
                "max_plate_nesting": max_plate_nesting,
            },
        )
        if not self.kernel.uses_gradient:
            raise ValueError(f"kernel must be one that takes gradients, got {type(self.kernel).__name__}")
        self.num_rounds = check_count("num_rounds", num_rounds)

    @staticmethod
    def default_train_steps(num_transitions: int, dim: int) -> int:
        # Training costs about as much as the rest of a warm-up; a flow that fits badly costs far more in draws.
        return min(10 * num_transitions, 1000 + 10 * dim)

    @staticmethod
    def make_default_flow(dim: int) -> Bijection:
        """Three inverse autoregressive layers: two with a hidden layer, in opposite orders, and a linear one."""

        def layer(hidden: tuple[int, ...], order: str | None = None) -> Bijection:
            return Autoregressive(dim, ScaledShiftFamily(20.0), hidden=hidden, activation=nn.ELU, order=order)

        return Compose([layer((64,)), layer((64,), "reverse"), layer(())])

    # To base space and back

    def first_state(self, plain: KernelState) -> FlowState:
        return NeuTraState.extending(plain, inner_type=KernelState, inner_own={}, inner_shared={}, flow=None, base={})

    def with_flow(self, state: FlowState, flow: Bijection) -> FlowState:
        """The chains at the same positions, in new coordinates, with a new state of the inner kernel.

        A chain whose position the flow cannot invert accurately (far out, where the inverse overflows) is moved to a
        draw from the flow. That happens in the warm-up only, or before it.
        """
        assert isinstance(state, NeuTraState)
        potential = TransportedPotential(self.potential, flow, self.temperature)
        base, _ = potential.pull(state.position)
        there, _ = potential.push(base)
        lost = torch.zeros_like(state.potential, dtype=torch.bool)
        for k, v in there.items():
            error = (v - state.position[k]).abs() / (1.0 + state.position[k].abs())
            lost = lost | ~(error < 1e-2).reshape(len(v), -1).all(-1)
        for k, v in base.items():
            fresh = torch.randn(v.shape, generator=state.generator, dtype=v.dtype, device=v.device)
            base[k] = torch.where(lost.reshape(-1, *[1] * (v.dim() - 1)), fresh, v)
        inner = self.inner(potential).init(base, state.generator)
        return self._moved_to(replace(state, flow=flow).after(inner), base)

    def _moved_to(self, state: NeuTraState, base: Position) -> NeuTraState:
        """The state with all chains at these positions in base space."""
        position, _ = self._transported(state).push(base)
        value, gradient = self.potential(position)
        return replace(state, position=position, potential=value, gradient=gradient, base=base)

    def relocated(self, state: KernelState, position: Position) -> KernelState:
        state = super().relocated(state, position)
        assert isinstance(state, NeuTraState)
        if state.flow is None:
            return state
        base, _ = self._transported(state).pull(state.position)
        return replace(state, base=base)

    def _transported(self, state: FlowState) -> TransportedPotential:
        assert state.flow is not None
        return TransportedPotential(self.potential, state.flow, self.temperature)

    def _inner_kernel(self, state: FlowState) -> Kernel:
        potential: Potential = self.potential if state.flow is None else self._transported(state)
        return self.inner(potential)

    def _inner_state(self, state: KernelState, shapes: bool = False) -> KernelState:
        """The inner kernel's state.

        :param shapes: whether only shapes of the energies are read, so that their values need not be computed.
        """
        assert isinstance(state, NeuTraState)
        if state.flow is None:
            return state.of_inner(state.position, state.potential, state.gradient)
        if shapes:
            return state.of_inner(state.base, state.potential, state.gradient)
        value, gradient = self._transported(state).from_base(state.base, state.potential, state.gradient)
        return state.of_inner(state.base, value, gradient)

    # Transition

    def steps_at(self, state: KernelState) -> int:
        return self.inner(self.potential).steps_at(self._inner_state(state, shapes=True))

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        return self.inner(self.potential).noise(self._inner_state(state, shapes=True))

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        assert isinstance(state, NeuTraState)
        inner, info = self._inner_kernel(state).transition(self._inner_state(state), noise)
        new = state.after(inner)
        if state.flow is None:
            return replace(new, position=inner.position, potential=inner.potential, gradient=inner.gradient), info
        position, _ = self._transported(state).push(inner.position)
        value, gradient = self.potential(position)
        # A chain that was rejected keeps its exact position, without the rounding of a transform and its inverse.
        return new.moved(info.accepted, position, value, gradient, base=inner.position), info

    # Warm-up

    def start_warmup(self, state: KernelState, num_steps: int) -> KernelState:
        assert isinstance(state, NeuTraState)
        training = self.new_training(state, num_steps)
        rounds: tuple[int, ...] = (num_steps,)
        if training is not None:
            first, last = search_steps(num_steps), int(FROZEN_AFTER * num_steps)
            gap = (last - first) / max(1, self.num_rounds - 1)
            rounds = tuple(sorted({first + round(gap * i) for i in range(self.num_rounds)})) + rounds
        return self._segment(replace(state, training=training, rounds=rounds), rounds[0])

    def _segment(self, state: NeuTraState, num_steps: int) -> NeuTraState:
        """The inner kernel's warm-up from now to the next round, or to the end."""
        return state.after(self._inner_kernel(state).start_warmup(self._inner_state(state), num_steps))

    def adapt(self, state: KernelState, info: Info) -> KernelState:
        assert isinstance(state, NeuTraState)
        state = state.after(self._inner_kernel(state).adapt(self._inner_state(state), info))
        training = state.training
        if training is None:
            return state
        training.observe(state.position)
        if training.seen != state.rounds[0]:
            return state
        if training.steps == 0:
            training.whiten()
        done = state.rounds[0]
        left = len(state.rounds) - 1
        steps = (training.total_steps - training.steps) // left
        flow = training.fit_to_potential(steps, self.potential, state.position, self.temperature)
        rounds = state.rounds[1:]
        new = self.with_flow(replace(state, rounds=rounds, flow_loss=training.loss), flow)
        assert isinstance(new, NeuTraState)
        if left == 1:
            new = replace(new, training=None)
        return self._segment(new, rounds[0] - done)

    def restarted(self, state: KernelState) -> KernelState:
        assert isinstance(state, NeuTraState)
        return state.after(self._inner_kernel(state).restarted(self._inner_state(state)))

    def finish_warmup(self, state: KernelState) -> KernelState:
        assert isinstance(state, NeuTraState)
        state = state.after(self._inner_kernel(state).finish_warmup(self._inner_state(state)))
        return replace(state, warmup=None, training=None)
