"""Exit codes, and errors that are told in a sentence."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["FAILED", "INTERRUPTED", "OK", "USAGE", "CommandFailed", "UsageError", "bad_usage_if_raised", "guarded"]

OK = 0
#: a check failed, a loss was not finite, a file could not be read or downloaded
FAILED = 1
#: an option or argument that does not fit, a data set or objective that there is not
USAGE = 2
#: stopped by Ctrl-C
INTERRUPTED = 130

F = TypeVar("F", bound=Callable[..., Any])


class UsageError(Exception):
    """The command was called in a way that it cannot do; the message says what it can."""


class CommandFailed(Exception):
    """The command could not finish; the message says why."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def bad_usage_if_raised(what: str) -> Iterator[None]:
    """Library errors about an argument that came straight from an option are the user's to mend."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what}: {error}") from error


def guarded(command: F) -> F:
    """Turn expected errors of a command into one message on standard error and an exit code that means something.

    A bug (any other exception) keeps its traceback; ``PYRO_DGM_TRACEBACK=1`` shows that of expected errors too.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        import typer

        try:
            return command(*args, **kwargs)
        except UsageError as error:
            message, code = str(error), USAGE
        except CommandFailed as error:
            message, code = str(error), error.code
        except KeyboardInterrupt:
            message, code = "interrupted", INTERRUPTED
        except (FloatingPointError, OSError, ValueError) as error:
            message, code = f"{error} [{type(error).__name__}; PYRO_DGM_TRACEBACK=1 shows where]", FAILED
        if os.environ.get("PYRO_DGM_TRACEBACK"):
            traceback.print_exc()
        label = "" if code == INTERRUPTED else "error: "
        print(f"{label}{message}", file=sys.stderr)
        raise typer.Exit(code)

    return wrapped  # type: ignore[return-value]
