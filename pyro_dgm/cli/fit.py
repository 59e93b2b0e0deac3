"""``pyro-dgm fit``."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_dgm.cli.errors import INTERRUPTED, CommandFailed, UsageError, guarded
from pyro_dgm.cli.options import given_options

__all__ = ["fit"]

#: settings that :func:`pyro_dgm.fit` has by the same name
PASSED_ON = (
    "epochs", "batch_size", "accumulate", "seed", "device", "compile", "precision", "checkpoint_every",
)  # fmt: skip
LOGGERS = ("tensorboard", "wandb", "mlflow")


@guarded
def fit(
    ctx: typer.Context,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. [default: runs/DATASET-OBJECTIVE]")
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
        typer.Option("--set", metavar="KEY=VALUE", help="Any other argument of the family (JSON); repeatable."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="ELBO, 'IWAE(16)', 'RenyiELBO(alpha=0.5)', ...; a wrong name lists all.")
    ] = "ELBO",
    num_particles: Annotated[int | None, typer.Option(min=1, help="Particles of the objective.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data in all.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Data a batch, which several devices share.")] = 128,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Batches a step: the gradient of the joined batch, in the memory of one.")
    ] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-3,
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
    """Fit a program to a data set under an objective.

    Writes to the output folder: weights.safetensors and config.json (which together rebuild the program), and
    checkpoints/, from which an interrupted run goes on exactly where it was.

    **Examples**

    - `pyro-dgm fit --objective 'IWAE(16)' --epochs 200 --output runs/iwae`
    - `pyro-dgm fit --dataset mnist --binarize dynamic --latent-dim 20 --set network=conv`

    - `pyro-dgm fit --family LinearGaussian --latent-dim 5 --set guide_covariance=full`
    - `pyro-dgm fit --resume runs/iwae --epochs 400`

    - `pyro-dgm fit --devices 2`, or `torchrun --nproc-per-node=2 -m pyro_dgm.cli fit`

    **Exit codes**: 0 done; 1 loss not finite, or data missing; 2 bad usage; 130 interrupted (it says how to
    resume)
    """
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
        _run(asked, resume, resuming=True, **how)
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
    asked.family_arguments = _family_options(latent_dim, hidden, likelihood, settings or [])
    folder = output or Path("runs") / f"{dataset}-{objective.partition('(')[0]}"
    if started_rank() == 0 and (folder / CONFIG).exists():  # the others may come when it has begun to write
        raise UsageError(
            f"{folder} holds a run already: go on with it (pyro-dgm fit --resume {shlex.quote(str(folder))}), or give "
            "another --output"
        )
    _run(asked, folder, resuming=False, **how)


def _only_epochs(ctx: typer.Context) -> None:
    others = sorted(given_options(ctx) - {"resume", "epochs", "quiet", "devices", "log"})
    if others:
        names = ", ".join("--" + name.replace("_", "-") for name in others)
        raise UsageError(f"--resume goes on with the settings that the run has; it cannot be given with {names}")


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


def _default_binarization(dataset: str, likelihood: Any) -> str | None:
    name = likelihood["name"] if isinstance(likelihood, dict) else likelihood
    return {"digits": "threshold", "mnist": "dynamic"}.get(dataset) if name == "bernoulli" else None


def _check_loggers(names: list[str]) -> None:
    for name in names:
        if name not in LOGGERS:
            raise UsageError(f"--log {name} is not one of {', '.join(LOGGERS)}")
    for made in _loggers(names, Path()):
        try:
            made.check()
        except ImportError as error:
            raise UsageError(f"--log: {error}") from error


def _loggers(names: list[str], folder: Path) -> list[Any]:
    from pyro_dgm.infer.train.loggers import MLflowLogger, TensorBoardLogger, WandbLogger

    made: list[Any] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            made.append(TensorBoardLogger(folder / "tensorboard"))
        elif name == "wandb":
            made.append(WandbLogger(project="pyro_dgm", name=folder.name, dir=str(folder)))
        else:
            made.append(MLflowLogger(run_name=folder.name))
    return made


def _run(asked: Any, folder: Path, resuming: bool, quiet: bool, devices: int | None, log: list[str]) -> None:
    import functools
    import inspect

    import torch

    import pyro_dgm
    from pyro_dgm.cli.build import build_family, family_arguments, is_flat
    from pyro_dgm.cli.data import load_data
    from pyro_dgm.cli.errors import bad_usage_if_raised
    from pyro_dgm.cli.fitted import CHECKPOINTS, save_fitted, write_settings
    from pyro_dgm.cli.specs import parse_objective
    from pyro_dgm.cli.terminal import console
    from pyro_dgm.infer.train.distributed import started_rank
    from pyro_dgm.ops.arguments import check_device
    from pyro_dgm.ops.random_state import forked_rng

    out = console()
    out.quiet = started_rank() > 0  # of several processes one speaks and writes
    objective = parse_objective(asked.objective, asked.num_particles)
    with bad_usage_if_raised("--device"):
        if asked.device != "auto":
            check_device(asked.device)
    flat = is_flat(asked.family)
    if not resuming and asked.binarize is None:
        default = inspect.signature(pyro_dgm.models.FAMILIES[asked.family].__init__).parameters.get("likelihood")
        asked.binarize = _default_binarization(
            asked.dataset, asked.family_arguments.get("likelihood", default.default if default is not None else None)
        )
    data = load_data(asked.dataset, asked.binarize, num_validation=asked.num_validation, flat=flat)
    if not resuming:
        asked.family_arguments = family_arguments(asked.family, data.event_shape, asked.family_arguments)
    with forked_rng(seed=asked.seed):
        program = build_family(asked.family, asked.family_arguments)
    with bad_usage_if_raised("the data do not fit the family"):
        program.check_batch(data.train if data.transform is None else data.transform(data.train[:1000]))
    asked.family_arguments = program.config()
    held_out = 0 if data.validation is None else len(data.validation)
    out.print(f"{data.note}; train {len(data.train)}, validation {held_out}, test {len(data.test)}")
    run = pyro_dgm.fit(
        program,
        data.train,
        objective=objective,
        optimizer=functools.partial(torch.optim.Adam, lr=asked.lr),
        transform=data.transform,
        validation=data.validation,
        devices=devices,
        **{name: getattr(asked, name) for name in PASSED_ON},
        loggers=_loggers(log, folder),
        progress=not quiet,
        checkpoint_dir=folder / CHECKPOINTS,
        resume=resuming or None,
        # When nobody else writes there and nothing was refused, and before the first step.
        callbacks=[_SettingsWriter(lambda: write_settings(asked, folder))],
    )
    if run.rank > 0:
        return
    if run.interrupted:
        command = f"pyro-dgm fit --resume {shlex.quote(str(folder))}"
        raise CommandFailed(
            f"interrupted after {run.epochs} of {asked.epochs} epochs; go on with: {command}", INTERRUPTED
        )
    save_fitted(run, asked, folder, **_report(run, data, objective, asked, out))
    out.print(f"wrote {folder}/weights.safetensors and {folder}/config.json")


class _SettingsWriter:
    """Writes the settings when training begins, so that a killed run can be resumed."""

    def __init__(self, write: Callable[[], None]) -> None:
        self.write = write

    def on_fit_start(self, run: Any) -> None:
        if run.rank == 0:
            self.write()


def _report(run: Any, data: Any, objective: Any, asked: Any, out: Any) -> dict[str, Any]:
    """Print the bounds, and give what is written beside them."""
    from pyro_dgm.analysis import log_likelihood
    from pyro_dgm.cli.fitted import bound_row
    from pyro_dgm.cli.terminal import working

    for part in ("train", "validation"):
        if run.history[part]:
            metric = run.measured[part]
            out.print(
                f"{part} {metric.name} of {objective!r}, epoch {run.epochs}: {run.history[part][-1]:.3f} {metric.unit}"
            )
    if not asked.test_particles:
        return {}
    k = asked.test_particles
    test = data.test.to(run.device)
    with working(out, f"bound on {len(test)} test data with {k} particles"):
        found = log_likelihood(run.program, test, num_particles=k, seed=asked.seed)
    out.print(
        f"test: IWAE-{k} bound {found.mean:.3f} nats per datum (standard error {found.mean_standard_error:.3f} Monte "
        f"Carlo, {found.data_standard_error:.3f} over data; {data.note})"
    )
    return {
        "test": {"method": "iwae", "num_particles": k, **bound_row(found), "num_data": len(test), "data": data.note}
    }
