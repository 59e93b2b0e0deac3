"""Chooses how K particles of a program are run, when the program is first seen with this K.

A program that was written for one particle may not allow for a particle dimension: ``x.t()`` of a latent, or an index
into one, is an error with it, or a wrong result without an error. So the runners are tried in turn, the fastest first,
and each is compared with runs of single particles at the same values.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode

from pyro_dgm.infer.objectives.evaluation.particle_check import difference
from pyro_dgm.infer.objectives.evaluation.runners import InPlate, OneByOne, Runner, UnderVmap
from pyro_dgm.infer.objectives.evaluation.strategy import Pair, Strategy
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs.drawn_plates import DrawnPlates
from pyro_dgm.programs.module_state import State, WithoutDropout, describe, modules_of
from pyro_dgm.programs.structure import sample_sites, weak

__all__ = ["ONE", "has_other_strategy", "strategy_for"]

logger = logging.getLogger("pyro_dgm")

#: number of pairs whose strategies are kept
MAX_ENTRIES = 32
#: how one particle is run, whatever the program
ONE = Strategy()


@dataclass
class _Entry:
    model: Callable[[], Any]
    guide: Callable[[], Any]
    modules: list[weakref.ref[nn.Module]]
    strategies: dict[Any, Strategy] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)

    def modes(self) -> tuple[bool, ...]:
        modules = [ref() for ref in self.modules]
        return tuple([m.training for m in modules if m is not None])


_entries: list[_Entry] = []


def strategy_for(pair: Pair, num_particles: int, *, vectorize: bool = True, again: bool = False) -> Strategy:
    """How K particles of a pair are run: looked up, or found by trying when the pair is first seen.

    :param vectorize: whether to run all particles at once if possible.
    :param again: choose anew, for a batch on which the strategy chosen before fails.
    """
    if num_particles == 1:
        return ONE
    entry = _entry(pair)
    structure = pair.structure
    if structure.written_for_dims and vectorize:
        return Strategy(InPlate)  # there are no runs of single particles to compare with
    key = (num_particles, structure.nesting, structure.under_vmap, vectorize, entry.modes())
    if again or key not in entry.strategies:
        kinds: list[type[Runner]] = ([InPlate, UnderVmap] if structure.under_vmap else [InPlate]) if vectorize else []
        entry.strategies[key] = _choose(pair, num_particles, kinds)
        if vectorize:
            _report(entry, entry.strategies[key], num_particles)
    return entry.strategies[key]


def has_other_strategy(pair: Pair, num_particles: int, vectorize: bool) -> bool:
    """Whether another strategy exists for this batch, on which the one chosen for the first batch has failed."""
    if num_particles == 1 or not vectorize or get_proxy_mode() is not None:
        return False
    old, new = (strategy_for(pair, num_particles, again=again) for again in (False, True))
    return (old.kind, old.dims, _sizes(old)) != (new.kind, new.dims, _sizes(new))


def _sizes(strategy: Strategy) -> dict[str, tuple[int, int]]:
    return {name: (fn.size, fn.subsample_size) for name, fn in strategy.batches.items()}


def _entry(pair: Pair) -> _Entry:
    global _entries
    for entry in _entries:
        if entry.model() == pair.model and entry.guide() == pair.guide:
            return entry
    modules = [weakref.ref(m) for m in modules_of(pair.model, pair.guide)]
    entry = _Entry(weak(pair.model), weak(pair.guide), modules)
    alive = [e for e in _entries if e.model() is not None and e.guide() is not None]
    _entries = [*alive[1 - MAX_ENTRIES :], entry]
    return entry


def _report(entry: _Entry, strategy: Strategy, num_particles: int) -> None:
    if strategy.kind is InPlate or strategy.kind.name in entry.reported:
        return
    entry.reported.add(strategy.kind.name)
    text = f"the program's {num_particles} particles are run {strategy.kind.name}: {strategy.reason}"
    if strategy.kind is UnderVmap:
        logger.info(text)
    else:
        warnings.warn(text, RuntimeWarning, stacklevel=6)


def _choose(pair: Pair, num_particles: int, kinds: list[type[Runner]]) -> Strategy:
    """Try the runners in turn; buffers and random state are as before afterwards."""
    slots = [(m, name) for m in modules_of(pair.model, pair.guide) for name, b in m._buffers.items() if b is not None]
    state = State([m._buffers[name] for m, name in slots])
    draws, dropout, reasons = DrawnPlates(), WithoutDropout(), []
    with (
        disable_proxy_modes_tracing(),
        poutine.block(),
        pyro.validation_enabled(False),
        warnings.catch_warnings(),
        forked_rng(),
        torch.set_grad_enabled(pair.structure.differentiates),
        dropout,
    ):
        warnings.simplefilter("ignore")
        try:
            with draws:
                single = pair.run(OneByOne(1, pair.structure.nesting))
            written = state.written()
            state.again()
            sites = {name: site for trace in reversed(single) for name, site in sample_sites(trace).items()}
            found = Strategy(
                dims={n: torch.as_tensor(s["value"]).dim() for n, s in sites.items()},
                batches=draws.drawn,
                device=next((s["value"].device for s in sites.values() if isinstance(s["value"], Tensor)), "cpu"),
                state=[(weakref.ref(slots[i][0]), slots[i][1]) for i in written],
            )
            for kind in kinds:
                found.kind = kind
                try:
                    reason = difference(pair, found, num_particles, single, dropout.seen, state, written)
                except Exception as error:  # a later runner may work, or raises the program's own error
                    reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"
                state.restore()
                if not reason:
                    break
                reasons.append(f"{kind.name}: {reason}")
            else:
                found.kind = OneByOne
        finally:
            state.restore()
    found.reason = "; ".join(reasons)
    if found.reason and written:
        names = [describe(slots[i], pair.model, pair.guide) for i in written]
        found.reason += f"; modules with state of their own: {', '.join(names)}"
    return found
