"""Running a kernel on many chains, and keeping what it draws."""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_dgm.infer.mcmc.adaptation import search_steps
from pyro_dgm.infer.mcmc.bar import Bar
from pyro_dgm.infer.mcmc.diagnostics import Summary, convergence, convergence_of, summarize, summarize_moments
from pyro_dgm.infer.mcmc.initial import far_behind
from pyro_dgm.infer.mcmc.keeping import Draws, Sums
from pyro_dgm.infer.mcmc.kernels.base import Kernel, KernelState
from pyro_dgm.infer.mcmc.moments import Moments
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.mcmc.recorded import Transitions, compile_large_gradient
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.ops.arguments import check_count, check_seed
from pyro_dgm.programs.batch import checked_arguments
from pyro_dgm.programs.one_at_a_time import one_at_a_time
from pyro_dgm.programs.parameters import local_parameters

__all__ = ["MCMC"]

#: transitions of the warm-up between two looks for chains that stand still
RESTART_EVERY = 20
#: looks in sequence at which a chain has stood still before it is put elsewhere: shorter stalls are the posterior's own
STILL_LOOKS = 5


class MCMC:
    r"""Run a kernel: warm up, draw, bring the draws to constrained space.

    ``chain_method="vectorized"`` advances all chains by one call of the kernel and pools their adaptation, which on one
    device costs little more than one chain; ``"sequential"`` runs and adapts chain after chain, for models too large to
    hold many times over.  Each gives the same distribution, not the same draws.

    Every random number comes from a :class:`torch.Generator` made from ``seed``: the same seed gives the same draws,
    and torch's global generators are left as they were.  Without one the seed is drawn from the global generator.
    Parameters of the model are constants; latents alone are differentiated.

    Sample statistics, ArviZ's names, each ``(chains, draws)``: ``lp``, the log-joint density
    :math:`\log p(x, z)` of the *constrained* draw (no Jacobian, temperature 1, so that it compares with a guide's
    ``log_p``; for a ``potential_fn``, :math:`-U`); ``acceptance_rate``; ``diverging`` (such draws are kept);
    ``step_size``; ``n_steps``; ``energy``, the Hamiltonian in unconstrained space, which :func:`arviz.bfmi` takes.

    :param kernel: a :class:`~pyro_dgm.infer.mcmc.Kernel`, with its model or potential.
    :param num_samples: transitions a chain after the warm-up.
    :param warmup_steps: transitions of adaptation, not kept; ``num_samples`` by default.
    :param num_chains: number of chains.
    :param chain_method: ``"vectorized"`` or ``"sequential"``.
    :param seed: seed of all randomness.
    :param progress: show a progress bar on a terminal, once a run has lasted two seconds.
    :param thinning: keep every ``thinning``-th draw, ``num_samples // thinning`` a chain (NumPyro's convention).
    :param keep_draws: whether to keep draws.  Without, memory does not grow with ``num_samples``, and means, variances,
        split R-hat and effective sample size of the constrained latents are in :attr:`moments`; what there is to say of
        transitions are sums over them, in :meth:`diagnostics`.
    :param chunk_size: most chains whose potential is evaluated at once, to bound memory; all of them by default, or as
        many as a processor's cache holds.
    :param restart_diverged: whether a chain that stands still for 100 transitions of the warm-up, or is so far from
        the others that it would never come to them, is put where another one is, with a warning; such a chain would
        spoil every estimate.  No chain is moved once draws are made.  ``False`` leaves it, for R-hat to see.
    :raises TypeError: if ``kernel`` is no :class:`~pyro_dgm.infer.mcmc.Kernel`.
    :raises ValueError: for numbers below 1 or an unknown ``chain_method``.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_dgm.infer.mcmc import HMC, MCMC
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x)
        >>> mcmc = MCMC(HMC(model), num_samples=100, warmup_steps=100, num_chains=4, seed=0, progress=False)
        >>> mcmc.run(torch.tensor([1.0, -2.0, 0.5]))
        >>> mcmc.get_samples()["scale"].shape
        torch.Size([400])
    """

    def __init__(
        self,
        kernel: Kernel,
        num_samples: int,
        warmup_steps: int | None = None,
        num_chains: int = 4,
        chain_method: str = "vectorized",
        seed: int | None = None,
        progress: bool = True,
        *,
        thinning: int = 1,
        keep_draws: bool = True,
        chunk_size: int | None = None,
        restart_diverged: bool = True,
    ) -> None:
        if isinstance(kernel, type):
            raise TypeError(f"kernel must be an instance, {kernel.__name__}(model), got the class itself")
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"kernel must be a pyro_dgm.infer.mcmc.Kernel such as HMC(model), got {type(kernel).__name__}; "
                "Pyro's own kernels run in pyro.infer.MCMC"
            )
        warmup_steps = num_samples if warmup_steps is None else warmup_steps
        for argument, value, least in (
            ("num_samples", num_samples, 1),
            ("warmup_steps", warmup_steps, 0),
            ("num_chains", num_chains, 1),
            ("thinning", thinning, 1),
            ("chunk_size", 1 if chunk_size is None else chunk_size, 1),
        ):
            check_count(argument, value, least)
        check_seed(seed)
        if chain_method not in ("vectorized", "sequential"):
            raise ValueError(f"chain_method must be 'vectorized' or 'sequential', got {chain_method!r}")
        if thinning > num_samples:
            raise ValueError(f"thinning must be at most num_samples = {num_samples}, got {thinning}")
        together = num_chains if chain_method == "vectorized" else 1
        if together < kernel.min_chains:
            raise ValueError(
                f"{type(kernel).__name__} learns from {kernel.min_chains} chains or more advanced together, got "
                f"num_chains={num_chains}, chain_method={chain_method!r}"
            )
        if chain_method == "sequential" and not keep_draws:
            raise ValueError("keep_draws=False needs chain_method='vectorized'")
        self.thinning, self.keep_draws, self.chunk_size = thinning, bool(keep_draws), chunk_size
        self.restart_diverged = bool(restart_diverged)
        self._moments: Moments | None = None
        self._totals: dict[str, Tensor] = {}
        self.kernel, self.num_samples, self.warmup_steps = kernel, num_samples, warmup_steps
        self.num_chains, self.chain_method, self.seed, self.progress = num_chains, chain_method, seed, progress
        self._posterior: Posterior | None = None

    @one_at_a_time
    def run(self, *args: Any, initial_params: Position | None = None, **kwargs: Any) -> None:
        """Draw from the posterior given a batch of data.  Ctrl-C while drawing keeps the draws made so far.

        :param args: positional arguments of the model.
        :param initial_params: unconstrained values to begin at, each ``(num_chains, ...)``; needed with a
            ``potential_fn``.
        :param kwargs: keyword arguments of the model.
        :raises ValueError: for data, sites or initial values that the kernel cannot use; the message names them.
        """
        seed = int(torch.randint(2**62, ()).item()) if self.seed is None else int(self.seed)
        if self.kernel.model is not None:
            args, kwargs = checked_arguments(self.kernel.model, args, kwargs, "args", gradients=True)
        began = time.perf_counter()
        self._restarted: list[int] = []
        self._of_kernel: list[dict[str, Tensor]] = []
        with local_parameters(self.kernel.model), poutine.block(), Bar(self.progress) as bar:
            if self.chain_method == "vectorized":
                samples, stats, done = self._run_chains(args, kwargs, seed, self.num_chains, initial_params, bar)
            else:
                samples, stats, done = self._run_in_turn(args, kwargs, seed, initial_params, bar)
        warn_of_trouble(stats if self.keep_draws else self._totals)
        attrs = {
            "num_warmup": self.warmup_steps,
            "seconds": time.perf_counter() - began,
            "seed": seed,
            "chain_method": self.chain_method,
            "temperature": self.kernel.temperature,
            "interrupted": not done,
            "thinning": self.thinning,
            **({"restarted": sorted(set(self._restarted))} if self._restarted else {}),
            **_lists(self._of_kernel),
        }
        self._posterior = Posterior(samples, stats, self.kernel.name, self.kernel.model, args, kwargs, attrs)

    def _run_in_turn(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int, params: Position | None, bar: Bar
    ) -> tuple[Position, Position, bool]:
        seeds = torch.randint(2**62, (self.num_chains,), generator=torch.Generator().manual_seed(seed)).tolist()
        runs: list[tuple[Position, Position]] = []
        done = True
        kernel = copy.copy(self.kernel)
        for c, chain_seed in enumerate(seeds):
            start = None if params is None else {k: v[c : c + 1] for k, v in params.items()}
            try:
                samples, stats, done = self._run_chains(args, kwargs, chain_seed, 1, start, bar, c, kernel)
            except KeyboardInterrupt:
                if not runs:
                    raise
                done = False
            if done or not runs:
                runs.append((samples, stats))
            if not done:
                # A chain cut short would make the others ragged: whole chains are kept, or the first one's draws.
                warnings.warn(
                    f"interrupted: {len(runs)} of {self.num_chains} chains are kept", RuntimeWarning, stacklevel=3
                )
                break
        first = runs[0]
        merged = tuple({k: torch.cat([r[i][k] for r in runs]) for k in first[i]} for i in (0, 1))
        return merged[0], merged[1], done

    def _run_chains(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seed: int,
        num_chains: int,
        params: Position | None,
        bar: Bar,
        which: int | None = None,
        kernel: Kernel | None = None,
    ) -> tuple[Position, Position, bool]:
        kernel = copy.copy(self.kernel) if kernel is None else kernel
        label = "" if which is None else f" chain {which + 1} of {self.num_chains}"
        if params is not None and which is not None and next(iter(params.values())).shape[0] != 1:
            raise ValueError(f"initial_params must have num_chains = {self.num_chains} as leading size")
        state = kernel.start(args, kwargs, seed, num_chains, params, self.chunk_size, bound=bool(which))
        if self.warmup_steps > 0:
            state = self._warm_up(kernel, state, bar, label)
        transitions = Transitions(kernel, kernel.compile)
        keep: Draws | Sums = Draws(state, self.num_samples, self.thinning)
        if not self.keep_draws:
            keep = Sums(kernel, self.num_samples, self.thinning)
            self._moments = keep.moments
        made = 0
        try:
            with bar.track(self.num_samples, f"drawing{label}") as advance:
                while made < self.num_samples:
                    left = self.num_samples - made
                    state, rows = transitions.run(state, left)
                    keep.add(rows, made)
                    made += rows.count
                    advance(made)
        except KeyboardInterrupt:
            if made // self.thinning == 0:
                raise
            if which is None:
                warnings.warn(
                    f"interrupted: {made // self.thinning} of {self.num_samples // self.thinning} draws a chain are "
                    "kept",
                    RuntimeWarning,
                    stacklevel=3,
                )
        self._of_kernel.append(kernel.statistics(state))
        if isinstance(keep, Sums):
            self._totals = keep.totals_of(made)
            return {}, {}, made == self.num_samples
        samples, stats = keep.results(kernel, made)
        return samples, stats, made == self.num_samples

    def _warm_up(self, kernel: Kernel, state: KernelState, bar: Bar, label: str) -> KernelState:
        state = kernel.start_warmup(state, self.warmup_steps)
        moved, still = torch.zeros_like(state.potential), torch.zeros_like(state.potential, dtype=torch.int64)
        looked = False
        with bar.track(self.warmup_steps, f"warm-up{label}") as advance:
            for i in range(self.warmup_steps):
                if not looked and kernel.potential.can_be_recorded:
                    looked = compile_large_gradient(kernel, state, self.warmup_steps - i + self.num_samples)
                state, info = kernel.step(state)
                state = kernel.adapt(state, info)
                if self.restart_diverged and kernel.adjusted:
                    moved = moved + info.acceptance_rate
                    since = i + 1 - search_steps(self.warmup_steps)
                    if since % RESTART_EVERY == 0:
                        still = torch.where(moved < 0.01 * RESTART_EVERY, still + 1, 0)
                        if since >= 0:
                            state = self._restart(kernel, state, still >= STILL_LOOKS)
                        moved = torch.zeros_like(moved)
                advance(i + 1)
        state = kernel.finish_warmup(state)
        if self._restarted:
            chains = sorted(set(self._restarted))
            warnings.warn(
                f"chains {chains[:20]}{'...' * (len(chains) > 20)} stood still in the warm-up, or far from where the "
                "others were, and were put there: they do not begin independently",
                RuntimeWarning,
                stacklevel=5,
            )
        return state

    def _restart(self, kernel: Kernel, state: KernelState, stuck: Tensor) -> KernelState:
        stuck = stuck | far_behind(state.potential, state.position)
        chains, others = stuck.nonzero().flatten(), (~stuck).nonzero().flatten()
        if len(chains) == 0 or len(others) < len(chains):
            return state  # where most stand still the step size is at fault, not where they are
        pick = torch.randint(len(others), chains.shape, generator=state.generator, device=chains.device)
        source = torch.arange(len(stuck), device=chains.device)
        source[chains] = others[pick]
        self._restarted += chains.tolist()
        return kernel.restarted(state.chains(source))

    @property
    def posterior(self) -> Posterior:
        """Draws, statistics and data together: what :func:`pyro_dgm.to_arviz` takes.

        :raises RuntimeError: before :meth:`run`.
        """
        if self._posterior is None:
            raise RuntimeError("nothing has been drawn yet: call run() first")
        if not self.keep_draws:
            raise RuntimeError("draws were not kept (keep_draws=False): see moments, summary() and diagnostics()")
        return self._posterior

    @property
    def moments(self) -> Moments:
        """Means, variances, split R-hat and ESS of the constrained latents, of a run without draws.

        :raises RuntimeError: before :meth:`run`, or where draws were kept.
        """
        if self._moments is None:
            raise RuntimeError(
                "draws were kept: see posterior" if self._posterior else "nothing has been drawn yet: call run() first"
            )
        return self._moments

    def get_samples(self, group_by_chain: bool = False) -> Position:
        """Constrained draws: ``(chains, draws, ...)`` by chain, else ``(chains * draws, ...)``, as Pyro's."""
        return dict(self.posterior.samples) if group_by_chain else self.posterior.flat()

    def diagnostics(self) -> dict[str, Any]:
        """Split R-hat, bulk and tail ESS of every latent (ArviZ's), divergent draws and acceptance of every chain.

        Without draws: split R-hat and ESS (of the mean), the *number* of divergent draws, and acceptance.
        """
        return convergence(self.posterior) if self.keep_draws else convergence_of(self.moments, self._totals)

    def summary(self) -> Summary:
        """Mean, standard deviation, 5 and 95 per cent quantiles, ESS and split R-hat of each latent's elements.

        Without draws there are no quantiles.
        """
        return summarize(self.posterior) if self.keep_draws else summarize_moments(self.moments)


def warn_of_trouble(stats: Position) -> None:
    """Say which chains diverged or stood still: their draws are kept, and would pass unnoticed."""
    # Sums over draws, from a run that kept none; or the draws' own.
    summed = "draws" in stats
    acceptance = stats["acceptance_rate"] if summed else stats["acceptance_rate"].mean(1)
    diverging = stats["diverging"] if summed else stats["diverging"].sum(1)
    total = int(stats["draws"].sum()) if summed else stats["diverging"].numel()
    stuck = (acceptance < 0.01).nonzero().flatten().tolist()
    if stuck:
        warnings.warn(
            f"chains {stuck} hardly moved (mean acceptance below 1 %): warm up longer, begin elsewhere "
            "(init_strategy='prior' or a function of Pyro's), or leave them out",
            RuntimeWarning,
            stacklevel=3,
        )
    if bool((diverging > 0).any()):
        chains = diverging.nonzero().flatten().tolist()
        warnings.warn(
            f"{int(diverging.sum())} of {total} draws diverged, on {len(chains)} of "
            f"{len(diverging)} chains: raise target_accept_prob, or reparameterise the model",
            RuntimeWarning,
            stacklevel=3,
        )


def _lists(runs: list[dict[str, Tensor]]) -> dict[str, Any]:
    """What a kernel says of a run, as plain numbers; of runs of single chains, a list for each."""
    found = [{k: v.tolist() for k, v in run.items()} for run in runs]
    return found[0] if len(found) == 1 else {k: [run[k] for run in found] for k in (found[0] if found else ())}
