"""One run of chains: the warm-up, then draws, as many as were asked for or until Ctrl-C."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from pyro_dgm.infer.mcmc.bar import Bar
from pyro_dgm.infer.mcmc.keeping import Draws, Sums, totals_of
from pyro_dgm.infer.mcmc.kernels.base import Kernel, KernelState
from pyro_dgm.infer.mcmc.moments import Moments
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.mcmc.recorded import Transitions, compile_large_gradient
from pyro_dgm.infer.mcmc.restarts import Restarts

__all__ = ["ChainRun", "RunSettings", "run_chains"]


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run; see :class:`pyro_dgm.infer.mcmc.MCMC`."""

    num_samples: int
    warmup_steps: int
    thinning: int
    keep_draws: bool
    restart_diverged: bool


@dataclass(frozen=True)
class ChainRun:
    """What a run of some chains gave.

    :ivar samples: constrained draws, where they were kept.
    :ivar stats: sample statistics of each draw.
    :ivar totals: sums of these over draws; see :func:`totals_of`.
    :ivar moments: of the draws, where they were not kept.
    :ivar complete: whether it was not interrupted.
    :ivar restarted: chains that were put elsewhere in the warm-up.
    :ivar of_kernel: what the kernel says of the run.
    """

    samples: Position
    stats: Position
    totals: Position
    moments: Moments | None
    complete: bool
    restarted: set[int]
    of_kernel: Position

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return len(self.totals["draws"])


def run_chains(settings: RunSettings, kernel: Kernel, state: KernelState, bar: Bar, label: str = "") -> ChainRun:
    """Warm up and draw, from a state of a kernel that is bound to its data.

    :param state: of all chains, at the beginning.
    :param bar: to show progress.
    :param label: which chain it is, of chains in turn.
    """
    state, restarted = _warm_up(settings, kernel, state, bar, label)
    transitions = Transitions(kernel, kernel.compile)
    keep: Draws | Sums
    if settings.keep_draws:
        keep = Draws(state, settings.num_samples, settings.thinning)
    else:
        keep = Sums(kernel, settings.num_samples, settings.thinning)
    made = 0
    try:
        with bar.track(settings.num_samples, f"drawing{label}") as advance:
            while made < settings.num_samples:
                state, rows = transitions.run(state, settings.num_samples - made)
                keep.add(rows, made)
                made += rows.count
                advance(made)
    except KeyboardInterrupt:
        kept = made // settings.thinning
        if kept == 0:
            raise
        if not label:
            warnings.warn(
                f"interrupted: {kept} of {settings.num_samples // settings.thinning} draws a chain are kept",
                RuntimeWarning,
                stacklevel=5,
            )
    samples, stats = keep.results(kernel, made) if isinstance(keep, Draws) else ({}, {})
    return ChainRun(
        samples,
        stats,
        totals_of(stats) if isinstance(keep, Draws) else keep.totals_of(made),
        None if isinstance(keep, Draws) else keep.moments,
        made == settings.num_samples,
        restarted,
        kernel.statistics(state),
    )


def _warm_up(
    settings: RunSettings, kernel: Kernel, state: KernelState, bar: Bar, label: str
) -> tuple[KernelState, set[int]]:
    if settings.warmup_steps == 0:
        return state, set()
    state = kernel.start_warmup(state, settings.warmup_steps)
    restarts = Restarts(state, settings.warmup_steps)
    checked = False
    with bar.track(settings.warmup_steps, f"warm-up{label}") as advance:
        for i in range(settings.warmup_steps):
            if not checked and kernel.potential.can_be_recorded:
                checked = compile_large_gradient(kernel, state, settings.warmup_steps - i + settings.num_samples)
            state, info = kernel.step(state)
            state = kernel.adapt(state, info)
            if settings.restart_diverged and kernel.adjusted:
                moved = restarts.after(state, info)
                state = state if moved is None else kernel.restarted(moved)
            advance(i + 1)
    restarts.warn()
    return kernel.finish_warmup(state), restarts.moved
