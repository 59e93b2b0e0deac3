"""``pyro-dgm demo``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_dgm.cli.errors import guarded

__all__ = ["demo"]


@guarded
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; what is there is replaced.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", hidden=True, help="Two epochs and few draws: to see that it runs, not for its figures."
        ),
    ] = False,
) -> None:
    """Fit one VAE under every objective on real digits, compare estimators, draw from posteriors; write a report.

    Takes two to three minutes on two cores, and needs no network: the digits (8 x 8) come with scikit-learn.

    1. The same program, from the same initial weights, is fitted under each objective for the same number of epochs.

    2. Each fit is scored on held-out digits by its IWAE-1000 bound; the best on validation data goes on.

    3. Estimators are compared on it: tightness, gradient noise, cost.

    4. Latents of held-out digits are drawn with the guide, HMC and MALA, and the guide is checked against HMC.

    Writes report.html (open it in a browser; it needs no other file), results.json (every figure), posterior.nc (the
    draws of HMC, for ArviZ; posterior_guide.nc and posterior_mala.nc beside it), weights.safetensors and config.json
    (the chosen fit, for pyro-dgm sample and compare).

    **Example**

    - `pyro-dgm demo --output runs/demo`

    **Exit codes**: 0 done; 1 a loss was not finite; 2 bad usage; 130 interrupted
    """
    from pyro_dgm.cli.demo_run import FULL, QUICK, run_demo
    from pyro_dgm.cli.errors import UsageError
    from pyro_dgm.cli.report import write_report
    from pyro_dgm.cli.terminal import console, working

    if output.exists() and not output.is_dir():
        raise UsageError(f"--output must be a folder, {output} is a file")
    output.mkdir(parents=True, exist_ok=True)
    out = console()
    began = time.perf_counter()
    with _one_thread():
        results, products = run_demo(QUICK if quick else FULL, output, seed, out)
        with working(out, "drawing figures, writing the report"):
            write_report(results, products, output / "report.html")
    _print_files(out, output, time.perf_counter() - began)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and lose much on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _print_files(out: Any, output: Path, seconds: float) -> None:
    from pyro_dgm.cli.demo_run import FILES

    out.print(f"\n[bold]Done in {seconds:.0f} s. Wrote {output}/[/bold]")
    for name, what in FILES.items():
        out.print(f"  {name:22s} {what}")
