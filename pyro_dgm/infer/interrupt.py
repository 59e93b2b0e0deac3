"""Ctrl-C as a request to stop where the state is whole."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

__all__ = ["InterruptRequest"]


class InterruptRequest:
    """Inside, a first Ctrl-C sets :attr:`requested`; a second one is Python's own ``KeyboardInterrupt``.

    Only in the main thread and in place of Python's own handler: a program that handles the signal keeps doing so.

    :param echo: seconds in which the signal may come again and mean the same: ``torchrun`` passes on to its processes
        what the terminal has sent to them already.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self.requested = False
        self.echo = echo
        self._first = 0.0
        self._installed = False

    def __enter__(self) -> InterruptRequest:
        own = threading.current_thread() is threading.main_thread()
        if own and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._request)
            self._installed = True
        return self

    def __exit__(self, *error: Any) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False

    def _request(self, number: int, frame: Any) -> None:
        if not self.requested:
            self.requested, self._first = True, time.monotonic()
            if not self.echo:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        elif time.monotonic() - self._first > self.echo:
            signal.default_int_handler(number, frame)
