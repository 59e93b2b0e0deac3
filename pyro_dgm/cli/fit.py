"""``pyro-dgm fit``."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_dgm.cli.errors import UsageError, guarded
from pyro_dgm.cli.options import given_options

__all__ = ["fit"]

LOGGERS = ("tensorboard", "wandb", "mlflow")


@guarded
def fit(
    ctx: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]", show_default=False, help="A published method: nsf, iwae, ...; pyro-dgm recipes list."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Your own data, with RECIPE: .csv (with a header or without), .tsv, .npy, .npz; a row a datum.",
        ),
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns of the table to take, as a,b. By default all.")] = None,
    standardize: Annotated[
        bool | None,
        typer.Option(
            "--standardize/--no-standardize",
            help="Subtract means, divide by standard deviations. By default so, unless all values are 0 or 1.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. [default: runs/DATA-METHOD]")
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="digits, mnist, binarized_mnist, ...; a wrong name lists all.")
    ] = "digits",
    binarize: Annotated[
        str | None,
        typer.Option(
            help="threshold, stochastic (one fixed draw), dynamic (training pixels drawn anew for each batch) or none. "
            "By default threshold for digits and dynamic for mnist under a Bernoulli likelihood, else none."
        ),
    ] = None,
    num_validation: Annotated[int | None, typer.Option(min=0, help="Images set aside for validation.")] = None,
    family: Annotated[str, typer.Option(help="VAE, LinearGaussian, ...; a wrong name lists all.")] = "VAE",
    latent_dim: Annotated[int | None, typer.Option(min=1, help="Latent dimensions.")] = None,
    hidden: Annotated[str | None, typer.Option(help="Hidden widths, as 200,200.")] = None,
    likelihood: Annotated[str | None, typer.Option(help="bernoulli or gaussian.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another argument of the family, or of the recipe (JSON); repeatable."
        ),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="ELBO, 'IWAE(16)', 'RenyiELBO(alpha=0.5)', ...; a wrong name lists all.")
    ] = "ELBO",
    num_particles: Annotated[int | None, typer.Option(min=1, help="Particles of the objective.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data in all.")] = 100,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Data a batch, which several devices share; a recipe has its own.")
    ] = 128,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Batches a step: the gradient of the joined batch, in the memory of one.")
    ] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam; a recipe has its own.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights, order of data and noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes to train on, each with a device and a part of every batch; needs pyro-dgm[distributed]. "
            "By default one, or those that torchrun started.",
        ),
    ] = None,
    compile: Annotated[
        str, typer.Option(help="How far to compile: auto, eager, graph, objective, reduce-overhead, step or block.")
    ] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="32, tf32 or bf16: precision of matrix products; by default as torch is set.")
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Epochs between checkpoints.")] = 1,
    test_particles: Annotated[
        int, typer.Option(min=0, help="Particles of the bound on the test data at the end; 0 leaves it out.")
    ] = 100,
    log: Annotated[
        list[str] | None,
        typer.Option(
            help="tensorboard, wandb or mlflow, where that is installed; repeatable. A table, "
            "checkpoints/metrics.csv, is always written."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the run in this folder; only --epochs, --devices and --log may be given along."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Fit a program to a data set under an objective; or a published method, by its name, to your own data.

    Writes to the output folder: weights.safetensors and config.json (which together rebuild the program), and
    checkpoints/, from which an interrupted run goes on exactly where it was. With --data also density.png (or
    samples.png): data beside samples of the model.

    **Examples**

    - `pyro-dgm fit --objective 'IWAE(16)' --epochs 200 --output runs/iwae`
    - `pyro-dgm fit --dataset mnist --binarize dynamic --latent-dim 20 --set network=conv`

    - `pyro-dgm fit --family LinearGaussian --latent-dim 5 --set guide_covariance=full`
    - `pyro-dgm fit --resume runs/iwae --epochs 400`

    - `pyro-dgm fit nsf --data table.csv --epochs 50`
    - `pyro-dgm fit iwae --dataset mnist --set num_particles=5`

    - `pyro-dgm fit --devices 2`, or `torchrun --nproc-per-node=2 -m pyro_dgm.cli fit`

    **Exit codes**: 0 done; 1 loss not finite, or data missing; 2 bad usage; 130 interrupted (it says how to
    resume)
    """
    from pyro_dgm.cli.fit_run import run_fit
    from pyro_dgm.cli.fitted import CONFIG, FitSettings, read_settings
    from pyro_dgm.infer.train.compilation import DEPTHS
    from pyro_dgm.infer.train.distributed import started_rank
    from pyro_dgm.infer.train.precision import PRECISIONS

    _check_loggers(log or [])
    how: dict[str, Any] = {"quiet": quiet, "devices": devices, "log": log or []}
    if resume is not None:
        _only_epochs(ctx)
        asked, _ = read_settings(resume)
        if "epochs" in given_options(ctx):
            asked = replace(asked, epochs=epochs)
        run_fit(asked, resume, resuming=True, **how)
        return
    if test_particles == 1:
        raise UsageError("--test-particles must be 0, or at least 2 (a standard error needs two)")
    if not lr > 0:
        raise UsageError(f"--lr must be positive, got {lr}")
    if compile not in ("auto", *DEPTHS):
        raise UsageError(f"--compile must be auto or one of {', '.join(DEPTHS)}, got {compile}")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"--precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    asked = FitSettings(**{f.name: ctx.params[f.name] for f in fields(FitSettings) if f.name in ctx.params})
    options = _family_options(latent_dim, hidden, likelihood, settings or [])
    if recipe is None:
        _only_with_a_recipe(ctx)
        asked.family_arguments = options
        folder = output or Path("runs") / f"{dataset}-{objective.partition('(')[0]}"
    else:
        given = {"learning_rate": lr, "batch_size": batch_size, "num_particles": num_particles}
        names = {"learning_rate": "lr"}
        chosen = {k: v for k, v in given.items() if names.get(k, k) in given_options(ctx)}
        asked.recipe = _recipe_of(ctx, recipe, {**options, **chosen})
        asked.file, asked.columns = None if data is None else str(data), _names(columns)
        folder = output or Path("runs") / f"{dataset if data is None else data.stem}-{recipe}"
    if started_rank() == 0 and (folder / CONFIG).exists():  # the others may come when it has begun to write
        raise UsageError(
            f"{folder} holds a run already: go on with it (pyro-dgm fit --resume {shlex.quote(str(folder))}), or give "
            "another --output"
        )
    run_fit(asked, folder, resuming=False, **how)


def _only_epochs(ctx: typer.Context) -> None:
    others = sorted(given_options(ctx) - {"resume", "epochs", "quiet", "devices", "log"})
    if others:
        names = ", ".join("--" + name.replace("_", "-") for name in others)
        raise UsageError(f"--resume goes on with the settings that the run has; it cannot be given with {names}")


def _names(columns: str | None) -> list[str] | None:
    return None if columns is None else [name.strip() for name in columns.split(",")]


def _only_with_a_recipe(ctx: typer.Context) -> None:
    wrong = sorted(given_options(ctx) & {"data", "columns", "standardize"})
    if wrong:
        raise UsageError(
            f"--{wrong[0]} needs a recipe: pyro-dgm fit nsf --data FILE; pyro-dgm recipes list shows all of them"
        )


def _recipe_of(ctx: typer.Context, name: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """What the settings say of a recipe, with options checked against what it has."""
    from pyro_dgm.cli.errors import bad_usage_if_raised
    from pyro_dgm.recipes.base import check_names

    given = given_options(ctx)
    for option in ("family", "objective"):
        if option in given:
            raise UsageError(f"--{option} does not go with a recipe, which has its own; leave one of them out")
    if "data" in given and given & {"dataset", "binarize"}:
        raise UsageError("--data is your own file: --dataset and --binarize do not go with it")
    if "data" not in given and given & {"columns", "standardize"}:
        raise UsageError("--columns and --standardize are of your own --data")
    with bad_usage_if_raised("RECIPE"):
        check_names(name, hyperparameters)
    return {"name": name, "hyperparameters": hyperparameters}


def _family_options(
    latent_dim: int | None, hidden: str | None, likelihood: str | None, more: list[str]
) -> dict[str, Any]:
    from pyro_dgm.cli.specs import parse_settings

    given = {"latent_dim": latent_dim, "likelihood": likelihood}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if hidden is not None:
        try:
            options["hidden"] = [int(width) for width in hidden.split(",") if width]
        except ValueError as error:
            raise UsageError(f"--hidden: {hidden!r} is no list of widths such as 200,200") from error
    for key, value in parse_settings(more).items():
        if key in options:
            raise UsageError(f"--set {key}=... and the option of that name are both given")
        options[key] = value
    return options


def _check_loggers(names: list[str]) -> None:
    for name in names:
        if name not in LOGGERS:
            raise UsageError(f"--log {name} is not one of {', '.join(LOGGERS)}")
    from pyro_dgm.cli.fit_run import make_loggers

    for made in make_loggers(names, Path()):
        try:
            made.check()
        except ImportError as error:
            raise UsageError(f"--log: {error}") from error
