"""One step of training: the updates of each phase in turn, checked and added up.

A step may be over several batches (``fit(accumulate=...)``) and over the parts of them that several processes have
(``fit(devices=...)``): its gradient is per datum of all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import mul

import torch
from torch import Tensor

from pyro_dgm.infer.train.batches import TensorBatches
from pyro_dgm.infer.train.nonfinite import NonFiniteLossError
from pyro_dgm.infer.train.progress import SilentProgress
from pyro_dgm.infer.train.run import Run
from pyro_dgm.infer.train.settings import Settings, Totals
from pyro_dgm.infer.train.update import Seen, Taken, Update, generators
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs import Batch
from pyro_dgm.programs.tensors import as_batch, take_rows

__all__ = ["Stepper"]


class Stepper:
    """Takes the steps of a run and adds up what they gave.

    :param run: the run.
    :param updates: what a step does: the updates of each phase, in turn.
    """

    def __init__(self, run: Run, updates: Sequence[Update], settings: Settings, progress: SilentProgress) -> None:
        self.run, self.updates, self.settings, self.progress = run, list(updates), settings, progress
        self.main = next(update for update in self.updates if update.main)
        self.totals = Totals()
        #: Ctrl-C has reached one of several processes, and all know
        self.stop = False
        self._pending: list[Taken] = []

    def step(self, batches: Sequence[Batch], stop: bool = False) -> None:
        """Take a step; the last one of an epoch may have fewer batches.

        :param stop: whether this process was asked to stop, for the others to know.
        :raises NonFiniteLossError: if a loss or a gradient is not finite.
        """
        number = self.totals.steps + 1
        if self.main.compilation.whole_steps and len(self.updates) == len(batches) == 1 and self.run.steps > 0:
            taken = self.main.whole_step(batches[0], number)
            if taken is not None:
                self._add(taken)  # a step that was not finite has changed nothing
                self.run.steps += 1
                return
        size = self.settings.accumulate
        parts = [batches[i : i + size] for i in range(0, len(batches), size)]
        todo = [(update, part) for update in self.updates for part in parts[: update.steps]]
        for i, (update, part) in enumerate(todo):
            taken = update.begin(sum([batch.size for batch in part]), number)
            taken.ends_step = i == len(todo) - 1
            for batch in part:
                update.evaluate(batch, taken)
            if self.settings.group.size > 1:
                self._reduce(taken, stop)
            update.clip(taken)
            self._add(taken)  # before the weights take a bad step
            update.optimizer.step()
        self.run.steps += 1

    def check(self) -> None:
        """Take in what callbacks have changed: parameters of the optimisers, and what the graphs depend on."""
        for update in self.updates:
            update.refresh()
            update.compilation.check(update.optimizer)

    def block(self, batches: TensorBatches, order: Tensor) -> None:
        """Take the steps of a block; by one graph, if there is one for it.

        :raises NonFiniteLossError: as :meth:`step`; the steps after a bad one were not taken.
        """
        main = self.main
        start = Seen(None, *generators(self.run.device))
        rows = None
        if self.run.steps:
            with self.settings.products():
                rows = main.compilation.steps_of(batches, order, main.parameters, main.optimizer)
        if rows is None:
            for index in order:
                self.step([as_batch(take_rows(batches.data, index))])
            return
        size = order.shape[1]
        for i, (loss, norm) in enumerate(rows):
            bad = not (bool(torch.isfinite(loss)) and bool(torch.isfinite(norm)))
            seen = [self._seen_within(batches, order, i, start)] if bad else []
            self._pending.append(Taken(main, [loss], [size * self.settings.share(size)], norm, size, seen))
            if bad:
                break
        self.flush()
        self.run.steps += len(order)

    def _seen_within(self, batches: TensorBatches, order: Tensor, step: int, start: Seen) -> Seen:
        """A step inside a block: the random numbers of those before it are drawn again."""
        main = self.main
        with forked_rng(self.run.device), torch.no_grad(), self.settings.products():
            start.restore(self.run.device)
            for index in order[:step]:
                batch = as_batch(take_rows(batches.data, index))
                main.objective.estimate(main.model, main.guide, batch.args, batch.kwargs, grad=False)
            return Seen(as_batch(take_rows(batches.data, order[step])), *generators(self.run.device))

    def _reduce(self, taken: Taken, stop: bool) -> None:
        """Put in place of this process's losses and gradients those of all."""
        weighted = [loss * weight for loss, weight in zip(taken.losses, taken.weights, strict=True)]
        loss = sum(weighted[1:], weighted[0]) if weighted else None
        found = self.settings.group.reduce(taken.update.parameters, loss, taken.data, stop)
        taken.losses, taken.weights, taken.data = [torch.tensor(found.loss, dtype=torch.float64)], [1.0], found.data
        self.stop = self.stop or found.stop

    def _add(self, taken: Taken) -> None:
        self._pending.append(taken)
        if len(self._pending) >= self.settings.check_every:
            self.flush()

    def flush(self) -> None:
        """Bring what is pending to the host, check it and add it up."""
        pending, totals = self._pending, self.totals
        if not pending:
            return
        tensors = [x for taken in pending for x in (*taken.losses, taken.norm)]
        numbers: Iterator[float]
        if len(pending) == 1:
            numbers = map(float, tensors)
        else:  # one transfer for all
            device = pending[0].norm.device
            numbers = iter(torch.stack([x.to(device).double() for x in tensors]).tolist())
        for i, taken in enumerate(pending):
            losses, norm = list(islice(numbers, len(taken.losses))), next(numbers)
            if not all(map(math.isfinite, (*losses, norm))):
                raise self._error(losses, norm, taken, late=len(pending) - 1 - i)
            loss = sum(map(mul, losses, taken.weights))
            totals.add(loss, taken.data, norm, "" if taken.update.main else taken.update.role)
            totals.steps += taken.ends_step
        pending.clear()
        self.progress.step(self.run.epochs + 1, totals.steps, totals.bound)

    def _error(self, losses: list[float], norm: float, taken: Taken, late: int) -> NonFiniteLossError:
        """What is said of an update that is not finite, ``late`` updates after it was taken."""
        bad = [j for j, loss in enumerate(losses) if not math.isfinite(loss)]
        seen = taken.seen
        if bad and len(losses) == len(seen):
            seen = [seen[j] for j in bad]
        loss = losses[bad[0]] if bad else losses[0]
        what = f"the loss is {loss}" if bad else f"the gradient's norm is {norm} (the loss is {loss:.6g})"
        if late:
            what += f", seen {late} steps later, after the weights took it in: check_every=1 stops before that"
        return taken.update.error(what, taken.update.culprit(seen, late > 0), self.totals.steps + 1)
