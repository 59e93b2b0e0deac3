"""The state of every random number generator that one seed reaches: torch, NumPy and Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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
def forked_rng(device: torch.device | None = None, seed: int | None = None, enabled: bool = True) -> Iterator[None]:
    """Leave the global generators as they were found; inside they are seeded when ``seed`` is given.

    :param device: the device that draws are made on; without it the CPU and all CUDA devices in use.
    :param seed: seed of torch, NumPy and Python inside; without it they go on from where they are.
    :param enabled: whether to do anything at all.
    """
    if not enabled:
        yield
        return
    cuda = [device] if device is not None and device.type == "cuda" else []
    if device is None and torch.cuda.is_initialized():
        cuda = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    numpy, python = np.random.get_state(legacy=True), random.getstate()
    with torch.random.fork_rng(devices=cuda):
        try:
            if seed is not None:
                for place in cuda or [torch.device("cpu")]:
                    seed_everything(seed, place)
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)


def seeded(seed: int | None, device: torch.device) -> AbstractContextManager[None]:
    """:func:`forked_rng` where there is a seed; with ``None`` draws take and advance the global generators."""
    return forked_rng(device, check_seed(seed), enabled=seed is not None)


def fork_rng() -> Any:
    """As :func:`forked_rng`, of torch's generators alone: for graphs, which check that NumPy's and Python's stay."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices=devices)
