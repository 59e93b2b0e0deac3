"""Flows beside those of zuko, nflows, normflows, Pyro and flowjax: density, sampling and a training step.

    python benchmarks/bench_flows.py --compile --write
    python benchmarks/bench_flows.py --only spline_coupling --dim 32 --rounds 5

Three layers, 64-64 hidden units, 8 bins, batch 256, for D = 2, 32, 256. Everybody takes turns in every round of one
process; a ratio is the median over rounds of the two times of one round, with the quartiles beside it. A training step
is forward, backward and Adam (fused, for those in PyTorch). With ``--compile`` the table has a second row of each, in
which PyTorch's contenders go through ``torch.compile``; flowjax is jitted in both. Peers that are not installed, or do
not have such a flow, are "-".
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import results_file
import torch
from torch import Tensor, nn

from pyro_dgm.models import FlowModel

LAYERS, HIDDEN, BINS, BOUND, BATCH = 3, (64, 64), 8, 5.0, 256
KINDS = ("affine_autoregressive", "spline_autoregressive", "spline_coupling")
DIMS, TASKS = (2, 32, 256), ("density", "sampling", "training")
Flow = tuple[Callable[[Tensor], Tensor], Callable[[int], Any], Any]


def ours(kind: str, dim: int) -> Flow:
    options = {} if kind.startswith("affine") else {"num_bins": BINS, "bound": BOUND}
    flow = FlowModel((dim,), kind, LAYERS, HIDDEN, options=options)
    return lambda x: flow.distribution().log_prob(x), lambda n: flow.distribution().sample((n,)), flow


def zuko(kind: str, dim: int) -> Flow | None:
    import zuko as z

    torch.distributions.Distribution.set_default_validate_args(True)  # zuko switches it off for everybody
    shared: dict[str, Any] = {"transforms": LAYERS, "hidden_features": HIDDEN}
    if kind == "affine_autoregressive":
        flow: Any = z.flows.MAF(dim, **shared)
    else:
        flow = z.flows.NSF(dim, bins=BINS, **shared, **({"passes": 2} if kind == "spline_coupling" else {}))
    return lambda x: flow().log_prob(x), lambda n: flow().sample((n,)), flow


def nflows(kind: str, dim: int) -> Flow | None:
    from nflows import distributions, flows, nn, transforms

    splines = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    made = {"features": dim, "hidden_features": HIDDEN[0], "num_blocks": len(HIDDEN) - 1, "use_residual_blocks": False}
    parts: list[Any] = []
    for i in range(LAYERS):
        if kind == "affine_autoregressive":
            parts.append(transforms.MaskedAffineAutoregressiveTransform(**made))
        elif kind == "spline_autoregressive":
            parts.append(transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(**made, **splines))
        else:
            mask = [(j < dim // 2) != bool(i % 2) for j in range(dim)]
            parts.append(
                transforms.PiecewiseRationalQuadraticCouplingTransform(
                    torch.tensor(mask), lambda a, b: nn.nets.ResidualNet(a, b, HIDDEN[0], num_blocks=1), **splines
                )
            )
        parts.append(transforms.ReversePermutation(dim))
    flow = flows.Flow(transforms.CompositeTransform(parts), distributions.StandardNormal([dim]))
    return flow.log_prob, flow.sample, flow


def normflows(kind: str, dim: int) -> Flow | None:
    import normflows as nf

    depth = {"num_blocks": 1, "num_hidden_channels": HIDDEN[0], "num_bins": BINS, "tail_bound": BOUND}
    if kind == "affine_autoregressive":
        parts = [
            nf.flows.Reverse(nf.flows.MaskedAffineAutoregressive(dim, HIDDEN[0], num_blocks=1)) for _ in range(LAYERS)
        ]
    elif kind == "spline_autoregressive":
        parts = [nf.flows.AutoregressiveRationalQuadraticSpline(dim, **depth) for _ in range(LAYERS)]
    else:
        parts = [nf.flows.CoupledRationalQuadraticSpline(dim, **depth, reverse_mask=bool(i % 2)) for i in range(LAYERS)]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(dim, trainable=False), parts)
    return flow.log_prob, lambda n: flow.sample(n)[0], flow


def pyros(kind: str, dim: int) -> Flow | None:
    from pyro.distributions import transforms

    if kind == "affine_autoregressive" and dim > min(HIDDEN):
        return None  # Pyro's network must not be narrower than the vectors
    if kind == "affine_autoregressive":
        parts: list[Any] = [transforms.affine_autoregressive(dim, list(HIDDEN)).inv for _ in range(LAYERS)]
    elif kind == "spline_coupling":
        parts = [
            transforms.spline_coupling(dim, hidden_dims=list(HIDDEN), count_bins=BINS, bound=BOUND)
            for _ in range(LAYERS)
        ]
    else:
        return None  # linear rational splines, with half the parameters: another flow
    modules = nn.ModuleList(p if isinstance(p, nn.Module) else p.inv for p in parts)
    zeros = torch.zeros(dim, device="cpu")

    def density() -> Any:
        for part in modules:
            part.clear_cache() if hasattr(part, "clear_cache") else None
        return dist.TransformedDistribution(dist.Normal(zeros, 1.0).to_event(1), parts)

    return lambda x: density().log_prob(x), lambda n: density().sample((n,)), modules


def flowjax(kind: str, dim: int) -> dict[str, Callable[[], Any]]:
    import equinox as eqx
    import flowjax.bijections as bijections
    import flowjax.distributions as distributions
    import flowjax.flows as flows
    import jax
    import jax.numpy as jnp
    import optax

    key = jax.random.key(0)
    base = distributions.StandardNormal((dim,))
    spline = None if kind.startswith("affine") else bijections.RationalQuadraticSpline(knots=BINS, interval=BOUND)
    make = flows.coupling_flow if kind == "spline_coupling" else flows.masked_autoregressive_flow
    flow = make(key, base_dist=base, transformer=spline, flow_layers=LAYERS, nn_width=HIDDEN[0], nn_depth=len(HIDDEN))
    x = jax.random.normal(key, (BATCH, dim))
    optimizer = optax.adam(1e-3)
    state = {"flow": flow, "opt": optimizer.init(eqx.filter(flow, eqx.is_inexact_array))}

    @eqx.filter_jit
    def log_prob(flow: Any, x: Any) -> Any:
        return flow.log_prob(x)

    @eqx.filter_jit
    def sample(flow: Any) -> Any:
        return flow.sample(key, (BATCH,))

    @eqx.filter_jit
    def step(flow: Any, opt: Any, x: Any) -> Any:
        grads = eqx.filter_grad(lambda f: -jnp.mean(f.log_prob(x)))(flow)
        updates, opt = optimizer.update(grads, opt)
        return eqx.apply_updates(flow, updates), opt

    def train() -> None:
        state["flow"], state["opt"] = step(state["flow"], state["opt"], x)
        jax.block_until_ready(jax.tree.leaves(eqx.filter(state["flow"], eqx.is_inexact_array)))

    return {
        "density": lambda: log_prob(flow, x).block_until_ready(),
        "sampling": lambda: sample(flow).block_until_ready(),
        "training": train,
    }


TORCH: dict[str, Callable[[str, int], Flow | None]] = {
    "ours": ours, "zuko": zuko, "nflows": nflows, "normflows": normflows, "pyro": pyros,
}  # fmt: skip


def tasks_of(flow: Flow, dim: int, compiled: bool) -> dict[str, Callable[[], Any]]:
    """The three things that are timed, as functions without arguments."""
    log_prob, sample, module = flow
    x = torch.randn(BATCH, dim, device="cpu")
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
    wrap: Callable[[Any], Any] = torch.compile if compiled else lambda fn: fn
    density, draw, loss = wrap(log_prob), wrap(sample), wrap(lambda x: -log_prob(x).mean())

    def without_gradient(fn: Callable[[Any], Any], argument: Any) -> Any:
        with torch.no_grad():
            return fn(argument)

    def train() -> None:
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return {
        "density": lambda: without_gradient(density, x),
        "sampling": lambda: without_gradient(draw, BATCH),
        "training": train,
    }


def race(contenders: dict[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds a call of each, one figure a round; a contender that raises an error is left out, and named."""
    counts = {}
    for name, call in contenders.items():
        try:
            call(), call()
            start = time.perf_counter()
            call()
        except Exception as error:
            if name == "ours":
                raise
            print(f"{name} failed: {type(error).__name__}: {str(error).splitlines()[:1]}", file=sys.stderr, flush=True)
            continue
        counts[name] = max(1, min(500, int(seconds / (time.perf_counter() - start))))
    times: dict[str, list[float]] = {name: [] for name in counts}
    gc.disable()
    for _ in range(rounds):
        for name, count in counts.items():
            start = time.perf_counter()
            for _ in range(count):
                contenders[name]()
            times[name].append(1e3 * (time.perf_counter() - start) / count)
    gc.enable()
    return times


def made(kind: str, dim: int, compiled: bool) -> dict[str, dict[str, Callable[[], Any]]]:
    """The tasks of everybody who is installed and has such a flow."""
    found = {}
    for name, build in TORCH.items():
        if name in ("zuko", "nflows", "normflows") and importlib.util.find_spec(name) is None:
            continue
        torch.manual_seed(0)
        flow = build(kind, dim)
        if flow is not None:
            found[name] = tasks_of(flow, dim, compiled)
    if importlib.util.find_spec("flowjax") is not None:
        found["flowjax"] = flowjax(kind, dim)
    return found


def cell(ours: list[float], peer: list[float]) -> str:
    """Median ratio over rounds, with its quartiles."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}"
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def row_of(kind: str, dim: int, task: str, compiled: bool, times: dict[str, list[float]], present: set[str]) -> str:
    peers = [name for name in TORCH if name in times and name != "ours"]
    fastest = min(peers, key=lambda name: statistics.median(times[name]), default=None)
    cells = [f"{fastest}: {cell(times['ours'], times[fastest])}" if fastest else "-"]
    for name in [*list(TORCH)[1:], "flowjax"]:
        cells.append(cell(times["ours"], times[name]) if name in times else "fails" if name in present else "-")
    how = "compiled" if compiled else "eager"
    return f"| {kind} | {dim} | {task} | {how} | {statistics.median(times['ours']):.2f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results.md")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--dim", type=int, choices=(2, 32, 256))
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each contender in each round")
    parser.add_argument("--compile", action="store_true", help="each row once more, compiled, in the same table")
    parser.add_argument("--slow", action="store_true", help="also what takes seconds a call: 256 passes of a network")
    options = parser.parse_args()
    names = ["fastest PyTorch peer", *list(TORCH)[1:], "flowjax"]
    rows = ["| flow | D | task | how | ours, ms | " + " | ".join(f"ours / {name}" for name in names) + " |"]
    rows.append("| --- | --- | --- | --- | --- |" + " --- |" * len(names))
    print("\n".join(rows), flush=True)
    for kind in KINDS if options.only is None else [options.only]:
        for dim in DIMS if options.dim is None else [options.dim]:
            for compiled in (False, True) if options.compile else (False,):
                contenders = made(kind, dim, compiled)
                for task in TASKS if options.task is None else [options.task]:
                    rounds = options.rounds
                    if task == "sampling" and "autoregressive" in kind and dim > 32:
                        if compiled or not options.slow:
                            continue  # one pass for each element, and as many copies of the network to compile
                        rounds = min(rounds, 3)
                    times = race({name: tasks[task] for name, tasks in contenders.items()}, rounds, options.seconds)
                    rows.append(row_of(kind, dim, task, compiled, times, set(contenders)))
                    print(rows[-1], flush=True)
                torch.compiler.reset()
    if options.write:
        body = (
            f"## Flows beside their peers\n\nBatch {BATCH}, {LAYERS} layers, hidden {HIDDEN[0]}, {HIDDEN[1]}. A ratio "
            "below 1 is faster than the peer; median over rounds, and quartiles. *Compiled* is `torch.compile` for all "
            "in PyTorch; flowjax is jitted in all rows. Drawing from an autoregressive flow takes one pass for each "
            "element.\n\n" + "\n".join(rows)
        )
        results_file.write_section("flows", body)


if __name__ == "__main__":
    main()
