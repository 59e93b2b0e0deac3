"""Running a kernel on many chains, and keeping what it draws."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_dgm.infer.mcmc.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.diagnostics import Summary, convergence, summarize
from pyro_dgm.infer.mcmc.potential import Position
from pyro_dgm.infer.posterior import Posterior

__all__ = ["MCMC"]

#: elements of unconstrained latents that are brought to constrained space at once
CHUNK = 2**22


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
    :param num_samples: draws a chain after the warm-up.
    :param warmup_steps: transitions of adaptation, not kept; ``num_samples`` by default.
    :param num_chains: number of chains.
    :param chain_method: ``"vectorized"`` or ``"sequential"``.
    :param seed: seed of all randomness.
    :param progress: show a progress bar on a terminal, once a run has lasted two seconds.
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
    ) -> None:
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
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{argument} must be an integer of at least {least}, got {value!r}")
        if chain_method not in ("vectorized", "sequential"):
            raise ValueError(f"chain_method must be 'vectorized' or 'sequential', got {chain_method!r}")
        self.kernel, self.num_samples, self.warmup_steps = kernel, num_samples, warmup_steps
        self.num_chains, self.chain_method, self.seed, self.progress = num_chains, chain_method, seed, progress
        self._posterior: Posterior | None = None

    def run(self, *args: Any, initial_params: Position | None = None, **kwargs: Any) -> None:
        """Draw from the posterior given a batch of data.  Ctrl-C while drawing keeps the draws made so far.

        :param args: positional arguments of the model.
        :param initial_params: unconstrained values to begin at, each ``(num_chains, ...)``; needed with a
            ``potential_fn``.
        :param kwargs: keyword arguments of the model.
        :raises ValueError: for data, sites or initial values that the kernel cannot use; the message names them.
        """
        seed = int(torch.randint(2**62, ()).item()) if self.seed is None else int(self.seed)
        began = time.perf_counter()
        with poutine.block(), _Bar(self.progress) as bar:
            if self.chain_method == "vectorized":
                samples, stats, done = self._run_chains(args, kwargs, seed, self.num_chains, initial_params, bar)
            else:
                samples, stats, done = self._run_in_turn(args, kwargs, seed, initial_params, bar)
        _warn_of_trouble(stats)
        attrs = {
            "num_warmup": self.warmup_steps,
            "seconds": time.perf_counter() - began,
            "seed": seed,
            "chain_method": self.chain_method,
            "temperature": self.kernel.temperature,
            "interrupted": not done,
        }
        self._posterior = Posterior(samples, stats, self.kernel.name, self.kernel.model, args, kwargs, attrs)

    def _run_in_turn(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int, params: Position | None, bar: _Bar
    ) -> tuple[Position, Position, bool]:
        seeds = torch.randint(2**62, (self.num_chains,), generator=torch.Generator().manual_seed(seed)).tolist()
        runs: list[tuple[Position, Position]] = []
        done = True
        for c, chain_seed in enumerate(seeds):
            start = None if params is None else {k: v[c : c + 1] for k, v in params.items()}
            try:
                samples, stats, done = self._run_chains(args, kwargs, chain_seed, 1, start, bar, c)
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
        bar: _Bar,
        which: int | None = None,
    ) -> tuple[Position, Position, bool]:
        kernel = copy.copy(self.kernel)
        label = "" if which is None else f" chain {which + 1} of {self.num_chains}"
        if params is not None and which is not None and next(iter(params.values())).shape[0] != 1:
            raise ValueError(f"initial_params must have num_chains = {self.num_chains} as leading size")
        state = kernel.start(args, kwargs, seed, num_chains, params)
        if self.warmup_steps > 0:
            state = kernel.start_warmup(state, self.warmup_steps)
            for _ in bar.track(self.warmup_steps, f"warm-up{label}"):
                state, info = kernel.step(state)
                state = kernel.adapt(state, info)
            state = kernel.finish_warmup(state)
        draws = {k: v.new_empty((v.shape[0], self.num_samples, *v.shape[1:])) for k, v in state.position.items()}
        stats: Position = {}
        made = 0
        try:
            for i in bar.track(self.num_samples, f"drawing{label}"):
                state, info = kernel.step(state)
                _record(draws, stats, i, self.num_samples, state, info)
                made = i + 1
        except KeyboardInterrupt:
            if made == 0:
                raise
            if which is None:
                warnings.warn(
                    f"interrupted: {made} of {self.num_samples} draws a chain are kept", RuntimeWarning, stacklevel=3
                )
        draws = {k: v[:, :made] for k, v in draws.items()}
        stats = {k: v[:, :made] for k, v in stats.items()}
        samples, log_det = _constrain(kernel, draws)
        stats["lp"] = stats["lp"] - log_det
        return samples, stats, made == self.num_samples

    @property
    def posterior(self) -> Posterior:
        """Draws, statistics and data together: what :func:`pyro_dgm.to_arviz` takes.

        :raises RuntimeError: before :meth:`run`.
        """
        if self._posterior is None:
            raise RuntimeError("nothing has been drawn yet: call run() first")
        return self._posterior

    def get_samples(self, group_by_chain: bool = False) -> Position:
        """Constrained draws: ``(chains, draws, ...)`` by chain, else ``(chains * draws, ...)``, as Pyro's."""
        return dict(self.posterior.samples) if group_by_chain else self.posterior.flat()

    def diagnostics(self) -> dict[str, Any]:
        """Split R-hat, bulk and tail ESS of every latent (ArviZ's), divergent draws and acceptance of every chain."""
        return convergence(self.posterior)

    def summary(self) -> Summary:
        """Mean, standard deviation, 5 and 95 per cent quantiles, ESS and split R-hat of each latent's elements."""
        return summarize(self.posterior)


def _warn_of_trouble(stats: Position) -> None:
    """Say which chains diverged or stood still: their draws are kept, and would pass unnoticed."""
    stuck = (stats["acceptance_rate"].mean(1) < 0.01).nonzero().flatten().tolist()
    if stuck:
        warnings.warn(
            f"chains {stuck} hardly moved (mean acceptance below 1 %): warm up longer, begin elsewhere "
            "(init_strategy='prior' or a function of Pyro's), or leave them out",
            RuntimeWarning,
            stacklevel=3,
        )
    diverging = stats["diverging"].sum(1)
    if bool((diverging > 0).any()):
        chains = diverging.nonzero().flatten().tolist()
        warnings.warn(
            f"{int(diverging.sum())} of {stats['diverging'].numel()} draws diverged, on {len(chains)} of "
            f"{len(diverging)} chains: raise target_accept_prob, or reparameterise the model",
            RuntimeWarning,
            stacklevel=3,
        )


def _record(draws: Position, stats: Position, i: int, num_samples: int, state: KernelState, info: Info) -> None:
    for k, v in state.position.items():
        draws[k][:, i] = v
    row = {
        "lp": -state.potential,
        "acceptance_rate": info.acceptance_rate,
        "diverging": info.diverging,
        "step_size": state.step_size.expand(state.num_chains),
        "n_steps": info.n_steps,
        "energy": info.energy,
    }
    for k, v in row.items():
        if k not in stats:
            stats[k] = v.new_empty((v.shape[0], num_samples))
        stats[k][:, i] = v


def _constrain(kernel: Kernel, draws: Position) -> tuple[Position, Tensor]:
    first = next(iter(draws.values()))
    shape = first.shape[:2]
    flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in draws.items()}
    width = sum(v[0].numel() for v in flat.values())
    size = max(1, CHUNK // max(1, width))
    parts = [
        kernel.potential.constrain({k: v[a : a + size] for k, v in flat.items()}) for a in range(0, shape.numel(), size)
    ]
    samples = {k: torch.cat([p[0][k] for p in parts]) for k in draws}
    log_det = torch.cat([p[1] for p in parts])
    return {k: v.reshape(*shape, *v.shape[1:]) for k, v in samples.items()}, log_det.reshape(shape)


class _Bar:
    """A progress bar that comes up once a loop has lasted two seconds, on a terminal or in a notebook."""

    def __init__(self, wanted: bool) -> None:
        self.wanted, self.began = wanted, time.perf_counter()
        self.progress: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.progress is not None:
            self.progress.stop()

    def track(self, total: int, label: str) -> Iterator[int]:
        """Count to ``total``."""
        task = None
        for i in range(total):
            yield i
            if not self.wanted:
                continue
            if self.progress is None and time.perf_counter() - self.began > 2.0:
                self._show()
            if self.progress is not None:
                if task is None:
                    task = self.progress.add_task(label, total=total)
                self.progress.update(task, completed=i + 1)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not (console.is_terminal or console.is_jupyter):
            self.wanted = False
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self.progress.start()
