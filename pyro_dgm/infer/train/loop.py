"""The training loop behind :func:`pyro_dgm.fit`: steps, epochs, validation, and the state that a checkpoint keeps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from pyro_dgm.infer.train.batches import Batches, Block, TensorBatches, transformed
from pyro_dgm.infer.train.callbacks import watches_steps
from pyro_dgm.infer.train.checkpoints.checkpoint import CheckpointFolder
from pyro_dgm.infer.train.interrupt import InterruptRequest
from pyro_dgm.infer.train.loggers import Logger
from pyro_dgm.infer.train.optimizers import step_scheduler
from pyro_dgm.infer.train.progress import SilentProgress
from pyro_dgm.infer.train.run import Best, Run
from pyro_dgm.infer.train.settings import Settings, Totals
from pyro_dgm.infer.train.step import Stepper
from pyro_dgm.infer.train.training_state import state_of
from pyro_dgm.infer.train.update import Update
from pyro_dgm.infer.train.validation import validate
from pyro_dgm.ops.random_state import RandomState

__all__ = ["Trainer"]


class Trainer:
    """Runs the epochs of one :class:`~pyro_dgm.infer.train.run.Run`.

    :param run: the run to fill in, with its optimiser.
    :param updates: what a step does, the updates of each phase.
    :param batches: training data.
    :param validation: validation data or ``None``.
    :param initial: names of the leaves that the optimiser began with, in its order.
    :param loggers: who is told the numbers of each epoch.
    """

    def __init__(
        self,
        run: Run,
        updates: Sequence[Update],
        settings: Settings,
        batches: Batches,
        validation: Batches | None,
        initial: list[str],
        callbacks: list[Any],
        folder: CheckpointFolder | None,
        progress: SilentProgress,
        loggers: Sequence[Logger] = (),
        interrupt: InterruptRequest | None = None,
    ) -> None:
        self.run, self.settings, self.batches, self.validation = run, settings, batches, validation
        self.callbacks, self.folder, self.progress, self.loggers = callbacks, folder, progress, loggers
        self.group = settings.group
        self.stepper = Stepper(run, updates, settings, progress)
        self.compilation = self.stepper.main.compilation
        self.initial = initial
        self.best_saved = -float("inf")
        self.epoch_start: tuple[RandomState, dict[str, Any]] | None = None
        self.middle: RandomState | None = None
        self._watched = any(watches_steps(callback) for callback in callbacks)
        # Without a folder there is nothing to leave behind when the process is told to end.
        self.interrupt = interrupt or InterruptRequest()
        self.interrupt.terminate = folder is not None
        self.interrupt.echo = 0.0 if self.group.size == 1 else 5.0

    @property
    def steps_in_epoch(self) -> int:
        """Steps done of an epoch that is not finished."""
        return 0 if self.epoch_start is None else self.stepper.totals.steps

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of a whole epoch; ``None`` where the data cannot say."""
        return self.settings.steps_per_epoch(self.batches.num_batches)

    @property
    def stopping(self) -> bool:
        """Whether Ctrl-C or SIGTERM has come; several processes know it when all do."""
        return self.interrupt.requested if self.group.size == 1 else self.stepper.stop

    # The run

    def train(self) -> None:
        """Run to the last epoch, an early stop or an interruption."""
        run = self.run
        if run.averaging is not None:
            run.averaging.follow(run.state.trainable())
        self._notify("on_fit_start")
        self._agree()
        with self.interrupt:
            while run.epochs < self.settings.epochs and not run.stop_reason and not run.interrupted:
                if self._out_of_steps:
                    run.stop(f"max_steps={self.settings.max_steps}")
                    break
                self._epoch()
        if run.averaging is not None:
            run.averaging.swap()
        if not run.interrupted:
            self._notify("on_fit_end")

    @property
    def _out_of_steps(self) -> bool:
        return self.settings.max_steps is not None and self.run.steps >= self.settings.max_steps

    def _epoch(self) -> None:
        run = self.run
        source, transform, others = self.batches, self.settings.transform, self.settings.batches_a_step - 1
        items = self._start_epoch()
        totals = self.stepper.totals
        clock = time.perf_counter()
        for item in items:
            if isinstance(item, Block):
                assert isinstance(source, TensorBatches)
                self.stepper.block(source, item.order)
            else:
                group = [item, *itertools.islice(items, others)]  # the last step may have fewer
                if transform is not None:
                    group = [transformed(data, source, transform) for data in group]
                self.stepper.step(list(map(source.batch, group)), stop=self.interrupt.requested)
            if self.settings.step_scheduler_each == "step":
                step_scheduler(run.scheduler, 0.0)
            self._end_step()
            if self.stopping or self._out_of_steps:
                break
        self.stepper.flush()
        totals.seconds += time.perf_counter() - clock
        if self.group.size > 1:
            self.group.share(run.state.buffers())  # running statistics are those of rank 0
        if self.stopping and totals.steps != self.steps_per_epoch:
            run.interrupted = True
            self._save(f"epoch-{run.epochs:06d}-step-{totals.steps:06d}", best=False)
            return
        if totals.steps == 0:
            raise ValueError("data gave no batch in an epoch")
        self._end_epoch(whole=not self._out_of_steps or totals.steps == self.steps_per_epoch)

    def _end_step(self) -> None:
        averaging = self.run.averaging
        if averaging is not None and averaging.each_step:
            averaging.update(self.run.epochs)
        if self._watched:
            self._notify("on_step_end")
            self.stepper.check()

    def _start_epoch(self) -> Iterator[Any]:
        """The data of the batches still to come in this epoch, or of blocks of them.

        A run resumed in the middle of an epoch first passes by those that were done.
        """
        if self.epoch_start is None:
            self.stepper.totals = Totals(learning_rate=float(self.run.optimizer.param_groups[0]["lr"]))
            self.epoch_start = (RandomState.capture(self.run.device), self.batches.state_dict())
        self.stepper.check()
        if self.compilation.block > 1 and isinstance(self.batches, TensorBatches):
            items = self.batches.blocks(self.compilation.block, first_alone=self.run.epochs == 0)
        else:
            items = self.batches.epoch()
        if self.middle is not None:
            left = self.stepper.totals.steps * self.settings.batches_a_step
            while left > 0 and (item := next(items, None)) is not None:
                left -= len(item.order) if isinstance(item, Block) else 1
            self.middle.restore(self.run.device)
            self.middle = None
        return items

    def _end_epoch(self, whole: bool) -> None:
        """Validation, the history, callbacks and a checkpoint.

        :param whole: whether all its batches were seen.  A checkpoint of a part of an epoch is made before the history
            has it, so that a resumed run goes on in the middle of the epoch.
        """
        run, totals = self.run, self.stepper.totals
        averaging = run.averaging
        if whole and averaging is not None and not averaging.each_step:
            averaging.update(run.epochs + 1)
        value = None if self.validation is None else self._validate()
        if not whole:
            self._save(f"epoch-{run.epochs:06d}-step-{totals.steps:06d}", best=False)
            run.stop(f"max_steps={self.settings.max_steps}")
        train = run.measured["train"].of(-totals.bound)
        run.history["train"].append(train)
        if value is not None:
            run.history["validation"].append(value)
        for role, (loss, data) in totals.phases.items():
            run.history.setdefault(role, []).append(run.measured[role].of(loss / max(data, 1)))
        run.history["gradient_norm"].append(totals.norm / totals.updates)
        run.history["learning_rate"].append(totals.learning_rate)
        run.history["seconds"].append(totals.seconds)
        run.epochs += 1
        monitored, metric = run.history[run.monitor][-1], run.measured[run.monitor]
        gain = metric.gain(monitored)
        if metric.better is not None and gain > (-float("inf") if run.best is None else metric.gain(run.best.value)):
            run.best = Best(run.epochs, monitored)
        if self.settings.step_scheduler_each == "epoch":
            step_scheduler(run.scheduler, gain)
        self.progress.epoch(run.epochs, train, value)
        self.epoch_start = None
        for logger in self.loggers:
            logger.log(run.metrics(), run.steps)
        self._notify("on_epoch_end")
        self._agree()
        last = run.epochs >= self.settings.epochs or bool(run.stop_reason) or self.stopping
        if whole and (last or run.epochs % self.settings.checkpoint_every == 0):
            best = metric.better is not None and gain > self.best_saved
            self.best_saved = max(self.best_saved, gain) if best else self.best_saved
            self._save(f"epoch-{run.epochs:06d}", best)
        if self.stopping and run.epochs < self.settings.epochs and not run.stop_reason:
            run.interrupted = True

    def _agree(self) -> None:
        """One process that is asked to stop stops all."""
        if self.group.size > 1:
            asked = self.group.gather((self.run.stop_reason, self.interrupt.requested))
            self.run.stop_reason = next((reason for reason, _ in asked if reason), "")
            self.stepper.stop = any(stop for _, stop in asked)

    def _notify(self, event: str) -> None:
        for callback in self.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(self.run)

    def _validate(self) -> float:
        assert self.validation is not None
        objective = self.settings.validation_objective or self.stepper.main.objective
        return validate(self.run, self.validation, objective, self.settings, self.compilation.validation)

    # Stopping and going on

    def _save(self, name: str, best: bool) -> None:
        if self.folder is None:
            return
        run, folder = self.run, self.folder
        training = state_of(self)
        with nullcontext() if run.averaging is None else run.averaging.applied():
            if run.averaging is not None:
                training["averaging"] = run.averaging.state_dict()
            run.checkpoint = self.group.first(
                lambda: folder.save(run.state, training, {**run.config, **run.record()}, name, best)
            )
        run.best_checkpoint = folder.pointer("best")
