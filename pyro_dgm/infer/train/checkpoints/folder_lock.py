"""One process at a time may write to a folder of checkpoints."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["FolderInUseError", "locked"]

LOCK, OWNER = ".lock", ".lock-owner.json"
#: seconds to wait for the children of a process that was killed: a DataLoader's workers see that after five
ORPHANS = 15.0


class FolderInUseError(ValueError):
    """Another run writes to the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder inside.  The system gives it back when the process ends, however it ends.

    :raises FolderInUseError: if another run holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = _owner(folder)
        if owner is None or not _is_gone(owner):
            raise FolderInUseError(_message(folder, owner)) from None
        try:  # it was killed, and what it had started goes on for a moment
            lock.acquire(timeout=ORPHANS)
        except Timeout:
            raise FolderInUseError(_message(folder, owner)) from None
    except (NotImplementedError, OSError) as error:
        if not os.access(folder, os.W_OK):
            raise
        warnings.warn(f"{folder} cannot be locked ({error}): see to it that no other run writes there", stacklevel=3)
        yield
        return
    try:
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        (folder / OWNER).write_text(json.dumps(owner) + "\n", encoding="utf-8")
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> dict[str, Any] | None:
    """Who says that it holds the folder; ``None`` where that cannot be read, as while it is being written."""
    try:
        found = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("process"), int) else None


def _is_gone(owner: dict[str, Any]) -> bool:
    if owner.get("host") != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _message(folder: Path, owner: dict[str, Any] | None) -> str:
    who = "another process"
    if owner is not None:
        who = f"process {owner['process']} on {owner.get('host')}, since {owner.get('since')}"
    return (
        f"checkpoint_dir {folder} is in use by another run ({who}): wait for its end or stop it, or give another folder"
    )
