"""Training on several processes at once: who they are, and what they tell each other.

Every process (rank) takes its part of each batch and draws its own noise; gradients are averaged over ranks, weighted
by data, so that the step is the one that a single process takes on the whole batch.  Ranks hold the same weights at
every step and come to the same decisions.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_dgm.ops.arguments import check_count

__all__ = ["ALONE", "Group", "Reduced", "joined", "own_device", "started_rank"]

T = TypeVar("T")
#: distance of the ranks' seeds; those next to the run's own seed have other uses
SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Reduced:
    """What a step's ranks found together."""

    #: sum of the batches' losses, nats
    loss: float
    #: data in the step
    data: int
    #: whether Ctrl-C or SIGTERM has reached any rank
    stop: bool


@dataclass(frozen=True)
class Group:
    """The processes that train together; of one process every method does nothing.

    :ivar rank: number of this process, from 0.
    :ivar size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def seed(self, seed: int) -> int:
        """The seed of this rank's noise; that of rank 0 is the seed itself."""
        return seed + SEED_STRIDE * self.rank

    def part(self, count: int) -> slice:
        """This rank's share of ``count`` things in a row: shares differ by one at most, the first are the larger."""
        base, extra = divmod(count, self.size)
        start = self.rank * base + min(self.rank, extra)
        return slice(start, start + base + (self.rank < extra))

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def first(self, fn: Callable[[], T]) -> T:
        """What rank 0 makes of a call that only it does; an error of it is raised on every rank.

        :raises Exception: whatever the call raised.
        """
        if self.size == 1:
            return fn()
        value: Any = None
        error: Exception | None = None
        if self.rank == 0:
            try:
                value = fn()
            except Exception as caught:
                error = caught
        value, error = self.broadcast((value, error))
        if error is not None:
            raise error
        return value

    def total(self, *values: float) -> list[float]:
        """Sums over ranks, the same to the bit on each."""
        if self.size == 1:
            return list(values)
        found = self.gather(values)
        return [sum(column) for column in zip(*found, strict=True)]

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank what rank 0 has in these tensors, in place."""
        if self.size > 1:
            for tensor in tensors:
                # As bytes, for not every backend sends every dtype.
                values = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                dist.broadcast(values, src=0)
                tensor.copy_(values.view(tensor.dtype).view_as(tensor))

    @torch.no_grad()
    def reduce(self, parameters: Sequence[Tensor], loss: Tensor | None, data: int, stop: bool) -> Reduced:
        """Replace each rank's gradient per datum by that of all ranks' data, in one exchange.

        A parameter without gradient on every rank keeps none, for an optimiser treats that otherwise than a zero.

        :param loss: sum of the losses of this rank's batches; ``None`` where it had no data.
        """
        device = parameters[0].device
        dtype = torch.float32  # counts and flags need more than half precision
        for p in parameters:
            dtype = torch.promote_types(dtype, p.dtype)
        has = [p.grad is not None for p in parameters]
        pieces = [
            (p.grad.to(dtype) * data if p.grad is not None else torch.zeros_like(p, dtype=dtype)).flatten()
            for p in parameters
        ]
        numbers = torch.tensor([float(data), float(stop), *map(float, has)], dtype=dtype, device=device)
        value = torch.zeros(1, dtype=dtype, device=device) if loss is None else loss.to(device, dtype).reshape(1)
        flat = torch.cat([*pieces, value, numbers])
        dist.all_reduce(flat)
        sizes = [p.numel() for p in parameters]
        *grads, tail = flat.split([*sizes, flat.numel() - sum(sizes)])
        total_loss, total, stops, *ranks_with_grad = tail.tolist()
        for p, grad, ranks in zip(parameters, grads, ranks_with_grad, strict=True):
            p.grad = (grad / total).view_as(p).to(p.dtype) if ranks else None
        return Reduced(total_loss, round(total), stops > 0)


ALONE = Group()


def started_rank() -> int:
    """The rank that this process was started as, before any group is joined; 0 for a process by itself."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


#: which process groups were made here; a reference would keep one, and its threads, from ending
_made: set[int] = set()
#: where the processes that were started for a fit meet for the next, this one's rank, and how many they are
_started: tuple[Any, int, int] | None = None
_meetings = 0


@contextmanager
def joined(devices: int | None, kind: str) -> Iterator[Group]:
    """The group of an argument ``devices`` inside: started here, or what ``torchrun`` started this process for.

    A process group that was made here serves later fits and the caller, who may destroy it.  What is left is destroyed
    when the process exits, for its threads may abort a process that exits with one; and at once after an error, so that
    the others need not wait for this one.  A group that the caller made is left alone.

    :param devices: processes on this machine; 1 is to train alone, ``None`` to join what there is.
    :param kind: ``"cpu"`` or ``"cuda"``, one device a process.
    :raises ValueError: for a number that is none, or not the number of processes that run.
    :raises ImportError: without the extra ``distributed``.
    """
    check_count("devices", devices, optional=True)
    if devices == 1 or not dist.is_available():
        yield ALONE
        return
    if not dist.is_initialized():
        if devices is None and _started is None and not _elastic():
            yield ALONE
            return
        _meet(kind, devices)
        _made.add(id(dist.group.WORLD))
        if len(_made) == 1:
            atexit.register(_leave)
    try:
        size = dist.get_world_size()
        if devices is not None and devices != size:
            raise ValueError(f"devices is {devices}, but {size} processes were started")
        yield Group(dist.get_rank(), size) if size > 1 else ALONE
    except BaseException:
        _leave()
        raise


def _leave() -> None:
    """Destroy the process group, if it was made here."""
    if dist.is_initialized() and id(dist.group.WORLD) in _made:
        dist.destroy_process_group()


def _meet(kind: str, devices: int | None) -> None:
    """Make a process group of the processes that were started, or start them.

    The first time Fabric does it.  Its meeting place cannot be used twice: ``torchrun``'s keeps the addresses of a
    group that is gone, and one of rank 0's own may be half closed.  So the processes agree on another one, which stays,
    and each later group has a corner of it.
    """
    global _started, _meetings
    _meetings += 1
    if _started is not None:
        store, rank, size = _started
        corner = dist.PrefixStore(f"fit-{_meetings}", store)
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", store=corner, rank=rank, world_size=size)
        return
    from pyro_dgm.interop.fabric import launch

    elastic = _elastic()
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if elastic else devices
    assert here is not None
    if kind == "cuda" and here > torch.cuda.device_count():
        raise ValueError(f"{here} processes need as many CUDA devices, there are {torch.cuda.device_count()}")
    launch(kind, here, int(os.environ["WORLD_SIZE"]) // here if elastic else 1)
    rank, address = dist.get_rank(), os.environ["MASTER_ADDR"]
    store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    place: list[Any] = [None if store is None else store.port]
    dist.broadcast_object_list(place, src=0)
    if store is None:
        store = dist.TCPStore(address, place[0], is_master=False, wait_for_workers=False)
    _started = store, rank, dist.get_world_size()


def _elastic() -> bool:
    """Whether ``torchrun`` has started this process, beside others."""
    return dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(group: Group, chosen: torch.device, asked: Any) -> torch.device:
    """The device of this rank.

    :raises ValueError: if a CUDA device was asked for by its number.
    """
    if group.size == 1 or chosen.type != "cuda":
        return chosen
    if asked != "auto" and torch.device(asked).index is not None:
        raise ValueError(f"device is {str(asked)!r}: on several devices each process takes its own, give 'cuda'")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
