"""How many functions of the library a training step and an HMC transition go through.

    python benchmarks/count_calls.py [--list]

Counted by :func:`sys.setprofile`, in frames of ``pyro_dgm``; those of Pyro and torch are not counted.

- One steady step of ``fit`` (a VAE, ``ELBO()``, Adam, ``compile=False``): from one entry of the model to the next.
- The path of its batch: the functions that get the batch's tensor, alone or in what they are given, or give it back,
  from the iterator that yields it to the program, whose own functions are not counted; and the frames on the stack when
  the model is entered.
- The same stack where HMC evaluates its potential eagerly, and the functions of one compiled transition.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_dgm
from pyro_dgm.infer.mcmc import HMC, MCMC

#: rooms that a program's own functions are in
PROGRAM = ("models/", "nn/", "distributions/", "guides/")


def name_of(frame: FrameType) -> str | None:
    """``file:function`` of a frame of the library, or ``None``; comprehensions and lambdas count as their function."""
    path, name = frame.f_code.co_filename, frame.f_code.co_qualname
    if "/pyro_dgm/" not in path or path.endswith("/moved.py"):
        return None
    while name.endswith(">") and not name.endswith("<locals>"):
        name = name.rpartition(".<locals>.")[0]
    return f"{path.rsplit('/pyro_dgm/', 1)[1]}:{name}"


def tensors_in(value: Any, depth: int = 6) -> Iterator[Tensor]:
    """The tensors of an argument, through containers and a batch's attributes."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (tuple, list)):
        for part in value[:8]:
            yield from tensors_in(part, depth - 1)
    elif depth and isinstance(value, Mapping):
        for part in list(value.values())[:8]:
            yield from tensors_in(part, depth - 1)
    elif depth and type(value).__name__ in ("Batch", "Pair"):
        yield from tensors_in(vars(value), depth - 1)


def arguments(frame: FrameType) -> list[Any]:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    return [frame.f_locals[n] for n in code.co_varnames[:count] if n in frame.f_locals]


def stack(frame: FrameType | None) -> list[str]:
    """The library's functions on the stack, outermost first."""
    found = []
    while frame is not None:
        if name := name_of(frame):
            found.append(name)
        frame = frame.f_back
    return found[::-1]


class Step:
    """What happens from one call of a function to the next: events with the tensors that they hold."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.events: list[tuple[str, list[Tensor]]] = []
        self.stack: list[str] = []
        self.batch: Tensor | None = None

    def path(self) -> list[str]:
        """Functions that got the batch, or gave it back, in order, from the iterator to the program."""
        names = [name for name, held in self.events if any(t is self.batch for t in held)]
        start = next(i for i, name in enumerate(names) if name.endswith(".epoch"))
        return list(dict.fromkeys(name for name in names[start:] if not name.startswith(PROGRAM)))


def record(run: Callable[[], Any], code: Any, wanted: int) -> Step:
    """The step that ends with the ``wanted``-th entry of the function with this code."""
    step, entries = Step(), 0

    def profile(frame: FrameType, event: str, value: Any) -> None:
        nonlocal entries
        if event == "call" and frame.f_code is code:
            entries += 1
            if entries == wanted:
                step.batch, step.stack = frame.f_locals["x"], stack(frame)
                sys.setprofile(None)
                return
        if entries == wanted - 1 and event in ("call", "return") and (name := name_of(frame)):
            if event == "call":
                step.calls[name] += 1
            step.events.append((name, list(tensors_in(arguments(frame) if event == "call" else value))))

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return step


def training_step() -> Step:
    torch.manual_seed(0)
    vae = pyro_dgm.models.VAE((8, 8), 4, hidden=(32,))
    data = torch.rand(400, 8, 8).round()
    options: dict[str, Any] = {"batch_size": 20, "epochs": 3, "seed": 0, "compile": False, "progress": False}
    code = vae.model.__func__.__wrapped__.__code__
    # Enough entries to be in the second epoch, past every first look, and not at an epoch's end.
    return record(lambda: pyro_dgm.fit(vae, data, objective=pyro_dgm.infer.ELBO(), **options), code, 33)


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3, device=x.device), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def hmc(num_samples: int, compile: bool) -> Any:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    kernel = HMC(regression, num_steps=5, compile=compile)
    sampler = MCMC(kernel, num_samples, warmup_steps=0, num_chains=4, seed=0, progress=False)
    return sampler.run(x, x.sum(-1))


def potential_stacks() -> list[list[str]]:
    """The stacks with which the model of an HMC potential is entered: eagerly, or to be recorded."""
    found: list[list[str]] = []

    def profile(frame: FrameType, event: str, value: Any) -> None:
        if event == "call" and frame.f_code is regression.__code__:
            found.append(stack(frame))

    sys.setprofile(profile)
    try:
        hmc(2, False)
    finally:
        sys.setprofile(None)
    return found


def calls_of_run(num_samples: int) -> Counter[str]:
    calls: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, value: Any) -> None:
        if event == "call" and (name := name_of(frame)):
            calls[name] += 1

    sys.setprofile(profile)
    try:
        hmc(num_samples, True)
    finally:
        sys.setprofile(None)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name all functions that a step enters")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()

    step = training_step()
    print(f"fit, one eager step: {len(step.calls)} functions, {sum(step.calls.values())} frames entered")
    if given.list:
        for name, count in sorted(step.calls.items()):
            print(f"    {count:4d}  {name}")
    print(f"fit, functions that a batch passes through before the program: {len(step.path())}")
    print(*(f"    {name}" for name in step.path()), sep="\n")
    print(f"fit, frames on the stack at the model: {len(step.stack)}")
    print(*(f"    {name}" for name in step.stack), sep="\n")

    deepest = max(potential_stacks(), key=len)
    print(f"HMC, frames on the stack at the potential's model, eager or recording: {len(deepest)}")
    print(*(f"    {name}" for name in deepest), sep="\n")
    # What a longer run does more: no set-up, no recording.
    more = calls_of_run(1100)
    more.subtract(calls_of_run(1000))
    steady = {name: count for name, count in more.items() if count >= 10}
    print(f"HMC, 100 compiled transitions: {len(steady)} functions, {sum(steady.values())} calls")
    print(*(f"    {count:5d}  {name}" for name, count in steady.items()), sep="\n")


if __name__ == "__main__":
    main()
