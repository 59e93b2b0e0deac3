"""Ctrl-C and SIGTERM as a request to stop where the state is whole."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

__all__ = ["InterruptRequest"]


class InterruptRequest:
    """Inside, a first Ctrl-C or SIGTERM sets :attr:`requested`; a second one does what it does by default.

    Only in the main thread and in place of the default handlers: a program that handles a signal keeps doing so.

    :param echo: seconds in which the signal may come again and mean the same: ``torchrun`` passes on to its processes
        what the terminal, or Slurm, has sent to them already.
    :param terminate: take SIGTERM too, which Slurm and Kubernetes send some time before they kill; whoever asks for it
        calls :meth:`deliver` when all is saved.
    """

    _defaults: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

    def __init__(self, echo: float = 0.0, terminate: bool = False) -> None:
        self.requested = False
        self.terminate = terminate
        #: SIGTERM has come, and was not delivered yet
        self.terminating = False
        self.echo = echo
        self._first = 0.0
        self._installed: list[signal.Signals] = []

    def __enter__(self) -> InterruptRequest:
        if threading.current_thread() is threading.main_thread():
            for number, default in self._defaults.items():
                if (number == signal.SIGINT or self.terminate) and signal.getsignal(number) == default:
                    signal.signal(number, self._request)
                    self._installed.append(number)
        return self

    def __exit__(self, *error: Any) -> None:
        for number in self._installed:
            signal.signal(number, self._defaults[number])
        self._installed = []

    def deliver(self) -> None:
        """End the process by the SIGTERM that has come, if it has: as if nobody had waited with it."""
        if self.terminating:
            self.terminating = False
            signal.raise_signal(signal.SIGTERM)

    def _request(self, number: int, frame: Any) -> None:
        self.terminating = self.terminating or number == signal.SIGTERM
        if not self.requested:
            self.requested, self._first = True, time.monotonic()
            if not self.echo:
                self.__exit__()
        elif time.monotonic() - self._first > self.echo:
            self.__exit__()
            signal.raise_signal(number)
