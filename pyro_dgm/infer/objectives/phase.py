"""The phases of a training step: which loss trains which parameters, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyro_dgm.infer.objectives.metric import Metric, metric_of
from pyro_dgm.ops.arguments import check_count

__all__ = ["OWNERS", "ROLES", "Phase", "main_phase"]

#: to whom a parameter may belong; a mapping of optimisers has these keys (see :func:`pyro_dgm.fit`, ``optimizer``)
OWNERS = ("model", "guide", "shared", "objective")

#: what a phase may train, and the owners of the parameters that it trains; ``""`` where the owner is not known
ROLES: dict[str, tuple[str, ...]] = {
    "program": ("model", "guide", "shared", ""),
    "model": ("model", "shared"),
    "guide": ("guide", "shared"),
    "objective": ("objective",),
}


@dataclass(frozen=True)
class Phase:
    """A part of each training step: a loss, the parameters that follow its gradient, and the number of updates.

    An objective whose ``phases(program)`` gives several of these is trained in phases: :func:`pyro_dgm.fit` runs them
    in turn on each step, every one with an optimiser over its own parameters.  A step is over as many batches as the
    largest ``steps``: the i-th update of each phase sees the i-th batch.  The main phase is the
    last one that trains the program or its model: its value is ``run.history["train"]``.  The others are in the history
    under their role.

    :param role: what is trained: ``"program"`` (all parameters of model and guide), ``"model"``, ``"guide"``, or
        ``"objective"`` (networks that the objective has beside the program).
    :param objective: what gives the loss: anything that :func:`pyro_dgm.fit` takes as objective.
    :param steps: updates in each step.
    :param metric: what minus its loss per datum is called; by default what the objective says.
    :raises ValueError: for another role, or ``steps`` below 1.
    """

    role: str
    objective: Any
    steps: int = 1
    metric: Metric | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(map(repr, ROLES))}, got {self.role!r}")
        check_count("steps", self.steps)

    @property
    def measured(self) -> Metric:
        """The metric of the phase."""
        return metric_of(self.objective) if self.metric is None else self.metric


def main_phase(phases: Sequence[Phase]) -> Phase:
    """The phase whose value stands for the whole: the last one that trains the program or its model, else the last."""
    return next((phase for phase in reversed(phases) if phase.role in ("program", "model")), phases[-1])
