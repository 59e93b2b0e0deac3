"""The progress bar of a sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Bar"]


class Bar:
    """A progress bar that comes up once a loop has lasted two seconds, on a terminal or in a notebook."""

    def __init__(self, wanted: bool) -> None:
        self.wanted, self.began = wanted, time.perf_counter()
        self.progress: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.progress is not None:
            self.progress.stop()

    @contextmanager
    def track(self, total: int, label: str) -> Iterator[Callable[[int], None]]:
        """Give a function that is told how many of ``total`` are done."""
        task = None

        def advance(done: int) -> None:
            nonlocal task
            if not self.wanted:
                return
            if self.progress is None and time.perf_counter() - self.began > 2.0:
                self._show()
            if self.progress is not None:
                if task is None:
                    task = self.progress.add_task(label, total=total)
                self.progress.update(task, completed=done)

        yield advance

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not (console.is_terminal or console.is_jupyter):
            self.wanted = False
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self.progress.start()
