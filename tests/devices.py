"""Where tests run: on the CPU, with a check that every tensor is given a device, and on CUDA where there is one.

A tensor made without ``device=`` is on the CPU.  With data on a GPU that is an error, or a copy at every step, and on a
machine without a GPU nothing shows it.  :class:`DevicesAreGiven` shows it there: inside, what the library makes without
saying where is put on torch's ``meta`` device, which holds no values, so that it cannot be mixed with the data and
cannot be read.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import pyro_dgm

PACKAGE = str(Path(pyro_dgm.__file__).parent)

#: torch's functions that make a tensor out of numbers
FACTORIES = {
    getattr(torch, name)
    for name in (
        "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones",
        "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
    )
}  # fmt: skip


class DevicesAreGiven(TorchFunctionMode):
    """Puts tensors that the library makes without ``device=`` where they cannot be used, and remembers the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in FACTORIES or kwargs.get("device") is not None or _has_a_device(args):
            return func(*args, **kwargs)
        place = _caller()
        if place is None:
            return func(*args, **kwargs)
        self.places[place] = None
        return func(*args, **kwargs).to("meta")


def _has_a_device(args: Any) -> bool:
    """Whether an argument is a tensor (whose device ``as_tensor`` and ``normal`` keep)."""
    return any(isinstance(a, torch.Tensor) for a in args)


def _caller() -> str | None:
    """The line of the library that the call came from; ``None`` for a call by torch, Pyro or a test.

    A module makes its parameters on the CPU, and is then moved as a whole: what it makes when it is built is let off.
    """
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    if frame is None or not frame.f_code.co_filename.startswith(PACKAGE):
        return None
    place = f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}:{frame.f_lineno}"
    while frame is not None:
        if frame.f_code.co_name == "__init__" and isinstance(frame.f_locals.get("self"), torch.nn.Module):
            return None
        frame = frame.f_back
    return place


def devices() -> list[Any]:
    """The devices that tests with the fixture ``device`` run on."""
    return ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]
