"""Running a kernel on many chains, and keeping what it draws."""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_dgm.infer.mcmc.bar import Bar
from pyro_dgm.infer.mcmc.diagnostics import (
    Summary,
    convergence,
    convergence_of,
    summarize,
    summarize_moments,
    warn_of_trouble,
)
from pyro_dgm.infer.mcmc.kernels.base import Kernel
from pyro_dgm.infer.mcmc.moments import Moments
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.mcmc.run import ChainRun, RunSettings, run_chains
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.ops.arguments import check_choice, check_count, check_counts, check_seed
from pyro_dgm.programs.batch import checked_arguments
from pyro_dgm.programs.one_at_a_time import one_at_a_time
from pyro_dgm.programs.parameters import local_parameters

__all__ = ["MCMC"]


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
        check_counts(num_samples=num_samples, num_chains=num_chains, thinning=thinning)
        check_count("warmup_steps", warmup_steps, 0)
        check_count("chunk_size", 1 if chunk_size is None else chunk_size)
        check_seed(seed)
        check_choice("chain_method", chain_method, "vectorized", "sequential")
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
        self._settings = RunSettings(num_samples, warmup_steps, thinning, bool(keep_draws), bool(restart_diverged))
        self.kernel, self.num_samples, self.warmup_steps = kernel, num_samples, warmup_steps
        self.num_chains, self.chain_method, self.seed, self.progress = num_chains, chain_method, seed, progress
        self._posterior: Posterior | None = None
        self._moments: Moments | None = None
        self._totals: Position = {}

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
        with local_parameters(self.kernel.model), poutine.block(), Bar(self.progress) as bar:
            if self.chain_method == "vectorized":
                kernel = copy.copy(self.kernel)
                state = kernel.start(args, kwargs, seed, self.num_chains, initial_params, self.chunk_size)
                runs = [run_chains(self._settings, kernel, state, bar)]
            else:
                runs = self._run_in_turn(args, kwargs, seed, initial_params, bar)
        samples, stats = (_joined([getattr(run, part) for run in runs]) for part in ("samples", "stats"))
        self._moments = runs[0].moments
        self._totals = _joined([run.totals for run in runs])
        warn_of_trouble(self._totals)
        restarted = sorted(set().union(*(run.restarted for run in runs)))
        attrs = {
            "num_warmup": self.warmup_steps,
            "seconds": time.perf_counter() - began,
            "seed": seed,
            "chain_method": self.chain_method,
            "temperature": self.kernel.temperature,
            "interrupted": not runs[-1].complete or sum(run.num_chains for run in runs) < self.num_chains,
            "thinning": self.thinning,
            **({"restarted": restarted} if restarted else {}),
            **_lists([run.of_kernel for run in runs]),
        }
        self._posterior = Posterior(samples, stats, self.kernel.name, self.kernel.model, args, kwargs, attrs)

    def _run_in_turn(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int, params: Position | None, bar: Bar
    ) -> list[ChainRun]:
        """One chain after another, each with a seed of its own."""
        if params is not None and any(v.shape[:1] != (self.num_chains,) for v in params.values()):
            raise ValueError(f"initial_params must have num_chains = {self.num_chains} as leading size")
        seeds = torch.randint(2**62, (self.num_chains,), generator=torch.Generator().manual_seed(seed)).tolist()
        runs: list[ChainRun] = []
        kernel = copy.copy(self.kernel)
        for c, chain_seed in enumerate(seeds):
            start = None if params is None else {k: v[c : c + 1] for k, v in params.items()}
            try:
                state = kernel.start(args, kwargs, chain_seed, 1, start, self.chunk_size, bound=c > 0)
                run = run_chains(self._settings, kernel, state, bar, f" chain {c + 1} of {self.num_chains}")
            except KeyboardInterrupt:
                if not runs:
                    raise
                run = None
            if run is not None and (run.complete or not runs):
                runs.append(run)
            if run is None or not run.complete:
                # A chain cut short would make the others ragged: whole chains are kept, or the first one's draws.
                warnings.warn(
                    f"interrupted: {len(runs)} of {self.num_chains} chains are kept", RuntimeWarning, stacklevel=5
                )
                break
        return runs

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


def _joined(parts: list[Position]) -> Position:
    """Results of chains in turn, one after another."""
    return parts[0] if len(parts) == 1 else {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def _lists(runs: list[dict[str, Tensor]]) -> dict[str, Any]:
    """What a kernel says of a run, as plain numbers; of runs of single chains, a list for each."""
    found = [{k: v.tolist() for k, v in run.items()} for run in runs]
    return found[0] if len(found) == 1 else {k: [run[k] for run in found] for k in (found[0] if found else ())}
