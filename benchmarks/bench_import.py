"""How long `import pyro_dgm` takes beside `import pyro, arviz`: fresh processes, interleaved, ratio with its spread.

    python benchmarks/bench_import.py [--repeats 11] [--bar 1.2] [--write]

Two ways of importing are timed: the package alone, and the package with `fit` and `to_arviz` looked up, which loads the
rooms that they are in.  The exit status is 1 when a median ratio is above the bar.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

REFERENCE = "import pyro, arviz"
CANDIDATES = {
    "import pyro_dgm": "import pyro_dgm",
    "import pyro_dgm; fit, to_arviz": "import pyro_dgm; pyro_dgm.fit; pyro_dgm.to_arviz",
}


def seconds(statement: str) -> float:
    """Time of the statement in a process of its own, without the interpreter's start."""
    code = f"import time; t = time.perf_counter()\n{statement}\nprint(time.perf_counter() - t)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11, help="interleaved rounds")
    parser.add_argument("--bar", type=float, default=1.2, help="the ratio that must not be exceeded")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results.md")
    args = parser.parse_args()

    statements = {REFERENCE: REFERENCE, **CANDIDATES}
    for statement in statements.values():  # compiles the byte code and fills the file cache
        seconds(statement)
    times: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(args.repeats):
        for name, statement in statements.items():
            times[name].append(seconds(statement))

    reference = times[REFERENCE]
    print(f"{REFERENCE:34s} {statistics.median(reference):6.2f} s  (median of {args.repeats})")
    failed = False
    rows = [f"| `{REFERENCE}` | {statistics.median(reference):.2f} | 1 |"]
    for name in CANDIDATES:
        ratios = sorted(t / r for t, r in zip(times[name], reference))
        median = statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4)
        failed |= median > args.bar
        print(
            f"{name:34s} {statistics.median(times[name]):6.2f} s  ratio {median:.2f} "
            f"(quartiles {low:.2f} to {high:.2f}; bar {args.bar:g})"
        )
        rows.append(f"| `{name}` | {statistics.median(times[name]):.2f} | {median:.2f} ({low:.2f} to {high:.2f}) |")
    if args.write:
        from results_file import write_section  # imports torch: not before anything is timed

        title = f"### Import time, {args.repeats} interleaved rounds of fresh processes (bar {args.bar:g})"
        head = "| statement | median s | ratio (quartiles) |\n| --- | --- | --- |"
        write_section("bench_import", "\n".join([title, "", head, *rows]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
