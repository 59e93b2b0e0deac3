"""Langevin steps a second: ours beside torchebm's sampler, on the same energies.

    pip install --target PEERS --no-deps torchebm==0.8.9
    PYTHONPATH=PEERS python benchmarks/bench_langevin.py --write

1 000 chains of 1 000 steps in 32 dimensions.  Contenders take their turns round after round in this process; a ratio is
the median over rounds of the two times of one round, with the quartiles over rounds beside it.  Both evaluate the same
energy function, draw their noise with torch, and give the last positions; ours also has the potential, the energy and
the divergence flag of every step.  *Transitions* are what :class:`pyro_dgm.infer.mcmc.MCMC` runs inside, made once and
used again; ``MCMC.run`` has everything in it.  A peer that is not installed is "not measured".
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

import results_file
import torch
from torch import Tensor, nn

from pyro_dgm.infer.mcmc import MCMC, Langevin
from pyro_dgm.infer.mcmc.recorded import Transitions

HAVE_PEER = importlib.util.find_spec("torchebm") is not None
#: torchebm's step, the Langevin time step; ours is the root of twice that
ETA = 0.01
Run = Callable[[], Any]


def energies(dimensions: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """From ``(chains, dimensions)`` to ``(chains,)``."""
    g = torch.Generator().manual_seed(0)
    root = torch.randn(dimensions, dimensions, generator=g) / dimensions**0.5
    precision = torch.linalg.inv(root @ root.T + 0.5 * torch.eye(dimensions))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(dimensions, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    net.requires_grad_(False)
    return {
        "Gaussian, independent": lambda x: 0.5 * x.square().sum(-1),
        "Gaussian, full covariance": lambda x: 0.5 * (x @ precision * x).sum(-1),
        "MLP 64-64, SiLU": lambda x: net(x).squeeze(-1) + 0.5 * x.square().sum(-1),
    }


def ours(energy: Callable[[Tensor], Tensor], start: Tensor, steps: int, compile: bool | str) -> Run:
    """Blocks of transitions, made once."""
    kernel = Langevin(potential_fn=lambda u: energy(u["x"]), step_size=math.sqrt(2 * ETA), compile=compile)
    holder = {"state": kernel.start((), {}, 0, len(start), {"x": start})}
    transitions = Transitions(kernel, compile)

    def run() -> None:
        left = steps
        while left:
            holder["state"], rows = transitions.run(holder["state"], left, 100 * steps)
            left -= rows.count

    return run


def whole(energy: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Run:
    """A run by the driver from its first line to its last."""

    def run() -> None:
        kernel = Langevin(potential_fn=lambda u: energy(u["x"]), step_size=math.sqrt(2 * ETA))
        mcmc = MCMC(kernel, steps, 0, len(start), seed=0, progress=False, thinning=steps)
        mcmc.run(initial_params={"x": start})

    return run


def torchebms(energy: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Run:
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def forward(self, x: Tensor) -> Tensor:
            return energy(x)

    sampler = LangevinDynamics(Model(), step_size=ETA, noise_scale=1.0)
    return lambda: sampler.sample(x=start, n_steps=steps)


def race(contenders: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds a run, one figure a round; the first, which warms up, apart as ``first NAME``."""
    times: dict[str, list[float]] = {}
    for name, run in contenders.items():
        began = time.perf_counter()
        run()
        times[f"first {name}"] = [time.perf_counter() - began]
    gc.disable()
    for _ in range(rounds):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            times.setdefault(name, []).append(time.perf_counter() - began)
    gc.enable()
    return times


def ratio(times: dict[str, list[float]], name: str, to: str) -> str:
    if name not in times or to not in times:
        return "not measured"
    ratios = [a / b for a, b in zip(times[name], times[to], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def seconds(times: dict[str, list[float]], name: str) -> str:
    return f"{statistics.median(times[name]):.3f}" if name in times else "not measured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--dimensions", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of torch, for all contenders")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results.md")
    args = parser.parse_args()
    # One thread: with two, a compiled loop waits ten times its own length for whatever else wants the second core.
    torch.set_num_threads(args.threads)
    lines = [
        f"### Langevin: {args.chains} chains x {args.steps} steps x {args.dimensions} dimensions\n",
        "Seconds a run of torchebm 0.8.9 and of our transitions, recorded and compiled, once they have been made; how "
        "many times as many steps a second ours take (median over rounds, quartiles). *Making* is the seconds that "
        "compiling takes; `MCMC.run` is one run of the driver from its first line to its last, too short for it to "
        "compile anything.\n",
        "| energy | torchebm s | recorded s | compiled s | recorded: times torchebm | compiled: times torchebm "
        "| making, s | `MCMC.run` s | `MCMC.run`: times torchebm |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, energy in energies(args.dimensions).items():
        start = torch.randn(args.chains, args.dimensions, generator=torch.Generator().manual_seed(1))
        contenders: dict[str, Run] = {
            "recorded": ours(energy, start, args.steps, False),
            "compiled": ours(energy, start, args.steps, True),
            "whole": whole(energy, start, args.steps),
        }
        if HAVE_PEER:
            contenders["torchebm"] = torchebms(energy, start, args.steps)
        times = race(contenders, args.rounds)
        cells = [seconds(times, k) for k in ("torchebm", "recorded", "compiled")]
        cells += [ratio(times, "torchebm", k) for k in ("recorded", "compiled")]
        cells += [seconds(times, "first compiled"), seconds(times, "whole"), ratio(times, "torchebm", "whole")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(f"\n{table}\n")
    if args.write:
        results_file.write_section("bench_langevin", table)


if __name__ == "__main__":
    main()
