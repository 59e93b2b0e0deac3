"""``pyro-dgm compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pyro_dgm.cli.errors import CommandFailed, UsageError, guarded

__all__ = ["DEFAULT_OBJECTIVES", "compare"]

#: a name for each estimator, as --objective takes it
DEFAULT_OBJECTIVES = (
    "ELBO",
    "STL",
    "IWAE(5)",
    "IWAE(50)",
    "DReG(5)",
    "DReG(50)",
    "RenyiELBO(0.5, num_particles=5)",
    "TraceGraphELBO",
)


@guarded
def compare(
    directory: Annotated[Path, typer.Argument(help="Folder that pyro-dgm fit or demo wrote.", metavar="RUN")],
    objective: Annotated[
        list[str] | None,
        typer.Option(help="An estimator, as 'IWAE(50)'; repeatable. By default one or two of each kind."),
    ] = None,
    num_data: Annotated[int, typer.Option(min=1, help="How many of the test data, the first ones.")] = 64,
    num_replicates: Annotated[int, typer.Option(min=2, help="Evaluations of each estimator.")] = 50,
    reference: Annotated[str | None, typer.Option(help="exact (where the family can) or iwae.")] = None,
    reference_particles: Annotated[int, typer.Option(min=2, help="Particles of the reference iwae.")] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the table: .json or .csv; or the plot: .png.")
    ] = None,
) -> None:
    """Compare ELBO estimators on a fitted program and held-out data: tightness, gradient noise, cost.

    Nothing is trained. Bounds are in nats per datum; a gap is the reference minus the bound; the signal-to-noise ratio
    of the gradient tells whether training still gets anywhere with that estimator.

    **Examples**

    - `pyro-dgm compare runs/demo`
    - `pyro-dgm compare runs/demo --objective 'IWAE(64)' --objective 'DReG(64)' --num-replicates 200 -o table.csv`

    **Exit codes**: 0 done; 1 a loss or gradient was not finite; 2 bad usage; 130 interrupted
    """
    import pyro_dgm
    from pyro_dgm.cli.fitted import load_fitted
    from pyro_dgm.cli.specs import parse_objective
    from pyro_dgm.cli.terminal import console, working

    specs = list(dict.fromkeys(objective or DEFAULT_OBJECTIVES))
    estimators = {spec: parse_objective(spec) for spec in specs}
    if output is not None and output.suffix not in (".json", ".csv", ".png"):
        raise UsageError(f"--output must end in .json, .csv or .png, got {output}")
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"--output: there is no folder {output.parent}")
    if reference not in (None, "exact", "iwae"):
        raise UsageError(f"--reference must be exact or iwae, got {reference!r}")
    fitted = load_fitted(directory)
    if reference == "exact" and not hasattr(fitted.program, "log_marginal"):
        raise UsageError(f"--reference exact: {fitted.settings.family} has no exact log-likelihood; leave it to iwae")
    x = fitted.data.test[:num_data]
    out = console()
    with working(out, f"comparing {len(estimators)} estimators on {len(x)} test data"):
        try:
            table = pyro_dgm.compare_elbos(
                fitted.program, x, estimators, num_replicates=num_replicates, reference=reference,
                reference_particles=reference_particles, seed=seed,
            )  # fmt: skip
        except ValueError as error:  # a loss or gradient that is not finite: all else is checked above
            raise CommandFailed(str(error)) from error
    out.print(f"{directory}: {fitted.settings.family} fitted with {fitted.settings.objective}; {fitted.data.note}")
    out.print(table)
    if output is not None:
        if output.suffix == ".json":
            content = {"rows": table.rows, "reference": table.reference, "num_data": table.num_data}
            output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        elif output.suffix == ".csv":
            table.to_frame().to_csv(output)
        else:
            table.plot().savefig(output, dpi=150)
        out.print(f"wrote {output}")
