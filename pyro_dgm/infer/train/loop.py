"""The training loop behind :func:`pyro_dgm.fit`: steps, epochs, validation, and the state that a checkpoint keeps."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from pyro_dgm.infer.train.batches import Batches, Block, TensorBatches
from pyro_dgm.infer.train.callbacks import keeps_state, watches_steps
from pyro_dgm.infer.train.checkpoints.checkpoint import CheckpointFolder
from pyro_dgm.infer.train.interrupt import InterruptRequest
from pyro_dgm.infer.train.loggers import Logger
from pyro_dgm.infer.train.nonfinite import find_culprit
from pyro_dgm.infer.train.optimizers import step_scheduler
from pyro_dgm.infer.train.progress import SilentProgress
from pyro_dgm.infer.train.run import Best, Run
from pyro_dgm.infer.train.settings import Settings, Totals
from pyro_dgm.infer.train.step import Stepper
from pyro_dgm.infer.train.update import Update
from pyro_dgm.ops.random_state import RandomState, forked_rng, seed_everything
from pyro_dgm.programs import Batch
from pyro_dgm.programs.parameters import evaluation_mode
from pyro_dgm.programs.tensors import as_batch

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
        self._epoch_start: tuple[RandomState, dict[str, Any]] | None = None
        self._middle: RandomState | None = None
        self._watched = any(watches_steps(callback) for callback in callbacks)
        # Without a folder there is nothing to leave behind when the process is told to end.
        self.interrupt = interrupt or InterruptRequest()
        self.interrupt.terminate = folder is not None
        self.interrupt.echo = 0.0 if self.group.size == 1 else 5.0

    @property
    def steps_in_epoch(self) -> int:
        """Steps done of an epoch that is not finished."""
        return 0 if self._epoch_start is None else self.stepper.totals.steps

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of a whole epoch; ``None`` where the data cannot say."""
        count = self.batches.num_batches
        return None if count is None else -(-count // self.stepper.batches_a_step)

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
        batches = self._start_epoch()
        totals = self.stepper.totals
        clock = time.perf_counter()
        for group in batches:
            if isinstance(group, Block):
                assert isinstance(self.batches, TensorBatches)
                self.stepper.block(self.batches, group.order)
            else:
                self.stepper.step(group, stop=self.interrupt.requested)
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
        """The batches still to come in this epoch, those of a step in a list.

        A run resumed in the middle of an epoch first passes by those that were done.
        """
        if self._epoch_start is None:
            self.stepper.totals = Totals(learning_rate=float(self.run.optimizer.param_groups[0]["lr"]))
            self._epoch_start = (RandomState.capture(self.run.device), self.batches.state_dict())
        self.stepper.check()
        if self.compilation.block > 1 and isinstance(self.batches, TensorBatches):
            blocks = self.batches.blocks(self.compilation.block, first_alone=self.run.epochs == 0)
            groups: Iterator[Any] = (b if isinstance(b, Block) else [b] for b in blocks)
        else:
            groups = _grouped(self.batches.epoch(), self.stepper.batches_a_step)
        if self._middle is not None:
            done = 0
            while done < self.stepper.totals.steps:
                group = next(groups)
                done += len(group.order) if isinstance(group, Block) else 1
            self._middle.restore(self.run.device)
            self._middle = None
        return self._prepared(groups)

    def _prepared(self, groups: Iterator[Any]) -> Iterator[Any]:
        """What the stepper takes: blocks as they are, and lists of transformed batches."""
        for group in groups:
            yield group if isinstance(group, Block) else [self._batch(b, self.batches) for b in group]

    def _batch(self, data: Any, source: Batches) -> Batch:
        settings, transform = self.settings, self.settings.transform
        if source is self.validation and settings.validation_transform is not None:
            transform = settings.validation_transform
        size = source.size(data)
        if transform is not None and size:
            data = transform(data)
            size = source.size(data)
        return as_batch(data, size)

    def _end_epoch(self, whole: bool) -> None:
        """Validation, the history, callbacks and a checkpoint.

        :param whole: whether all its batches were seen.  A checkpoint of a part of an epoch is made before the history
            has it, so that a resumed run goes on in the middle of the epoch.
        """
        run, totals = self.run, self.stepper.totals
        averaging = run.averaging
        if whole and averaging is not None and not averaging.each_step:
            averaging.update(run.epochs + 1)
        value = self._validate() if self.validation is not None else None
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
        self._epoch_start = None
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

    # Validation

    @torch.no_grad()
    def _validate(self) -> float:
        assert self.validation is not None
        run, settings = self.run, self.settings
        objective = settings.validation_objective or self.stepper.main.objective
        pair = run.program.model, run.program.guide
        evaluated = self.compilation.validation or objective
        evaluate = partial(evaluated.loss, *pair) if hasattr(evaluated, "loss") else evaluated(*pair)
        loss, count = 0.0, 0
        order = self.validation.state_dict()
        seed = self.group.seed(validation_seed(settings.base_seed))
        modes = forked_rng(run.device, seed), evaluation_mode(*run.state.roots.values()), settings.products()
        averaged = nullcontext() if run.averaging is None else run.averaging.applied()
        with modes[0], modes[1], modes[2], averaged:
            for drawn in self.validation.epoch():
                batch = self._batch(drawn, self.validation)
                if batch.size == 0:
                    continue
                before = torch.get_rng_state()
                value = evaluate(*batch.args, **batch.kwargs)
                value = float(value[0] if isinstance(value, tuple) else value)
                if value != value:
                    self._warn_of_nan(objective, batch, before)
                loss += value * batch.size / (settings.num_data or batch.size)
                count += batch.size
        self.validation.load_state_dict(order)
        loss, data = self.group.total(loss, count)
        return run.measured["validation"].of(loss / data)

    def _warn_of_nan(self, objective: Any, batch: Batch, before: torch.Tensor) -> None:
        """A NaN in validation spoils no weights, so that training goes on; it is said where it came from."""

        def call(objective: Any, model: Any, guide: Any) -> Any:
            evaluate = partial(objective.loss, model, guide) if hasattr(objective, "loss") else objective(model, guide)
            return evaluate(*batch.args, **batch.kwargs)

        torch.set_rng_state(before)
        culprit = find_culprit(objective, self.run.program, batch, call, self.run.state.trainable())
        text = "; ".join(culprit.findings) or "no site is at fault"
        name = self.run.measured["validation"].name
        warnings.warn(
            f"validation: the {name} of epoch {self.run.epochs + 1} is NaN: {text}", RuntimeWarning, stacklevel=2
        )

    # Stopping and going on

    def _save(self, name: str, best: bool) -> None:
        if self.folder is None:
            return
        run, folder = self.run, self.folder
        training = self.training_state()
        with nullcontext() if run.averaging is None else run.averaging.applied():
            if run.averaging is not None:
                training["averaging"] = run.averaging.state_dict()
            run.checkpoint = self.group.first(
                lambda: folder.save(run.state, training, {**run.config, **run.record()}, name, best)
            )
        run.best_checkpoint = folder.pointer("best")

    def training_state(self) -> dict[str, Any]:
        """All that going on needs beside weights and history, for ``torch.load(weights_only=True)``."""
        run, now = self.run, RandomState.capture(self.run.device)
        start, order = self._epoch_start or (now, self.batches.state_dict())
        return {
            "optimizer": run.optimizer.state_dict(),
            "scheduler": None if run.scheduler is None else run.scheduler.state_dict(),
            "initial": self.initial,
            "late": self.stepper.main.late,
            "callbacks": [c.state_dict() if keeps_state(c) else {} for c in self.callbacks],
            "objective": run.objective.state_dict() if _keeps_state(run.objective) else {},
            "phases": [u.objective.state_dict() if _keeps_state(u.objective) else {} for u in self.stepper.updates],
            "extras": run.state.extras(),
            "rng": now.state_dict(),
            "epoch_start": [start.state_dict(), order],
            "ranks": self.group.gather([now.state_dict(), start.state_dict()]) if self.group.size > 1 else [],
            "totals": None if self._epoch_start is None else vars(self.stepper.totals),
            "base_seed": self.settings.base_seed,
            "best_saved": self.best_saved,
        }

    def check_training_state(self, training: dict[str, Any]) -> None:
        """Refuse what :meth:`load_training_state` could not take, before anything is loaded.

        :raises ValueError: if the optimiser has other parameters, or the callbacks that have a state are not as many.
        """
        missing = [key for key in _TRAINING if key not in training]
        if missing:
            raise ValueError(f"the checkpoint's training state has no entry {missing[0]!r}")
        saved = training["optimizer"]
        states = [saved] if "param_groups" in saved else list(saved.values())
        count = sum(len(group["params"]) for state in states for group in state["param_groups"])
        own = sum(len(group["params"]) for group in self.run.optimizer.param_groups)
        if count - len(training["late"]) != own:
            raise ValueError(
                f"the optimizer has {own} parameters, that of the checkpoint {count - len(training['late'])}"
            )
        self._states_of_callbacks(training["callbacks"])

    def _states_of_callbacks(self, saved: list[dict[str, Any]]) -> list[tuple[Any, dict[str, Any]]]:
        """Each callback that keeps a state with the saved one: functions may come and go between two runs."""
        own = [callback for callback in self.callbacks if keeps_state(callback)]
        states = [state for state in saved if state]
        if len(states) == len(own):
            return list(zip(own, states, strict=True))
        if len(saved) != len(self.callbacks):
            raise ValueError(
                f"the checkpoint was made with {len(states)} callbacks that keep a state (early stopping is one), this "
                f"fit has {len(own)}"
            )
        return [(c, state) for c, state in zip(self.callbacks, saved, strict=True) if c in own]

    def load_training_state(self, training: dict[str, Any]) -> None:
        """Undo :meth:`training_state`; weights and history are back already, and :meth:`check_training_state` was."""
        run = self.run
        for name in training["late"]:
            self.stepper.main.add_late(name, run.state.named_tensors()[name])
        run.optimizer.load_state_dict(training["optimizer"])
        if run.scheduler is not None and training["scheduler"] is not None:
            run.scheduler.load_state_dict(training["scheduler"])
        for callback, state in self._states_of_callbacks(training["callbacks"]):
            callback.load_state_dict(state)
        if _keeps_state(run.objective):
            run.objective.load_state_dict(training["objective"])
        for update, state in zip(self.stepper.updates, training.get("phases", []), strict=False):
            if state and update.objective is not run.objective:
                update.objective.load_state_dict(state)
        self.best_saved = training["best_saved"]
        if run.averaging is not None:
            run.averaging.follow(run.state.trainable())
            run.averaging.load_state_dict(training["averaging"])
        now, start = self._random_states(training)
        order = training["epoch_start"][1]
        self.batches.load_state_dict(order)
        if training["totals"] is None:
            now.restore(run.device)
            return
        totals = dict(training["totals"])
        totals["phases"] = {role: tuple(sums) for role, sums in totals.get("phases", {}).items()}
        totals.setdefault("updates", totals["steps"])  # of a version without phases
        self.stepper.totals = Totals(**totals)
        self._epoch_start = (start, order)
        start.restore(run.device)  # the epoch's order is drawn again, then `_middle` is restored
        self._middle = now

    def _random_states(self, training: dict[str, Any]) -> list[RandomState]:
        """This rank's, now and at the start of the epoch; one that the saved run did not have begins a new stream."""
        ranks = training.get("ranks") or [[training["rng"], training["epoch_start"][0]]]
        if self.group.rank < len(ranks):
            return [RandomState.from_state_dict(state) for state in ranks[self.group.rank]]
        with forked_rng(self.run.device):
            seed_everything(self.group.seed(self.settings.base_seed) + self.run.steps, self.run.device)
            return [RandomState.capture(self.run.device)] * 2


def _grouped(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Batches in lists of ``size``; the last may be shorter."""
    while group := list(itertools.islice(batches, size)):
        yield group


def validation_seed(base_seed: int) -> int:
    """Seed of every validation: the same numbers each epoch, and none of those that training draws."""
    return base_seed + 2


#: what a training state cannot do without
_TRAINING = (
    "optimizer", "scheduler", "initial", "late", "callbacks", "objective", "extras", "rng", "epoch_start", "totals",
    "base_seed", "best_saved",
)  # fmt: skip


def _keeps_state(objective: Any) -> bool:
    # A module's tensors are among the weights already.
    return not isinstance(objective, torch.nn.Module) and hasattr(objective, "state_dict")
