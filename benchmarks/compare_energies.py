"""Objectives for energies on a 2-D density that is known: eight normals on a circle, half of them three times as heavy.

    python benchmarks/compare_energies.py --write

The same as ``pyro-dgm compare --energies``, trained for longer and from several seeds (of the data, the weights and the
batches): medians of the density's error on a grid and of CPU seconds, with the lowest and highest.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings

import results_file
import torch

from pyro_dgm.cli.energies import DEFAULT_ENERGY_OBJECTIVES, compare_on_plane, parse_energy_objective


def spread(values: list[float]) -> str:
    """Median (lowest-highest), or how many there are where not all are numbers."""
    found = [v for v in values if not math.isnan(v)]
    if not found:
        return "-"
    text = f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"
    return text if len(found) == len(values) else f"{text}, {len(values) - len(found)} failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plot", help="also write the first seed's picture to this file")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results.md")
    args = parser.parse_args()
    torch.set_num_threads(1)

    tables = []
    for seed in args.seeds:
        objectives = {name: parse_energy_objective(spec) for name, spec in DEFAULT_ENERGY_OBJECTIVES.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            tables.append(compare_on_plane(objectives, args.epochs, seed))
        print(tables[-1], flush=True)
    if args.plot:
        tables[0].plot().savefig(args.plot, dpi=100)

    rows = []
    for name, spec in DEFAULT_ENERGY_OBJECTIVES.items():
        of = [table[name] for table in tables]
        off = [abs(r["log_z_learned"] - r["log_z"]) for r in of]
        seconds = statistics.median(r["seconds"] for r in of)
        columns = [spread([r[key] for r in of]) for key in ("kl", "tv", "kl_blurred")]
        rows.append(f"| {name} | `{spec}` | {' | '.join(columns)} | {spread(off)} | {seconds:.1f} |")
    table = (
        f"### Objectives for energies on eight normals, {args.epochs} epochs of {tables[0].num_data} data\n\n"
        "A 2-64-64-1 SiLU network tilting a normal base, Adam from 0.01 falling by a cosine, batch 250, Langevin steps "
        f"of size 0.1; {len(args.seeds)} seeds: median (lowest to highest). KL of the target from the model (nats) and "
        "total variation, by sums over a 200 x 200 grid; KL of the blurred target for DSM, which learns that; how far "
        "the log Z that NCE learns is from the grid's (nats); CPU seconds of training on one thread.\n\n"
        "| objective | settings | KL | total variation | KL, blurred target | log Z learnt, error | CPU s |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows)
    )
    print(table)
    if args.write:
        results_file.write_section("energies", table)


if __name__ == "__main__":
    main()
