"""A local kernel with proposals from a normalizing flow that is learnt in the warm-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.distributions.transforms import Bijection, Compose, Spline, SplineCoupling
from pyro_dgm.infer.mcmc.adaptation import search_steps
from pyro_dgm.infer.mcmc.chains import uniform_per_chain
from pyro_dgm.infer.mcmc.flow_training import Flow, log_normal
from pyro_dgm.infer.mcmc.kernels.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.kernels.flow_kernel import FlowKernel, FlowSettings, FlowState
from pyro_dgm.infer.mcmc.kernels.mala import MALA
from pyro_dgm.infer.mcmc.mass_matrix import flatten
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.ops.arguments import check_count

__all__ = ["FlowMC", "FlowMCState"]


@dataclass(frozen=True, kw_only=True)
class FlowMCState(FlowState):
    """A state of the chains, with the acceptance of the flow's proposals.

    :ivar local_info: of the local kernel's last transition.
    :ivar global_acceptance: acceptance probability of the flow's proposals, summed over transitions, ``(chains,)``.
    :ivar taken: number of transitions in that sum, ``(chains,)``.
    :ivar loop_ends: transitions of the warm-up after which the flow is trained.
    """

    local_info: Info
    global_acceptance: Tensor
    taken: Tensor
    loop_ends: frozenset[int] = frozenset()


class FlowMC(FlowKernel):
    r"""FlowMC: local moves, and independent proposals from a normalizing flow; for separated modes and unusual shapes.

    A transition is one of the local kernel, followed by ``num_proposals`` Metropolis steps. Their proposals are
    :math:`u' = f(z)`, :math:`z \sim N(0, I)`, of density :math:`q`, each accepted with probability

    .. math:: \min\Bigl(1, \frac{\pi(u')\, q(u)}{\pi(u)\, q(u')}\Bigr)

    One call of the flow makes the proposals of all chains, with their densities. In the warm-up the flow is trained in
    several loops, by maximum likelihood on the recent positions of the chains; it proposes from the first loop on.
    After the warm-up it is frozen, so that transitions leave the target invariant. The local kernel explores, and the
    flow moves chains between modes that the local kernel cannot connect. Neither finds a mode in which no chain starts:
    start many chains at scattered places.

    A transition takes ``num_proposals`` gradients more than the local kernel's. :meth:`statistics` gives the acceptance
    rate of the proposals: below a few per cent the flow fits too badly to help. A warm-up of fewer than 20
    transitions trains nothing, and the local kernel then runs alone.

    :param model: a Pyro model, or a local kernel with its model or potential; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param kernel: local kernel, any of ours for continuous latents; :class:`MALA` by default.
    :param flow: :math:`f`, a :class:`~pyro_dgm.distributions.transforms.Bijection` over the ``D`` elements of all
        unconstrained latents, one after another, from standard normal variables to latents; or a function of ``D`` that
        makes one. Both directions should be fast. By default four spline couplings. A bijection is copied.
    :param train: whether to train the flow; ``False`` uses the given flow as it is.
    :param num_loops: number of training loops in the warm-up.
    :param train_steps: optimiser steps in a warm-up, in all loops together; by default two for each transition, at most
        1 000.
    :param learning_rate: of Adam, falling to zero by a cosine.
    :param batch_size: draws in each step.
    :param num_proposals: proposals of the flow in each transition.
    :param step_size: of the default inner kernel. This argument and the next six set up the :class:`MALA` that is made
        where ``kernel`` is not given; ``None`` keeps its default. With ``kernel``, give them to that kernel instead.
    :param target_accept_prob: mean acceptance probability to which the step size is adapted.
    :param temperature: of the target; see :class:`Kernel`, as for the next four.
    :param init_strategy: where chains start.
    :param compile: whether to compile gradients and transitions.
    :param transforms: from constrained to unconstrained space, by latent.
    :param max_plate_nesting: number of dimensions that the model's plates may take.
    :raises TypeError: if ``flow`` is no flow or ``kernel`` no kernel.
    :raises ValueError: for a setting out of range, a flow over other events, or a kernel that cannot be used; the
        message names it.

    Source: M. Gabrié, G. M. Rotskoff and E. Vanden-Eijnden (2022), "Adaptive Monte Carlo augmented with normalizing
    flows", arXiv:2105.12603; K. W. K. Wong, M. Gabrié and D. Foreman-Mackey (2023), "flowMC: normalizing flow enhanced
    sampling package for probabilistic inference in JAX", arXiv:2211.06397.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import ElementwiseAffine
        >>> from pyro_dgm.infer.mcmc import FlowMC, MCMC
        >>> kernel = FlowMC(potential_fn=lambda u: 0.5 * u["x"].square().sum(-1), flow=ElementwiseAffine)
        >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=50, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.zeros(8, 3)})
        >>> min(mcmc.posterior.attrs["global_acceptance"]) > 0.5
        True
    """

    name = "flowmc"

    def __init__(
        self,
        model: Callable[..., Any] | Kernel | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        *,
        kernel: Kernel | None = None,
        flow: Flow | None = None,
        train: bool = True,
        num_loops: int = 10,
        train_steps: int | None = None,
        learning_rate: float = 0.003,
        batch_size: int = 256,
        num_proposals: int = 1,
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
            default=MALA,
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
        self.num_loops = check_count("num_loops", num_loops)
        self.num_proposals = check_count("num_proposals", num_proposals)

    @staticmethod
    def default_train_steps(num_transitions: int, dim: int) -> int:
        return min(1000, 2 * num_transitions)

    @staticmethod
    def make_default_flow(dim: int) -> Bijection:
        """Four spline couplings: each half of the elements in turn, then the elements at even and at odd places."""
        if dim == 1:
            return Spline(1)
        masks = [("half", False), ("half", True), ("alternate", False), ("alternate", True)]
        return Compose([SplineCoupling(dim, mask=mask, flip=flip) for mask, flip in masks])

    def first_state(self, plain: KernelState) -> FlowState:
        zeros = torch.zeros_like(plain.potential)
        no, none = torch.zeros_like(zeros, dtype=torch.bool), torch.zeros_like(zeros, dtype=torch.int64)
        return FlowMCState.extending(
            plain,
            inner_type=KernelState,
            inner_own={},
            inner_shared={},
            flow=None,
            local_info=Info(zeros.clone(), no, no.clone(), zeros.clone(), none),
            global_acceptance=zeros,
            taken=none.clone(),
        )

    @staticmethod
    def _local(state: KernelState) -> KernelState:
        assert isinstance(state, FlowMCState)
        return state.of_inner(state.position, state.potential, state.gradient)

    # Transition

    def steps_at(self, state: KernelState) -> int:
        return self.inner(self.potential).steps_at(self._local(state))

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        assert isinstance(state, FlowMCState)
        local = self.inner(self.potential).noise(self._local(state))
        noise = {f"local {k}": v for k, v in local.items()}
        if state.flow is None:
            return noise
        flat = flatten(state.position)
        shape, like = (state.num_chains, self.num_proposals), state.potential
        noise["proposal"] = torch.randn(
            (*shape, flat.shape[1]), generator=state.generator, dtype=flat.dtype, device=flat.device
        )
        noise["take"] = uniform_per_chain(like.unsqueeze(1).expand(shape), state.generator)
        return noise

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        assert isinstance(state, FlowMCState)
        numbers = {k.removeprefix("local "): v for k, v in noise.items() if k.startswith("local ")}
        local, info = self.inner(self.potential).transition(self._local(state), numbers)
        new = replace(
            state.after(local, local_info=info),
            position=local.position,
            potential=local.potential,
            gradient=local.gradient,
        )
        return (new, info) if state.flow is None else self._propose(new, info, noise)

    def _propose(self, state: FlowMCState, info: Info, noise: Mapping[str, Tensor]) -> tuple[FlowMCState, Info]:
        """Metropolis steps with proposals of the flow, after the local kernel's transition."""
        chains, count = state.num_chains, self.num_proposals
        proposals, density = self._proposals(state, noise["proposal"])
        rows = {k: v.reshape(-1, *v.shape[2:]) for k, v in proposals.items()}
        value, gradient = self.potential(rows) if self.uses_gradient else (self.potential.value(rows), {})
        slopes = {k: v.reshape(chains, count, *v.shape[1:]) for k, v in gradient.items()}
        value = value.reshape(chains, count)
        # Log importance weights of the chain's position and of each proposal.
        here = -state.potential / self.temperature - self._log_density(state)
        weights = -value / self.temperature - density
        moved, total = torch.zeros_like(info.accepted), torch.zeros_like(here)
        kept = 1.0 - info.acceptance_rate
        for i in range(count):
            log_ratio = weights[:, i] - here
            rate = torch.where(torch.isfinite(log_ratio), log_ratio.clamp(max=0.0).exp(), torch.zeros_like(log_ratio))
            accepted = noise["take"][:, i] < rate
            position = {k: v[:, i] for k, v in proposals.items()}
            slope = {k: v[:, i] for k, v in slopes.items()} if slopes else None
            state = state.moved(accepted, position, value[:, i], slope)
            here = torch.where(accepted, weights[:, i], here)
            moved, total, kept = moved | accepted, total + rate / count, kept * (1.0 - rate)
        state = replace(
            state, global_acceptance=state.global_acceptance + total, taken=state.taken + torch.ones_like(state.taken)
        )
        # Where a proposal was accepted, there is no momentum, and the energy is the potential's alone.
        energy = torch.where(moved, state.potential / self.temperature, info.energy)
        return state, Info(1.0 - kept, info.accepted | moved, info.diverging, energy, info.n_steps + count)

    def _proposals(self, state: FlowMCState, normals: Tensor) -> tuple[Position, Tensor]:
        """Proposals, ``(chains, num_proposals, ...)`` each, and their log-densities under the flow."""
        assert state.flow is not None
        with torch.no_grad():
            flat, log_det = state.flow.forward_and_log_det(normals)
        sizes = [v[0].numel() for v in state.position.values()]
        parts = zip(state.position.items(), flat.split(sizes, -1), strict=True)
        proposals = {k: part.reshape(*part.shape[:2], *v.shape[1:]) for (k, v), part in parts}
        return proposals, log_normal(normals) - log_det

    @staticmethod
    def _log_density(state: FlowMCState) -> Tensor:
        """Log-density of the chains' positions under the flow, ``(chains,)``."""
        assert state.flow is not None
        with torch.no_grad():
            z, log_det = state.flow.inverse_and_log_det(flatten(state.position))
        return log_normal(z) + log_det

    def statistics(self, state: KernelState) -> dict[str, Tensor]:
        """Training loss of the flow, and acceptance of its proposals.

        :returns: ``flow_loss``, of the last training step, nats; ``global_acceptance``, the mean acceptance probability
            of the flow's proposals since the warm-up, ``(chains,)``.
        """
        assert isinstance(state, FlowMCState)
        return {**super().statistics(state), "global_acceptance": state.global_acceptance / state.taken.clamp(min=1)}

    # Warm-up

    def start_warmup(self, state: KernelState, num_steps: int) -> KernelState:
        assert isinstance(state, FlowMCState)
        state = state.after(self.inner(self.potential).start_warmup(self._local(state), num_steps))
        training = self.new_training(state, num_steps)
        if training is None:
            return state
        first = search_steps(num_steps)
        gap = (num_steps - first) / (self.num_loops + 1)
        ends = frozenset(first + max(1, round(gap * (i + 1))) for i in range(self.num_loops))
        return replace(state, training=training, loop_ends=ends)

    def adapt(self, state: KernelState, info: Info) -> KernelState:
        assert isinstance(state, FlowMCState)
        state = state.after(self.inner(self.potential).adapt(self._local(state), state.local_info))
        training = state.training
        if training is None:
            return state
        training.observe(state.position)
        if training.seen not in state.loop_ends:
            return state
        if training.loops < 2:
            training.whiten()  # again in the second loop, when the flow has moved chains between modes
        left = sum(end >= training.seen for end in state.loop_ends)
        flow = training.fit_to_draws((training.total_steps - training.steps) // left)
        return replace(state, flow=flow, flow_loss=training.loss)

    def restarted(self, state: KernelState) -> KernelState:
        assert isinstance(state, FlowMCState)
        return state.after(self.inner(self.potential).restarted(self._local(state)))

    def finish_warmup(self, state: KernelState) -> KernelState:
        assert isinstance(state, FlowMCState)
        state = state.after(self.inner(self.potential).finish_warmup(self._local(state)))
        return replace(
            state,
            warmup=None,
            training=None,
            global_acceptance=torch.zeros_like(state.global_acceptance),
            taken=torch.zeros_like(state.taken),
        )
