"""The value of held-out data after an epoch."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import Any

import torch

from pyro_dgm.infer.objectives.base import Objective
from pyro_dgm.infer.train.batches import Batches, transformed
from pyro_dgm.infer.train.nonfinite import find_culprit
from pyro_dgm.infer.train.run import Run
from pyro_dgm.infer.train.settings import Settings
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs import Batch
from pyro_dgm.programs.parameters import evaluation_mode

__all__ = ["validate", "validation_seed"]


def validation_seed(base_seed: int) -> int:
    """Seed of every validation: the same numbers each epoch, and none of those that training draws."""
    return base_seed + 2


@torch.no_grad()
def validate(
    run: Run, batches: Batches, objective: Objective, settings: Settings, captured: Objective | None = None
) -> float:
    """The metric of all held-out data, in evaluation mode, with the averaged weights where there are any.

    :param captured: the objective as graphs, where there are some.
    """
    evaluate = (captured or objective).evaluator(run.program.model, run.program.guide)
    transform = settings.validation_transform or settings.transform
    loss, count = 0.0, 0
    order = batches.state_dict()
    with ExitStack() as stack:
        stack.enter_context(forked_rng(run.device, settings.group.seed(validation_seed(settings.base_seed))))
        stack.enter_context(evaluation_mode(*run.state.roots.values()))
        stack.enter_context(settings.products())
        if run.averaging is not None:
            stack.enter_context(run.averaging.applied())
        for data in batches.epoch():
            batch = batches.batch(data if transform is None else transformed(data, batches, transform))
            if batch.size == 0:
                continue
            before = torch.get_rng_state()
            value = evaluate(*batch.args, **batch.kwargs)
            if value != value:
                _warn_of_nan(run, objective, batch, before)
            loss += value * batch.size * settings.share(batch.size)
            count += batch.size
    batches.load_state_dict(order)
    loss, data_in_all = settings.group.total(loss, count)
    return run.measured["validation"].of(loss / data_in_all)


def _warn_of_nan(run: Run, objective: Objective, batch: Batch, before: torch.Tensor) -> None:
    """A NaN in validation spoils no weights, so that training goes on; the warning says where it came from."""

    def call(objective: Any, model: Any, guide: Any) -> Any:
        return objective.evaluator(model, guide)(*batch.args, **batch.kwargs)

    torch.set_rng_state(before)
    culprit = find_culprit(objective, run.program, batch, call, run.state.trainable())
    text = "; ".join(culprit.findings) or "no site is at fault"
    name = run.measured["validation"].name
    warnings.warn(f"validation: the {name} of epoch {run.epochs + 1} is NaN: {text}", RuntimeWarning, stacklevel=2)
