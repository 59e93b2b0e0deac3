"""A replay buffer: where chains have been, for later ones to go on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_dgm.ops.arguments import check_count, check_number

__all__ = ["ReplayBuffer"]


class ReplayBuffer(nn.Module):
    r"""The last ``capacity`` states that chains have ended at; the next chains begin at some of them, or anew.

    Each chain begins, with probability ``reinit``, at a fresh state, else at one of the buffer's, drawn with
    replacement; where it ends goes into the buffer, in the oldest one's place.  Short chains so become parts of long
    ones, and ``reinit`` keeps looking for modes that no chain has found.

    It is a module whose ``state_dict`` holds the states, so that a run that is resumed goes on from the same ones:
    make it a submodule of the program.

    :param capacity: states held.
    :param event_shape: shape of a state.
    :param reinit: probability of a fresh start, in [0, 1].
    :raises ValueError: for numbers out of range.

    Source: Y. Du and I. Mordatch (2019), "Implicit generation and generalization in energy-based models",
    arXiv:1903.08689 (10 000 states, 5 % of fresh starts).

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions import ReplayBuffer
        >>> buffer = ReplayBuffer(100, (2,), reinit=0.0)
        >>> buffer.add(torch.ones(7, 2))
        >>> len(buffer), buffer.draw(3).tolist()
        (7, [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    """

    states: Tensor
    added: Tensor

    def __init__(self, capacity: int = 10_000, event_shape: Sequence[int] = (), reinit: float = 0.05) -> None:
        super().__init__()
        check_count("capacity", capacity)
        check_number("reinit", reinit, within="[0, 1]")
        self.capacity, self.reinit, self.event_shape = capacity, float(reinit), torch.Size(event_shape)
        self.register_buffer("states", torch.zeros((capacity, *self.event_shape)))
        #: states added so far; the buffer holds the last of them
        self.register_buffer("added", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return min(int(self.added), self.capacity)

    def draw(self, count: int) -> Tensor:
        """``count`` of the states, with replacement, ``(count, *event_shape)``.

        :raises ValueError: if there are none.
        """
        if len(self) == 0:
            raise ValueError("the replay buffer is empty: add(states) first, or take starts with begin(count, fresh)")
        return self.states[torch.randint(len(self), (count,), device=self.states.device)]

    def begin(self, count: int, fresh: Callable[[int], Tensor]) -> Tensor:
        """Where ``count`` chains begin: at states of the buffer, or fresh ones, all of them while it is empty.

        :param fresh: from a number of chains to as many states.
        """
        new = fresh(count)
        if len(self) == 0 or self.reinit == 1.0:
            return new
        anew = torch.rand(count, device=self.states.device) < self.reinit
        return torch.where(anew.reshape(-1, *(1 for _ in self.event_shape)), new, self.draw(count).to(new))

    @torch.no_grad()
    def add(self, states: Tensor) -> None:
        """Put states ``(count, *event_shape)`` in, in the place of the oldest.

        :raises ValueError: for another shape, or states that are not finite.
        """
        if states.shape[1:] != self.event_shape or states.dim() != len(self.event_shape) + 1:
            raise ValueError(f"states must have shape (count, *{tuple(self.event_shape)}), got {tuple(states.shape)}")
        if not bool(torch.isfinite(states).all()):
            raise ValueError(f"states hold {int((~torch.isfinite(states)).sum())} values that are not finite")
        kept = states[-self.capacity :]
        first = int(self.added) + len(states) - len(kept)
        place = (torch.arange(len(kept), device=self.states.device) + first) % self.capacity
        self.states.index_copy_(0, place, kept.to(self.states))
        self.added += len(states)

    def extra_repr(self) -> str:
        return f"{len(self)} of {self.capacity} states of shape {tuple(self.event_shape)}, reinit={self.reinit}"
