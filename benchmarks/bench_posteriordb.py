"""Which kernels suit which posterior: each with its own settings on posteriordb's, held against the reference draws.

    PYRO_DGM_DATA=... python benchmarks/bench_posteriordb.py --write

A cell is the largest distance of a mean or a standard deviation from the reference's, over all parameters, in Monte
Carlo standard errors of both; the effective draws a second of CPU time, compilation and warm-up among them; and, where
it fails (above 4 standard errors, R-hat above 1.02, or an error that it stops with), what it fails by.  What takes
longer than ``--limit`` CPU seconds is stopped.  Cells that are not asked for stay as they are written.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import results_file

import pyro_dgm
from pyro_dgm.infer.mcmc import KERNELS

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.posteriordb import INITIAL, POSTERIORS, by_parameter, data_of, reference

METHODS = ["hmc", "chees", "mala", "mclmc", "mclmc-adjusted", "parallel-tempering", "random-walk", "nuts-numpyro"]


def draw(name: str, method: str, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Draws by parameter, ``(chains, draws)``."""
    model, data = POSTERIORS[name], data_of(name)
    conditioned = functools.partial(model, data)
    chains, draws = (4, args.chains * args.draws // 4) if method == "nuts-numpyro" else (args.chains, args.draws)
    options = {
        "num_samples": draws, "warmup_steps": args.warmup, "num_chains": chains, "seed": args.seed, "progress": False
    }  # fmt: skip
    if method == "nuts-numpyro":
        from pyro_dgm.interop.numpyro import run_nuts, to_jax

        post = run_nuts(to_jax(conditioned, init_strategy=INITIAL.get(model, "uniform")), **options)
    else:
        kernel = KERNELS[method](init_strategy=INITIAL[model]) if model in INITIAL else method
        post = pyro_dgm.sample_posterior(conditioned, method=kernel, **options)
    return by_parameter(model, data, post.samples)


def too_long(*_: Any) -> None:
    raise TimeoutError


def cell(name: str, method: str, args: argparse.Namespace) -> str:
    """What to say of a method on a posterior."""
    began = time.process_time()
    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, args.limit)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = draw(name, method, args)
    except TimeoutError:
        return f"**over {args.limit:.0f} s**"
    except (ValueError, RuntimeError) as error:
        print(f"{name} {method}: {error}", flush=True)
        return f"**stops**: {type(error).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - began
    worst, r_hat, ess = 0.0, 0.0, np.inf
    for key, want in reference(name).items():
        for kind, statistic in (("mean", np.mean), ("sd", np.std)):
            error = np.hypot(*(float(arviz.mcse(d, method=kind)) for d in (found[key], want)))
            worst = max(worst, abs(statistic(found[key]) - statistic(want)) / error)
        r_hat = max(r_hat, float(arviz.rhat(found[key])))
        ess = min(ess, float(arviz.ess(found[key])))
    text = f"{worst:.1f} ({ess / seconds:,.0f}/s)"
    if worst > 4 or not r_hat < 1.02:
        return f"**fails**: {text}, R-hat {r_hat:.2f}"
    return text


def written_cells() -> dict[str, dict[str, str]]:
    """What ``benchmarks/results.md`` has, by posterior and method."""
    text = results_file.RESULTS.read_text().partition("<!-- posteriordb:start -->")[2]
    lines = [line for line in text.partition("<!-- posteriordb:end -->")[0].splitlines() if line.startswith("| ")]
    rows = [[part.strip() for part in line[1:-1].split("|")] for line in lines]
    methods = rows[0][1:] if rows else []
    return {row[0]: dict(zip(methods, row[1:], strict=True)) for row in rows[2:]}


def table_of(cells: dict[str, dict[str, str]], args: argparse.Namespace) -> str:
    names = [name for name in map(short, POSTERIORS) if name in cells]
    return "\n".join(
        [
            "### Kernels on posteriordb's posteriors\n",
            f"{args.chains} chains of {args.draws} draws after {args.warmup} transitions of warm-up (NumPyro's NUTS: 4 "
            "chains of as many draws in all). Largest distance of a mean or standard deviation from the reference's, "
            "in Monte Carlo standard errors of both, and smallest bulk ESS a CPU second, all counted; float64. A "
            "sampler is stopped at its limit of CPU seconds, which stands in the cell. An empty cell was not run. "
            "Cells come from several runs, on a machine with other work; the command below is the last one.\n",
            f"| posterior | {' | '.join(METHODS)} |",
            "| --- |" + " --- |" * len(METHODS),
            *(f"| {name} | {' | '.join(cells[name].get(m, '') for m in METHODS)} |" for name in names),
        ]
    )


def short(name: str) -> str:
    """The posterior's name without the data's."""
    return name.split("-", 1)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(POSTERIORS), default=list(POSTERIORS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--warmup", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=300, help="CPU seconds of one sampler on one posterior")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results.md")
    args = parser.parse_args()
    cells = written_cells()
    for name in args.only:
        for method in args.methods:
            began = time.process_time()
            text = cell(name, method, args)
            cells.setdefault(short(name), {})[method] = text
            print(f"{name} {method}: {text}, {time.process_time() - began:.0f} s", flush=True)
            if args.write:
                results_file.write_section("posteriordb", table_of(cells, args))
    print(f"\n{table_of(cells, args)}\n")


if __name__ == "__main__":
    main()
