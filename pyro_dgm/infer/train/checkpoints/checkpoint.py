"""Checkpoints: a folder each, written whole or not at all, with checksums and with nothing that needs unpickling.

A folder of checkpoints holds::

    latest                      name of the newest checkpoint
    best                        name of the best one
    epoch-000012/
        weights.safetensors     parameters and buffers by name
        state.pt                optimiser, scheduler, callbacks, random states (torch.load with weights_only=True)
        config.json             what was asked for, the history, and the checksums of all three

A checkpoint is written under a temporary name, flushed to disk and renamed; only then does ``latest`` name it, and only
after that are older ones of the same run removed.  A process killed at any moment leaves ``latest`` naming a whole
checkpoint.  Where ``latest`` or what it names is damaged, the newest whole checkpoint is taken, with a warning.
"""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from pyro_dgm.infer.train.checkpoints.folder_lock import FolderInUseError, locked
from pyro_dgm.infer.train.checkpoints.saved_files import (
    CHECKSUMS,
    DamagedFileError,
    read_weights,
    replace_file,
    with_reason,
    write_config,
    write_state,
    write_weights,
)  # fmt: skip
from pyro_dgm.infer.train.checkpoints.whole_checkpoint import (
    CONFIG,
    FORMAT,
    STATE,
    WEIGHTS,
    Saved,
    checkpoints_in,
    config_or_none,
    follow,
    open_checkpoint,
    read_checkpoint_config,
    read_from,
)
from pyro_dgm.programs.parameters import ProgramState

__all__ = [
    "CheckpointFolder", "DamagedFileError", "FolderInUseError", "load_checkpoint", "load_weights", "resolve_checkpoint",
]  # fmt: skip

_TEMPORARY = ".tmp-"


class CheckpointFolder:
    """The checkpoints of one run: the newest and the best are kept.

    Of what a folder holds, only checkpoints of this run are ever removed.

    :param path: the folder; made if need be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"checkpoint_dir must be a folder, {self.path} is a file")
        self.path.mkdir(parents=True, exist_ok=True)
        self._checked = False
        #: which run the checkpoints are of; one that goes on from ``latest`` keeps it
        self.run_id = uuid.uuid4().hex
        self._mine: set[str] = set()
        self._named: dict[str, str] = {}

    def lock(self) -> AbstractContextManager[None]:
        """Keep other runs from writing here.

        :raises FolderInUseError: if one does.
        """
        return locked(self.path)

    def traces(self) -> list[str]:
        """What there is of an earlier run, by name."""
        known = [name for name in ("latest", "best", "metrics.csv") if (self.path / name).exists()]
        return known + sorted(entry.name for entry in checkpoints_in(self.path))

    def pointer(self, which: str) -> Path | None:
        """The checkpoint that ``"latest"`` or ``"best"`` names."""
        return follow(self.path, which)[0]

    def go_on(self, source: Path, config: dict[str, Any]) -> None:
        """Go on with the run of a checkpoint here, if it is the latest; from an older one another run begins.

        A process that was killed after its first checkpoint was whole has not come to ``latest``, one that was killed
        after that not to ``best``: both are made up for.
        """
        latest = self.pointer("latest")
        if not (self.path / "latest").exists() and [entry.name for entry in checkpoints_in(self.path)] == [source.name]:
            latest = source
        if latest is None or not _same(source, latest) or "run_id" not in config:
            return
        self.run_id = config["run_id"]
        self._named["latest"] = latest.name
        best = self.pointer("best")
        configs = {entry.name: config_or_none(entry) for entry in checkpoints_in(self.path)}
        self._mine = {name for name, c in configs.items() if c is not None and c.get("run_id") == self.run_id}
        if config.get("is_best"):
            best = latest
        elif best is None and config.get("best") is not None:
            marked = [name for name in sorted(self._mine) if (configs[name] or {}).get("is_best")]
            if marked:
                best = self.path / marked[-1]
                warnings.warn(f"{self.path / 'best'} {follow(self.path, 'best')[1]}; it is {best.name}", stacklevel=4)
        if best is None:
            if config.get("best") is not None:
                self._mine = {latest.name}  # which of the others was best cannot be told: all stay
        else:
            self._named["best"] = best.name
            if self.pointer("best") != best:
                self._point("best", best)
        if self.pointer("latest") is None:
            self._point("latest", latest)
        self._prune()

    def save(
        self, state: ProgramState, training: dict[str, Any], config: dict[str, Any], name: str, is_best: bool
    ) -> Path:
        """Write a checkpoint, make it the latest (and the best), and remove those that are neither.

        :raises TypeError: if ``training`` holds what ``torch.load(weights_only=True)`` would not take back.
        :raises OSError: if it cannot be written, as on a full disk; those that were there before are left.
        """
        temporary = self.path / f"{_TEMPORARY}{name}-{os.getpid()}"
        try:
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir()
            sums = {
                WEIGHTS: write_weights(state.named_tensors(), temporary / WEIGHTS),
                STATE: write_state(training, temporary / STATE),
            }
            if not self._checked:
                self._check_loadable(temporary / STATE)
            whole = {**config, "format": FORMAT, "run_id": self.run_id, "is_best": is_best}
            write_config(whole, temporary / CONFIG, sums)
            _sync_directory(temporary)
            final, i = self.path / name, 2
            while final.exists():  # what an earlier run left there may be what `latest` names: never write over it
                final, i = self.path / f"{name}-{i}", i + 1
            temporary.rename(final)
            _sync_directory(self.path)
            self._mine.add(final.name)
            self._point("latest", final)
            if is_best:
                self._point("best", final)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            last = self.pointer("latest")
            left = "there is none before it" if last is None else f"the last good one is {last}"
            raise with_reason(error, f"the checkpoint {name} could not be written ({error}); {left}") from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._prune()
        return final

    def _check_loadable(self, path: Path) -> None:
        try:
            torch.load(path, weights_only=True)
        except Exception as error:
            raise TypeError(
                "a checkpoint may hold tensors, numbers, strings, tuples, lists and dicts only; the state of the "
                f"optimizer, the lr_scheduler, the objective or a callback holds more: {error}"
            ) from error
        self._checked = True

    def _point(self, which: str, target: Path) -> None:
        replace_file(self.path / which, f"{target.name}\n".encode())
        _sync_directory(self.path)
        self._named[which] = target.name

    def _prune(self) -> None:
        for entry in self.path.iterdir():
            if entry.name.startswith(_TEMPORARY):  # of a process that was killed: the lock is ours
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for name in sorted(self._mine - set(self._named.values())):
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
            self._mine.discard(name)


# Reading


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path means: itself, or the latest in a folder of them.

    :raises DamagedFileError: (a ``ValueError``) if it is not whole.
    :raises ValueError: if there is none.
    """

    def read(checkpoint: Path) -> None:
        read_checkpoint_config(checkpoint)
        missing = [name for name in (WEIGHTS, STATE) if not (checkpoint / name).is_file()]
        if missing:
            raise DamagedFileError(f"{checkpoint} is no whole checkpoint: {', '.join(missing)} is missing")

    return read_from(Path(path), read)[0]


def load_checkpoint(path: str | Path) -> Saved:
    """Weights, training state and configuration of one checkpoint, on the CPU.

    :param path: a checkpoint, or a folder of them: then its latest is read, or the newest whole one, with a warning.
    :raises DamagedFileError: (a ``ValueError``) naming the file that is missing, cut short or changed.
    :raises ValueError: if it is of a newer format, or there is none.
    """
    return open_checkpoint(path)[1]


def load_weights(program: Any, path: str | Path) -> None:
    """Copy saved weights into a program, in place.

    A lazily built guide and a function with ``pyro.param`` must have run once before, so that there is something to
    copy into.

    :param program: a program of the same structure as the saved one.
    :param path: what :meth:`Run.save` wrote, a checkpoint, a folder of them (its latest is taken), or a
        ``.safetensors`` file.
    :raises DamagedFileError: (a ``ValueError``) if the file is cut short, or was changed since it was written.
    :raises ValueError: if names or shapes differ, or there is nothing there.

    Example::

        >>> import tempfile, torch, pyro_dgm
        >>> from pyro_dgm.infer.train.checkpoints.checkpoint import load_weights
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)
        >>> run = pyro_dgm.fit(m, torch.randn(20, 3), epochs=1, seed=0, progress=False)
        >>> other = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_weights(other, run.save(folder))
        >>> torch.equal(other.weight, m.weight)
        True
    """

    def read(checkpoint: Path) -> dict[str, torch.Tensor]:
        sums = read_checkpoint_config(checkpoint).get(CHECKSUMS, {})
        return read_weights(checkpoint / WEIGHTS, sums.get(WEIGHTS))

    path = Path(path)
    if path.is_dir() and not ((path / WEIGHTS).is_file() and not (path / STATE).exists()):
        values = read_from(path, read)[1]
    else:
        path = path / WEIGHTS if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"{path} does not exist")
        values = read_weights(path)
    state = ProgramState(program)
    # What an objective trained for itself is no part of the program.
    state.load({k: v for k, v in values.items() if not k.startswith("objective.")})


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return  # a directory cannot be opened elsewhere; the rename itself is still atomic
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
