"""What a training run gives back."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_dgm.infer.objectives.metric import BOUND, Metric
from pyro_dgm.infer.train.averaging import WeightAverage
from pyro_dgm.infer.train.optimizers import Optimizers
from pyro_dgm.programs.parameters import ProgramState

if TYPE_CHECKING:
    import pandas

__all__ = ["HISTORY_KEYS", "Best", "Run"]

HISTORY_KEYS = ("train", "validation", "gradient_norm", "learning_rate", "seconds")


@dataclass(frozen=True)
class Best:
    """The best epoch so far: its number (from 1) and its value of the metric (for an ELBO the bound per datum)."""

    epoch: int
    value: float

    @property
    def bound(self) -> float:
        """The value, under the name that it has for an ELBO."""
        return self.value


@dataclass(eq=False)
class Run:
    """A fitted program with the record of its training, as :func:`pyro_dgm.fit` returns it.

    :ivar program: the program, trained in place.
    :ivar objective: the objective that it was trained on.
    :ivar history: a list for each key, one entry an epoch: ``"train"`` and ``"validation"`` (for an ELBO the bound per
        datum, in nats; else what :attr:`measured` says),
        ``"gradient_norm"`` (mean over the epoch's steps of the norm before clipping, of the loss per datum),
        ``"learning_rate"`` (of the first parameter group), ``"seconds"`` (of training, without validation).
        ``"validation"`` is empty where no validation data were given.  An objective that trains in phases has further
        ones, by their role.
    :ivar epochs: finished epochs.
    :ivar steps: optimiser steps taken.
    :ivar measured: for ``"train"`` and ``"validation"`` the :class:`~pyro_dgm.infer.objectives.metric.Metric` of the
        history: its name, its unit, and which way is better.
    :ivar monitor: which of them says how good an epoch is: ``"validation"`` where there are validation data.
    :ivar best: epoch and value of the best epoch by :attr:`monitor`; ``None`` before the first, and for a metric of
        which neither way is better.
    :ivar seed: the seed asked for, or ``None``.
    :ivar device: where it ran.
    :ivar interrupted: stopped by Ctrl-C before its last epoch.
    :ivar stop_reason: why it stopped early, ``""`` if it did not.
    :ivar checkpoint: folder of the newest checkpoint, and :attr:`best_checkpoint` of the best; ``None`` without any.
    :ivar optimizer: the optimiser, with its state; an :class:`~pyro_dgm.infer.train.optimizers.Optimizers` of several.
    :ivar scheduler: the learning rate's scheduler, or ``None``.
    :ivar averaging: the average of the weights, where one was asked for; the program has it after training.
    :ivar rank: which of the processes that train together this is, from 0: write files from rank 0 only.
    :ivar config: what was asked for, as JSON can hold it.
    """

    program: Any
    objective: Any
    history: dict[str, list[float]] = field(default_factory=lambda: {key: [] for key in HISTORY_KEYS})
    epochs: int = 0
    steps: int = 0
    best: Best | None = None
    seed: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    monitor: str = "train"
    measured: dict[str, Metric] = field(default_factory=lambda: {"train": BOUND, "validation": BOUND})
    interrupted: bool = False
    stop_reason: str = ""
    checkpoint: Path | None = None
    best_checkpoint: Path | None = None
    optimizer: torch.optim.Optimizer | Optimizers = field(default=None)  # type: ignore[assignment]
    scheduler: Any = None
    averaging: WeightAverage | None = None
    rank: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    state: ProgramState = field(default=None, repr=False)  # type: ignore[assignment]

    def stop(self, reason: str) -> None:
        """Ask for the end of training after this epoch (for callbacks)."""
        self.stop_reason = reason or "stopped by a callback"

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that the program would end with now: their average, where there is one."""
        averaged = {} if self.averaging is None else self.averaging.values
        return self.state.snapshot() | {name: value.clone() for name, value in averaged.items()}

    def metrics(self) -> dict[str, float]:
        """The last epoch's entries of the history, and its number."""
        last = {key: values[-1] for key, values in self.history.items() if len(values) == self.epochs}
        return {"epoch": float(self.epochs), **last}

    def to_frame(self) -> pandas.DataFrame:
        """The history as a :class:`pandas.DataFrame`, one row an epoch, indexed by epoch from 1."""
        import pandas

        columns = {key: values for key, values in self.history.items() if len(values) == self.epochs}
        return pandas.DataFrame(columns, index=pandas.RangeIndex(1, self.epochs + 1, name="epoch"))

    def save(self, directory: str | Path, **more: Any) -> Path:
        """Write ``weights.safetensors`` and ``config.json`` (configuration and history) into a folder.

        Read them back with :func:`pyro_dgm.infer.load_weights`, which notices a file that was damaged since.

        :param more: further entries of the configuration, as JSON can hold them.
        :returns: the folder.
        :raises OSError: if a file cannot be written; what was there before is then left.
        """
        from pyro_dgm.infer.train.checkpoints.saved_files import write_config, write_weights

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f".tmp-weights-{os.getpid()}"
        try:
            write_weights(self.state.named_tensors(), temporary)
            os.replace(temporary, directory / "weights.safetensors")
        finally:
            temporary.unlink(missing_ok=True)
        write_config({**self.config, **self.record(), **more}, directory / "config.json")
        return directory

    def record(self) -> dict[str, Any]:
        """The run's progress, as JSON can hold it."""
        return {
            "epochs_finished": self.epochs,
            "steps_taken": self.steps,
            "history": self.history,
            "best": None if self.best is None else {"epoch": self.best.epoch, "bound": self.best.value},
            "stop_reason": self.stop_reason,
        }

    def load_record(self, record: dict[str, Any]) -> None:
        """Undo :meth:`record`."""
        self.epochs, self.steps = record["epochs_finished"], record["steps_taken"]
        self.history = {key: list(values) for key, values in record["history"].items()}
        self.best = None if record["best"] is None else Best(record["best"]["epoch"], record["best"]["bound"])

    def __repr__(self) -> str:
        parts = [f"epochs={self.epochs}"]
        parts += [f"{k}={self.history[k][-1]:.4f}" for k in ("train", "validation") if self.history[k]]
        if self.best is not None:
            parts.append(f"best={self.best.value:.4f} at epoch {self.best.epoch}")
        if self.interrupted:
            parts.append("interrupted")
        elif self.stop_reason:
            parts.append(f"stopped: {self.stop_reason}")
        return f"Run({type(self.program).__name__}, {', '.join(parts)})"
