"""One step of training: loss, gradients, checks, the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_dgm.infer.data import batch_length
from pyro_dgm.infer.nonfinite import NonFiniteLossError, find_culprit
from pyro_dgm.infer.parameters import ParameterRecorder
from pyro_dgm.infer.progress import SilentProgress
from pyro_dgm.infer.random_state import forked_rng
from pyro_dgm.infer.run import Run
from pyro_dgm.programs import split_batch

__all__ = ["Settings", "Stepper", "Totals", "gradients_by_objective"]


@dataclass
class Settings:
    """How to train; the arguments of :func:`pyro_dgm.fit` that the loop reads."""

    epochs: int
    base_seed: int
    clip_norm: float | None = None
    num_data: int | None = None
    transform: Callable[[Any], Any] | None = None
    validation_transform: Callable[[Any], Any] | None = None
    validation_objective: Any = None
    step_scheduler_each: str = "epoch"
    checkpoint_every: int = 1
    check_every: int = 1
    watch_parameters: bool = False


@dataclass
class Totals:
    """Sums over the steps of an epoch."""

    steps: int = 0
    data: int = 0
    loss: float = 0.0
    norm: float = 0.0
    seconds: float = 0.0
    learning_rate: float = 0.0

    @property
    def bound(self) -> float:
        """Bound per datum so far, in nats."""
        return -self.loss / max(self.data, 1)


@dataclass
class _Pending:
    """Steps whose loss and gradient norm were not yet brought to the host."""

    values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    weights: list[tuple[int, float]] = field(default_factory=list)
    #: batch and random state before the step, to look at it again
    inputs: list[tuple[Any, Tensor, Tensor | None]] = field(default_factory=list)


class Stepper:
    """Takes optimiser steps for a run and adds up what they gave.

    :param run: the run, with its optimiser.
    :param module: ``objective(model, guide)``, or ``None`` for an objective that computes gradients itself.
    """

    def __init__(self, run: Run, module: Any, settings: Settings, progress: SilentProgress) -> None:
        assert run.optimizer is not None
        self.run, self.module, self.settings, self.progress = run, module, settings, progress
        self.model, self.guide = run.program.model, run.program.guide
        self.optimizer: torch.optim.Optimizer = run.optimizer
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        #: names of parameters that the optimiser was given during training
        self.late: list[str] = []
        self.totals = Totals()
        self._idle: dict[str, Tensor] = {}
        self._pending = _Pending()

    def step(self, batch: Any) -> None:
        """Loss, gradients and the optimiser's step on one batch.

        :raises NonFiniteLossError: if the loss or a gradient is not finite.
        """
        settings = self.settings
        length = batch_length(batch)
        share = 1.0 / (settings.num_data or length)
        cuda = self.run.device.type == "cuda"
        before = (batch, torch.get_rng_state(), torch.cuda.get_rng_state(self.run.device) if cuda else None)
        self.optimizer.zero_grad(set_to_none=True)
        recorder = ParameterRecorder() if settings.watch_parameters else None
        try:
            with recorder or nullcontext():
                loss = self._loss_and_gradients(batch, share)
        except ValueError as error:
            # With argument validation on, a NaN shows as an error of some distribution before it reaches the loss.
            self._raise_nonfinite(f"the program raised {type(error).__name__}", before, cause=error)
            raise
        if recorder is not None:
            self._take_in(recorder)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if not grads:
            raise ValueError("no trained parameter got a gradient: the objective does not depend on any of them")
        norm = torch.nn.utils.get_total_norm(grads)
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, settings.clip_norm, norm)
        self._pending.values.append((loss, norm))
        self._pending.weights.append((length, length * share))
        self._pending.inputs.append(before)
        if len(self._pending.values) >= settings.check_every:
            self.flush()  # before the weights take a bad step
        self.optimizer.step()
        self.run.steps += 1

    def _loss_and_gradients(self, batch: Any, share: float) -> Tensor:
        args, kwargs = split_batch(batch)
        if self.module is None:
            loss = self.run.objective.loss_and_grads(self.model, self.guide, *args, **kwargs)
            grads = [p.grad for p in self.parameters if p.grad is not None]
            if grads:
                torch._foreach_mul_(grads, share)
            return torch.as_tensor(loss[0] if isinstance(loss, tuple) else loss).detach()
        loss = self.module(*args, **kwargs)
        if not (isinstance(loss, Tensor) and loss.requires_grad and loss.dim() == 0):
            raise TypeError(
                "objective(model, guide)(*batch) must give a scalar tensor that depends on the parameters, got "
                f"{tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__}"
            )
        (loss * share).backward()
        return loss.detach()

    def _take_in(self, recorder: ParameterRecorder) -> None:
        """Train parameters that showed up in this step for the first time."""
        self._idle.update(self.run.state.record(recorder.found))
        for name, leaf in list(self._idle.items()):
            if leaf.grad is not None:  # without a gradient it is bookkeeping, as baselines are
                self.add_late(name, leaf)
                del self._idle[name]

    def add_late(self, name: str, leaf: Tensor) -> None:
        """Add one to the optimiser, in a group of its own."""
        if all(leaf is not p for p in self.parameters):
            self.optimizer.add_param_group({"params": [leaf]})
            self.parameters.append(leaf)
        self.late.append(name)

    def flush(self) -> None:
        """Bring what is pending to the host, check it and add it up."""
        pending, totals = self._pending, self.totals
        if not pending.values:
            return
        if len(pending.values) == 1:
            rows = [[float(loss), float(norm)] for loss, norm in pending.values]
        else:  # one transfer for all
            rows = torch.stack([torch.stack([a.double(), b.double()]) for a, b in pending.values]).tolist()
        for i, ((loss, norm), (length, weight)) in enumerate(zip(rows, pending.weights, strict=True)):
            if not _finite(loss) or not _finite(norm):
                late = len(rows) - 1 - i
                self._raise_nonfinite(_describe(loss, norm, late), pending.inputs[i], late)
            totals.steps += 1
            totals.data += length
            totals.loss += loss * weight
            totals.norm += norm
        pending.values.clear()
        pending.weights.clear()
        pending.inputs.clear()
        self.progress.step(self.run.epochs + 1, totals.steps, totals.bound)

    # What is not finite

    def _raise_nonfinite(
        self, what: str, before: tuple[Any, Tensor, Tensor | None], late: int = 0, cause: ValueError | None = None
    ) -> None:
        """Say where it came from; with a ``cause``, only if something there is not finite."""
        run = self.run
        batch, cpu, cuda = before

        def call(objective: Any, model: Any, guide: Any) -> Any:
            args, kwargs = split_batch(batch)
            if self.module is None:
                return objective.loss_and_grads(model, guide, *args, **kwargs)
            return objective(model, guide)(*args, **kwargs)

        with forked_rng(run.device):
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, run.device)
            culprit = find_culprit(run.objective, run.program, batch, call, run.state.trainable(), late > 0)
        if cause is not None and culprit.site is None and not culprit.nonfinite:
            return
        where = (run.epochs + 1, self.totals.steps + 1)
        raise NonFiniteLossError.about(what, culprit, *where, checkpoint=run.checkpoint) from cause


def gradients_by_objective(objective: Any) -> bool:
    """Whether the objective has only ``loss_and_grads`` (``pyro.infer.TraceGraph_ELBO``, ``ReweightedWakeSleep``)."""
    return isinstance(objective, ELBO) and not hasattr(objective, "differentiable_loss")


def _describe(loss: float, norm: float, late: int) -> str:
    what = f"the gradient's norm is {norm} (the loss is {loss:.6g})" if _finite(loss) else f"the loss is {loss}"
    if late:
        what += f", seen {late} steps later, after the weights took it in: check_every=1 stops before that"
    return what


def _finite(value: float) -> bool:
    return value - value == 0.0
