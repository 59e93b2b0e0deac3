"""Peak memory of a piece of work, on CPU and CUDA."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_memory"]


class _LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made inside and that are still alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._known and key not in before:  # not a view of what was there
                    self._known.add(key)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._gone, key, storage.nbytes()).atexit = False
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_memory(fn: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that ``fn`` holds at once beyond what was held before it, its results included.

    On CUDA it is what torch's allocator says (``max_memory_allocated``, whose peak counter is reset).  Elsewhere the
    storages that torch operations make are counted while they live (a dispatch mode): exact for tensors, but an
    operation's own scratch space is not seen, and an operation's inputs live until it has returned, so that it reads
    up to about a quarter above what the allocator would say of a backward pass.

    Example::

        >>> import torch
        >>> from pyro_dgm.analysis.memory import peak_memory
        >>> peak_memory(lambda: torch.zeros(1000) + 1, torch.device("cpu"))
        8000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        fn()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveBytes() as mode:
        fn()
    return mode.peak
