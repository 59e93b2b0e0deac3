"""The phases of a fit: from an objective to optimisers and updates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.adapter import as_objective
from pyro_dgm.infer.objectives.base import Objective
from pyro_dgm.infer.objectives.phase import ROLES, Phase, main_phase
from pyro_dgm.infer.train.batches import Batches, TensorBatches
from pyro_dgm.infer.train.compilation import Compilation, choose_depth
from pyro_dgm.infer.train.optimizers import Optimizers, from_mapping, make_one, make_optimizer
from pyro_dgm.infer.train.paired import PairedBatches
from pyro_dgm.infer.train.run import Run
from pyro_dgm.infer.train.settings import Settings
from pyro_dgm.infer.train.update import Update
from pyro_dgm.programs import Batch

__all__ = ["make_optimizers", "make_updates", "phases_of"]

Optimizer = torch.optim.Optimizer


def phases_of(objective: Objective, program: Any) -> tuple[Phase, ...]:
    """What each step trains.

    :raises TypeError: if its ``phases`` gives something else than phases.
    """
    phases = tuple(objective.phases(program))
    if not phases or not all(isinstance(phase, Phase) for phase in phases):
        kinds = ", ".join(type(phase).__name__ for phase in phases) or "nothing"
        raise TypeError(f"{type(objective).__name__}.phases(program) must give one Phase or more, got {kinds}")
    return tuple(replace(phase, objective=as_objective(phase.objective)) for phase in phases)


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


def _optimizer_of(phase: Phase, made: Optimizer | Optimizers) -> Optimizer | Optimizers:
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


def make_updates(
    phases: Sequence[Phase],
    pair: tuple[Any, Any],
    run: Run,
    settings: Settings,
    batches: Batches,
    first: Batch,
    saved: Any,
    compile: bool | str,
    watched: bool,
) -> list[Update]:
    """What a step does: the updates of each phase."""
    alone, main = len(phases) == 1, main_phase(phases)
    return [
        Update(
            run, phase.objective, pair, run.optimizer if alone else _optimizer_of(phase, run.optimizer),
            _make_compilation(compile, run, phase.objective, settings, batches, first, saved, alone, watched),
            settings, phase.role, phase.steps, main=phase is main, alone=alone,
        )
        for phase in phases
    ]  # fmt: skip


def _make_compilation(
    asked: bool | str,
    run: Run,
    objective: Any,
    settings: Settings,
    batches: Batches,
    first: Batch,
    saved: Any,
    alone: bool,
    watched: bool,
) -> Compilation:
    """How far a phase is compiled; a resumed run goes on as it was.

    :param alone: whether it is the only phase.
    :param watched: whether a callback is called after each step.
    """
    parameters = list(run.state.trainable().values())
    depth = choose_depth(asked, objective, parameters, first.size, settings.steps(batches.num_batches))
    if saved is not None and asked == "auto" and alone:
        depth = saved[2].get("compile", depth)
    alone = alone and settings.group.size == 1 and settings.accumulate == 1 and not isinstance(batches, PairedBatches)
    alone = alone and not isinstance(run.optimizer, Optimizers)
    if depth in ("step", "block") and not alone:
        depth = "objective"  # gradients are joined before the optimiser's step
    scheduled = objective.scheduled
    each_step = settings.step_scheduler_each == "step" and run.scheduler is not None
    each_step = each_step or watched or (run.averaging is not None and run.averaging.each_step)
    simple = isinstance(batches, TensorBatches) and settings.transform is None
    if depth == "block" and (scheduled or each_step or settings.max_steps is not None or not simple):
        depth = "step"  # something happens between two steps
    return Compilation(
        depth, asked, objective, run.program, first.packed, settings.share, settings.clip_norm,
        settings.validation_objective,
    )  # fmt: skip
