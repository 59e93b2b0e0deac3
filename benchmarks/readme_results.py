"""Fill README's table of results from what ``make demo`` wrote, between the markers results:start and results:end.

    python benchmarks/readme_results.py [runs/demo/results.json] [--readme README.md] [--check]

With ``--check`` nothing is written; the exit status is 1 when the README says something else than the results.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- results:start -->", "<!-- results:end -->"


def block(results: dict[str, Any]) -> str:
    """The text between the markers."""
    data, settings, k = results["data"], results["settings"], results["particles"]
    baseline = results["baseline"]
    lines = [
        f"`make demo`: one VAE ({results['program']['latent_dim']} latent dimensions, MLP, "
        f"{results['num_parameters']:,} parameters) on {data['train']} digits of 8 x 8 pixels, binarised by "
        f"{data['binarization']} (deterministic: no pixel is drawn), {settings['epochs']} epochs from the same initial "
        f"weights under each objective. Every fit is scored alike: the IWAE-{k} bound (K = {k} importance samples) in "
        f"nats per datum on {data['test']} held-out test digits; higher is better. Numbers of particles in "
        "training are in brackets, or given as K.",
        "",
        f"| trained with | IWAE-{k} test bound | Monte Carlo error | minus {baseline}, paired |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in results["objectives"]:
        test = row["test"]
        difference = f"{row['difference']:+.2f} ± {row['difference_standard_error']:.2f}"
        lines.append(
            f"| {row['objective']} | {test['bound']:.2f} ± {test['data_standard_error']:.2f} | "
            f"{test['monte_carlo_standard_error']:.3f} | {'' if row['objective'] == baseline else difference} |"
        )
    agreement, hmc = results["posterior"]["agreement"], _method(results, "hmc")
    lines += [
        "",
        "± is one standard error over the test digits (in the last column, of the paired difference); the Monte Carlo "
        "error is that of the importance samples alone. One training seed: what another would change is not in the "
        "errors.",
        "",
        f"Latents of {len(results['posterior']['rows'])} held-out digits by HMC (largest R-hat {hmc['rhat_max']:.3f}, "
        f"least bulk ESS {hmc['ess_bulk_min']:.0f}) show the means of the guide (of the fit with {results['chosen']}) "
        f"to be off by {agreement['guide_shift_rms']:.2f} posterior standard deviations (root mean square), its "
        f"standard deviations to be {agreement['guide_sd_ratio_mean']:.2f} of the posterior's on average. "
        "`runs/demo/report.html` has the rest.",
    ]
    return "\n".join(
        line if line.startswith("|") else textwrap.fill(line, 120, break_on_hyphens=False) for line in lines
    )


def _method(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(m for m in results["posterior"]["methods"] if m["method"] == name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=ROOT / "runs" / "demo" / "results.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing, compare only")
    args = parser.parse_args()

    text = args.readme.read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        print(f"{args.readme} must have {START} and then {END}, once each", file=sys.stderr)
        return 2
    results = json.loads(args.results.read_text(encoding="utf-8"))
    new = f"{text.partition(START)[0]}{START}\n{block(results)}\n{END}{text.partition(END)[2]}"
    if args.check:
        if new != text:
            print(f"{args.readme} does not say what {args.results} says", file=sys.stderr)
        return int(new != text)
    args.readme.write_text(new, encoding="utf-8")
    print(f"filled in {args.readme}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
