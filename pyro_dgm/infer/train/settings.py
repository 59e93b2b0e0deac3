"""How to train, and what an epoch's steps add up to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from pyro_dgm.infer.train.distributed import ALONE, Group
from pyro_dgm.infer.train.precision import mixed_precision
from pyro_dgm.ops.arguments import LARGEST_COUNT

__all__ = ["Settings", "Totals"]


@dataclass
class Settings:
    """How to train; the arguments of :func:`pyro_dgm.fit` that the loop reads."""

    epochs: int
    base_seed: int
    max_steps: int | None = None
    clip_norm: float | None = None
    num_data: int | None = None
    transform: Callable[[Any], Any] | None = None
    validation_transform: Callable[[Any], Any] | None = None
    validation_objective: Any = None
    step_scheduler_each: str = "epoch"
    checkpoint_every: int = 1
    check_every: int = 1
    watch_parameters: bool = False
    accumulate: int = 1
    #: batches that a step is over: the i-th update of each phase sees the i-th of them
    batches_a_step: int = 1
    group: Group = ALONE
    precision: str | None = None

    def products(self) -> AbstractContextManager[None]:
        """The context that the program is evaluated in."""
        return mixed_precision() if self.precision == "bf16" else nullcontext()

    def steps_per_epoch(self, num_batches: int | None) -> int | None:
        """Steps of a whole epoch; ``None`` where the data cannot say how many batches they have."""
        return None if num_batches is None else -(-num_batches // self.batches_a_step)

    def steps(self, num_batches: int | None) -> int | None:
        """Steps of the whole run at most, or ``None``."""
        an_epoch = self.steps_per_epoch(num_batches)
        if an_epoch is None:
            return self.max_steps
        return min(self.epochs * an_epoch, self.max_steps or LARGEST_COUNT)

    def share(self, size: int) -> float:
        """What the loss of a batch of so many data is multiplied by."""
        return 1.0 / (self.num_data or size)


@dataclass
class Totals:
    """Sums over the steps of an epoch: of the main phase, and of each other phase in :attr:`phases`."""

    steps: int = 0
    updates: int = 0
    data: int = 0
    loss: float = 0.0
    norm: float = 0.0
    seconds: float = 0.0
    learning_rate: float = 0.0
    phases: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, loss: float, data: int, norm: float, phase: str = "") -> None:
        """Take in an update of the main phase, or of another one by its role."""
        if phase:
            before = self.phases.get(phase, (0.0, 0))
            self.phases[phase] = before[0] + loss, before[1] + data
            return
        self.updates += 1
        self.data += data
        self.loss += loss
        self.norm += norm

    @property
    def bound(self) -> float:
        """Minus the loss per datum so far."""
        return -self.loss / max(self.data, 1)
