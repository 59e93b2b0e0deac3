"""One step of training: loss, gradients, checks, the optimiser.

A step may be over several batches (``fit(accumulate=...)``) and over the parts of them that several processes have
(``fit(devices=...)``): its gradient is per datum of all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_dgm.infer.objectives import Objective
from pyro_dgm.infer.train.batches import TensorBatches
from pyro_dgm.infer.train.compilation import Compilation
from pyro_dgm.infer.train.distributed import ALONE, Group
from pyro_dgm.infer.train.nonfinite import Culprit, NonFiniteLossError, find_culprit
from pyro_dgm.infer.train.optimizers import Optimizers, clip_gradients
from pyro_dgm.infer.train.precision import mixed_precision
from pyro_dgm.infer.train.progress import SilentProgress
from pyro_dgm.infer.train.run import Run
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs import Batch
from pyro_dgm.programs.parameters import ParameterRecorder
from pyro_dgm.programs.tensors import as_batch, take_rows

__all__ = ["Settings", "Stepper", "Totals", "gradients_by_objective"]


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
    group: Group = ALONE
    precision: str | None = None

    def products(self) -> AbstractContextManager[None]:
        """The context that the program is evaluated in."""
        return mixed_precision(self.precision == "bf16")


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
class _Look:
    """A batch with the random state before it, to look at it again."""

    batch: Batch | None
    cpu: Tensor
    cuda: Tensor | None


@dataclass
class _Taken:
    """A step whose losses and gradient norm were not yet brought to the host."""

    #: the loss of each batch, and what it counts by
    losses: list[Tensor]
    weights: list[float]
    norm: Tensor
    data: int
    looks: list[_Look]


class Stepper:
    """Takes optimiser steps for a run and adds up what they gave.

    :param run: the run, with its optimiser.
    :param module: ``objective(model, guide)``, or ``None`` for an objective that computes gradients itself.
    """

    def __init__(
        self, run: Run, module: Any, settings: Settings, progress: SilentProgress, compilation: Compilation
    ) -> None:
        assert run.optimizer is not None
        self.compilation = compilation
        self.run, self.module, self.settings, self.progress = run, module, settings, progress
        self.model, self.guide = run.program.model, run.program.guide
        self.optimizer: torch.optim.Optimizer | Optimizers = run.optimizer
        self.parameters: list[Tensor] = [p for group in self.optimizer.param_groups for p in group["params"]]
        #: names of parameters that the optimiser was given during training
        self.late: list[str] = []
        self.totals = Totals()
        #: Ctrl-C has reached one of several processes, and all know
        self.stop = False
        self._idle: dict[str, Tensor] = {}
        self._pending: list[_Taken] = []

    def step(self, batches: Sequence[Batch], stop: bool = False) -> None:
        """Loss and gradients on each batch, and the optimiser's step on the gradient per datum of them together.

        :param stop: whether this process was asked to stop, for the others to know.
        :raises NonFiniteLossError: if the loss or a gradient is not finite.
        """
        settings = self.settings
        if len(batches) == 1 and self.run.steps > 0 and self._whole_step(batches[0]):
            return
        total = sum(batch.size for batch in batches)
        taken = _Taken([], [], torch.zeros((), device=self.parameters[0].device), total, [])
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            if batch.size == 0:  # the others have all of a last batch
                if isinstance(self.run.objective, Objective):
                    self.run.objective.advance()
                continue
            share = 1.0 / (settings.num_data or batch.size)
            with settings.products():
                taken.losses.append(self._evaluate(batch, share * (batch.size / total), taken.looks))
            taken.weights.append(batch.size * share)
        if settings.group.size > 1:
            self._reduce(taken, stop)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if not grads:
            raise ValueError("no trained parameter got a gradient: the objective does not depend on any of them")
        taken.norm = torch.nn.utils.get_total_norm(grads)
        if settings.clip_norm is not None:
            clip_gradients(self.optimizer, settings.clip_norm, taken.norm)
        self._pending.append(taken)
        if len(self._pending) >= settings.check_every:
            self.flush()  # before the weights take a bad step
        self.optimizer.step()
        self.run.steps += 1

    def look(self) -> None:
        """See what callbacks have changed: parameters of the optimiser, and what graphs took for granted."""
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.compilation.look(self.optimizer)

    def _look(self, batch: Batch | None) -> _Look:
        cuda = self.run.device.type == "cuda"
        return _Look(batch, torch.get_rng_state(), torch.cuda.get_rng_state(self.run.device) if cuda else None)

    def _whole_step(self, batch: Batch) -> bool:
        """Take a step by a graph that holds the optimiser's update too, if there is one."""
        if self.compilation.depth not in ("step", "block"):
            return False
        look = self._look(batch)
        with self.settings.products():
            found = self.compilation.step(batch.packed, self.parameters, self.optimizer)
        if found is None:
            return False
        loss, norm = found
        weight = batch.size / (self.settings.num_data or batch.size)
        self._pending.append(_Taken([loss], [weight], norm, batch.size, [look]))
        if len(self._pending) >= self.settings.check_every:
            self.flush()  # a step that was not finite has changed nothing
        self.run.steps += 1
        return True

    def block(self, batches: TensorBatches, order: Tensor) -> None:
        """Take the steps of a block; by one graph, if there is one for it.

        :raises NonFiniteLossError: as :meth:`step`; the steps after a bad one were not taken.
        """
        look = self._look(None)
        rows = None
        if self.run.steps:
            with self.settings.products():
                rows = self.compilation.steps_of(batches, order, self.parameters, self.optimizer)
        if rows is None:
            for index in order:
                self.step([as_batch(take_rows(batches.data, index))])
            return
        size = order.shape[1]
        weight = size / (self.settings.num_data or size)
        for i, (loss, norm) in enumerate(rows):
            bad = not (bool(torch.isfinite(loss)) and bool(torch.isfinite(norm)))
            looks = [self._look_within(batches, order, i, look)] if bad else []
            self._pending.append(_Taken([loss], [weight], norm, size, looks))
            if bad:
                break
        self.flush()
        self.run.steps += len(order)

    def _look_within(self, batches: TensorBatches, order: Tensor, step: int, start: _Look) -> _Look:
        """The look at a step inside a block: the random numbers of those before it are drawn again."""
        with forked_rng(self.run.device), torch.no_grad(), self.settings.products():
            torch.set_rng_state(start.cpu)
            if start.cuda is not None:
                torch.cuda.set_rng_state(start.cuda, self.run.device)
            for index in order[:step]:
                batch = as_batch(take_rows(batches.data, index))
                self.module(*batch.args, **batch.kwargs)
            return self._look(as_batch(take_rows(batches.data, order[step])))

    def _evaluate(self, batch: Batch, share: float, looks: list[_Look]) -> Tensor:
        """Add a batch's gradient, times ``share``, to the parameters'; its loss."""
        look = self._look(batch)
        # A graph has the parameters that it was recorded with, and sends no messages of them.
        watch = self.settings.watch_parameters and not self.compilation.active
        recorder = ParameterRecorder() if watch else None
        try:
            with recorder or nullcontext():
                loss = self._loss_and_gradients(batch, share)
        except ValueError as error:
            # With argument validation on, a NaN shows as an error of some distribution before it reaches the loss.
            self._raise_nonfinite(f"the program raised {type(error).__name__}", [look], cause=error)
            raise
        if recorder is not None:
            self._take_in(recorder)
        looks.append(look)
        return loss

    def _loss_and_gradients(self, batch: Batch, share: float) -> Tensor:
        args, kwargs = batch.args, batch.kwargs
        if self.module is None:
            before = [p.grad for p in self.parameters]
            for p in self.parameters:
                p.grad = None
            loss = self.run.objective.loss_and_grads(self.model, self.guide, *args, **kwargs)
            grads = [p.grad for p in self.parameters if p.grad is not None]
            if grads:
                torch._foreach_mul_(grads, share)
            for p, held in zip(self.parameters, before, strict=True):
                if held is not None:
                    p.grad = held if p.grad is None else held + p.grad
            return torch.as_tensor(loss[0] if isinstance(loss, tuple) else loss).detach()
        captured = self.compilation.gradients(batch.packed, share)
        if captured is not None:
            loss, leaves, gradients = captured
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
            return loss
        loss = self.module(*args, **kwargs)
        if not (isinstance(loss, Tensor) and loss.requires_grad and loss.dim() == 0):
            raise TypeError(
                "objective(model, guide)(*batch) must give a scalar tensor that depends on the parameters, got "
                f"{tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__}"
            )
        (loss * share).backward()
        return loss.detach()

    def _reduce(self, taken: _Taken, stop: bool) -> None:
        """Put in place of this process's losses and gradients those of all."""
        weighted = [loss * weight for loss, weight in zip(taken.losses, taken.weights, strict=True)]
        loss = sum(weighted[1:], weighted[0]) if weighted else None
        found = self.settings.group.reduce(self.parameters, loss, taken.data, stop)
        taken.losses, taken.weights, taken.data = [torch.tensor(found.loss, dtype=torch.float64)], [1.0], found.data
        self.stop = self.stop or found.stop

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
            if isinstance(self.optimizer, Optimizers) or self.settings.group.size > 1:
                what = "a mapping of optimizers" if isinstance(self.optimizer, Optimizers) else "several devices"
                raise ValueError(
                    f"the parameter {name} came up during training: with {what} each must exist on the first batch"
                )
            self.optimizer.add_param_group({"params": [leaf]})
            self.parameters.append(leaf)
        self.late.append(name)
        if self.run.averaging is not None:
            self.run.averaging.follow(self.run.state.trainable())

    def flush(self) -> None:
        """Bring what is pending to the host, check it and add it up."""
        pending, totals = self._pending, self.totals
        if not pending:
            return
        rows: list[list[float]]
        if len(pending) == 1:
            rows = [[float(x) for x in (*taken.losses, taken.norm)] for taken in pending]
        else:  # one transfer for all
            device = pending[0].norm.device
            flat = torch.stack([x.to(device).double() for taken in pending for x in (*taken.losses, taken.norm)])
            numbers = iter(flat.tolist())
            rows = [[next(numbers) for _ in range(len(taken.losses) + 1)] for taken in pending]
        for i, ((*losses, norm), taken) in enumerate(zip(rows, pending, strict=True)):
            bad = [j for j, loss in enumerate(losses) if not _finite(loss)]
            if bad or not _finite(norm):
                late = len(rows) - 1 - i
                one_each = len(losses) == len(taken.looks)
                looks = [taken.looks[j] for j in bad] if bad and one_each else taken.looks
                self._raise_nonfinite(_describe(losses[bad[0]] if bad else losses[0], norm, late), looks, late)
            totals.steps += 1
            totals.data += taken.data
            for loss, weight in zip(losses, taken.weights, strict=True):
                totals.loss += loss * weight
            totals.norm += norm
        pending.clear()
        self.progress.step(self.run.epochs + 1, totals.steps, totals.bound)

    # What is not finite

    def _raise_nonfinite(
        self, what: str, looks: Sequence[_Look], late: int = 0, cause: ValueError | None = None
    ) -> None:
        """Say where it came from, the first of the batches that shows it; with a ``cause``, only if one does."""
        run = self.run
        culprit = Culprit(None, None, ["it came from another process's part of the batch"], nonfinite=False)
        for look in looks:
            culprit = self._culprit(look, late > 0)
            if culprit.site is not None or culprit.nonfinite:
                break
        if cause is not None and culprit.site is None and not culprit.nonfinite:
            return
        where = (run.epochs + 1, self.totals.steps + 1)
        raise NonFiniteLossError.about(what, culprit, *where, checkpoint=run.checkpoint) from cause

    def _culprit(self, look: _Look, late: bool) -> Culprit:
        run = self.run

        def call(objective: Any, model: Any, guide: Any) -> Any:
            assert look.batch is not None
            args, kwargs = look.batch.args, look.batch.kwargs
            if self.module is None:
                return objective.loss_and_grads(model, guide, *args, **kwargs)
            return objective(model, guide)(*args, **kwargs)

        with forked_rng(run.device), self.settings.products():
            torch.set_rng_state(look.cpu)
            if look.cuda is not None:
                torch.cuda.set_rng_state(look.cuda, run.device)
            return find_culprit(run.objective, run.program, look.batch, call, run.state.trainable(), late)


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
