"""The evaluation that all objectives share: guide and model are run once with K particles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pyro import poutine

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.infer.objectives.evaluation.runners import mini_batch
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.infer.objectives.evaluation.vectorization import ONE, has_other_strategy, strategy_for
from pyro_dgm.programs.module_state import State
from pyro_dgm.programs.parameters import local_parameters
from pyro_dgm.programs.structure import probe

__all__ = ["evaluate", "run_pairs"]


def run_pairs(
    pair: Pair,
    num_particles: int = 1,
    vectorize: bool = False,
    rewrite: Callable[[poutine.Trace, int], poutine.Trace] | None = None,
    before: Callable[[], None] | None = None,
) -> Particles:
    """Run guide and model with K particles, all at once if the program allows it (see :mod:`.vectorization`).

    :param rewrite: called with each guide trace and its index. The model is replayed against the trace that it returns.
        If the batch has to be run again in another way, the indices start again at 0; drop what was collected before.
    :param before: called before each run of the pair.
    """
    strategy = ONE if num_particles == 1 else strategy_for(pair, num_particles, vectorize=vectorize)
    structure = pair.structure
    runner = strategy.runner(num_particles, structure.nesting)
    state = State(strategy.buffers()) if runner.runs > 1 else None
    pairs: list[tuple[poutine.Trace, poutine.Trace]] = []
    batch: poutine.Trace | None = None
    try:
        with structure.gradients():
            for k in range(runner.runs):
                if k and state is not None:
                    state.again()
                if before is not None:
                    before()
                change = None if rewrite is None else lambda trace, k=k: rewrite(trace, k)
                pairs.append(pair.run(runner, batch, change))
                if batch is None and runner.runs > 1:
                    # All particles must see the same mini-batch: a weight compares particles of the same datum.
                    batch = mini_batch(*pairs[0])
        if state is not None:
            state.finish()
        particles = Particles(
            pairs, num_particles, runner.nesting, runner.vectorized, structure.model_enumerates, runner
        )
    except Exception:
        # The strategy was chosen for the first batch; a batch of other shapes may need another one.
        if not has_other_strategy(pair, num_particles, vectorize):
            raise
        return run_pairs(pair, num_particles, vectorize, rewrite, before)
    particles.sampled_kl = structure.sampled_kl
    particles.guides = [trace for _, trace in pairs]
    return particles


def evaluate(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    num_particles: int = 1,
    max_plate_nesting: float = float("inf"),
    vectorize: bool = True,
) -> Particles:
    """Run guide and model once with K particles and return their log-densities.

    Every objective starts from this, and so does an analysis of importance weights.

    :param num_particles: K.
    :param args: positional arguments (the batch) of model and guide.
    :param kwargs: keyword arguments of both.
    :param max_plate_nesting: deepest plate nesting; if infinite, the pair is run once to find it.
    :param vectorize: run all particles at once, in a plate or under vmap, if the program allows it; otherwise they run
        one after another.
    :returns: :class:`~.particles.Particles`, whose ``log_weights`` has shape ``(K, *plates)``, nats.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer.objectives.evaluation.evaluate import evaluate
        >>> m = pyro_dgm.models.LinearGaussian(3, 2)
        >>> evaluate(m.model, m.guide, (torch.zeros(7, 3),), num_particles=5).log_weights.shape
        torch.Size([5, 7])
    """
    kwargs = kwargs or {}
    with local_parameters(model, guide):
        structure = probe(model, guide, args, kwargs)
        if max_plate_nesting != float("inf"):
            structure = replace(structure, nesting=int(max_plate_nesting))
        return run_pairs(Pair(model, guide, args, kwargs, structure), num_particles, vectorize)
