"""Checkpoints: a folder each, written whole or not at all, with nothing that needs unpickling.

A folder of checkpoints holds::

    latest                      name of the newest checkpoint
    best                        name of the best one
    epoch-000012/
        weights.safetensors     parameters and buffers by name
        state.pt                optimiser, scheduler, callbacks, random states (torch.load with weights_only=True)
        config.json             what was asked for, and the history

A checkpoint is written under a temporary name, flushed to disk and renamed; only then does ``latest`` name it, and only
after that are older ones removed.  A process killed at any moment leaves ``latest`` naming a whole checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from pyro_dgm.infer.parameters import ProgramState

__all__ = ["CheckpointFolder", "load_checkpoint", "load_weights", "resolve_checkpoint", "write_json", "write_weights"]

FORMAT = 1
WEIGHTS, STATE, CONFIG = "weights.safetensors", "state.pt", "config.json"
_TEMPORARY = ".tmp-"


class CheckpointFolder:
    """The checkpoints of one run: the newest and the best are kept.

    :param path: the folder; made if need be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"checkpoint_dir must be a folder, {self.path} is a file")
        self.path.mkdir(parents=True, exist_ok=True)
        self._checked = False

    def pointer(self, which: str) -> Path | None:
        """The checkpoint that ``"latest"`` or ``"best"`` names."""
        return _follow(self.path, which)

    def save(
        self, state: ProgramState, training: dict[str, Any], config: dict[str, Any], name: str, is_best: bool
    ) -> Path:
        """Write a checkpoint, make it the latest (and the best), and remove those that are neither.

        :raises TypeError: if ``training`` holds what ``torch.load(weights_only=True)`` would not take back.
        """
        temporary = self.path / f"{_TEMPORARY}{name}-{os.getpid()}"
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
        write_weights(state, temporary / WEIGHTS)
        with open(temporary / STATE, "wb") as file:
            torch.save(training, file)
            _flush(file)
        if not self._checked:
            self._check_loadable(temporary / STATE)
        write_json({"format": FORMAT, **config}, temporary / CONFIG)
        _sync_directory(temporary)
        final, i = self.path / name, 2
        while final.exists():  # what an earlier run left there may be what `latest` names: never write over it
            final, i = self.path / f"{name}-{i}", i + 1
        temporary.rename(final)
        _sync_directory(self.path)
        self._point("latest", final)
        if is_best:
            self._point("best", final)
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
        temporary = self.path / f"{_TEMPORARY}{which}-{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(target.name + "\n")
            _flush(file)
        os.replace(temporary, self.path / which)
        _sync_directory(self.path)

    def _prune(self) -> None:
        keep = {p.name for p in (self.pointer("latest"), self.pointer("best")) if p is not None}
        for entry in self.path.iterdir():
            if entry.name.startswith(_TEMPORARY):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            elif entry.is_dir() and entry.name.startswith("epoch-") and entry.name not in keep:
                shutil.rmtree(entry)


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path means: itself, or the latest in a folder of them.

    :raises ValueError: if there is none.
    """
    path = Path(path)
    if (path / CONFIG).is_file():
        missing = [name for name in (WEIGHTS, STATE) if not (path / name).is_file()]
        if missing:
            raise ValueError(f"{path} is no whole checkpoint: {', '.join(missing)} is missing")
        return path
    target = _follow(path, "latest")
    if target is None:
        raise ValueError(f"{path} holds no checkpoint (neither {CONFIG} nor a file 'latest' that names one)")
    return target


def load_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Weights, training state and configuration of one checkpoint, on the CPU.

    :raises ValueError: if it is of a newer format.
    """
    from safetensors.torch import load_file

    path = resolve_checkpoint(path)
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {config.get('format')!r}, this version reads {FORMAT}")
    training = torch.load(path / STATE, map_location="cpu", weights_only=True)
    return load_file(path / WEIGHTS), training, config


def load_weights(program: Any, path: str | Path) -> None:
    """Copy saved weights into a program, in place.

    A lazily built guide and a function with ``pyro.param`` must have run once before, so that there is something to
    copy into.

    :param program: a program of the same structure as the saved one.
    :param path: what :meth:`Run.save` wrote, a checkpoint, a folder of them (its latest is taken), or a
        ``.safetensors`` file.
    :raises ValueError: if names or shapes differ, or there is nothing there.

    Example::

        >>> import tempfile, torch, pyro_dgm
        >>> from pyro_dgm.infer.checkpoint import load_weights
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)
        >>> run = pyro_dgm.fit(m, torch.randn(20, 3), epochs=1, seed=0, progress=False)
        >>> other = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_weights(other, run.save(folder))
        >>> torch.equal(other.weight, m.weight)
        True
    """
    from safetensors.torch import load_file

    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS if (path / WEIGHTS).is_file() else resolve_checkpoint(path) / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    values = load_file(path)
    state = ProgramState(program)
    # What an objective trained for itself is no part of the program.
    state.load({k: v for k, v in values.items() if not k.startswith("objective.")})


def write_weights(state: ProgramState, path: Path) -> None:
    """Write a program's tensors as safetensors, flushed to disk."""
    from safetensors.torch import save_file

    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.named_tensors().items()}
    save_file(tensors, path, metadata={"format": "pt"})
    # safetensors makes its file readable by the owner alone; it should be as readable as the JSON beside it.
    mask = os.umask(0o077)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
    with open(path, "rb+") as file:
        _flush(file)


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write JSON, flushed to disk; floats come back to the bit."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        _flush(file)


def _follow(folder: Path, which: str) -> Path | None:
    pointer = folder / which
    if not pointer.is_file():
        return None
    target = folder / pointer.read_text(encoding="utf-8").strip()
    return target if (target / CONFIG).is_file() else None


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return  # a directory cannot be opened elsewhere; the rename itself is still atomic
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
