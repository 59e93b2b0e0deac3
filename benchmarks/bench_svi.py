"""A training step: captured programs beside Pyro, hand-written PyTorch (eager, compiled) and NumPyro.

    python benchmarks/bench_svi.py --write             # both tables, interleaved in this process
    python benchmarks/bench_svi.py --only small --rounds 5
    python benchmarks/bench_svi.py --only vae --device cuda --compile reduce-overhead --write

Every contender takes steps in turn, round after round, so that whatever else the machine does hits all alike; a ratio
is the median over rounds of the two times of one round, with the quartiles over rounds beside it.  Steps are whole:
forward, backward and Adam.  Peers that are not installed (NumPyro, in the extra ``bench``) have empty cells.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import results_file
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_dgm.infer import ELBO, IWAE, CapturedELBO
from pyro_dgm.infer.train.captured_step import CapturedSteps
from pyro_dgm.models import VAE

HAVE_NUMPYRO = importlib.util.find_spec("numpyro") is not None
Step = Callable[[], Any]


# Timing


def race(contenders: dict[str, Step], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds a step of each contender, one figure a round; all take their turn in every round."""
    steps = {}
    for name, step in contenders.items():
        with parameters_of(name):
            for _ in range(3):
                step()
            wait()
            start = time.perf_counter()
            step()
            wait()
            steps[name] = max(1, min(2000, int(seconds / (time.perf_counter() - start))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.disable()
    for _ in range(rounds):
        for name, step in contenders.items():
            with parameters_of(name):
                wait()
                start = time.perf_counter()
                for _ in range(steps[name]):
                    step()
                wait()
                times[name].append((time.perf_counter() - start) / steps[name] * 1e3)
    gc.enable()
    return times


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def parameters_of(contender: str) -> Any:
    """Pyro's SVI keeps a guide's parameters in the global store, where two guides of a name would meet; ours do not."""
    return pyro.settings.context(module_local_params=contender != "Pyro")


def ratio(times: dict[str, list[float]], other: str, ours: str = "captured") -> str:
    """How many times as long the other takes: median over rounds, quartiles in brackets."""
    if other not in times:
        return "-"
    ratios = [a / b for a, b in zip(times[other], times[ours], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def milliseconds(times: dict[str, list[float]], name: str) -> str:
    return f"{statistics.median(times[name]):.3f}" if name in times else "-"


# The VAE, 784-400-20


def handwritten(x: Tensor, net: nn.ModuleDict, num_particles: int) -> Tensor:
    """Loss of a batch, as one writes it without a library."""
    hidden = F.relu(net["encoder"](x))
    loc, log_scale = net["loc"](hidden), net["log_scale"](hidden)
    if num_particles == 1:
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        logits = net["out"](F.relu(net["decoder"](z)))
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        return reconstruction + kl
    noise = torch.randn(num_particles, *loc.shape, device=loc.device)
    z = loc + log_scale.exp() * noise
    logits = net["out"](F.relu(net["decoder"](z)))
    log_x = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    log_w = log_x + (-0.5 * z**2 + 0.5 * noise**2 + log_scale).sum(-1)
    return -(torch.logsumexp(log_w, 0) - math.log(num_particles)).sum()


def network() -> nn.ModuleDict:
    sizes = {"encoder": (784, 400), "loc": (400, 20), "log_scale": (400, 20), "decoder": (20, 400), "out": (400, 784)}
    return nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})


def vae_contenders(batch: int, num_particles: int, device: str, cuda_graphs: bool) -> dict[str, Step]:
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((batch, 784), 0.3)).to(device)
    contenders: dict[str, Step] = {}

    def ours(objective: Any) -> Step:
        vae = VAE((784,), 20, hidden=(400,)).to(device)
        module = objective(vae.model, vae.guide)
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            module(x).backward()
            optimizer.step()

        return step

    plain = ELBO() if num_particles == 1 else IWAE(num_particles)
    contenders["captured"] = ours(CapturedELBO(plain, cuda_graphs=cuda_graphs))
    contenders["ours eager"] = ours(plain)

    def by_hand(compiled: bool) -> Step:
        net = network().to(device)
        mode = "reduce-overhead" if cuda_graphs else None
        loss = torch.compile(handwritten, fullgraph=True, mode=mode) if compiled else handwritten
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=compiled or None)

        def step() -> None:
            optimizer.zero_grad()
            loss(x, net, num_particles).backward()
            optimizer.step()

        return step

    contenders["hand-written eager"] = by_hand(False)
    contenders["hand-written compiled"] = by_hand(True)
    contenders["Pyro"] = pyros_vae(x, num_particles)
    if HAVE_NUMPYRO and device == "cpu":
        contenders["NumPyro"] = numpyros_vae(x, num_particles)
    return contenders


def pyros_vae(x: Tensor, num_particles: int) -> Step:
    net = network().to(x.device)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 20), 1.0).to_event(1))
            logits = net["out"](F.relu(net["decoder"](z)))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        hidden = F.relu(net["encoder"](x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net["loc"](hidden), net["log_scale"](hidden).exp()).to_event(1))

    pyro.clear_param_store()
    loss = (
        pyro.infer.Trace_ELBO()
        if num_particles == 1
        else pyro.infer.RenyiELBO(alpha=0, num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    )
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-4}), loss)
    return lambda: svi.step(x)


def numpyros_vae(x: Tensor, num_particles: int) -> Step:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as ndist

    key = jax.random.PRNGKey(0)
    names = {"encoder": (784, 400), "loc": (400, 20), "log_scale": (400, 20), "decoder": (20, 400), "out": (400, 784)}
    shapes = {n: (jax.random.normal(key, s) / s[0] ** 0.5, jnp.zeros(s[1])) for n, s in names.items()}

    def layer(name: str, h: Any) -> Any:
        w, b = numpyro.param(name, shapes[name])
        return h @ w + b

    def model(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", ndist.Normal(jnp.zeros((len(x), 20)), 1.0).to_event(1))
            logits = layer("out", jax.nn.relu(layer("decoder", z)))
            numpyro.sample("x", ndist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        hidden = jax.nn.relu(layer("encoder", x))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", ndist.Normal(layer("loc", hidden), jnp.exp(layer("log_scale", hidden))).to_event(1))

    loss = (
        numpyro.infer.Trace_ELBO()
        if num_particles == 1
        else numpyro.infer.RenyiELBO(alpha=0.0, num_particles=num_particles)
    )
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(1e-4), loss)
    data = jnp.asarray(x.numpy())
    holder = {"state": svi.init(key, data)}
    update = jax.jit(svi.update)

    def step() -> None:
        holder["state"], value = update(holder["state"], data)
        value.block_until_ready()

    return step


# Small programs


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(9), 1.0).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(x @ w, s), obs=y)


def schools(sigma: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def groups(group: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("groups", 200):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(theta[group], sigma), obs=y)


def small_programs() -> dict[str, tuple[Any, Any, tuple[Tensor, ...]]]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 9, generator=g)
    y = x @ torch.randn(9, generator=g) + 0.1 * torch.randn(100, generator=g)
    eight = (
        torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]),
        torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]),
    )
    group = torch.randint(200, (1000,), generator=g)
    many = (group, torch.randn(200, generator=g)[group] + 0.5 * torch.randn(1000, generator=g))
    return {
        "regression, AutoNormal": (regression, AutoNormal, (x, y)),
        "regression, AutoMultivariateNormal": (regression, AutoMultivariateNormal, (x, y)),
        "eight schools, AutoNormal": (schools, AutoNormal, eight),
        "200 groups, AutoNormal": (groups, AutoNormal, many),
    }


def small_contenders(model: Any, auto: Any, data: tuple[Tensor, ...], block: int) -> dict[str, Step]:
    contenders: dict[str, Step] = {}
    with pyro.settings.context(module_local_params=True):
        for kind in ("captured", "block"):
            guide = auto(model)
            guide(*data)
            objective = ELBO()
            optimizer = torch.optim.Adam(guide.parameters(), lr=1e-3)
            objective(model, guide)(*data).backward()
            optimizer.step()
            steps = CapturedSteps(objective, model, guide, list(guide.parameters()), optimizer, lambda n: 1.0)
            steps.prepare(data)
            if kind == "captured":
                steps.capture(data)
                contenders[kind] = lambda steps=steps: steps.step(data)
            else:
                order = torch.arange(len(data[0])).repeat(block, 1)
                steps.capture_block(data, order, lambda whole, i: whole)
                contenders[kind] = lambda steps=steps, order=order: steps.block(data, order)
    pyro.clear_param_store()
    svi = SVI(model, auto(model), pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    contenders["Pyro"] = lambda: svi.step(*data)
    if HAVE_NUMPYRO:
        contenders |= numpyros_small(model, auto, data, block)
    return contenders


def numpyros_small(model: Any, auto: Any, data: tuple[Tensor, ...], block: int) -> dict[str, Step]:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as ndist
    from numpyro.infer import autoguide

    def regression(x: Any, y: Any) -> None:
        w = numpyro.sample("w", ndist.Normal(jnp.zeros(9), 1.0).to_event(1))
        s = numpyro.sample("s", ndist.HalfNormal(1.0))
        with numpyro.plate("n", len(x)):
            numpyro.sample("y", ndist.Normal(x @ w, s), obs=y)

    def schools(sigma: Any, y: Any) -> None:
        mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", ndist.HalfCauchy(5.0))
        with numpyro.plate("schools", len(y)):
            theta = numpyro.sample("theta", ndist.Normal(mu, tau))
            numpyro.sample("y", ndist.Normal(theta, sigma), obs=y)

    def groups(group: Any, y: Any) -> None:
        mu = numpyro.sample("mu", ndist.Normal(0.0, 1.0))
        tau = numpyro.sample("tau", ndist.HalfNormal(1.0))
        sigma = numpyro.sample("sigma", ndist.HalfNormal(1.0))
        with numpyro.plate("groups", 200):
            theta = numpyro.sample("theta", ndist.Normal(mu, tau))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", ndist.Normal(theta[group], sigma), obs=y)

    theirs = {"regression": regression, "schools": schools, "groups": groups}[model.__name__]
    arrays = tuple(jnp.asarray(t.numpy()) for t in data)
    guide = getattr(autoguide, auto.__name__)(theirs)
    svi = numpyro.infer.SVI(theirs, guide, numpyro.optim.Adam(1e-3), numpyro.infer.Trace_ELBO())
    holder = {"state": svi.init(jax.random.PRNGKey(0), *arrays)}
    update = jax.jit(svi.update)

    def step() -> None:
        holder["state"], value = update(holder["state"], *arrays)
        value.block_until_ready()

    def body(state: Any, _: Any) -> Any:
        return svi.update(state, *arrays)

    # What svi.run does, without its progress bar: a scan of the update.
    many = jax.jit(lambda state: jax.lax.scan(body, state, None, length=100 * block))
    runner = {"state": svi.init(jax.random.PRNGKey(0), *arrays)}

    def run() -> None:
        runner["state"], values = many(runner["state"])
        values.block_until_ready()

    return {"NumPyro update": step, "NumPyro run": run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["vae", "small"])
    parser.add_argument("--batches", type=int, nargs="+", default=[20, 128, 512])
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 5, 50])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each contender in each round")
    parser.add_argument("--block", type=int, default=10, help="steps in a captured block")
    parser.add_argument("--device", default="cpu", help="of the VAE; the small programs are the CPU's")
    parser.add_argument(
        "--compile", choices=["default", "reduce-overhead"], default="default", help="CUDA graphs or not"
    )
    parser.add_argument("--write", action="store_true", help="write the tables into benchmarks/results.md")
    args = parser.parse_args()
    if args.only != "small":
        lines = [
            "### A step of the 784-400-20 VAE" + ("" if args.device == "cpu" else f" on {args.device}") + "\n",
            "Milliseconds a step of the captured program (objective in the graph, fused Adam outside), and how many "
            "times as long the others take: median over rounds (quartiles). K = 1 is the ELBO, K > 1 the IWAE bound "
            "(Pyro: `RenyiELBO(alpha=0)`).\n",
            "| batch | K | captured ms | Pyro SVI | hand-written eager | hand-written `torch.compile` "
            "| NumPyro `update` | ours, not captured |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for batch in args.batches:
            for k in args.particles:
                torch._dynamo.reset()
                times = race(
                    vae_contenders(batch, k, args.device, args.compile != "default"), args.rounds, args.seconds
                )
                cells = [ratio(times, n) for n in ("Pyro", "hand-written eager", "hand-written compiled", "NumPyro")]
                row = f"| {batch} | {k} | {milliseconds(times, 'captured')} | {' | '.join(cells)} "
                lines.append(f"{row}| {ratio(times, 'ours eager')} |")
                print(lines[-1], flush=True)
        report(
            "bench_svi-vae" + ("" if args.device == "cpu" else f"-{args.device}-{args.compile}"),
            "\n".join(lines),
            args.write,
        )
    if args.only != "vae":
        lines = [
            "### A step of small programs\n",
            f"Microseconds a step, the optimiser in the graph; a block is {args.block} steps in one graph. How many "
            "times as long the others take beside the captured step, median over rounds (quartiles); NumPyro's `run` "
            f"(a `lax.scan` of {100 * args.block} updates) is beside the block.\n",
            "| program | captured us | block us | Pyro SVI | NumPyro `update` | NumPyro `run` us "
            "| `run` beside the block |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, (model, auto, data) in small_programs().items():
            times = race(small_contenders(model, auto, data, args.block), args.rounds, args.seconds)
            times["block"] = [t / args.block for t in times["block"]]
            times["NumPyro run"] = [t / (100 * args.block) for t in times.get("NumPyro run", [])]
            if not times["NumPyro run"]:
                del times["NumPyro run"]
            us = {n: f"{statistics.median(times[n]) * 1e3:.1f}" if n in times else "-" for n in times}
            lines.append(
                f"| {name} | {us['captured']} | {us['block']} | {ratio(times, 'Pyro')} "
                f"| {ratio(times, 'NumPyro update')} | {us.get('NumPyro run', '-')} "
                f"| {ratio(times, 'NumPyro run', 'block')} |"
            )
            print(lines[-1], flush=True)
        report("bench_svi-small", "\n".join(lines), args.write)


def report(name: str, table: str, write: bool) -> None:
    print(f"\n{table}\n")
    if write:
        results_file.write_section(name, table)


if __name__ == "__main__":
    main()
