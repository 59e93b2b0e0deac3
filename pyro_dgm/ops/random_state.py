"""The state of every random number generator that one seed reaches: torch, NumPy and Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dgm.ops.arguments import check_seed

__all__ = ["RandomState", "fork_rng", "forked_rng", "seed_everything", "seeded"]


@dataclass
class RandomState:
    """A snapshot of torch's (CPU, and one CUDA device's), NumPy's and Python's global generators."""

    torch_cpu: Tensor
    torch_cuda: Tensor | None
    numpy: tuple[Any, ...]
    python: tuple[Any, ...]

    @classmethod
    def capture(cls, device: torch.device) -> RandomState:
        """The present state; ``device`` names the CUDA device to include, if it is one."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        numpy: Any = np.random.get_state(legacy=True)
        return cls(torch.get_rng_state(), cuda, numpy, random.getstate())

    def restore(self, device: torch.device) -> None:
        """Put the generators back into this state."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(self.torch_cuda, device)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only, so that ``torch.load(weights_only=True)`` takes it."""
        name, keys, position, has_gauss, gauss = self.numpy
        numpy = [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)]
        return {"torch_cpu": self.torch_cpu, "torch_cuda": self.torch_cuda, "numpy": numpy, "python": self.python}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RandomState:
        """Undo :meth:`state_dict`."""
        name, keys, *rest = state["numpy"]
        version, internal, gauss = state["python"]
        return cls(
            state["torch_cpu"],
            state["torch_cuda"],
            (name, keys.numpy().astype(np.uint32), *rest),
            (version, tuple(internal), gauss),
        )


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed torch (the CPU, and ``device`` if it is a CUDA one), NumPy and Python."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def forked_rng(device: torch.device, seed: int | None = None, enabled: bool = True) -> Iterator[None]:
    """Leave the global generators as they were found; inside they are seeded when ``seed`` is given."""
    if not enabled:
        yield
        return
    before = RandomState.capture(device)
    try:
        if seed is not None:
            seed_everything(seed, device)
        yield
    finally:
        before.restore(device)


def fork_rng() -> Any:
    """Leave the global random state of the CPU, and of CUDA where it is in use, as it was."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices=devices)


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw with a seed inside and leave the global generators as they were; with ``None`` do nothing."""
    check_seed(seed)
    if seed is None:
        yield
        return
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
