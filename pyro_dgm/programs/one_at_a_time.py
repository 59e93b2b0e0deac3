"""Pyro's handlers, its parameter store and its settings belong to the process: one program runs at a time.

Two threads in Pyro at once would each be under the other's handlers.  The public entries of the library take turns:
what a second thread asks for begins when the first one's is done.  A thread may call them from inside each other, a
comparison of objectives in a callback of ``fit``, say.  To work in parallel, use processes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = ["TURN", "one_at_a_time"]

#: held by whoever has its turn
TURN = threading.RLock()

F = TypeVar("F", bound=Callable[..., Any])


def one_at_a_time(fn: F) -> F:
    """A function that waits for its turn among all functions decorated so."""

    @functools.wraps(fn)
    def in_turn(*args: Any, **kwargs: Any) -> Any:
        with TURN:
            return fn(*args, **kwargs)

    return cast(F, in_turn)
