"""Samplers: effective draws a second of ours, Pyro's NUTS, NumPyro's and BlackJAX's, on the same posteriors.

    pip install --target PEERS --no-deps blackjax jaxopt
    PYTHONPATH=PEERS python benchmarks/bench_mcmc.py --write

The smallest effective sample size over all latents (ArviZ's bulk), over the seconds of sampling alone, and over all
seconds: recording, compiling (nothing comes from a cache), warm-up and sampling.  All samplers are timed once compiled:
JAX's in a second call, ours in the second half of a run twice as long.  Contenders run one after another, round after
round, in this process; a figure is the median over rounds.  Pyro's NUTS runs one chain at a time and is measured on
few.  Peers that are not installed have empty cells.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import results_file
import torch
from torch import Tensor

import pyro_dgm
from pyro_dgm.infer.mcmc import HMC, MCMC, ChEES, Kernel, driver
from pyro_dgm.infer.mcmc.recorded import Transitions

#: seconds of sampling, of all, and the draws ``(chains, draws, latents)``
Outcome = tuple[float, float, np.ndarray]


# Posteriors


def logistic() -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)

    def model(x: Tensor, y: Tensor) -> None:
        bias = pyro.sample("bias", dist.Normal(torch.tensor(0.0), 10.0))
        w = pyro.sample("w", dist.Normal(torch.zeros(30), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w + bias), obs=y)

    return model, (x, torch.tensor(y, dtype=torch.float32))


def schools() -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])

    def model(sigma: Tensor, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
        eta = pyro.sample("eta", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        with pyro.plate("schools", 8):
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    return model, (sigma, y)


@functools.cache
def digit() -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    data = pyro_dgm.datasets.digits(binarize="threshold")
    torch.manual_seed(0)
    vae = pyro_dgm.models.VAE((8, 8), 8, hidden=(128,))
    pyro_dgm.fit(vae, data.train, epochs=30, batch_size=64, seed=0, progress=False)
    return vae.eval().model, (data.test[:1],)


POSTERIORS = {"logistic regression": logistic, "eight schools": schools, "VAE, one digit": digit}


# Contenders


def stacked(samples: dict[str, Any]) -> np.ndarray:
    """Draws of all latents, ``(chains, draws, elements)``."""
    arrays = [np.asarray(v.detach() if isinstance(v, Tensor) else v) for v in samples.values()]
    return np.concatenate([a.reshape(*a.shape[:2], -1) for a in arrays], -1).astype(np.float64)


def ours(kernel: Kernel, data: Any, chains: int, warmup: int, draws: int, seed: int) -> Outcome:
    """A run of twice the draws: what is recorded and compiled is so in the first half, the second is timed alone."""
    marks: list[tuple[int, float]] = []

    class Timed(Transitions):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            state, rows = super().run(*args, **kwargs)
            marks.append((state.iteration, time.perf_counter()))
            return state, rows

    began = time.perf_counter()
    mcmc = MCMC(kernel, 2 * draws, warmup, chains, seed=seed, progress=False)
    driver.Transitions = Timed  # type: ignore[misc]
    try:
        mcmc.run(*data)
    finally:
        driver.Transitions = Transitions  # type: ignore[misc]
    last = marks[-1]
    half = min(marks, key=lambda mark: abs(last[0] - draws - mark[0]))
    alone = (last[1] - half[1]) * draws / (last[0] - half[0])
    return alone, half[1] - began, stacked(mcmc.get_samples(group_by_chain=True))[:, draws:]


def pyros(model: Any, data: Any, chains: int, warmup: int, draws: int, seed: int) -> Outcome:
    """One chain, whose effective draws a second are what any number of them have in turn."""
    pyro.set_rng_seed(seed)
    kernel = pyro.infer.NUTS(model, jit_compile=False)
    mcmc = pyro.infer.MCMC(kernel, draws, warmup, disable_progbar=True)
    marks: list[float] = []
    inner = kernel.end_warmup
    kernel.end_warmup = lambda: (marks.append(time.perf_counter()), inner())[1]
    began = time.perf_counter()
    mcmc.run(*data)
    end = time.perf_counter()
    return end - (marks[-1] if marks else began), end - began, stacked(mcmc.get_samples(group_by_chain=True))


def numpyros(density: Any, chains: int, warmup: int, draws: int, seed: int) -> Outcome:
    """NumPyro's own driver, vectorised, on the same density through the bridge."""
    import jax
    import numpyro

    arrays = density.arrays
    kernel = numpyro.infer.NUTS(potential_fn=lambda z: -density(z, arrays))
    mcmc = numpyro.infer.MCMC(
        kernel, num_warmup=warmup, num_samples=draws, num_chains=chains, chain_method="vectorized", progress_bar=False
    )
    g = torch.Generator().manual_seed(seed)
    init = {k: (4 * torch.rand((chains, *s), generator=g) - 2).numpy() for k, s in density.shapes.items()}
    init = {k: v if chains > 1 else v[0] for k, v in init.items()}
    began = time.perf_counter()
    mcmc.warmup(jax.random.PRNGKey(seed), init_params=init)
    jax.block_until_ready(mcmc.last_state)

    def sample() -> Any:
        mcmc.run(jax.random.PRNGKey(seed + 1))
        return jax.block_until_ready(mcmc.get_samples(group_by_chain=True))

    samples = sample()
    end = time.perf_counter()
    mcmc.post_warmup_state = mcmc.last_state
    sample()  # what it takes once compiled
    return time.perf_counter() - end, end - began, stacked(dict(samples))


def blackjaxs(density: Any, chains: int, warmup: int, draws: int, seed: int) -> Outcome:
    """NUTS with window adaptation of one chain, and all chains from where it ended."""
    import blackjax
    import jax

    arrays = density.arrays

    def log_density(z: Any) -> Any:
        return density(z, arrays)

    g = torch.Generator().manual_seed(seed)
    first = {k: (torch.rand(s, generator=g) - 0.5).numpy() for k, s in density.shapes.items()}
    began = time.perf_counter()
    adapt = blackjax.window_adaptation(blackjax.nuts, log_density)
    (state, parameters), _ = adapt.run(jax.random.PRNGKey(seed), first, num_steps=warmup)
    jax.block_until_ready(state)
    nuts = blackjax.nuts(log_density, **parameters)
    states = jax.vmap(nuts.init)(jax.tree.map(lambda x: jax.numpy.broadcast_to(x, (chains, *x.shape)), state.position))

    @jax.jit
    def sample(states: Any, key: Any) -> Any:
        def step(states: Any, key: Any) -> Any:
            states, _ = jax.vmap(nuts.step)(jax.random.split(key, chains), states)
            return states, states.position

        return jax.lax.scan(step, states, jax.random.split(key, draws))[1]

    positions = jax.block_until_ready(sample(states, jax.random.PRNGKey(seed + 1)))
    end = time.perf_counter()
    jax.block_until_ready(sample(states, jax.random.PRNGKey(seed + 2)))  # what it takes once compiled
    return time.perf_counter() - end, end - began, stacked({k: np.swapaxes(v, 0, 1) for k, v in positions.items()})


def least_ess(draws: np.ndarray) -> float:
    return min(float(arviz.ess(draws[..., j], method="bulk")) for j in range(draws.shape[-1]))


def contenders(model: Any, data: Any, args: argparse.Namespace) -> dict[str, Callable[[int, int], Outcome]]:
    found: dict[str, Callable[[int, int], Outcome]] = {
        name: lambda chains, seed, make=make: ours(  # type: ignore[misc]
            make(), data, chains, args.warmup_of(chains), args.draws_of(chains), seed
        )
        for name, make in (
            ("HMC", lambda: HMC(model)),
            ("HMC, compiled", lambda: HMC(model, compile=True)),
            ("ChEES", lambda: ChEES(model)),
            ("ChEES, compiled", lambda: ChEES(model, compile=True)),
        )
    }
    if importlib.util.find_spec("numpyro"):
        from pyro_dgm.interop.numpyro import to_jax

        density = to_jax(model, *data)
        found["NumPyro NUTS"] = lambda chains, seed: numpyros(
            density, chains, args.warmup_of(chains), args.draws_of(chains), seed
        )
        if importlib.util.find_spec("blackjax"):
            found["BlackJAX NUTS"] = lambda chains, seed: blackjaxs(
                density, chains, args.warmup_of(chains), args.draws_of(chains), seed
            )
    found["Pyro NUTS"] = lambda chains, seed: pyros(model, data, 1, args.pyro_draws, args.pyro_draws, seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(POSTERIORS), default=list(POSTERIORS))
    parser.add_argument("--chains", type=int, nargs="+", default=[4, 64, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--warmup-many", type=int, default=100, help="warm-up of more than 64 chains")
    parser.add_argument("--most", type=int, default=51_200, help="draws of all chains; fewer of each where many run")
    parser.add_argument("--pyro-draws", type=int, default=150, help="draws, and warm-up, of Pyro's one chain")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results.md")
    args = parser.parse_args()
    args.warmup_of = lambda chains: args.warmup if chains <= 64 else args.warmup_many
    args.draws_of = lambda chains: min(args.draws, args.most // chains)
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    lines = [
        "### Effective draws a second\n",
        "Smallest bulk ESS over all latents a second of sampling (in brackets: of all seconds, compilation and warm-up "
        f"among them). {args.warmup} transitions of warm-up, {args.warmup_many} of more than 64 chains (BlackJAX's "
        f"is of one chain, whose end all begin at); {args.draws} draws a chain and at most {args.most:,} in all; "
        f"median of {args.rounds} rounds. Pyro's NUTS is one chain of {args.pyro_draws} draws after as many.\n",
    ]
    names: list[str] = []
    rows = []
    for title in args.only:
        model, data = POSTERIORS[title]()
        racers = contenders(model, data, args)
        names = names or list(racers)
        single: str | None = None
        for chains in args.chains:
            rates: dict[str, list[tuple[float, float]]] = {name: [] for name in racers}
            for seed in range(args.rounds):
                for name, run in racers.items():
                    if name == "Pyro NUTS" and single is not None:
                        continue
                    sampling, whole, draws = run(chains, seed)
                    ess = least_ess(draws)
                    rates[name].append((ess / sampling, ess / whole))
            cells = []
            for name in names:
                if name == "Pyro NUTS" and single is not None:
                    cells.append(single)
                    continue
                a, b = (statistics.median(r[i] for r in rates[name]) for i in (0, 1))
                cells.append(f"{a:,.0f} ({b:,.0f})")
                if name == "Pyro NUTS":
                    single = cells[-1]
            rows.append(f"| {title} | {chains} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    lines += [f"| posterior | chains | {' | '.join(names)} |", "| --- | --- |" + " --- |" * len(names), *rows]
    table = "\n".join(lines)
    print(f"\n{table}\n")
    if args.write:
        results_file.write_section("bench_mcmc", table)


if __name__ == "__main__":
    main()
