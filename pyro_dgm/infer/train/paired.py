"""Several sources of data in one fit, each batch of one beside a batch of each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pyro_dgm.infer.train.batches import Batches, as_batches
from pyro_dgm.infer.train.distributed import ALONE, Group
from pyro_dgm.programs import Batch

__all__ = ["Paired", "batches_of"]


class Paired:
    """Sources of data of unequal length for one fit, as labelled and unlabelled data.

    Each step takes a batch of every source; the program gets them as positional arguments, in order.  An epoch is one
    pass over the source with the most batches; the others are begun again, in a new order, as often as it takes.  The
    loss is divided by the number of data of all sources in the step.  ``fit(batch_size=...)`` is one number for all
    sources or one for each.

    :param sources: at least two, each of a form that :func:`pyro_dgm.fit` takes as data.
    :raises TypeError: for fewer than two sources.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, pyro_dgm
        >>> from pyro_dgm.infer import Paired
        >>> class Program(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.loc = torch.nn.Parameter(torch.zeros(()))
        ...     def model(self, labelled, unlabelled):
        ...         x, y = labelled
        ...         x = torch.cat([x, unlabelled])
        ...         with pyro.plate("data", len(x)):
        ...             pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)
        ...     def guide(self, labelled, unlabelled):
        ...         pass
        >>> data = Paired((torch.randn(20), torch.ones(20)), torch.randn(90))
        >>> run = pyro_dgm.fit(Program(), data, epochs=2, batch_size=(5, 10), seed=0, progress=False)
        >>> run.steps
        18
    """

    def __init__(self, *sources: Any) -> None:
        if len(sources) < 2:
            raise TypeError(f"Paired needs two sources of data or more, got {len(sources)}")
        self.sources = sources


class PairedBatches:
    """The batches of :class:`Paired` sources, as tuples with one part for each source."""

    def __init__(self, sources: Sequence[Batches]) -> None:
        self.sources = list(sources)
        counts = [source.num_batches for source in self.sources]
        if None in counts:
            raise ValueError("Paired: a source does not say how many batches it has; give each a length")
        self.num_batches: int = max(c for c in counts if c is not None)
        self.longest = counts.index(self.num_batches)
        self.length = self.sources[self.longest].length
        self.batch_size = [getattr(source, "batch_size", None) for source in self.sources]

    def first(self) -> Any:
        return tuple(source.first() for source in self.sources)

    def epoch(self) -> Iterator[Any]:
        others = [_without_end(s) for i, s in enumerate(self.sources) if i != self.longest]
        for batch in self.sources[self.longest].epoch():
            parts = [next(other) for other in others]
            parts.insert(self.longest, batch)
            yield tuple(parts)

    def batch(self, data: Any) -> Batch:
        if not (isinstance(data, tuple) and len(data) == len(self.sources)):
            raise TypeError(f"transform must give a tuple with a part for each of the {len(self.sources)} sources")
        return Batch(data, {}, sum(source.batch(part).size for source, part in zip(self.sources, data, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        return {"sources": [source.state_dict() for source in self.sources]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for source, saved in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(saved)


def _without_end(source: Batches) -> Iterator[Any]:
    while True:
        yield from source.epoch()


def batches_of(
    data: Any,
    batch_size: int | Sequence[int | None] | None,
    shuffle: bool,
    seed: int,
    device: torch.device,
    argument: str = "data",
    group: Group = ALONE,
) -> Batches:
    """Data of any form that :func:`pyro_dgm.fit` takes, as batches.

    :raises TypeError: for data of another form.
    :raises ValueError: for sizes that do not fit.
    """
    if not isinstance(data, Paired):
        if isinstance(batch_size, (tuple, list)):
            raise TypeError(f"batch_size must be an integer (several are for Paired data), got {batch_size!r}")
        return as_batches(data, batch_size, shuffle, seed, device, argument, group)  # type: ignore[arg-type]
    sizes = batch_size if isinstance(batch_size, (tuple, list)) else [batch_size] * len(data.sources)
    if len(sizes) != len(data.sources):
        raise ValueError(f"batch_size has {len(sizes)} numbers, {argument} has {len(data.sources)} sources")
    return PairedBatches(
        [
            # Orders of their own: sources of one length must not be permuted alike.
            as_batches(source, size, shuffle, (seed + i) % 2**63, device, f"{argument}.sources[{i}]", group)
            for i, (source, size) in enumerate(zip(data.sources, sizes, strict=True))
        ]
    )
