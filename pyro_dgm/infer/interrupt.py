"""Ctrl-C as a request to stop where the state is whole."""

from __future__ import annotations

import signal
import threading
from typing import Any

__all__ = ["InterruptRequest"]


class InterruptRequest:
    """Inside, a first Ctrl-C sets :attr:`requested`; a second one is Python's own ``KeyboardInterrupt``.

    Only in the main thread and in place of Python's own handler: a program that handles the signal keeps doing so.
    """

    def __init__(self) -> None:
        self.requested = False
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
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
