"""Samplers that learn a flow, on targets that plain ones fail on: Neal's funnel in 100 dimensions, two moons in 5.

    python benchmarks/bench_flow_mcmc.py --write

Funnel: effective draws of its first coordinate (ArviZ, bulk), divergent draws, and that coordinate's mean and standard
deviation (exactly 0 and 3), for ``HMC``, for ``NeuTra`` and for NumPyro's NUTS with as many draws in all.  Moons: the
weight of the right one from 4 000 draws, beside the exact one by quadrature, for ``FlowMC``, ``MALA`` and NUTS.
NumPyro that is not installed is "not measured".
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
import warnings
from collections.abc import Callable
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


def ours(kernel: Kernel, start: Tensor, warmup: int, draws: int) -> tuple[Tensor, int, float]:
    """Draws of the first coordinate, ``(chains, draws)``, divergent draws and seconds."""
    began = time.perf_counter()
    mcmc = MCMC(kernel, draws, warmup, len(start), seed=0, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the table has the divergences
        mcmc.run(initial_params={"x": start})
    x = mcmc.get_samples(group_by_chain=True)["x"][..., 0]
    return x, int(mcmc.posterior.sample_stats["diverging"].sum()), time.perf_counter() - began


def nuts(name: str, start: Tensor, warmup: int, draws: int) -> tuple[Tensor, int, float]:
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
    mcmc.run(jax.random.PRNGKey(0), init_params=jnp.asarray(start.numpy()), extra_fields=("diverging",))
    x = torch.from_numpy(np.array(mcmc.get_samples(group_by_chain=True)[..., 0]))
    return x, int(mcmc.get_extra_fields()["diverging"].sum()), time.perf_counter() - began


def funnel_rows() -> list[str]:
    generator = torch.Generator("cpu").manual_seed(0)
    start = torch.randn(32, FUNNEL_DIM, generator=generator, device="cpu")

    runs: dict[str, Callable[[], tuple[Tensor, int, float]]] = {
        "`HMC`": lambda: ours(HMC(potential_fn=funnel), start, 500, 500),
        "`NeuTra`": lambda: ours(
            NeuTra(potential_fn=funnel, train_steps=2000, target_accept_prob=0.9), start, 500, 500
        ),
    }
    if importlib.util.find_spec("numpyro"):
        runs["NumPyro `NUTS`"] = lambda: nuts("funnel", start, 500, 500)
    rows = ["| funnel, 32 chains of 500 + 500 | effective draws | divergent | R-hat | mean | sd | seconds |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name, run in runs.items():
        v, diverging, seconds = run()
        ess, rhat = float(arviz.ess(v.numpy())), float(arviz.rhat(v.numpy()))
        rows.append(
            f"| {name} | {ess:,.0f} | {diverging} | {rhat:.2f} | {v.mean():.2f} | {v.std():.2f} | {seconds:.0f} |"
        )
        print(rows[-1], flush=True)
    return rows if "NumPyro `NUTS`" in runs else [*rows, "| NumPyro `NUTS` | not measured | | | | | |"]


def moons_rows() -> list[str]:
    x = torch.randn(40, MOONS_DIM, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    start = 2.0 * x / x.norm(dim=-1, keepdim=True)
    runs: dict[str, Callable[[], tuple[Tensor, int, float]]] = {
        "`FlowMC`": lambda: ours(FlowMC(potential_fn=moons), start, 400, 100),
        "`MALA`": lambda: ours(MALA(potential_fn=moons), start, 400, 100),
    }
    if importlib.util.find_spec("numpyro"):
        runs["NumPyro `NUTS`"] = lambda: nuts("moons", start, 400, 100)
    rows = [f"| moons, 40 chains of 400 + 100; exactly {right_moon():.3f} | right moon | standard error | seconds |"]
    rows.append("| --- | --- | --- | --- |")
    for name, run in runs.items():
        first, _, seconds = run()
        share = (first > 0).double().mean(1)
        rows.append(f"| {name} | {share.mean():.3f} | {share.std() / len(share) ** 0.5:.3f} | {seconds:.0f} |")
        print(rows[-1], flush=True)
    return rows if "NumPyro `NUTS`" in runs else [*rows, "| NumPyro `NUTS` | not measured | | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="write the tables into benchmarks/results.md")
    parser.add_argument("--only", choices=["funnel", "moons"])
    options = parser.parse_args()
    tables = [rows() for name, rows in (("funnel", funnel_rows), ("moons", moons_rows)) if options.only in (None, name)]
    body = "\n\n".join("\n".join(rows) for rows in tables)
    print(body)
    if options.write:
        results_file.write_section("flow_mcmc", f"## Samplers that learn a flow\n\n{body}")


if __name__ == "__main__":
    main()
