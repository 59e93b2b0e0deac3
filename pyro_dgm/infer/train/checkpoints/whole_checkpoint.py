"""Finding the checkpoint that a path means, and reading it if it is whole."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from pyro_dgm.infer.train.checkpoints.saved_files import (
    CHECKSUMS,
    DamagedFileError,
    read_config,
    read_state,
    read_weights,
)

__all__ = [
    "CONFIG", "FORMAT", "STATE", "WEIGHTS", "Saved", "checkpoints_in", "config_or_none", "folder_of", "follow",
    "newest", "open_checkpoint", "read_checkpoint_config", "read_from",
]  # fmt: skip

#: 1 had no checksums and compared less on resumption; it is still read
FORMAT, READABLE = 2, (1, 2)
WEIGHTS, STATE, CONFIG = "weights.safetensors", "state.pt", "config.json"
_NAME = re.compile(r"epoch-\d{6,}(-step-\d+)?(-\d+)?")

T = TypeVar("T")
#: weights, training state and configuration
Saved = tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]


def open_checkpoint(path: str | Path) -> tuple[Path, Saved]:
    """The checkpoint that a path means, and what :func:`load_checkpoint` reads of it."""
    return read_from(Path(path), _read_all)


def newest(folder: Path) -> tuple[Path, Saved] | None:
    """The latest checkpoint of a folder, or with a warning the newest one that is whole; ``None`` without any.

    :raises DamagedFileError: if there are some and none is whole.
    """
    return _newest(folder, _read_all)


def folder_of(path: str | Path) -> Path:
    """The folder of checkpoints that a path means: that of a checkpoint, or itself.

    :raises ValueError: if it does not exist.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path} holds no checkpoint: it is no folder")
    return path.parent if _is_checkpoint(path) else path


def read_checkpoint_config(checkpoint: Path) -> dict[str, Any]:
    """The configuration of a checkpoint.

    :raises ValueError: if it is of a format that this version does not read.
    """
    config = read_config(checkpoint / CONFIG)
    if config.get("format") not in READABLE:
        raise ValueError(
            f"{checkpoint} has checkpoint format {config.get('format')!r}, this version reads {FORMAT} and older"
        )
    if config["format"] > 1 and CHECKSUMS not in config:
        raise DamagedFileError(f"{checkpoint / CONFIG} is damaged: its checksums are missing")
    missing = [key for key in ("epochs_finished", "history", "best", "seed") if key not in config]
    if missing:
        raise DamagedFileError(f"{checkpoint / CONFIG} is damaged: it has no entry {missing[0]!r}")
    return config


def _read_all(checkpoint: Path) -> Saved:
    config = read_checkpoint_config(checkpoint)
    sums = config.get(CHECKSUMS, {})
    training = read_state(checkpoint / STATE, sums.get(STATE))
    return read_weights(checkpoint / WEIGHTS, sums.get(WEIGHTS)), training, config


def _is_checkpoint(path: Path) -> bool:
    return any((path / name).exists() for name in (CONFIG, STATE, WEIGHTS)) or bool(_NAME.fullmatch(path.name))


def read_from(path: Path, read: Callable[[Path], T]) -> tuple[Path, T]:
    """A checkpoint and what ``read`` makes of it: the path itself, or the newest that is whole in a folder."""
    if _is_checkpoint(path):
        return path, read(path)
    found = _newest(path, read)
    if found is None:
        raise ValueError(f"{path} holds no checkpoint (neither {CONFIG} nor a file 'latest' that names one)")
    return found


def _newest(folder: Path, read: Callable[[Path], T]) -> tuple[Path, T] | None:
    latest, problem = follow(folder, "latest")
    others = [entry for entry in _by_age(folder) if latest is None or entry.name != latest.name]
    if latest is None and not others and not (folder / "latest").exists():
        return None
    problems = [] if latest is not None else [f"{folder / 'latest'} {problem}"]
    for checkpoint in ([] if latest is None else [latest]) + others:
        try:
            found = read(checkpoint)
        except DamagedFileError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(
                f"{'; '.join(problems)}. Taking {checkpoint}, the newest checkpoint that is whole", stacklevel=5
            )
        return checkpoint, found
    raise DamagedFileError(
        f"{folder} holds an earlier run, and no checkpoint that is whole: {'; '.join(problems)}. Nothing was removed; "
        "another folder starts a new run"
    )


def follow(folder: Path, which: str) -> tuple[Path | None, str]:
    """The checkpoint that a pointer names, or what is wrong with it."""
    pointer = folder / which
    if not pointer.is_file():
        return None, "does not exist"
    content = pointer.read_bytes()
    name = content.decode("ascii", errors="replace").strip()
    if not name:
        return None, "is empty"
    if not _NAME.fullmatch(name):
        return None, f"does not name a checkpoint ({content[:40]!r})"
    if not (folder / name).is_dir():
        return None, f"names {name}, which does not exist"
    return folder / name, ""


def checkpoints_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [entry for entry in folder.iterdir() if entry.is_dir() and _NAME.fullmatch(entry.name)]


def _by_age(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest first; those whose age cannot be read at the end."""

    def age(entry: Path) -> tuple[int, int]:
        config = config_or_none(entry) or {}
        return int(config.get("steps_taken", -1)), entry.stat().st_mtime_ns

    return sorted(checkpoints_in(folder), key=age, reverse=True)


def config_or_none(checkpoint: Path) -> dict[str, Any] | None:
    try:
        return read_config(checkpoint / CONFIG)
    except DamagedFileError:  # whoever wants to read it is told then
        return None
