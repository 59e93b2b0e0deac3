"""Chains that stand still in the warm-up, and are put where others are."""

from __future__ import annotations

import warnings

import torch

from pyro_dgm.infer.mcmc.adaptation import search_steps
from pyro_dgm.infer.mcmc.initial import far_behind
from pyro_dgm.infer.mcmc.state import Info, KernelState

__all__ = ["Restarts"]

#: transitions of the warm-up between two checks for chains that stand still
RESTART_EVERY = 20
#: checks in sequence at which a chain has stood still before it is moved: shorter stalls are the posterior's own
STILL_CHECKS = 5


class Restarts:
    """Follows the transitions of a warm-up, and says where each chain is to go on.

    :param state: at its beginning.
    :param num_steps: transitions that it has.
    :ivar moved: chains that were put elsewhere.
    """

    def __init__(self, state: KernelState, num_steps: int) -> None:
        self.since = -search_steps(num_steps)
        self.acceptance = torch.zeros_like(state.potential)
        self.still = torch.zeros_like(state.potential, dtype=torch.int64)
        self.moved: set[int] = set()

    def after(self, state: KernelState, info: Info) -> KernelState | None:
        """Take in a transition.

        :returns: the state with chains moved, ``None`` where they stay.
        """
        self.acceptance = self.acceptance + info.acceptance_rate
        self.since += 1
        if self.since % RESTART_EVERY:
            return None
        self.still = torch.where(self.acceptance < 0.01 * RESTART_EVERY, self.still + 1, 0)
        self.acceptance = torch.zeros_like(self.acceptance)
        return self._moved(state) if self.since >= 0 else None

    def _moved(self, state: KernelState) -> KernelState | None:
        stuck = (self.still >= STILL_CHECKS) | far_behind(state.potential, state.position)
        chains, others = stuck.nonzero().flatten(), (~stuck).nonzero().flatten()
        if len(chains) == 0 or len(others) < len(chains):
            return None  # where most stand still the step size is at fault, not where they are
        pick = torch.randint(len(others), chains.shape, generator=state.generator, device=chains.device)
        source = torch.arange(len(stuck), device=chains.device)
        source[chains] = others[pick]
        self.moved |= set(chains.tolist())
        return state.chains(source)

    def warn(self) -> None:
        """Say which chains were moved."""
        if self.moved:
            chains = sorted(self.moved)
            warnings.warn(
                f"chains {chains[:20]}{'...' * (len(chains) > 20)} stood still in the warm-up, or far from where the "
                "others were, and were put there: they do not begin independently",
                RuntimeWarning,
                stacklevel=6,
            )
