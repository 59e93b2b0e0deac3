"""The live bar of a training run, and a silent stand-in."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from pyro_dgm.infer.objectives.metric import BOUND, Metric

__all__ = ["ProgressBar", "SilentProgress"]

REFRESH_SECONDS = 0.1


class SilentProgress:
    """Shows nothing."""

    def __enter__(self) -> SilentProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def header(self, text: str) -> None:
        """A line above the bar."""

    def step(self, epoch: int, done: int, bound: float) -> None:
        """``done`` steps of an epoch are over, with minus the loss per datum so far."""

    def epoch(self, epoch: int, train: float, validation: float | None) -> None:
        """An epoch is over."""


class ProgressBar(SilentProgress):
    """A rich bar over all epochs' steps, with the live bound (or whatever the objective's metric is).

    :param epochs: epochs in all.
    :param num_batches: steps an epoch, ``None`` if unknown: then the bar counts epochs.
    :param metric: what is shown of the training data, and ``validation`` of held-out ones.
    """

    def __init__(
        self, epochs: int, num_batches: int | None, metric: Metric = BOUND, validation: Metric | None = None
    ) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.num_batches = num_batches
        self.metric, self.validation = metric, validation or metric
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),  # takes what the rest leaves, on 80 columns too
            TextColumn("{task.fields[bounds]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            refresh_per_second=1 / REFRESH_SECONDS,
            expand=True,
        )
        total = epochs * (num_batches or 1)
        self._task = self._progress.add_task("fit", total=total, epoch=f"0/{epochs}", bounds="")
        self._epochs, self._last, self._validation = epochs, 0.0, ""

    def __enter__(self) -> ProgressBar:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)

    def header(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def step(self, epoch: int, done: int, bound: float) -> None:
        now = time.perf_counter()
        if now - self._last < REFRESH_SECONDS:
            return
        self._last = now
        completed = (epoch - 1) * self.num_batches + done if self.num_batches else epoch - 1
        self._show(epoch, completed, self.metric.of(-bound))

    def epoch(self, epoch: int, train: float, validation: float | None) -> None:
        other = "" if self.validation == self.metric else f" {self.validation.name}"
        self._validation = "" if validation is None else f"  validation{other} {validation:.3f}"
        self._show(epoch, epoch * (self.num_batches or 1), train)

    def _show(self, epoch: int, completed: int, value: float) -> None:
        unit = " nats" if self.metric.unit.startswith("nats") else ""
        bounds = f"{self.metric.name} {value:.3f}{self._validation}{unit}"
        self._progress.update(self._task, completed=completed, epoch=f"{epoch}/{self._epochs}", bounds=bounds)
