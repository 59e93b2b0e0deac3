"""What ``pyro-dgm fit`` does once its options are read: data, program, training, report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_dgm.cli.errors import INTERRUPTED, CommandFailed

__all__ = ["make_loggers", "run_fit"]

#: settings that :func:`pyro_dgm.fit` has by the same name
PASSED_ON = (
    "epochs", "batch_size", "accumulate", "seed", "device", "compile", "precision", "checkpoint_every",
)  # fmt: skip


#: grey levels of the pixels of data sets, for recipes over integers
GREY_LEVELS = {"digits": 17, "mnist": 256}


def make_loggers(names: list[str], folder: Path) -> list[Any]:
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


def run_fit(asked: Any, folder: Path, resuming: bool, quiet: bool, devices: int | None, log: list[str]) -> None:
    """Fit what the settings ask for, and leave the folder behind.

    :param asked: the :class:`~pyro_dgm.cli.fitted.FitSettings`; what was left open in them is filled in.
    :param resuming: whether the run in the folder goes on.
    """
    import pyro_dgm
    from pyro_dgm.cli.errors import bad_usage_if_raised
    from pyro_dgm.cli.fit_report import report
    from pyro_dgm.cli.fitted import CHECKPOINTS, save_fitted, write_settings
    from pyro_dgm.cli.terminal import console
    from pyro_dgm.infer.train.distributed import started_rank
    from pyro_dgm.ops.arguments import check_device

    out = console()
    out.quiet = started_rank() > 0  # of several processes one speaks and writes
    with bad_usage_if_raised("--device"):
        if asked.device != "auto":
            check_device(asked.device)
    prepare = _prepare_family if asked.recipe is None else _prepare_recipe
    data, program, training = prepare(asked, resuming, out)
    held_out = 0 if data.validation is None else len(data.validation)
    out.print(
        f"{data.note}; train {len(data.train)}, validation {held_out}, test {len(data.test)}",
        soft_wrap=True,
        markup=False,
    )
    run = pyro_dgm.fit(
        program,
        data.train,
        transform=data.transform,
        validation=data.validation,
        devices=devices,
        **{name: getattr(asked, name) for name in PASSED_ON},
        **training,
        loggers=make_loggers(log, folder),
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
    if asked.recipe is not None:
        _keep_best(run, out)
    save_fitted(run, asked, folder, data, **report(run, data, asked, out))
    out.print(f"wrote {folder}/weights.safetensors and {folder}/config.json")
    if asked.recipe is not None:
        from pyro_dgm.cli.fit_report import draw

        draw(run.program, data, folder, asked.seed, out)


def _keep_best(run: Any, out: Any) -> None:
    """Put back the weights of the epoch that was best on validation data: small tables are soon fitted too closely."""
    from pyro_dgm.infer import load_weights

    if run.monitor == "validation" and run.best_checkpoint is not None and run.best.epoch < run.epochs:
        load_weights(run.program, run.best_checkpoint)
        out.print(
            f"validation was best in epoch {run.best.epoch} of {run.epochs}, {run.best.value:.3f}: its weights are kept"
        )


class _SettingsWriter:
    """Writes the settings when training begins, so that a killed run can be resumed."""

    def __init__(self, write: Callable[[], None]) -> None:
        self.write = write

    def on_fit_start(self, run: Any) -> None:
        if run.rank == 0:
            self.write()


def _prepare_family(asked: Any, resuming: bool, out: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Data, program and further arguments of a fit of a family under an objective."""
    import functools
    import inspect

    import torch

    import pyro_dgm
    from pyro_dgm.cli.build import build_family, family_arguments, is_flat
    from pyro_dgm.cli.errors import bad_usage_if_raised
    from pyro_dgm.cli.specs import parse_objective
    from pyro_dgm.ops.random_state import forked_rng

    objective = parse_objective(asked.objective, asked.num_particles)
    is_flat(asked.family)  # a name that there is
    if not resuming and asked.binarize is None:
        default = inspect.signature(pyro_dgm.models.FAMILIES[asked.family].__init__).parameters.get("likelihood")
        asked.binarize = _default_binarization(
            asked.dataset, asked.family_arguments.get("likelihood", default.default if default is not None else None)
        )
    data = asked.data()
    if not resuming:
        asked.family_arguments = family_arguments(asked.family, data.event_shape, asked.family_arguments)
    with forked_rng(seed=asked.seed):
        program = build_family(asked.family, asked.family_arguments)
    with bad_usage_if_raised("the data do not fit the family"):
        program.check_batch(data.train if data.transform is None else data.transform(data.train[:1000]))
    asked.family_arguments = program.config()
    return data, program, {"objective": objective, "optimizer": functools.partial(torch.optim.Adam, lr=asked.lr)}


def _prepare_recipe(asked: Any, resuming: bool, out: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Data, program and further arguments of a fit of a recipe."""
    import torch

    from pyro_dgm import recipes
    from pyro_dgm.cli.errors import UsageError, bad_usage_if_raised
    from pyro_dgm.models import FlowModel
    from pyro_dgm.ops.random_state import forked_rng
    from pyro_dgm.recipes.base import check_names

    name, hyper = asked.recipe["name"], asked.recipe["hyperparameters"]
    with bad_usage_if_raised("recipe"):
        check_names(name, hyper)
    known = recipes.RECIPES[name].hyperparameters
    if asked.file is None and asked.binarize is None and not resuming:
        asked.binarize = _default_binarization(asked.dataset, hyper.get("likelihood", known.get("likelihood")))
    if known.get("dequantize") and hyper.get("dequantize", "") is not None:
        _ask_for_integers(asked, hyper, resuming)
    data = asked.data()
    binary = bool(((data.train == 0) | (data.train == 1)).all()) or data.transform is not None
    if "likelihood" in known and "likelihood" not in hyper and not binary:
        hyper["likelihood"] = "gaussian"
        out.print("the data are not binary: likelihood=gaussian", markup=False)
    with bad_usage_if_raised(f"recipe {name}"), forked_rng(seed=asked.seed):
        made = recipes.get(name, data.event_shape, hyperparameters=hyper)
    with bad_usage_if_raised("the data do not fit the recipe"):
        made.program.check_batch(data.train if data.transform is None else data.transform(data.train[:1000]))
    if isinstance(made.program, FlowModel) and made.program.dequantize is None:
        still = torch.nonzero(data.train.flatten(1).std(0) == 0).flatten().tolist()
        if still:
            which = f"column {data.columns[still[0]]!r}" if data.columns else f"element {still[0]} of the data"
            raise UsageError(
                f"{data.name}: {which} has one value only, and so no density; take others"
                + (" with --columns" if data.columns else ", or an autoencoder")
            )
    if isinstance(made.program, FlowModel) and not resuming:
        made.program.initialize(data.train[:1000])  # location and scale of the data
    asked.recipe = made.config()
    asked.family, asked.objective = type(made.program).__name__, repr(made.objective)
    training = dict(made.training)
    asked.batch_size, asked.lr = training.pop("batch_size"), made.hyperparameters["learning_rate"]
    return data, made.program, training


def _ask_for_integers(asked: Any, hyper: dict[str, Any], resuming: bool) -> None:
    """Of a recipe over integers: pixels of a data set as integers, a file as it is."""
    if resuming:
        return
    if asked.file is not None:
        asked.standardize = bool(asked.standardize)
    elif asked.dataset in GREY_LEVELS:
        asked.num_levels = hyper["num_levels"] = GREY_LEVELS[asked.dataset]


def _default_binarization(dataset: str, likelihood: Any) -> str | None:
    name = likelihood["name"] if isinstance(likelihood, dict) else likelihood
    return {"digits": "threshold", "mnist": "dynamic"}.get(dataset) if name == "bernoulli" else None
