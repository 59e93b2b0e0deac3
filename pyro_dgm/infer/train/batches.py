"""Batches of data for the training loop: tensors cut up in memory, or a ``DataLoader`` as it comes.

On several processes each takes its part of every batch, the order being the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyro_dgm.infer.train.distributed import ALONE, Group
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.programs import Batch
from pyro_dgm.programs.tensors import (
    as_batch,
    batch_length,
    constant_tensors,
    map_tensors,
    named_tensors,
    refuse_meta,
    take_rows,
)

__all__ = ["Batches", "LoaderBatches", "TensorBatches", "as_batches", "transformed"]

DEFAULT_BATCH_SIZE = 128


class Batches(Protocol):
    """What the training loop asks of data."""

    @property
    def length(self) -> int | None:
        """Number of data an epoch; ``None`` where a stream cannot say."""

    @property
    def num_batches(self) -> int | None:
        """Number of batches an epoch, likewise."""

    def first(self) -> Any:
        """A batch to try the program on, before training."""

    def epoch(self) -> Iterator[Any]:
        """The batches of one epoch, on the device; of several processes, this one's part of each."""

    def batch(self, data: Any) -> Batch:
        """What :meth:`epoch` gives, transformed or not, as the program gets it."""

    def state_dict(self) -> dict[str, Any]:
        """State of the generators that order the data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""


def transformed(data: Any, source: Batches, transform: Callable[[Any], Any]) -> Any:
    """A batch's data as a transform gives them; of several processes, one without data has nothing to transform."""
    return transform(data) if source.batch(data).size else data


@dataclass(frozen=True)
class Block:
    """Batches of several steps: the rows of each, ``(steps, batch size)``."""

    order: Tensor


class TensorBatches:
    """A tensor, or a tuple or mapping of tensors of one length, cut into batches in memory.

    The order is a permutation from this object's own generator, drawn on the CPU, so it is the same on any device.
    A batch of the whole data set is never permuted: a program with a latent for each datum may know it by position.

    :param data: the tensors.
    :param batch_size: data a batch; the last one may be smaller.
    :param shuffle: a new order each epoch.
    :param seed: seed of the order.
    :param device: where the batches go.
    :param argument: name of the argument in error messages.
    :param group: the processes that share each batch.
    """

    batch = staticmethod(as_batch)

    def __init__(
        self,
        data: Any,
        batch_size: int,
        shuffle: bool,
        seed: int,
        device: torch.device,
        argument: str = "data",
        group: Group = ALONE,
    ) -> None:
        if isinstance(data, Mapping) and not all(isinstance(k, str) for k in data):
            raise TypeError(
                f"{argument} as a mapping goes to the program as keyword arguments: its keys must be strings"
            )
        data = constant_tensors(data)
        tensors = list(named_tensors(data, argument))
        refuse_meta(tensors)
        if not tensors:
            raise ValueError(f"{argument} holds no tensor")
        for name, tensor in tensors:
            if tensor.layout != torch.strided:
                raise TypeError(
                    f"{name} has layout {tensor.layout}, and batches are cut from dense tensors: {name}.to_dense(), or "
                    "a DataLoader"
                )
            if tensor.dim() == 0:
                raise ValueError(
                    f"{name} is a scalar; every tensor of {argument} needs the data as its leading dimension"
                )
            if tensor.shape[0] != tensors[0][1].shape[0]:
                raise ValueError(f"{name} has {tensor.shape[0]} data, {tensors[0][0]} has {tensors[0][1].shape[0]}")
        self.length: int = tensors[0][1].shape[0]
        if self.length == 0:
            raise ValueError(f"{argument} is empty")
        self.batch_size = min(batch_size, self.length)
        self.num_batches: int = -(-self.length // self.batch_size)
        self.shuffle = shuffle and self.num_batches > 1
        self.device, self.group = device, group
        self.data = map_tensors(lambda t: t.to(device), data) if _fits(tensors, device) else data
        self.generator = torch.Generator().manual_seed(seed)

    def first(self) -> Any:
        return take_rows(self.data, slice(0, self.batch_size), self.device)

    def epoch(self) -> Iterator[Any]:
        order = torch.randperm(self.length, generator=self.generator, device="cpu") if self.shuffle else None
        if order is not None:
            order = order.to(next(named_tensors(self.data))[1].device)  # one transfer an epoch, not one a batch
        for i in range(self.num_batches):
            start, stop = i * self.batch_size, min((i + 1) * self.batch_size, self.length)
            part = self.group.part(stop - start)
            here = slice(start + part.start, start + part.stop)
            yield take_rows(self.data, here if order is None else order[here], self.device)

    def blocks(self, steps: int, first_alone: bool) -> Iterator[Any]:
        """An epoch in blocks of steps, each the rows of its batches, ``(steps, batch size)``; what is left, in batches.

        :param first_alone: begin with a batch by itself.
        """
        order = (
            torch.randperm(self.length, generator=self.generator, device="cpu")
            if self.shuffle
            else torch.arange(self.length, device="cpu")
        )
        order = order.to(next(named_tensors(self.data))[1].device)
        whole, start = self.length // self.batch_size, 0
        if first_alone or whole < steps:
            start = 1 if whole >= steps else self.num_batches
            for i in range(start):
                yield take_rows(self.data, order[i * self.batch_size : (i + 1) * self.batch_size], self.device)
        while start + steps <= whole:
            rows = order[start * self.batch_size : (start + steps) * self.batch_size]
            yield Block(rows.view(steps, self.batch_size))
            start += steps
        for i in range(start, self.num_batches):
            yield take_rows(self.data, order[i * self.batch_size : (i + 1) * self.batch_size], self.device)

    def state_dict(self) -> dict[str, Any]:
        return {"generators": [self.generator.get_state()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generators"][0])


class LoaderBatches:
    """The batches of a ``DataLoader``, moved to the device.

    Its order comes from its own generator or torch's global one, both of which a checkpoint keeps; with worker
    processes, random numbers drawn *in* a worker that outlives an epoch (``persistent_workers``) are its own affair.

    On several processes rank 0 draws the order and each loads its own items only.  A stream (``IterableDataset``) has
    no order to share: each process reads all of it, which must be the same for all, and keeps its part of each batch.

    :param group: the processes that share each batch.
    """

    batch = staticmethod(as_batch)

    def __init__(self, loader: DataLoader[Any], device: torch.device, group: Group = ALONE) -> None:
        self.loader, self.device, self.group = loader, device, group
        self.length, self.num_batches = _loader_length(loader)
        sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
        owners = (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
        found = [getattr(owner, "generator", None) for owner in owners]
        self.generators = list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    def first(self) -> Any:
        before = self.state_dict()
        try:
            for batch in self.loader:
                return self._move(batch)
        finally:
            self.load_state_dict(before)
        raise ValueError("the DataLoader gave no batch")

    def epoch(self) -> Iterator[Any]:
        if self.group.size > 1:
            yield from self._parts()
            return
        for batch in self.loader:
            yield self._move(batch)

    def _parts(self) -> Iterator[Any]:
        """This rank's part of each batch."""
        loader = self.loader
        if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            for batch in loader:
                yield self._move(_cut(batch, self.group.part(batch_length(batch))))
            return
        # The loader's own first draw, so that the order is that of a single process; then every rank's own workers.
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=loader.generator))
        order = self.group.broadcast([list(b) for b in loader.batch_sampler] if self.group.rank == 0 else [])
        mine = [indices[self.group.part(len(indices))] for indices in order]
        generator = torch.Generator().manual_seed(self.group.seed(seed) % 2**63)
        part = DataLoader(
            loader.dataset,
            batch_sampler=[indices for indices in mine if indices],
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=generator,
            prefetch_factor=loader.prefetch_factor,
        )
        batches = iter(part)
        empty = None
        for indices in mine:
            if indices:
                yield self._move(next(batches))
            else:  # a last batch of fewer data than ranks
                if empty is None:
                    empty = _cut(loader.collate_fn([loader.dataset[order[0][0]]]), slice(0, 0))
                yield self._move(empty)

    def _move(self, batch: Any) -> Any:
        return map_tensors(lambda t: t.to(self.device, non_blocking=True), batch)

    def state_dict(self) -> dict[str, Any]:
        return {"generators": [g.get_state() for g in self.generators]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved)


def as_batches(
    data: Any,
    batch_size: int | None,
    shuffle: bool,
    seed: int,
    device: torch.device,
    argument: str = "data",
    group: Group = ALONE,
) -> TensorBatches | LoaderBatches:
    """Data of any accepted form as batches.

    :raises TypeError: for data of another form.
    :raises ValueError: for sizes that do not fit, or a ``batch_size`` beside a ``DataLoader``.
    """
    if isinstance(data, DataLoader):
        if batch_size is not None:
            raise ValueError(
                f"{argument} is a DataLoader with batches of its own: leave out batch_size (got {batch_size})"
            )
        return LoaderBatches(data, device, group)
    size = check_count("batch_size", DEFAULT_BATCH_SIZE if batch_size is None else batch_size)
    if isinstance(data, TensorDataset):
        return TensorBatches(data.tensors, size, shuffle, seed, device, argument, group)
    if isinstance(data, IterableDataset):  # in its own order, whatever shuffle says
        return LoaderBatches(DataLoader(data, size, pin_memory=device.type == "cuda"), device, group)
    if isinstance(data, Dataset):
        generator = torch.Generator().manual_seed(seed)
        pin = device.type == "cuda"
        loader = DataLoader(data, size, shuffle=shuffle, generator=generator, pin_memory=pin)
        return LoaderBatches(loader, device, group)
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, (tuple, list)) else [data]
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"{argument} must be a tensor, a tuple or mapping of tensors, a Dataset or a DataLoader, got "
                f"{type(data).__name__}{'' if part is data else f' holding {type(part).__name__}'}"
                " (arrays: torch.as_tensor)"
            )
    return TensorBatches(data, size, shuffle, seed, device, argument, group)


def _cut(batch: Any, part: slice) -> Any:
    """The rows of a part; tensors of another length go with every part."""
    length = batch_length(batch)
    return map_tensors(lambda t: t[part] if t.dim() > 0 and t.shape[0] == length else t, batch)


def _fits(tensors: list[tuple[str, Tensor]], device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    # A quarter of what is free: the program's own memory comes on top, and a copy a batch is cheap beside a step.
    free, _ = torch.cuda.mem_get_info(device)
    wanted = sum(t.numel() * t.element_size() for _, t in tensors if t.device != device)
    return wanted <= free // 4


def _loader_length(loader: DataLoader[Any]) -> tuple[int | None, int | None]:
    try:
        return len(loader.dataset), len(loader)  # type: ignore[arg-type]
    except TypeError:  # an iterable data set need not know its length
        return None, None
