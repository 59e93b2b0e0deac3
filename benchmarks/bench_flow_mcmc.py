"""Samplers that learn a flow, on targets that plain ones fail on: Neal's funnel in 100 dimensions, two moons in 5.

    python benchmarks/bench_flow_mcmc.py --seeds 4 --write

Each sampler has its default settings, and runs once for each seed, which decides the initial positions too.

Funnel: effective draws of its first coordinate (ArviZ, bulk), divergent draws, and that coordinate's mean and standard
deviation (exactly 0 and 3), for ``HMC``, for ``NeuTra`` and for NumPyro's NUTS with as many draws in all.  Moons: the
weight of the right one from 4 000 draws, beside the exact one by quadrature, for ``FlowMC``, ``MALA`` and NUTS.
Columns give the lowest and the highest number over the seeds, divergent draws their sum.  NumPyro that is not installed
is "not measured".
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import arviz
import results_file
import torch
from torch import Tensor

from pyro_dgm.infer.mcmc import HMC, MALA, MCMC, FlowMC, Kernel, NeuTra

FUNNEL_DIM, MOONS_DIM = 100, 5
RIGHT = 0.7


def funnel(u: dict[str, Tensor]) -> Tensor:
    v, x = u["x"][..., 0], u["x"][..., 1:]
    return v.square() / 18 + 0.5 * x.square().sum(-1) * (-v).exp() + 0.5 * x.shape[-1] * v


def moons(u: dict[str, Tensor]) -> Tensor:
    x = u["x"]
    return 0.5 * ((x.norm(dim=-1) - 2.0) / 0.1).square() - sides(x[..., 0])


def sides(first: Tensor) -> Tensor:
    parts = [math.log(w) - 0.5 * ((first - place) / 0.6).square() for w, place in ((RIGHT, 3.0), (1 - RIGHT, -3.0))]
    return torch.logsumexp(torch.stack(parts, -1), -1)


def right_moon() -> float:
    """Probability of the right moon, by quadrature over radius and angle."""
    r = torch.linspace(1.0, 3.0, 1001, dtype=torch.float64, device="cpu")[:, None]
    angle = torch.linspace(0.0, math.pi, 4001, dtype=torch.float64, device="cpu")
    log_density = -0.5 * ((r - 2.0) / 0.1).square() + sides(r * angle.cos())
    mass = log_density.exp() * r ** (MOONS_DIM - 1) * angle.sin() ** (MOONS_DIM - 2)
    return float(mass[:, angle < math.pi / 2].sum() / mass.sum())


Run = tuple[Tensor, int, float]


def ours(kernel: Kernel, start: Tensor, warmup: int, draws: int, seed: int) -> Run:
    """Draws of the first coordinate, ``(chains, draws)``, divergent draws and seconds."""
    began = time.perf_counter()
    mcmc = MCMC(kernel, draws, warmup, len(start), seed=seed, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the table has the divergences
        mcmc.run(initial_params={"x": start})
    x = mcmc.get_samples(group_by_chain=True)["x"][..., 0]
    return x, int(mcmc.posterior.sample_stats["diverging"].sum()), time.perf_counter() - began


def nuts(name: str, start: Tensor, warmup: int, draws: int, seed: int) -> Run:
    """The same of NumPyro's NUTS, on the same density written in JAX."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from numpyro.infer import MCMC as NumPyroMCMC
    from numpyro.infer import NUTS

    def funnel_jax(x: Any) -> Any:
        v, rest = x[0], x[1:]
        return v**2 / 18 + 0.5 * (rest**2).sum() * jnp.exp(-v) + 0.5 * len(rest) * v

    def moons_jax(x: Any) -> Any:
        parts = [jnp.log(w) - 0.5 * ((x[0] - place) / 0.6) ** 2 for w, place in ((RIGHT, 3.0), (1 - RIGHT, -3.0))]
        radius = jnp.sqrt((x**2).sum())
        return 0.5 * ((radius - 2.0) / 0.1) ** 2 - jax.nn.logsumexp(jnp.stack(parts))

    began = time.perf_counter()
    potential = {"funnel": funnel_jax, "moons": moons_jax}[name]
    mcmc = NumPyroMCMC(
        NUTS(potential_fn=potential),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=len(start),
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(seed), init_params=jnp.asarray(start.numpy()), extra_fields=("diverging",))
    x = torch.from_numpy(np.array(mcmc.get_samples(group_by_chain=True)[..., 0]))
    return x, int(mcmc.get_extra_fields()["diverging"].sum()), time.perf_counter() - began


def between(values: Sequence[float], form: str) -> str:
    """The lowest and the highest of some numbers, or the one number."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def measured(
    name: str, samplers: dict[str, Callable[[], Kernel]], starts: list[Tensor], warmup: int, draws: int
) -> Iterator[tuple[str, list[Run]]]:
    """Each sampler with its runs, one for each seed."""
    for label, make in samplers.items():
        runs = []
        for seed, start in enumerate(starts):
            runs.append(ours(make(), start, warmup, draws, seed))
            first, diverging, seconds = runs[-1]
            ess = float(arviz.ess(first.numpy()))
            print(f"{label}, seed {seed}: {ess:.0f} effective, {diverging} divergent, {seconds:.0f} s", flush=True)
        yield f"`{label}`", runs
    if importlib.util.find_spec("numpyro"):
        yield "NumPyro `NUTS`", [nuts(name, start, warmup, draws, seed) for seed, start in enumerate(starts)]


def funnel_rows(seeds: int) -> list[str]:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(seeds)]
    starts = [torch.randn(32, FUNNEL_DIM, generator=generator, device="cpu") for generator in generators]
    samplers = {"HMC": lambda: HMC(potential_fn=funnel), "NeuTra": lambda: NeuTra(potential_fn=funnel)}
    title = f"funnel, 32 chains of 500 + 500, {seeds} seeds"
    rows = [f"| {title} | effective draws | divergent | R-hat | mean | sd | seconds |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    for label, runs in measured("funnel", samplers, starts, 500, 500):
        ess = between([float(arviz.ess(v.numpy())) for v, _, _ in runs], ",.0f")
        rhat = between([float(arviz.rhat(v.numpy())) for v, _, _ in runs], ".2f")
        mean = between([float(v.mean()) for v, _, _ in runs], ".2f")
        sd = between([float(v.std()) for v, _, _ in runs], ".2f")
        seconds = between([seconds for _, _, seconds in runs], ".0f")
        rows.append(f"| {label} | {ess} | {sum(n for _, n, _ in runs)} | {rhat} | {mean} | {sd} | {seconds} |")
        print(rows[-1], flush=True)
    return rows if "NumPyro" in rows[-1] else [*rows, "| NumPyro `NUTS` | not measured | | | | | |"]


def moons_rows(seeds: int) -> list[str]:
    starts = []
    for seed in range(seeds):
        x = torch.randn(40, MOONS_DIM, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        starts.append(2.0 * x / x.norm(dim=-1, keepdim=True))
    samplers = {"FlowMC": lambda: FlowMC(potential_fn=moons), "MALA": lambda: MALA(potential_fn=moons)}
    title = f"moons, 40 chains of 400 + 100, {seeds} seeds; exactly {right_moon():.3f}"
    rows = [f"| {title} | right moon | standard error | seconds |", "| --- | --- | --- | --- |"]
    for label, runs in measured("moons", samplers, starts, 400, 100):
        shares = [(first > 0).double().mean(1) for first, _, _ in runs]
        right = between([float(share.mean()) for share in shares], ".3f")
        errors = between([float(share.std()) / len(share) ** 0.5 for share in shares], ".3f")
        rows.append(f"| {label} | {right} | {errors} | {between([s for _, _, s in runs], '.0f')} |")
        print(rows[-1], flush=True)
    return rows if "NumPyro" in rows[-1] else [*rows, "| NumPyro `NUTS` | not measured | | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="write each table into benchmarks/results.md")
    parser.add_argument("--only", choices=["funnel", "moons"])
    parser.add_argument("--seeds", type=int, default=4, help="runs of each sampler")
    options = parser.parse_args()
    targets = {"funnel": funnel_rows, "moons": moons_rows}
    for name, rows in targets.items():
        if options.only not in (None, name):
            continue
        body = "\n".join(rows(options.seeds))
        print(body)
        if options.write:
            results_file.write_section(f"flow_mcmc_{name}", f"## Samplers that learn a flow: {name}\n\n{body}")


if __name__ == "__main__":
    main()
