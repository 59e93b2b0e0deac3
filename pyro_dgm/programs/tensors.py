"""The tensors of a batch, through tuples, lists and mappings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.programs.base import Batch, split_batch

__all__ = [
    "as_batch",
    "batch_arguments",
    "batch_length",
    "constant_tensors",
    "map_tensors",
    "named_tensors",
    "refuse_meta",
    "take_rows",
]


def map_tensors(fn: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Apply ``fn`` to each tensor of a batch, through tuples, lists and mappings."""
    if isinstance(batch, Tensor):
        return fn(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(fn, b) for b in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(fn, b) for b in batch)
    if isinstance(batch, Mapping):
        return {k: map_tensors(fn, v) for k, v in batch.items()}
    return batch


def named_tensors(batch: Any, argument: str = "data") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch, each with the expression that reaches it (``data[0]``, ``data['x']``)."""
    if isinstance(batch, Batch):
        batch = batch.args[0] if len(batch.args) == 1 else batch.packed
    if isinstance(batch, Tensor):
        yield argument, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from named_tensors(value, f"{argument}[{key!r}]")
    elif isinstance(batch, (tuple, list)):
        for i, value in enumerate(batch):
            yield from named_tensors(value, f"{argument}[{i}]")


def constant_tensors(batch: Any) -> Any:
    """The batch without gradients: data are constants, also those that a computation gave or that were made under
    ``torch.inference_mode()``, which autograd refuses.
    """
    tensors = [t for _, t in named_tensors(batch)]
    if not any(t.requires_grad or t.is_inference() for t in tensors):
        return batch  # as it came: callers keep it, and compare it by identity

    def constant(tensor: Tensor) -> Tensor:
        tensor = tensor.detach() if tensor.requires_grad else tensor
        return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor

    return map_tensors(constant, batch)


def refuse_meta(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """:raises ValueError: for a tensor that holds no values."""
    for name, tensor in tensors:
        if tensor.is_meta:
            raise ValueError(f"{name} is on the device 'meta', where tensors hold no values")


def as_batch(data: Any, size: int | None = None) -> Batch:
    """A tensor, or a tuple, list or mapping of a program's arguments, as a batch.

    :param size: number of data, by default the length of the first tensor.
    :raises ValueError: if there is no tensor with a leading dimension.
    """
    if isinstance(data, Tensor) and data.dim() > 0:  # most data, at each step
        return Batch((data,), {}, data.shape[0] if size is None else size)
    args, kwargs = split_batch(data)
    return Batch(args, kwargs, batch_length(data) if size is None else size)


def batch_length(batch: Any) -> int:
    """Number of data in a batch: the length of its first tensor.

    :raises ValueError: if it holds no tensor with a leading dimension.
    """
    for _, tensor in named_tensors(batch):
        if tensor.dim() > 0:
            return tensor.shape[0]
    raise ValueError(f"a batch must hold a tensor whose leading dimension is the data, got {type(batch).__name__}")


def take_rows(data: Any, index: slice | Tensor, device: torch.device | None = None) -> Any:
    """Rows of each tensor of a batch, on a device (by default each tensor's own)."""

    def rows(tensor: Tensor) -> Tensor:
        found = tensor[index] if isinstance(index, slice) else tensor.index_select(0, index.to(tensor.device))
        return found if device is None else found.to(device, non_blocking=True)

    return map_tensors(rows, data)


def batch_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """One line that says what a batch passes to the program."""
    shown = [str(tuple(a.shape)) if isinstance(a, Tensor) else type(a).__name__ for a in args]
    shown += [f"{k}={tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__}" for k, v in kwargs.items()]
    return ", ".join(shown)
