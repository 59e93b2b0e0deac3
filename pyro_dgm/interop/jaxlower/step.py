"""One operation of a lowered program, and the values between them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dgm.capture.static_graph import CannotCapture
from pyro_dgm.interop.jaxlower.table import Rule, jax_dtype

__all__ = [
    "CannotConvert", "Constant", "Ref", "Row", "Step", "by_rows", "gather", "mapped", "refs_of", "renumbered",
    "value_of",
]  # fmt: skip


class CannotConvert(CannotCapture):
    """A model cannot become a function of JAX arrays, or what became of it is not the model; the text says why."""


@dataclass(frozen=True)
class Ref:
    """The value of an input or an earlier step, by number."""

    index: int


@dataclass(frozen=True, eq=False)
class Step:
    """One operation.

    :ivar name: torch's name of it.
    :ivar rule: what does it on JAX arrays.
    :ivar args: positional arguments, earlier values as :class:`Ref`; ``kwargs`` the others.
    :ivar shape: of the result, ``None`` where there are several.
    :ivar dtype: of the result likewise.
    """

    name: str
    rule: Rule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None

    def __call__(self, env: Sequence[Any]) -> Any:
        args, kwargs = mapped((self.args, self.kwargs), lambda ref: value_of(env[ref.index]))
        try:
            out = self.rule(*args, **kwargs)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise CannotConvert(f"the rule of {self.name} cannot take its arguments: {error}") from error
        if self.shape is None or self.dtype is None:
            return out
        if tuple(out.shape) != self.shape:
            raise CannotConvert(f"the rule of {self.name} gives shape {tuple(out.shape)}, torch {self.shape}")
        return out.astype(jax_dtype(self.dtype))

    @property
    def text(self) -> str:
        """All of it but the rule; equal texts with the same rules are the same computation."""
        return f"{self.name}{self.args!r}{self.kwargs!r}{self.shape}{self.dtype}"


def mapped(template: Any, fn: Callable[[Ref], Any]) -> Any:
    """A template of arguments with ``fn`` of each reference in its place, in their order; lists and dicts are new."""
    if isinstance(template, Ref):
        return fn(template)
    if isinstance(template, (list, tuple)):
        parts = [mapped(part, fn) for part in template]
        return tuple(parts) if isinstance(template, tuple) else parts
    if isinstance(template, dict):
        return {key: mapped(part, fn) for key, part in template.items()}
    return template


class Constant:
    """A number or small array that is written in the program; two with the same content are one."""

    def __init__(self, value: Tensor) -> None:
        self.array = value.detach().cpu().numpy().copy()

    def __call__(self) -> Any:
        import jax.numpy as jnp

        return jnp.asarray(self.array, jax_dtype(_torch_dtype(self.array)))

    def __repr__(self) -> str:
        return f"Constant({self.array.dtype}, {self.array.shape}, {self.array.tobytes()!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


def _torch_dtype(array: np.ndarray[Any, Any]) -> torch.dtype:
    return torch.from_numpy(np.empty((), array.dtype)).dtype


def refs_of(template: Any) -> list[int]:
    """The numbers of what a template refers to, in order."""
    found: list[int] = []
    mapped(template, lambda ref: found.append(ref.index))
    return found


def renumbered(template: Any, numbers: Iterator[int] | None = None) -> Any:
    """The template with other references, in order; without numbers, with the same one everywhere."""
    return mapped(template, lambda _: Ref(-1 if numbers is None else next(numbers)))


@dataclass(frozen=True)
class Row:
    """``array[index]``, not yet taken: rows that go into a loop or a stack together need not be taken one by one."""

    array: Any
    index: int


def value_of(value: Any) -> Any:
    """The array that a row stands for; anything else as it is."""
    return value.array[value.index] if isinstance(value, Row) else value


def gather(values: Sequence[Any]) -> Any:
    """Arrays and rows stacked, rows of one array that are evenly apart by a slice of it, forwards or backwards."""
    import jax.numpy as jnp

    parts = []
    i = 0
    while i < len(values):
        value, end, step = values[i], i + 1, 0
        if isinstance(value, Row):
            while end < len(values) and isinstance(values[end], Row) and values[end].array is value.array:
                ahead = values[end].index - values[end - 1].index
                if ahead == 0 or (step and ahead != step):
                    break
                step, end = ahead, end + 1
        if end - i > 1:
            stop = values[end - 1].index + (1 if step > 0 else -1)
            parts.append(value.array[value.index : stop if stop >= 0 else None : step])
        else:
            parts.append(value_of(value)[None])
        i = end
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def by_rows(step: Step, env: Sequence[Any], moved: dict[tuple[int, int], Any]) -> Any:
    """What a step gives, single rows of an array not yet taken.

    :param moved: arrays with one of their axes at the front, which this adds to: rows of one array are known as such
        by having the same.
    """
    import jax.numpy as jnp

    def rows_of(x: Ref, dim: int) -> Any:
        key = x.index, dim
        if key not in moved:
            moved[key] = jnp.moveaxis(value_of(env[x.index]), dim, 0)
        return moved[key]

    if step.name == "aten.select.int" and not step.kwargs:
        x, dim, index = step.args
        array = rows_of(x, dim)
        return Row(array, index % array.shape[0])
    if step.name == "aten.unbind.int" and not step.kwargs:
        array = rows_of(step.args[0], *(step.args[1:] or (0,)))
        return [Row(array, i) for i in range(array.shape[0])]
    if step.name == "aten.stack.default" and step.dtype is not None and not step.kwargs:
        values, dim = [env[ref.index] for ref in step.args[0]], *(step.args[1:] or (0,))
        return jnp.moveaxis(gather(values), 0, dim).astype(jax_dtype(step.dtype))
    if step.rule is operator.getitem and isinstance(found := env[step.args[0].index][step.args[1]], Row):
        return found
    return step(env)
