"""One update: loss and gradients of an objective on some batches, and the optimiser's step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.objectives import Objective
from pyro_dgm.infer.objectives.adapter import scalar_loss
from pyro_dgm.infer.train.compilation import Compilation
from pyro_dgm.infer.train.nonfinite import Culprit, NonFiniteLossError, find_culprit
from pyro_dgm.infer.train.optimizers import Optimizers, clip_gradients
from pyro_dgm.infer.train.run import Run
from pyro_dgm.infer.train.settings import Settings
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs import Batch
from pyro_dgm.programs.parameters import ParameterRecorder

__all__ = ["Seen", "Taken", "Update", "generators"]


@dataclass
class Seen:
    """A batch with the state of torch's generators before it, so that it can be evaluated again."""

    batch: Batch | None
    cpu: Tensor
    cuda: Tensor | None

    def restore(self, device: torch.device) -> None:
        """Put torch's generators back; a context must restore the others."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


def generators(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """State of torch's generators, for :class:`Seen`."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@dataclass
class Taken:
    """An update whose losses and gradient norm were not yet brought to the host."""

    update: Update
    #: the loss of each batch, and what it is multiplied by
    losses: list[Tensor]
    weights: list[float]
    norm: Tensor
    data: int
    seen: list[Seen]
    #: whether the step ends with it
    ends_step: bool = True


class Update:
    """The updates of one phase: whose loss, which parameters, which optimiser.

    :param run: the run, for its program, device and epoch.
    :param objective: what gives the loss.
    :param pair: model and guide.
    :param optimizer: an optimiser over the parameters of this phase.
    :param role: which parameters they are, ``"program"`` for all.
    :param steps: updates a step.
    :param main: whether its loss is the one that ``run.history["train"]`` has.
    """

    def __init__(
        self,
        run: Run,
        objective: Objective,
        pair: tuple[Any, Any],
        optimizer: torch.optim.Optimizer | Optimizers,
        compilation: Compilation,
        settings: Settings,
        role: str = "program",
        steps: int = 1,
        main: bool = True,
        alone: bool = True,
    ) -> None:
        self.run, self.objective, self.optimizer = run, objective, optimizer
        self.model, self.guide = pair
        self.compilation, self.settings = compilation, settings
        self.role, self.steps, self.main, self.alone = role, steps, main, alone
        self.parameters: list[Tensor] = []
        #: number of the step under way in its epoch, from 1
        self.step_in_epoch = 1
        #: leaves that came up in training and have no gradient so far, and those that the optimiser was given
        self._idle: dict[str, Tensor] = {}
        self.late: list[str] = []
        self.refresh()

    def refresh(self) -> None:
        """Look up the optimiser's parameters: callbacks may have changed them."""
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def begin(self, size: int, step: int) -> Taken:
        """Begin an update, without gradients yet.

        :param size: number of data of its batches together.
        :param step: number of the step in its epoch, from 1.
        """
        self.step_in_epoch = step
        self.optimizer.zero_grad(set_to_none=True)
        return Taken(self, [], [], torch.zeros((), device=self.parameters[0].device), size, [])

    def evaluate(self, batch: Batch, taken: Taken) -> None:
        """Add a batch's part of the gradient per datum to the parameters'."""
        if batch.size == 0:  # of several processes, the others have all of a last batch
            self.objective.advance()
            return
        objective, model, guide = self.objective, self.model, self.guide
        before, share = Seen(batch, *generators(self.run.device)), self.settings.share(batch.size)
        weight = share * (batch.size / taken.data)
        # A graph has the parameters that it was recorded with, and sends no messages of them.
        watch = self.settings.watch_parameters and not self.compilation.active
        recorder = ParameterRecorder() if watch else None
        loss: Tensor | None
        try:
            with self.settings.products(), recorder or nullcontext():
                if not objective.differentiable:
                    loss = self._by_objective(batch, weight)
                elif self.compilation.depth == "eager" or (loss := self._by_graph(batch, weight)) is None:
                    if not objective.is_prepared(model, guide):
                        objective.prepare(model, guide, batch.args, batch.kwargs)
                    objective.advance()
                    loss, surrogate = objective.estimate(model, guide, batch.args, batch.kwargs, grad=True)
                    (scalar_loss(surrogate) * weight).backward(inputs=None if self.alone else self.parameters)
                    loss = loss.detach()
            assert loss is not None
        except ValueError as error:
            # With argument validation on, a NaN shows as an error of some distribution before it reaches the loss.
            culprit = self.culprit([before])
            if culprit.site is not None or culprit.nonfinite:
                raise self.error(f"the program raised {type(error).__name__}", culprit) from error
            raise
        if recorder is not None:
            self._take_in(recorder)
        taken.seen.append(before)
        taken.losses.append(loss)
        taken.weights.append(batch.size * share)

    def clip(self, taken: Taken) -> None:
        """Note the norm of the gradient, and clip it where that was asked for."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if not grads:
            raise ValueError("no trained parameter got a gradient: the objective does not depend on any of them")
        taken.norm = torch.nn.utils.get_total_norm(grads)
        if self.settings.clip_norm is not None:
            clip_gradients(self.optimizer, self.settings.clip_norm, taken.norm)

    def whole_step(self, batch: Batch, step: int) -> Taken | None:
        """Take a step by a graph that holds the optimiser's update too; ``None`` where there is none.

        :param step: its number in its epoch, from 1.
        """
        self.step_in_epoch = step
        seen = Seen(batch, *generators(self.run.device))
        with self.settings.products():
            found = self.compilation.step(batch.packed, self.parameters, self.optimizer)
        if found is None:
            return None
        loss, norm = found
        return Taken(self, [loss], [batch.size * self.settings.share(batch.size)], norm, batch.size, [seen])

    def _by_graph(self, batch: Batch, share: float) -> Tensor | None:
        """Add a batch's gradient, times ``share``, to the parameters'; its loss.  ``None`` where there is no graph."""
        captured = self.compilation.gradients(batch.packed, share)
        if captured is None:
            return None
        loss, leaves, gradients = captured
        mine = None if self.alone else {id(p) for p in self.parameters}
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if mine is None or id(leaf) in mine:
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return loss

    def _by_objective(self, batch: Batch, share: float) -> Tensor:
        """The same of an objective that gives gradients, and no loss to differentiate."""
        before = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        loss = self.objective.loss_and_grads(self.model, self.guide, *batch.args, **batch.kwargs)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, share)
        for p, old in zip(self.parameters, before, strict=True):
            if old is not None:
                p.grad = old if p.grad is None else old + p.grad
        return torch.as_tensor(loss).detach()

    # Parameters that come up during training

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
            several = isinstance(self.run.optimizer, Optimizers)
            if several or self.settings.group.size > 1:
                what = "a mapping of optimizers" if several else "several devices"
                raise ValueError(
                    f"the parameter {name} came up during training: with {what} each must exist on the first batch"
                )
            self.optimizer.add_param_group({"params": [leaf]})  # type: ignore[union-attr]
            self.parameters.append(leaf)
        self.late.append(name)
        if self.run.averaging is not None:
            self.run.averaging.follow(self.run.state.trainable())

    # What is not finite

    def culprit(self, seen: Sequence[Seen], late: bool = False) -> Culprit:
        """Where a number that is not finite came from: the first of the batches that shows it."""
        found = Culprit(None, None, ["it came from another process's part of the batch"], nonfinite=False)
        for one in seen:
            found = self._culprit(one, late)
            if found.site is not None or found.nonfinite:
                break
        return found

    def error(self, what: str, culprit: Culprit, step: int | None = None) -> NonFiniteLossError:
        """The error that says so.

        :param step: the step of the epoch, from 1; ``None`` for the one under way.
        """
        run, step = self.run, self.step_in_epoch if step is None else step
        return NonFiniteLossError.about(what, culprit, run.epochs + 1, step, checkpoint=run.checkpoint)

    def _culprit(self, seen: Seen, late: bool) -> Culprit:
        run, batch = self.run, seen.batch
        assert batch is not None

        def call(objective: Any, model: Any, guide: Any) -> Any:
            if not self.objective.differentiable:
                return objective.loss_and_grads(model, guide, *batch.args, **batch.kwargs)
            return objective(model, guide)(*batch.args, **batch.kwargs)

        with forked_rng(run.device), self.settings.products():
            seen.restore(run.device)
            return find_culprit(self.objective, run.program, batch, call, run.state.trainable(), late)
