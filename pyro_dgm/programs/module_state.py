"""What modules of a program hold beside parameters, and the noise of dropout, where a program is run several times."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_dgm.programs import owner_modules

__all__ = ["State", "WithoutDropout", "buffers_kept", "close", "describe", "modules_of"]


def modules_of(*fns: Callable[..., Any]) -> list[nn.Module]:
    """The modules of a program: what it is or is bound to, and what a plain function names."""
    found: list[nn.Module] = []
    for fn in fns:
        found += owner_modules(fn)
        plain = inspect.unwrap(getattr(fn, "func", fn))
        if inspect.isfunction(plain):
            named = inspect.getclosurevars(plain)
            values = [*named.nonlocals.values(), *named.globals.values()]
            found += [value for value in values if isinstance(value, nn.Module)]
    return list(dict.fromkeys(m for module in found for m in module.modules()))


def describe(slot: tuple[nn.Module, str], *fns: Callable[..., Any]) -> str:
    """A buffer by the name of its module in a program."""
    module, name = slot
    for fn in fns:
        for root in owner_modules(fn):
            for path, found in root.named_modules():
                if found is module:
                    return f"{path or type(module).__name__} ({type(module).__name__}.{name})"
    return f"{type(module).__name__}.{name}"


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results of the same numbers are the same up to rounding."""
    if a.shape != b.shape:
        return False
    tolerance = 4 * torch.finfo(b.dtype).eps ** 0.5 if b.is_floating_point() else 0.0
    size = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
    return torch.allclose(a.to(b.dtype), b, rtol=tolerance, atol=tolerance * size, equal_nan=True)


@contextmanager
def buffers_kept(buffers: Iterable[Tensor]) -> Iterator[None]:
    """Put buffers (running statistics) back at the end: what is run inside is no training step."""
    kept = [(b, b.detach().clone()) for b in {id(b): b for b in buffers}.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


class State:
    """Buffers that runs of a program write: each particle finds them as they were, and those of the first are kept."""

    def __init__(self, buffers: list[Any]) -> None:
        self.buffers = buffers
        self.before = [b.detach().clone() for b in buffers]
        self.after: list[Tensor] | None = None

    def written(self) -> list[int]:
        """Positions of what has changed."""
        pairs = enumerate(zip(self.buffers, self.before, strict=True))
        return [i for i, (b, value) in pairs if not torch.equal(b, value)]

    def differs(self, written: list[int]) -> str:
        """Whether something else has been written than by the first run."""
        assert self.after is not None
        after = self.after
        same = self.written() == written and all(close(self.buffers[i], after[i]) for i in written)
        return "" if same else "running statistics would not be those of one particle"

    def again(self) -> None:
        """Before another particle's run."""
        if self.after is None:
            self.after = [b.detach().clone() for b in self.buffers]
        self.restore()

    def finish(self) -> None:
        """Keep what the first run wrote."""
        self._put(self.after or [])

    def restore(self) -> None:
        """Put all back."""
        self._put(self.before)

    def _put(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self.buffers, values, strict=False):
            buffer.data.copy_(value)  # what autograd has saved of the run is no longer this buffer's business


class WithoutDropout(TorchFunctionMode):
    """No dropout: its noise is at no site, and cannot be replayed.  ``seen`` says whether there would have been any."""

    FUNCTIONS = frozenset(
        getattr(nn.functional, n)
        for n in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FUNCTIONS:
            given = inspect.signature(func).bind(*args, **(kwargs or {}))
            given.apply_defaults()
            self.seen |= given.arguments["training"] and given.arguments["p"] > 0
            return given.arguments["input"]
        return func(*args, **(kwargs or {}))
