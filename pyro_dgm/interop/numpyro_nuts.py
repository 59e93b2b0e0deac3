"""NumPyro's NUTS on a log-density that came from Pyro."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch

from pyro_dgm.infer.mcmc.bar import Bar
from pyro_dgm.infer.mcmc.diagnostics import warn_of_trouble
from pyro_dgm.infer.mcmc.keeping import constrain, totals_of
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.interop.jax_density import JaxDensity
from pyro_dgm.interop.jax_setup import require
from pyro_dgm.interop.jaxlower import Lowered
from pyro_dgm.ops.arguments import check_count, check_counts, check_number
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs.one_at_a_time import one_at_a_time
from pyro_dgm.programs.parameters import evaluation_mode

__all__ = ["METHOD", "run_nuts"]

METHOD = "nuts-numpyro"
#: transitions between two looks at the clock and at Ctrl-C
BLOCK = 100
MAX_TRIES = 100


@one_at_a_time
def run_nuts(
    density: JaxDensity,
    num_samples: int = 1000,
    warmup_steps: int | None = None,
    num_chains: int = 4,
    *,
    target_accept_prob: float = 0.8,
    max_tree_depth: int = 10,
    seed: int | None = None,
    progress: bool = True,
) -> Posterior:
    r"""Draw from a Pyro model's posterior by NumPyro's NUTS, all chains in one compiled loop.

    NumPyro's functional kernel (``numpyro.infer.hmc.hmc``) runs under ``jax.vmap`` over chains, each with a step size
    and a diagonal mass of its own.  Weights and data are arguments of the compiled loop: another model with the same
    operations on the same shapes, or the same with other data, number of draws or seed, is not compiled again.

    Statistics have the names and meanings that :class:`~pyro_dgm.infer.mcmc.MCMC` gives them.  Ctrl-C keeps the draws
    of the blocks of 100 that are done.

    :param density: what :func:`~pyro_dgm.interop.numpyro.to_jax` gave.
    :param num_samples: draws a chain after the warm-up.
    :param warmup_steps: transitions of adaptation, not kept; ``num_samples`` by default.
    :param num_chains: number of chains.
    :param target_accept_prob: what the step size is adapted to.
    :param max_tree_depth: a transition takes at most ``2 ** max_tree_depth - 1`` leapfrog steps.
    :param seed: seed of all randomness; drawn from torch's global generator without one.
    :param progress: show a progress bar on a terminal, once a run has lasted two seconds.
    :returns: draws ``(num_chains, num_samples, *site_shape)`` as tensors of the sites' dtypes.
    :raises ValueError: for numbers below 1, or if chains find no finite log-density to begin at.

    Source: M. D. Hoffman and A. Gelman (2014), arXiv:1111.4246; D. Phan, N. Pradhan and M. Jankowiak (2019),
    arXiv:1912.11554.
    """
    require("run_nuts")
    warmup_steps = num_samples if warmup_steps is None else warmup_steps
    check_counts(num_samples=num_samples, num_chains=num_chains, max_tree_depth=max_tree_depth)
    check_count("warmup_steps", warmup_steps, 0)
    check_number("target_accept_prob", target_accept_prob, within="(0, 1)")
    seed = int(torch.randint(2**31, ()).item()) if seed is None else int(seed)
    began = time.perf_counter()
    potential = density.potential
    with density.precision(), evaluation_mode(potential.model), Bar(progress) as bar:
        loop = _compiled(
            density.lowered, tuple(density.names), density.x64, warmup_steps, target_accept_prob, max_tree_depth
        )
        draws, stats = _run(density, loop, num_samples, warmup_steps, num_chains, seed, bar)
        samples, log_det = constrain(cast(Any, density), draws)  # of a kernel it reads .potential alone
    stats["lp"] = stats["lp"] - log_det
    warn_of_trouble(totals_of(stats))
    made = stats["lp"].shape[1]
    attrs = {
        "num_warmup": warmup_steps,
        "seconds": time.perf_counter() - began,
        "seed": seed,
        "chain_method": "vectorized",
        "temperature": 1.0,
        "interrupted": made < num_samples,
    }
    return Posterior(samples, stats, METHOD, potential.model, potential.args, potential.kwargs, attrs)


class _Loop(NamedTuple):
    """Compiled functions of one program; every tensor of the model is an argument."""

    values: Callable[..., Any]  # (positions, arrays) to log-densities and gradients, over chains
    start: Callable[..., Any]  # (positions, keys, arrays) to the chains' states
    block: Callable[..., Any]  # (states, arrays, count) to states, and what `count` transitions drew


@functools.lru_cache(maxsize=16)
def _compiled(
    lowered: Lowered, names: tuple[str, ...], x64: bool, warmup_steps: int, target_accept_prob: float, depth: int
) -> _Loop:
    import jax
    import jax.numpy as jnp
    from numpyro.infer.hmc import hmc

    def log_density(position: Any, arrays: Any) -> Any:
        return lowered(*(position[k] for k in names), *arrays)[0].astype(jnp.result_type(float))

    def potential_of(arrays: Any) -> Callable[[Any], Any]:
        return lambda position: -log_density(position, arrays)

    init_kernel, sample_kernel = hmc(potential_fn_gen=potential_of, algo="NUTS")

    def start(positions: Any, keys: Any, arrays: Any) -> Any:
        def one(position: Any, key: Any) -> Any:
            return init_kernel(
                position,
                warmup_steps,
                target_accept_prob=target_accept_prob,
                max_tree_depth=depth,
                model_args=(arrays,),
                rng_key=key,
            )

        return jax.vmap(one)(positions, keys)

    def block(states: Any, arrays: Any, count: Any) -> Any:
        def step(states: Any) -> Any:
            return jax.vmap(lambda s: sample_kernel(s, (arrays,), {}))(states)

        def keep(i: Any, carry: Any) -> Any:
            states, kept = carry
            states = step(states)
            return states, jax.tree.map(lambda into, x: into.at[i].set(x), kept, _row(states))

        empty = jax.tree.map(lambda x: jnp.zeros((BLOCK, *x.shape), x.dtype), _row(states))
        return jax.lax.fori_loop(0, count, keep, (states, empty))

    values = jax.vmap(jax.value_and_grad(log_density), in_axes=(0, None))
    return _Loop(jax.jit(values), jax.jit(start), jax.jit(block))


def _row(states: Any) -> dict[str, Any]:
    stats = {
        "lp": -states.potential_energy,
        "acceptance_rate": states.accept_prob,
        "diverging": states.diverging,
        "step_size": states.adapt_state.step_size,
        "n_steps": states.num_steps,
        "energy": states.energy,
    }
    return {"position": states.z, "stats": stats}


def _run(
    density: JaxDensity, loop: _Loop, num_samples: int, warmup_steps: int, num_chains: int, seed: int, bar: Bar
) -> tuple[Position, Position]:
    import jax
    import numpy as np

    arrays = list(density.arrays.values())
    with forked_rng(density.device, seed):
        positions = _initial(density, loop, arrays, num_chains)
    states = loop.start(positions, jax.random.split(jax.random.key(seed), num_chains), arrays)
    with bar.track(warmup_steps, "warm-up") as advance:
        for done, count in _blocks(warmup_steps):
            states, _ = loop.block(states, arrays, count)
            jax.block_until_ready(states)
            advance(done)
    rows: list[Any] = []
    try:
        with bar.track(num_samples, "drawing") as advance:
            for done, count in _blocks(num_samples):
                states, row = loop.block(states, arrays, count)
                rows.append(jax.tree.map(lambda x, count=count: np.asarray(x[:count]), row))
                advance(done)
    except KeyboardInterrupt:
        if not rows:
            raise
        made = sum(len(row["stats"]["lp"]) for row in rows)
        warnings.warn(f"interrupted: {made} of {num_samples} draws a chain are kept", RuntimeWarning, stacklevel=4)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts).swapaxes(0, 1), *rows)
    latents = density.potential.latents
    stats = {k: torch.from_numpy(np.array(v)) for k, v in joined["stats"].items()}
    device = next(iter(latents.values())).device
    dtype = next(iter(latents.values())).dtype
    return density.to_torch(joined["position"]), {
        k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in stats.items()
    }


def _blocks(total: int) -> Iterator[tuple[int, int]]:
    """How many are done after each block, and how many that block does."""
    for begun in range(0, total, BLOCK):
        count = min(BLOCK, total - begun)
        yield begun + count, count


def _initial(density: JaxDensity, loop: _Loop, arrays: list[Any], num_chains: int) -> dict[str, Any]:
    """As the density's strategy draws them, anew where the log-density or its gradient is not finite."""
    import jax.numpy as jnp
    import numpy as np

    dtype = np.float64 if density.x64 else np.float32

    def draw(attempt: int = -1) -> dict[str, Any]:
        return {k: v.cpu().numpy().astype(dtype) for k, v in density.draw(num_chains, attempt).items()}

    position = draw()
    for attempt in range(MAX_TRIES):
        value, grads = loop.values({k: jnp.asarray(v) for k, v in position.items()}, arrays)
        bad = ~np.isfinite(np.asarray(value))
        for g in grads.values():
            bad |= ~np.isfinite(np.asarray(g)).reshape(num_chains, -1).all(-1)
        if not bad.any():
            return {k: jnp.asarray(v) for k, v in position.items()}
        fresh = draw(attempt)
        position = {k: np.where(bad.reshape(-1, *(1,) * (v.ndim - 1)), fresh[k], v) for k, v in position.items()}
    where = density.to_torch({k: v[bad] for k, v in position.items()})
    raise ValueError(
        f"{int(bad.sum())} of {num_chains} chains found no finite log-density in {MAX_TRIES} initial draws: "
        f"{density.potential.explain(where)}"
    )
