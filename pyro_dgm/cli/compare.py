"""``pyro-dgm compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_dgm.cli.errors import CommandFailed, UsageError, guarded
from pyro_dgm.cli.options import check_output, given_options

__all__ = ["DEFAULT_OBJECTIVES", "compare"]

#: a name for each estimator, as --objective takes it
DEFAULT_OBJECTIVES = (
    "ELBO",
    "STL",
    "IWAE(5)",
    "IWAE(50)",
    "DReG(5)",
    "DReG(50)",
    "RenyiELBO(5, alpha=0.5)",
    "TraceGraphELBO",
)


@guarded
def compare(
    ctx: typer.Context,
    directory: Annotated[
        Path | None, typer.Argument(help="Folder that pyro-dgm fit or demo wrote.", metavar="RUN", show_default=False)
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="An estimator, as 'IWAE(50)'; repeatable. By default one or two of each kind."),
    ] = None,
    energies: Annotated[
        bool, typer.Option("--energies", help="Compare objectives for energies on a 2-D density instead; without RUN.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Of training, with --energies.")] = 70,
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

    With --energies a small energy-based model is trained on draws of eight normals under each objective for energies,
    and the densities are held against the known one on a grid; that takes about a minute.

    **Examples**

    - `pyro-dgm compare runs/demo`
    - `pyro-dgm compare runs/demo --objective 'IWAE(64)' --objective 'DReG(64)' --num-replicates 200 -o table.csv`

    - `pyro-dgm compare --energies -o densities.png`

    **Exit codes**: 0 done; 1 a loss or gradient was not finite; 2 bad usage; 130 interrupted
    """
    import pyro_dgm
    from pyro_dgm.cli.fitted import load_fitted
    from pyro_dgm.cli.specs import parse_objective
    from pyro_dgm.cli.terminal import console, working

    _check_options(ctx, directory, energies)
    check_output(output, ".json", ".csv", ".png")
    if energies:
        _compare_energies(objective, epochs, seed, output)
        return
    assert directory is not None
    specs = list(dict.fromkeys(objective or DEFAULT_OBJECTIVES))
    estimators = {spec: parse_objective(spec) for spec in specs}
    if reference not in (None, "exact", "iwae"):
        raise UsageError(f"--reference must be exact or iwae, got {reference!r}")
    fitted = load_fitted(directory)
    if reference == "exact" and not hasattr(fitted.program, "log_prob"):
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
    _write(table, output, {"reference": table.reference, "num_data": table.num_data}, out)


def _check_options(ctx: typer.Context, directory: Path | None, energies: bool) -> None:
    """Refuse options of the one comparison with the other."""
    given = given_options(ctx)
    if energies:
        if directory is not None:
            raise UsageError("--energies trains a model of its own: leave RUN out")
        wrong = given & {"num_data", "num_replicates", "reference", "reference_particles"}
    else:
        if directory is None:
            raise UsageError("give RUN, a folder that pyro-dgm fit or demo wrote; or --energies")
        wrong = given & {"epochs"}
    if wrong:
        name = sorted(wrong)[0].replace("_", "-")
        raise UsageError(f"--{name} does not go with{'' if energies else 'out'} --energies")


def _compare_energies(objective: list[str] | None, epochs: int, seed: int, output: Path | None) -> None:
    from pyro_dgm.cli.energies import DEFAULT_ENERGY_OBJECTIVES, compare_on_plane, parse_energy_objective
    from pyro_dgm.cli.terminal import console, working

    specs = {spec: spec for spec in objective} if objective else DEFAULT_ENERGY_OBJECTIVES
    objectives = {name: parse_energy_objective(spec) for name, spec in specs.items()}
    out = console()
    with working(out, f"training an energy under {len(objectives)} objectives for {epochs} epochs each"):
        try:
            table = compare_on_plane(objectives, epochs, seed)
        except ValueError as error:  # every objective failed: all else is checked above
            raise CommandFailed(str(error)) from error
    out.print(table)
    _write(table, output, {"num_data": table.num_data, "epochs": table.epochs}, out)


def _write(table: Any, output: Path | None, about: dict[str, Any], out: Any) -> None:
    if output is None:
        return
    if output.suffix == ".json":
        # JSON knows no NaN, which stands for what does not apply.
        rows = [{k: None if v != v else v for k, v in row.items()} for row in table.rows]
        output.write_text(json.dumps({"rows": rows, **about}, indent=1) + "\n", encoding="utf-8")
    elif output.suffix == ".csv":
        table.to_frame().to_csv(output)
    else:
        table.plot().savefig(output, dpi=150)
    out.print(f"wrote {output}")
