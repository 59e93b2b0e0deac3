"""The files of a saved run, each written with a checksum and flushed to disk, and read only if it is whole.

``config.json`` holds a SHA-256 of its own content and of the files that lie beside it in a checkpoint.
``weights.safetensors`` holds one of its tensors in its metadata, so that it can be checked when it was copied by
itself.  Files without a checksum (of an older version, or of another program) are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "DamagedFileError", "flush", "read_config", "read_state", "read_weights", "replace_file", "with_reason",
    "write_config", "write_json", "write_state", "write_weights",
]  # fmt: skip

CHECKSUMS = "sha256"


class DamagedFileError(ValueError):
    """A saved file is missing, cut short, or not what was written."""


def damaged(path: Path, why: str) -> DamagedFileError:
    """The error for a file that cannot be used, which says what to do."""
    return DamagedFileError(
        f"{path} {why}: take it from a copy, use another checkpoint of the run, or remove it and train again"
    )


# JSON


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write JSON, flushed to disk and in one piece; floats come back to the bit."""
    text = json.dumps(content, indent=1) + "\n"
    replace_file(path, text.encode())


def write_config(content: dict[str, Any], path: Path, files: Mapping[str, str] | None = None) -> None:
    """Write a configuration with its checksum and those of the files beside it, given by name."""
    content = json.loads(json.dumps({**content, CHECKSUMS: dict(files or {})}))
    content[CHECKSUMS][path.name] = _json_digest(content)
    write_json(content, path)


def read_config(path: Path) -> dict[str, Any]:
    """Read what :func:`write_config` wrote.

    :raises DamagedFileError: if it is missing, no JSON object, or has another checksum.
    """
    content = _read_bytes(path)
    try:
        config = json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        what = "is empty" if not content else f"is damaged (no JSON: {error})"
        raise damaged(path, what) from error
    if not isinstance(config, dict):
        raise damaged(path, f"is damaged (it holds a {type(config).__name__}, no JSON object)")
    sums = config.get(CHECKSUMS)
    if sums is None:
        return config
    if not isinstance(sums, dict) or path.name not in sums:
        raise damaged(path, "is damaged (its checksum is missing)")
    own = sums.pop(path.name)
    if own != _json_digest(config):
        raise damaged(path, "is damaged (its content has another checksum than it was written with)")
    return config


def _json_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# Tensors


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write tensors as safetensors, flushed to disk; gives back their checksum."""
    from safetensors.torch import save_file

    on_cpu = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    digest = weights_digest(on_cpu)
    try:
        save_file(on_cpu, path, metadata={"format": "pt", CHECKSUMS: digest})
    except Exception as error:  # safetensors has an error of its own for a full disk
        raise OSError(f"{path} could not be written: {error}") from error
    # safetensors makes its file readable by the owner alone; it should be as readable as the JSON beside it.
    mask = os.umask(0o077)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
    with open(path, "rb+") as file:
        flush(file)
    return digest


def read_weights(path: Path, digest: str | None = None) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, onto the CPU.

    :param digest: the checksum that it must have, beside the one that it holds itself.
    :raises DamagedFileError: if it is missing, cut short, no such file, or has another checksum.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise damaged(path, "does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            own = (file.metadata() or {}).get(CHECKSUMS)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        what = "is empty" if path.stat().st_size == 0 else f"is damaged (no safetensors file: {error})"
        raise damaged(path, what) from error
    wanted = {value for value in (own, digest) if value is not None}
    if wanted and wanted != {weights_digest(tensors)}:
        raise damaged(path, "is damaged (its tensors have another checksum than they were written with)")
    return tensors


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of tensors on the CPU."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


# What torch saves


class _Hashing:
    """A file that is written and summed up at once."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error  # torch makes a RuntimeError without the reason of it
            raise
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def write_state(state: dict[str, Any], path: Path) -> str:
    """Write what ``torch.save`` takes, flushed to disk; gives back the file's checksum."""
    with open(path, "wb") as file:
        hashing = _Hashing(file)
        try:
            torch.save(state, hashing)  # type: ignore[arg-type]
        except Exception as error:
            if hashing.error is not None:
                raise with_reason(hashing.error, f"{path} could not be written: {hashing.error}") from error
            raise
        flush(file)
    return hashing.digest.hexdigest()


def read_state(path: Path, digest: str | None = None) -> dict[str, Any]:
    """Read what :func:`write_state` wrote, onto the CPU; nothing is unpickled but tensors and plain values.

    :raises DamagedFileError: if it is missing, cut short, holds anything else, or has another checksum.
    """
    if not path.is_file():
        raise damaged(path, "does not exist")
    if path.stat().st_size == 0:
        raise damaged(path, "is empty")
    if digest is not None:
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise damaged(path, "is damaged (it has another checksum than it was written with)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch have a dozen kinds for a file that is not whole
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise damaged(path, f"is damaged (torch cannot read it: {reason})") from error
    if not isinstance(state, dict):
        raise damaged(path, f"is damaged (it holds a {type(state).__name__}, no dict)")
    return state


# Bytes


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name, flush it to disk and rename it: there is the old one or the new one.

    :raises OSError: naming the file, if it cannot be written; the old one is then as it was.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            flush(file)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise with_reason(error, f"{path} could not be written: {error.strerror or error}") from error


def with_reason(error: OSError, message: str) -> OSError:
    """The same error, errno and all, with a message that says more."""
    return OSError(message) if error.errno is None else OSError(error.errno, message)


def flush(file: Any) -> None:
    """Bring what was written to the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise damaged(path, "does not exist") from error
