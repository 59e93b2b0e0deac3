"""A training step of the zoo's programs, those of the tests: ours, recorded and eager, beside Pyro's SVI.

    python benchmarks/bench_zoo.py                        # all programs, one particle and four
    python benchmarks/bench_zoo.py --only vae hmm_1 --rounds 5
    python benchmarks/bench_zoo.py --compile --write      # compiled by inductor: seconds a program

Contenders take steps in turn, round after round, in this process; a ratio is the median over rounds of the two times of
one round, with the quartiles over rounds beside it: above 1, Pyro takes longer.  Steps are whole: forward, backward and
Adam.  With four particles ours is the IWAE bound; Pyro's ``RenyiELBO(alpha=0)``, or ``TraceEnum_ELBO`` where sites are
summed out, runs its particles one after another, for few of these programs broadcast (``-``: it cannot take it).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import results_file
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pyro_dgm.infer import ELBO, IWAE, CapturedELBO
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.infer.objectives.evaluation.vectorization import strategy_for

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.infer.zoo import deep, hidden_markov, mixtures, regression, series  # noqa: F401  (they fill the zoo)
from tests.infer.zoo.case import CASES, Case, Made, fresh

Step = Callable[[], Any]
COLUMNS = ("program", "K", "particles run", "Pyro SVI ms", "Pyro beside ours eager", "Pyro beside ours recorded")
RATE = {"lr": 1e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], metavar="NAME")
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each contender in each round")
    parser.add_argument("--compile", action="store_true", help="compile the recorded graph by inductor")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results.md")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = [case for case in CASES if not args.only or case.name in args.only]
    rows = []
    for case in track(chosen, "programs", console=Console(stderr=True), transient=True):
        rows += [row(case, k, args) for k in args.particles]
    show(rows)
    if args.write:
        results_file.write_section("bench_zoo", markdown(rows, args.compile))


def row(case: Case, num_particles: int, args: argparse.Namespace) -> list[str]:
    """One line of the table."""
    times: dict[str, list[float]] = {"pyro": [], "eager": [], "recorded": []}
    with fresh(replace(case, local=False)) as made:  # Pyro's SVI trains what is in its store
        steps = contenders(case, made, num_particles, args.compile)
        counts = {name: repeats(step, args.seconds) for name, step in steps.items()}
        for _ in range(args.rounds):
            for name, step in steps.items():
                start = time.perf_counter()
                for _ in range(counts[name]):
                    step()
                times[name].append((time.perf_counter() - start) / counts[name] * 1e3)
        way = way_of(made, num_particles)
    milliseconds = f"{statistics.median(times['pyro']):.2f}" if times["pyro"] else "-"
    return [case.name, str(num_particles), way, milliseconds, *(ratio(times, ours) for ours in ("eager", "recorded"))]


def way_of(made: Made, num_particles: int) -> str:
    if num_particles == 1:
        return ""
    structure = IWAE(num_particles).structure(made.model, made.guide, made.args, made.kwargs)
    return strategy_for(Pair(made.model, made.guide, made.args, made.kwargs, structure), num_particles).kind.name


def contenders(case: Case, made: Made, num_particles: int, compiled: bool) -> dict[str, Step]:
    """A step of each; without those that cannot take the program."""
    plain = ELBO() if num_particles == 1 else IWAE(num_particles)
    nesting = plain.structure(made.model, made.guide, made.args, made.kwargs).nesting
    theirs: Any
    if case.enumerates:
        theirs = TraceEnum_ELBO(num_particles=num_particles, max_plate_nesting=nesting)
    elif num_particles > 1:
        theirs = RenyiELBO(alpha=0, num_particles=num_particles, max_plate_nesting=nesting)
    else:
        theirs = Trace_ELBO(max_plate_nesting=nesting)
    svi = SVI(made.model, made.guide, pyro.optim.Adam(RATE), theirs)
    found: dict[str, Step] = {"pyro": lambda: svi.step(*made.args)}
    try:
        found["pyro"]()
    except Exception:  # a program that this estimator of Pyro's cannot take: the cell is empty
        del found["pyro"]
    recorded = CapturedELBO(plain, backend="inductor" if compiled else "aten", say=lambda reason: None)
    for name, objective in (("eager", plain), ("recorded", recorded)):
        found[name] = ours(objective, made)
        found[name]()
    if not recorded.status(made.model, made.guide).startswith("captured"):
        del found["recorded"]
    return found


def ours(objective: Any, made: Made) -> Step:
    ours_svi = SVI(made.model, made.guide, pyro.optim.Adam(RATE), objective)
    return lambda: ours_svi.step(*made.args)


def repeats(step: Step, seconds: float) -> int:
    step()
    start = time.perf_counter()
    step()
    return max(1, min(500, int(seconds / (time.perf_counter() - start))))


def ratio(times: dict[str, list[float]], name: str) -> str:
    if not times["pyro"] or not times[name]:
        return "-"
    ratios = [a / b for a, b in zip(times["pyro"], times[name], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def show(rows: list[list[str]]) -> None:
    table = Table(*COLUMNS, title="A training step of the zoo's programs")
    for cells in rows:
        table.add_row(*cells)
    Console().print(table)


def markdown(rows: list[list[str]], compiled: bool) -> str:
    kind = "compiled by inductor" if compiled else "run as recorded, uncompiled"
    lines = [
        "### A training step of the zoo's programs\n",
        "Pyro's `SVI.step` in milliseconds, and how many times as long it takes as the same step with our objective, "
        f"eager and as one graph ({kind}), by the same `SVI`: median over rounds (quartiles). K = 1 is the ELBO "
        "(Pyro: `Trace_ELBO`), K > 1 the IWAE bound (Pyro: `RenyiELBO(alpha=0)`, particles one after another); where "
        "sites are summed out Pyro's is `TraceEnum_ELBO` of K particles.\n",
        "| " + " | ".join(COLUMNS) + " |",
        "| " + " | ".join("---" for _ in COLUMNS) + " |",
    ]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)])


if __name__ == "__main__":
    main()
