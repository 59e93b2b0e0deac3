"""How K particles of a program are run: in a plate, under vmap, or one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from pyro_dgm.infer.objectives.evaluation.under_vmap import PLATE, run_under_vmap
from pyro_dgm.infer.objectives.evaluation.vmapped_distribution import Layout

__all__ = ["InPlate", "OneBatch", "OneByOne", "Runner", "UnderVmap", "mini_batch"]

Program = Callable[..., Any]
#: makes of a program and ``trace=`` a program whose sites take the trace's values, as ``poutine.replay``
Replay = Callable[..., Program]


class Runner:
    """Runs particles one after another: each run gives the trace of one.

    :param num_particles: K.
    :param nesting: deepest nesting of the program's plates.
    """

    name = "one after another"
    #: whether a run gives the trace of all particles
    vectorized = False

    def __init__(self, num_particles: int, nesting: int) -> None:
        self.num_particles, self.nesting = num_particles, nesting
        #: number of runs that all particles take together
        self.runs = 1 if self.vectorized else num_particles

    def run(
        self, fn: Program, args: tuple[Any, ...], kwargs: dict[str, Any], trace: poutine.Trace | None = None, **how: Any
    ) -> poutine.Trace:
        """The trace of a program on a batch; see :meth:`traced`."""
        return self.traced(fn, trace, **how).get_trace(*args, **kwargs)

    def traced(
        self,
        fn: Program,
        trace: poutine.Trace | None = None,
        *,
        enumerates: bool = False,
        scores: bool = False,
        replay: Replay = poutine.replay,
        dims: Mapping[str, int] | None = None,
    ) -> Any:
        """A program in handlers: ``traced(fn).get_trace(*args, **kwargs)`` runs it, as with ``poutine.trace``.

        :param trace: values to replay; sites that it does not have are drawn.
        :param enumerates: whether the program has sites that are marked for enumeration.
        :param scores: whether score functions of its sites are needed, as for a guide.
        :param replay: what gives the values to the program.
        :param dims: number of dimensions that each value has for one particle, if not that of the sites' own values.
        """
        if self.vectorized:
            # The plate goes inside the replay: a plate outside would not expand a site that is replayed.
            fn = self._plate()(fn)
        if enumerates:
            fn = poutine.enum(fn, first_available_dim=-1 - self.nesting - self.vectorized)
        return poutine.trace(fn if trace is None else replay(fn, trace=trace))

    def _plate(self) -> Any:
        """The plate of the particles, to the left of all others."""
        return pyro.plate(PLATE, self.num_particles, dim=-1 - self.nesting)

    def run_both(
        self,
        guide: Program,
        messenger: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        batch: poutine.Trace | None = None,
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Model and guide trace where the guide is a ``GuideMessenger``, which runs the model itself.

        :param batch: indices of subsampled plates.
        """
        nodes: dict[str, Any] = {} if batch is None else dict(batch.nodes)
        with OneBatch({name: (site["fn"], site["value"]) for name, site in nodes.items()}):
            (self._plate()(guide) if self.vectorized else guide)(*args, **kwargs)
        return messenger.get_traces()


class OneByOne(Runner):
    """See :class:`Runner`."""


class InPlate(Runner):
    """All particles at once, in a plate to the left of all others, for programs that broadcast."""

    name, vectorized = "in a plate", True


class UnderVmap(Runner):
    """All particles at once, under vmap, for programs whose operations all have a batching rule.

    :param dims: number of dimensions of each site's value.
    :param batches: plates that draw a mini-batch, by name; each is drawn once for all particles.
    :param device: of the sites' values.
    :param poison: see :func:`~pyro_dgm.infer.objectives.evaluation.under_vmap.run_under_vmap`.
    """

    name, vectorized = "under vmap", True

    def __init__(
        self,
        num_particles: int,
        nesting: int,
        dims: dict[str, int],
        batches: dict[str, Any],
        device: Any,
        poison: bool = False,
    ) -> None:
        super().__init__(num_particles, nesting)
        self.layout = Layout(num_particles, nesting, device)
        self.dims, self.batches, self.poison = dims, batches, poison

    def traced(
        self,
        fn: Program,
        trace: poutine.Trace | None = None,
        *,
        enumerates: bool = False,
        scores: bool = False,
        replay: Replay = poutine.replay,
        dims: Mapping[str, int] | None = None,
    ) -> Any:
        nodes: dict[str, Any] = {} if trace is None else dict(trace.nodes)
        nodes = {name: site for name, site in nodes.items() if site["type"] == "sample" and not site["is_observed"]}
        values = {}
        for name, site in nodes.items():
            width = site["value"].dim() if isinstance(site["fn"], _Subsample) else (dims or self.dims)[name]
            values[name] = self.layout.restore(site["value"], width)
        if enumerates:  # the dimension of the particles is left free
            fn = poutine.enum(fn, first_available_dim=-2 - self.nesting)

        def get_trace(*args: Any, **kwargs: Any) -> poutine.Trace:
            indices = self._indices(nodes)

            def produce(given: dict[str, Any]) -> list[tuple[poutine.Trace, bool]]:
                replayed = poutine.Trace()
                for name, site in nodes.items():
                    replayed.add_node(name, **{**site, "value": given[name]})
                with OneBatch(indices):
                    return [(poutine.trace(replay(fn, trace=replayed)).get_trace(*args, **kwargs), scores)]

            return self._run(produce, values)[0]

        return SimpleNamespace(get_trace=get_trace)

    def run_both(
        self,
        guide: Program,
        messenger: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        batch: poutine.Trace | None = None,
    ) -> tuple[poutine.Trace, poutine.Trace]:
        indices = self._indices({})

        def produce(_: dict[str, Any]) -> list[tuple[poutine.Trace, bool]]:
            with OneBatch(indices):
                guide(*args, **kwargs)
            model_trace, guide_trace = messenger.get_traces()
            return [(model_trace, False), (guide_trace, True)]

        model_trace, guide_trace = self._run(produce, {})
        return model_trace, guide_trace

    def _run(self, produce: Any, values: dict[str, Any]) -> list[poutine.Trace]:
        # Validation reads values, which vmap does not allow. The pair was validated with one particle when first seen.
        with pyro.validation_enabled(False):
            return run_under_vmap(produce, self.layout, values, self.poison)

    def _indices(self, known: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Mini-batches, drawn outside of vmap: all particles share one, since weights are compared datum by datum."""
        return {name: (fn, fn.sample()) for name, fn in self.batches.items() if name not in known}


def mini_batch(*traces: poutine.Trace) -> poutine.Trace:
    """The indices of the plates in these traces."""
    found = poutine.Trace()
    for trace in traces:
        nodes: dict[str, Any] = dict(trace.nodes)
        for name, site in nodes.items():
            if site["type"] == "sample" and isinstance(site["fn"], _Subsample) and name not in found:
                found.add_node(name, **site)
    return found


class OneBatch(Messenger):
    """Gives subsampled plates the same indices in every run: those it was given, or those that the first run drew."""

    def __init__(self, indices: dict[str, tuple[Any, Any]] | None = None) -> None:
        super().__init__()
        self.indices = dict(indices or {})

    def _pyro_sample(self, msg: Any) -> None:
        if not isinstance(msg["fn"], _Subsample) or msg["value"] is not None or msg["name"] not in self.indices:
            return
        fn, value = self.indices[msg["name"]]
        if (fn.size, fn.subsample_size) == (msg["fn"].size, msg["fn"].subsample_size):
            msg["value"], msg["done"] = value, True

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            self.indices[msg["name"]] = (msg["fn"], msg["value"])
