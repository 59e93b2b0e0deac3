"""The phases of a fit: from an objective to optimisers and updates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.phase import ROLES, Phase
from pyro_dgm.infer.train.optimizers import Optimizers, from_mapping, make_one, make_optimizer

__all__ = ["make_optimizers", "optimizer_of", "phases_of"]

Optimizer = torch.optim.Optimizer


def phases_of(objective: Any, program: Any) -> tuple[Phase, ...]:
    """What each step trains; an objective that does not say is one phase.

    :raises TypeError: if its ``phases`` gives something else than phases.
    """
    make = getattr(objective, "phases", None)
    if not callable(make):
        return (Phase("program", objective),)
    phases = tuple(make(program))
    if not phases or not all(isinstance(phase, Phase) for phase in phases):
        kinds = ", ".join(type(phase).__name__ for phase in phases) or "nothing"
        raise TypeError(f"{type(objective).__name__}.phases(program) must give one Phase or more, got {kinds}")
    return phases


def make_optimizers(
    optimizer: Any, phases: Sequence[Phase], leaves: dict[str, Tensor], roles: Callable[[], dict[str, str]]
) -> Optimizer | Optimizers:
    """The optimisers of a fit: one, or one for each group of parameters that the same phases train.

    :param optimizer: the argument of :func:`pyro_dgm.fit`.
    :param leaves: what is trained, by name.
    :param roles: gives for each leaf whose it is.
    """
    if len(phases) == 1 and phases[0].role == "program":
        return make_optimizer(optimizer, leaves, roles)
    if isinstance(optimizer, Mapping):
        return from_mapping(optimizer, leaves, roles())
    if isinstance(optimizer, Optimizer):
        raise TypeError(
            "optimizer is one for all parameters, but the objective trains in phases, each of which needs its own: "
            "give a callable, or a mapping of them"
        )
    groups: dict[str, dict[str, Tensor]] = {}
    idle = []
    for name, role in roles().items():
        trained_by = [phase.role for phase in phases if role in ROLES[phase.role]]
        if not trained_by:
            idle.append(name)
            continue
        # Model, guide and what both share go together where the same phases train them.
        together = all(kind in ("program", "objective") for kind in trained_by)
        groups.setdefault("program" if together and role != "objective" else role, {})[name] = leaves[name]
    if idle:
        warnings.warn(f"no phase of the objective trains {', '.join(idle[:5])}", stacklevel=4)
    return Optimizers({name: make_one("optimizer", optimizer, list(group.values())) for name, group in groups.items()})


def optimizer_of(phase: Phase, made: Optimizer | Optimizers) -> Optimizer | Optimizers:
    """The optimiser over the parameters of a phase.

    :raises ValueError: if there are none.
    """
    if not isinstance(made, Optimizers):
        return made
    wanted = (phase.role, *ROLES[phase.role])
    mine = {name: one for name, one in made.optimizers.items() if name in wanted}
    if not mine:
        raise ValueError(f"a phase trains {phase.role!r}, but the program and the objective have no such parameters")
    return next(iter(mine.values())) if len(mine) == 1 else Optimizers(mine)
