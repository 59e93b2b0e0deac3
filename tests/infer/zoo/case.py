"""What a program of the zoo is: a pair with a small batch, made afresh each time it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor


@dataclass
class Made:
    """A model and a guide with a batch."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A program and what is known of it.

    :ivar way: how its particles are run: ``"plate"``, ``"vmap"`` or ``"loop"``.
    :ivar enumerates: ``"model"`` or ``"guide"``, where it has sites to be summed out.
    :ivar records: whether it can be recorded as a graph; ``None`` where that is another matter's.
    :ivar draws: whether ``sample_posterior(method="guide")`` has latents to draw, all of them by the guide.
    :ivar local: whether parameters stay on modules (Pyro's ``module_local_params``).
    :ivar replays: whether all its noise is at sites, so that a run can be repeated at given values.
    """

    name: str
    make: Callable[[], Made]
    way: str = "plate"
    enumerates: str = ""
    records: bool | None = True
    draws: bool = True
    replays: bool = True
    local: bool = False

    def __repr__(self) -> str:  # pytest's id
        return self.name


CASES: list[Case] = []


def case(way: str = "plate", **facts: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Put a function that makes a program into the zoo."""

    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        CASES.append(Case(make.__name__, lambda: Made(*make()), way, **facts))
        return make

    return add


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coins(*shape: int, p: float = 0.5, seed: int = 0) -> Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < p).to(torch.get_default_dtype())


@contextmanager
def fresh(case: Case) -> Iterator[Made]:
    """The program with parameters of its own, in Pyro's store or on its modules, made under one seed."""
    pyro.clear_param_store()
    with pyro.settings.context(module_local_params=case.local), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield case.make()
    pyro.clear_param_store()
