"""A program with a batch, and how its particles are run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyro import poutine
from torch import Tensor, nn

from pyro_dgm.infer.objectives.evaluation.runners import OneByOne, Runner, UnderVmap, mini_batch
from pyro_dgm.programs.structure import Structure, guide_messenger

__all__ = ["Pair", "Strategy"]

Program = Callable[..., Any]


@dataclass
class Pair:
    """A model and a guide with a batch."""

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    structure: Structure

    def run(
        self,
        runner: Runner,
        given: poutine.Trace | None = None,
        change: Callable[[poutine.Trace], poutine.Trace] | None = None,
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Model and guide trace.

        :param given: values of sites that are not drawn, including indices of subsampled plates.
        :param change: applied to the guide's trace before the model is replayed with it.
        """
        messenger = guide_messenger(self.guide)
        if messenger is not None:
            return runner.run_both(self.guide, messenger, self.args, self.kwargs, given)
        guide_trace = runner.traced(self.guide, given, scores=True).get_trace(*self.args, **self.kwargs)
        replayed = guide_trace if change is None else change(guide_trace)
        if given is not None:  # plates of the model alone
            for name, site in mini_batch(given).nodes.items():
                if name not in replayed:
                    replayed = replayed.copy() if replayed is guide_trace else replayed
                    replayed.add_node(name, **site)
        model = runner.traced(self.model, replayed, enumerates=self.structure.model_enumerates)
        return model.get_trace(*self.args, **self.kwargs), guide_trace


@dataclass
class Strategy:
    """How K particles of a pair are run.

    :ivar kind: the class of the runner.
    :ivar reason: why no faster runner works; ``""`` for the fastest.
    :ivar dims: number of dimensions of each site's value, for one particle.
    :ivar batches: plates that draw a mini-batch.
    :ivar device: of the sites' values.
    :ivar state: buffers that a run writes, each as its module and its name there.
    """

    kind: type[Runner] = OneByOne
    reason: str = ""
    dims: dict[str, int] = field(default_factory=dict)
    batches: dict[str, Any] = field(default_factory=dict)
    device: Any = "cpu"
    state: list[tuple[weakref.ref[nn.Module], str]] = field(default_factory=list)

    def runner(self, num_particles: int, nesting: int, poison: bool = False) -> Runner:
        if self.kind is UnderVmap:
            return UnderVmap(num_particles, nesting, self.dims, self.batches, self.device, poison)
        return self.kind(num_particles, nesting)

    def buffers(self) -> list[Tensor]:
        """The buffers that a run writes (running statistics, for example)."""
        found = [(ref(), name) for ref, name in self.state]
        return [module._buffers[name] for module, name in found if module is not None]  # type: ignore[misc]
